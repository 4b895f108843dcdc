//! Probes: [`machine`] counts and times them without I/O, [`run`] tries them.
mod http;
pub mod machine;
pub mod run;

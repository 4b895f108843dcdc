//! Probes: [`machine`] counts and times them without I/O, [`run`] tries them.
pub mod machine;
pub mod run;

//! End-to-end scenarios on a real lab: the real programs, a real kernel, real faults.
//!
//! One lab serves all scenarios, one after the other, so this is a program of its own rather than
//! libtest's: it prints the same lines. `cargo test -p trellis-lab --test e2e -- NAME…` runs the
//! scenarios whose name contains one of the words. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod cluster;
mod harness;
mod pty;
mod scenarios;
mod web_server;

fn main() -> std::process::ExitCode {
    harness::main(scenarios::ALL)
}

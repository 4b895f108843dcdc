//! `trellis-shim`: one process per Pod. It holds the Pod's namespaces, is the parent of its
//! containers, writes their logs and remembers their exit codes; it outlives the node agent.
//!
//! Single-threaded, no async runtime: a poll loop ([`server`]). Work that takes long or changes
//! the process (libcontainer writes its own oom_score_adj, dumpable flag, working directory) is done by
//! short-lived forked helpers ([`create`], [`exec`]), so that the shim stays small and never blocks.
//!
//! The shim is the first process of a PID namespace of its own: whoever kills it kills, by the
//! kernel's hand, every process of the Pod, and its mount namespace takes all mounts along. No
//! container lives in that namespace: each has one of its own below it, or all share one. What
//! is left then (cgroups, a folder) `trellis_sandbox::cleanup` removes.
//!
//! ```text
//! container: (absent) -create-> Created -start-> Running -exit-> Exited -delete-> (absent)
//!                                  \------------exit------------/
//! ```
#![forbid(unsafe_code)]

mod clock;
mod conn;
mod container;
mod create;
mod daemon;
mod diagnostics;
mod exec;
mod filter;
mod helper;
mod logs;
mod reap;
mod reason;
mod requests;
mod server;
mod spec;
mod state;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // It is executed from a descriptor, whose number the kernel takes for its name.
    let _ = rustix::thread::set_name(c"trellis-shim");
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["run"] => match daemon::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("trellis-shim: {e}");
                ExitCode::FAILURE
            }
        },
        ["--version" | "version"] => {
            println!("trellis-shim {} (protocol {})", env!("CARGO_PKG_VERSION"), trellis_shim_protocol::VERSION);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: trellis-shim run < sandbox.json\nIt is started by trellis-node-agent, one for each Pod.");
            ExitCode::from(2)
        }
    }
}

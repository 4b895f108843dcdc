//! `trellis`, the command line: data on stdout, messages on stderr.
//!
//! Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 not found; 4 conflict or already
//! there; 5 the control plane or a node cannot be reached; 124 a wait ran out of time; `exec`
//! passes on the exit code of what it ran.
#![forbid(unsafe_code)]
// Doc comments of arguments are their help texts: brackets in them are the grammar's, not links.
#![allow(rustdoc::broken_intra_doc_links)]

mod cli;
mod duration;
mod error;
mod machine;
mod manifest;
mod output;
mod session;
mod target;
mod verbs;
mod yaml;

use std::process::ExitCode;

use clap::FromArgMatches;

fn main() -> ExitCode {
    trellis_proto::tls::install_crypto();
    let parsed = cli::command().try_get_matches().and_then(|m| cli::Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            // Nothing better can be done when the terminal is gone.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(error::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            eprintln!("error: the async runtime cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(cli.run());
    // A read of stdin cannot be cancelled: do not wait for it.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let text = e.to_string();
            if !text.is_empty() {
                eprintln!("{}", output::coloured_error(&text));
            }
            ExitCode::from(e.exit_code())
        }
    }
}

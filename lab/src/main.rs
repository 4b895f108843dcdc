//! `trellis-lab`: see the library's page. This file decodes the command line and nothing else.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod vms;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::dispatch(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("trellis-lab: {error}");
            ExitCode::from(1)
        }
    }
}

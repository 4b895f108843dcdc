//! `completion`: scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::CliError;
use crate::output;

pub const EXAMPLES: &str = "Examples:
  source <(trellis completion bash)
  trellis completion zsh > ~/.zfunc/_trellis";

/// Arguments of `completion`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> Result<(), CliError> {
    let mut out = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "trellis", &mut out);
    output::print(&String::from_utf8_lossy(&out))
}

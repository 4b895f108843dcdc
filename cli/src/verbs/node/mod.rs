//! `node`: this machine as a node, without asking the cluster.

mod check;
mod reset;

use crate::error::CliError;

pub const EXAMPLES: &str = "Examples:
  trellis node check              can this machine carry a node?
  trellis node reset              undo `cluster init` or `cluster join` here";

/// Arguments of `node`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Look whether this machine can carry a node: kernel, cgroups, ports, clock, room
    Check(check::Args),
    /// End this machine's Pods and forget its cluster: configuration, keys, network, data
    Reset(reset::Args),
}

/// Does what was asked.
pub fn run(args: Args) -> Result<(), CliError> {
    match args.action {
        Action::Check(a) => check::run(&a),
        Action::Reset(a) => reset::run(&a),
    }
}

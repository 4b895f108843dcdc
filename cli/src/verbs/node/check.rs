//! `node check`: can this machine carry a node?

use std::path::PathBuf;

use trellis_proto::node_config::{NodeConfig, Role};

use crate::error::CliError;
use crate::machine::facts::{Facts, Grade, judge};
use crate::output;

/// Arguments of `node check`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What is to run here (repeatable) [default: both]
    #[arg(long, value_parser = ["control-plane", "worker"])]
    role: Vec<String>,
    /// Where the configuration is
    #[arg(long, default_value = "/etc/trellis", env = "TRELLIS_CONFIG_DIR", value_name = "DIR")]
    config_dir: PathBuf,
    /// Where the data will lie
    #[arg(long, default_value = "/var/lib/trellis", value_name = "DIR")]
    data_dir: PathBuf,
}

/// Prints a line for each thing looked at; fails when a node cannot run here.
pub fn run(args: &Args) -> Result<(), CliError> {
    let wants = |role: &str| args.role.is_empty() || args.role.iter().any(|r| r == role);
    // The ports of a machine that is a node already are taken by itself.
    let known = NodeConfig::load(&args.config_dir).ok();
    let roles: Vec<Role> = [("control-plane", Role::ControlPlane), ("worker", Role::Worker)]
        .into_iter()
        .filter(|(name, _)| wants(name))
        .map(|(_, role)| role)
        .collect();
    let mut facts = Facts::of_this_machine(&roles, &args.data_dir);
    if known.is_some() {
        facts.ports_taken.clear();
    }
    let lines = judge(&facts);
    let mut text = String::new();
    for line in &lines {
        let grade = match line.grade {
            Grade::Ok => "ok  ",
            Grade::Warn => "warn",
            Grade::Fail => "FAIL",
        };
        text.push_str(&format!("{grade}  {}\n", line.text));
    }
    if let Some(node) = known {
        text.push_str(&format!("ok    this machine is node {:?} of cluster {:?}\n", node.node_name, node.cluster_name));
    }
    output::print(&text)?;
    match lines.iter().filter(|l| l.grade == Grade::Fail).count() {
        0 => Ok(()),
        n => Err(CliError::Local(format!("this machine cannot carry a node yet: {n} of the checks failed, see above"))),
    }
}

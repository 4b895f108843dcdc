//! `cordon` and `uncordon`: whether a node takes new Pods.

use serde_json::{Value, json};
use trellis_model::Kind;

use super::{DryRun, Failures, select_all};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::session::{Session, identity};
use crate::target::Target;

pub const EXAMPLES: &str = "Examples:
  trellis cordon n1
  trellis cordon -l zone=a";
pub const UNCORDON_EXAMPLES: &str = "Examples:
  trellis uncordon n1 n2";

/// Arguments of `cordon` and `uncordon`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Nodes
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Labels of the nodes
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
}

/// Nodes by name or label; one of the two must be given.
pub fn targets(nodes: &[String], selector: &str) -> Result<Vec<Target>, CliError> {
    let strip = |n: &String| n.split_once('/').map_or(n.clone(), |(_, n)| n.to_owned());
    match (nodes.is_empty(), selector.is_empty()) {
        (true, true) => Err(CliError::Usage("name a node, or select nodes with -l".into())),
        (false, false) => Err(CliError::Usage("either nodes by name or by -l, not both".into())),
        (true, false) => Ok(vec![Target::new(Kind::Node, None)]),
        (false, true) => Ok(nodes.iter().map(|n| Target::new(Kind::Node, Some(strip(n)))).collect()),
    }
}

/// Cordons or uncordons.
pub async fn run(global: &Global, args: Args, on: bool) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let mut failures = Failures::new();
    let targets = targets(&args.nodes, &args.selector)?;
    // As kubectl: here, and for a drain, a name that means nothing stops everything.
    for (_, node) in select_all(&session, &targets, &args.selector).await? {
        failures.take(set(&session, &node, on, args.dry_run).await)?;
    }
    failures.end()
}

/// Sets spec.unschedulable of a node, and says so.
pub async fn set(session: &Session, node: &Value, on: bool, dry_run: DryRun) -> Result<(), CliError> {
    let name = identity(node).1;
    let word = if on { "cordoned" } else { "uncordoned" };
    if (node["spec"]["unschedulable"] == true) == on {
        return output::print(&format!("node/{name} already {word}\n"));
    }
    let value = if on { Value::Bool(true) } else { Value::Null };
    let patch = json!({"spec": {"unschedulable": value}});
    session.patch(Kind::Node, "", name, &patch, dry_run.is_on()).await?;
    output::print(&format!("node/{name} {word}{}\n", dry_run.suffix()))
}

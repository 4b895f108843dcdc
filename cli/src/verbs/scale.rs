//! `scale`: the number of replicas.

use serde_json::json;
use trellis_model::Kind;

use super::choice::Choice;
use super::{DryRun, Failures, select};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::session::{Session, identity};

pub const EXAMPLES: &str = "Examples:
  trellis scale deploy/web --replicas=5
  trellis scale deploy web api --replicas=0
  trellis scale deploy --all --replicas=0
  trellis scale deploy/web --current-replicas=5 --replicas=3";

/// Arguments of `scale`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TYPE NAME… or TYPE/NAME…
    #[arg(value_name = "RESOURCE", required = true)]
    resources: Vec<String>,
    /// How many
    #[arg(long)]
    replicas: u32,
    /// Only if there are so many wanted now
    #[arg(long)]
    current_replicas: Option<u32>,
    /// Labels of the objects
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
}

/// Sets spec.replicas.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let choice = Choice { labels: &args.selector, all: args.all, ..Choice::default() };
    let targets = choice.targets(&args.resources)?;
    if let Some(t) = targets.iter().find(|t| !matches!(t.kind, Kind::Deployment | Kind::ReplicaSet)) {
        return Err(CliError::Usage(format!("a {} has no replicas: scale a deployment or replicaset", t.kind)));
    }
    let mut failures = Failures::new();
    for (kind, object) in select(&session, &targets, &args.selector, &mut failures).await? {
        let (namespace, name) = identity(&object);
        let mut patch = json!({"spec": {"replicas": args.replicas}});
        let now = object["spec"]["replicas"].as_u64().unwrap_or(1);
        if let Some(expected) = args.current_replicas {
            if u64::from(expected) != now {
                let e = format!("expected replicas to be {expected}, was {now}");
                failures.add(&CliError::Local(e));
                continue;
            }
            patch["metadata"] = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
        }
        let patched = session.patch(kind, namespace, name, &patch, args.dry_run.is_on()).await;
        if let Some(o) = failures.take(patched)? {
            output::print(&format!("{} scaled{}\n", output::name_of(kind, &o), args.dry_run.suffix()))?;
        }
    }
    failures.end()
}

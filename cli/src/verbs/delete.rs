//! `delete`: objects by name, selector or manifest.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use trellis_model::Kind;

use super::choice::Choice;
use super::until::{self, Awaited};
use super::{DryRun, Failures};
use crate::cli::Global;
use crate::duration;
use crate::error::CliError;
use crate::manifest::{self, Loaded, Source, Validate};
use crate::output;
use crate::session::{Deletion, Query, Session, identity};

pub const EXAMPLES: &str = "Examples:
  trellis delete pod web-1
  trellis delete deploy/web
  trellis delete -f web.yaml --ignore-not-found
  trellis delete pods -l app=web --grace-period=1";

/// Arguments of `delete`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TYPE NAME… or TYPE/NAME…
    #[arg(value_name = "RESOURCE")]
    resources: Vec<String>,
    #[command(flatten)]
    source: Source,
    /// Labels of the objects
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Seconds that Pods may take to end; 0 counts as 1 without --force
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    grace_period: Option<i64>,
    /// End now: a grace period of 1
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// With --grace-period=0: do not wait for the node to confirm
    #[arg(long)]
    force: bool,
    /// Wait until the objects are gone
    #[arg(long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    wait: bool,
    /// How long to wait; 0: without end
    #[arg(long, value_parser = duration::limit, default_value = "0", allow_hyphen_values = true)]
    timeout: Duration,
    /// A missing object is no error
    #[arg(long)]
    ignore_not_found: bool,
    /// What becomes of dependents: background or orphan
    #[arg(long, default_value = "background", value_parser = ["background", "orphan"])]
    cascade: String,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
}

/// Deletes, and waits until they are gone.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let how = deletion(&args)?;
    let (victims, unusable) = victims(&session, &args).await?;
    let mut failures = Failures::of(&unusable);
    if victims.is_empty() && unusable.is_empty() {
        eprintln!("No resources found");
        return Ok(());
    }
    let mut leaving = Vec::new();
    for (kind, namespace, name) in victims {
        match session.delete(kind, &namespace, &name, &how).await {
            Ok((removed, uid)) => {
                let from = match kind.namespaced() {
                    true => format!(" from {namespace} namespace"),
                    false => String::new(),
                };
                let forced = if args.force { " force" } else { "" };
                output::print(&format!(
                    "{} {name:?}{forced} deleted{from}{}\n",
                    kind.qualified_singular(),
                    args.dry_run.suffix()
                ))?;
                if !removed && !args.dry_run.is_on() {
                    leaving.push(Awaited::new(kind, &namespace, &name, &uid));
                }
            }
            Err(e) if args.ignore_not_found && e.is_not_found() => {}
            Err(e) => failures.add(&e),
        }
    }
    if args.wait && !args.force {
        let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
        let late = until::until(&session, leaving, "", deadline, |a, now| Ok(a.is_gone(now))).await?;
        for a in late {
            failures.add(&CliError::Timeout(format!("waiting for {} to be gone", a.id())));
        }
    }
    failures.end()
}

fn deletion(args: &Args) -> Result<Deletion, CliError> {
    let grace = match (args.now, args.force, args.grace_period) {
        (true, ..) => Some(1),
        (_, true, None) => Some(0),
        // As kubectl: without --force the node's word is waited for.
        (_, false, Some(0)) => Some(1),
        (_, _, g) => g.filter(|g| *g >= 0),
    };
    if args.force {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    }
    Ok(Deletion {
        grace_period_seconds: grace,
        orphan: args.cascade == "orphan",
        dry_run: args.dry_run.is_on(),
        uid: String::new(),
    })
}

/// Kind, namespace and name.
type Victim = (Kind, String, String);

/// What is to go, and why some of the manifests name nothing that could.
async fn victims(session: &Session, args: &Args) -> Result<(Vec<Victim>, Vec<CliError>), CliError> {
    let id = |kind: Kind, o: &Value| {
        let (ns, name) = identity(o);
        (kind, ns.to_owned(), name.to_owned())
    };
    let choice = Choice { labels: &args.selector, all: args.all, ..Choice::default() };
    if !args.source.filename.is_empty() {
        choice.of_manifests(&args.resources)?;
        let Loaded { manifests, unusable } = manifest::load(&args.source, session, Validate::Ignore)?;
        return Ok((manifests.iter().map(|m| id(m.kind, &m.object)).collect(), unusable));
    }
    let mut out = Vec::new();
    for t in choice.targets(&args.resources)? {
        match t.name {
            Some(name) => out.push((t.kind, session.namespace.clone(), name)),
            None => {
                let query = Query {
                    namespace: session.namespace_for(t.kind, false),
                    labels: args.selector.clone(),
                    ..Default::default()
                };
                let (items, _) = session.list(t.kind, &query).await?;
                out.extend(items.iter().map(|o| id(t.kind, o)));
            }
        }
    }
    Ok((out, Vec::new()))
}

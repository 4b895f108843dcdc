//! `drain`: cordon a node, then move its Pods elsewhere.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use trellis_model::Kind;

use super::until::{self, Awaited};
use super::{DryRun, Failures, cordon, select_all};
use crate::cli::Global;
use crate::duration;
use crate::error::CliError;
use crate::output;
use crate::session::{Deletion, Query, Session, identity};

pub const EXAMPLES: &str = "Examples:
  trellis drain n1
  trellis drain n1 --delete-emptydir-data --force --timeout=60s";

/// Arguments of `drain`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Nodes
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Labels of the nodes
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Also Pods that nothing will make again
    #[arg(long)]
    force: bool,
    /// Also Pods with emptyDir volumes, whose data is lost
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Accepted for kubectl's sake: there are no DaemonSets
    #[arg(long)]
    ignore_daemonsets: bool,
    /// Seconds that Pods may take to end; -1: their own
    #[arg(long, default_value = "-1", allow_negative_numbers = true)]
    grace_period: i64,
    /// Only Pods with these labels
    #[arg(long, default_value = "", hide_default_value = true)]
    pod_selector: String,
    /// How long to wait; 0: without end
    #[arg(long, value_parser = duration::limit, default_value = "0", allow_hyphen_values = true)]
    timeout: Duration,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
}

/// Why a Pod stays in the way of a drain.
fn obstacle(pod: &Value, args: &Args) -> Option<&'static str> {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let managed = owners.into_iter().flatten().any(|o| o["controller"] == true);
    let volumes = pod["spec"]["volumes"].as_array();
    let local = volumes.into_iter().flatten().any(|v| v["emptyDir"].is_object());
    match (managed, local) {
        (false, _) if !args.force => Some("cannot delete Pods that declare no controller (use --force to override)"),
        (_, true) if !args.delete_emptydir_data => {
            Some("cannot delete Pods with local storage (use --delete-emptydir-data to override)")
        }
        _ => None,
    }
}

/// What --force takes along for good.
fn warning(pods: &[Value]) -> Option<String> {
    let owned =
        |p: &Value| p["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|o| o["controller"] == true);
    let names: Vec<String> = pods
        .iter()
        .filter(|p| !owned(p))
        .map(|p| {
            let (ns, name) = identity(p);
            format!("{ns}/{name}")
        })
        .collect();
    (!names.is_empty()).then(|| format!("deleting Pods that declare no controller: {}", names.join(", ")))
}

/// Drains each node.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let targets = cordon::targets(&args.nodes, &args.selector)?;
    let nodes = select_all(&session, &targets, &args.selector).await?;
    for (_, node) in &nodes {
        cordon::set(&session, node, true, args.dry_run).await?;
    }
    for (_, node) in &nodes {
        drain(&session, identity(node).1, &args).await?;
    }
    Ok(())
}

async fn drain(session: &Session, node: &str, args: &Args) -> Result<(), CliError> {
    let query = Query {
        namespace: None,
        name: None,
        labels: args.pod_selector.clone(),
        fields: format!("spec.nodeName={node}"),
    };
    let (pods, _) = session.list(Kind::Pod, &query).await?;
    let full = |p: &Value| {
        let (ns, name) = identity(p);
        format!("{ns}/{name}")
    };
    let stuck: Vec<String> =
        pods.iter().filter_map(|p| obstacle(p, args).map(|why| format!("{why}: {}", full(p)))).collect();
    if !stuck.is_empty() {
        return Err(CliError::Local(format!(
            "unable to drain node {node:?}:\n  {}\nThe node stays cordoned; `trellis uncordon {node}` lets Pods onto it again.",
            stuck.join("\n  ")
        )));
    }
    if let Some(lost) = warning(&pods) {
        eprintln!("Warning: {lost}");
    }
    let mut leaving = Vec::new();
    for pod in &pods {
        let (namespace, name) = identity(pod);
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let how = Deletion {
            grace_period_seconds: Some(args.grace_period).filter(|g| *g >= 0),
            uid: uid.clone(),
            dry_run: args.dry_run.is_on(),
            orphan: false,
        };
        output::print(&format!("evicting pod {}{}\n", full(pod), args.dry_run.suffix()))?;
        match session.delete(Kind::Pod, namespace, name, &how).await {
            Ok(_) => leaving.push(Awaited::new(Kind::Pod, namespace, name, &uid)),
            // Gone or replaced meanwhile: what was wanted.
            Err(e) if e.is_not_found() || e.is_conflict() => {}
            Err(e) => return Err(e),
        }
    }
    if args.dry_run.is_on() {
        return Ok(());
    }
    let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
    let late = until::until(session, leaving, &query.fields, deadline, |a, now| {
        let gone = a.is_gone(now);
        if gone {
            output::print(&format!("{} evicted\n", a.id()))?;
        }
        Ok(gone)
    });
    let mut failures = Failures::new();
    for a in late.await? {
        failures.add(&CliError::Timeout(format!("waiting for {} of {} to be gone", a.id(), a.namespace)));
    }
    failures.end()?;
    output::print(&format!("node/{node} drained\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct P {
        #[command(flatten)]
        a: Args,
    }

    #[test]
    fn obstacles() {
        let careful = P::parse_from(["x", "n"]).a;
        let bold = P::parse_from(["x", "n", "--force", "--delete-emptydir-data"]).a;
        let bare = json!({"status":{"phase":"Running"}});
        let owned = json!({"metadata":{"ownerReferences":[{"controller":true}]}});
        let local = json!({"metadata":{"ownerReferences":[{"controller":true}]},"spec":{"volumes":[{"emptyDir":{}}]}});
        let over = json!({"status":{"phase":"Succeeded"}});
        assert!(obstacle(&bare, &careful).unwrap().contains("--force"));
        assert!(obstacle(&local, &careful).unwrap().contains("--delete-emptydir-data"));
        assert_eq!(obstacle(&owned, &careful), None);
        assert_eq!(obstacle(&over, &careful), None);
        assert!([bare, local].iter().all(|p| obstacle(p, &bold).is_none()));
    }
}

//! `rollout`: the state of a Deployment's roll-out, doing it again, and what went before.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use trellis_model::Kind;

use super::until::{self, Awaited};
use super::{Failures, condition, select};
use crate::cli::Global;
use crate::duration;
use crate::error::CliError;
use crate::output::{self, columns, table};
use crate::session::{Query, Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis rollout status deploy/web --timeout=60s
  trellis rollout restart deploy/web
  trellis rollout pause deploy/web
  trellis rollout resume deploy/web
  trellis rollout history deploy/web
  trellis rollout undo deploy/web";

/// Which of its revisions a ReplicaSet or Deployment is at.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Set by `restart`; a changed template is a new roll-out.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

/// Arguments of `rollout`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Wait until it is through
    Status {
        /// deployment NAME or deployment/NAME
        #[arg(value_name = "RESOURCE", required = true)]
        resources: Vec<String>,
        /// Wait
        #[arg(short, long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        watch: bool,
        /// How long to wait; 0: until the progress deadline
        #[arg(long, value_parser = duration::limit, default_value = "0", allow_hyphen_values = true)]
        timeout: Duration,
    },
    /// Replace every Pod, one after the other
    Restart {
        /// deployment NAME or deployment/NAME
        #[arg(value_name = "RESOURCE", required = true)]
        resources: Vec<String>,
    },
    /// Let changes of the template wait
    Pause {
        /// deployment NAME or deployment/NAME
        #[arg(value_name = "RESOURCE", required = true)]
        resources: Vec<String>,
    },
    /// Roll out what waits, and what comes
    Resume {
        /// deployment NAME or deployment/NAME
        #[arg(value_name = "RESOURCE", required = true)]
        resources: Vec<String>,
    },
    /// List the revisions
    History {
        /// deployment NAME or deployment/NAME
        #[arg(value_name = "RESOURCE", required = true)]
        resources: Vec<String>,
    },
    /// Go back to the revision before, or another
    Undo {
        /// deployment NAME or deployment/NAME
        #[arg(value_name = "RESOURCE", required = true)]
        resources: Vec<String>,
        /// The revision; 0: the one before
        #[arg(long, default_value = "0")]
        to_revision: u64,
    },
}

/// Does what was asked for each Deployment.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let resources = match &args.action {
        Action::Status { resources, .. }
        | Action::Restart { resources }
        | Action::Pause { resources }
        | Action::Resume { resources }
        | Action::History { resources }
        | Action::Undo { resources, .. } => resources,
    };
    let targets = target::parse(resources)?;
    if let Some(t) = targets.iter().find(|t| t.kind != Kind::Deployment) {
        return Err(CliError::Usage(format!("a {} has no roll-outs: name a deployment", t.kind)));
    }
    let mut failures = Failures::new();
    for (_, object) in select(&session, &targets, "", &mut failures).await? {
        let done = match &args.action {
            Action::Status { watch, timeout, .. } => status(&session, &object, *watch, *timeout).await,
            Action::Restart { .. } => restart(&session, &object).await,
            Action::Pause { .. } => pause(&session, &object, true).await,
            Action::Resume { .. } => pause(&session, &object, false).await,
            Action::History { .. } => history(&session, &object).await,
            Action::Undo { to_revision, .. } => undo(&session, &object, *to_revision).await,
        };
        failures.take(done)?;
    }
    failures.end()
}

/// kubectl's words for where a roll-out stands; true: it is through.
fn progress(d: &Value) -> Result<(String, bool), String> {
    let name = identity(d).1;
    let n = |v: &Value| v.as_i64().unwrap_or(0);
    let status = &d["status"];
    if n(&d["metadata"]["generation"]) > n(&status["observedGeneration"]) {
        return Ok(("Waiting for deployment spec update to be observed...".to_owned(), false));
    }
    if condition(d, "Progressing").is_some_and(|c| c["reason"] == "ProgressDeadlineExceeded") {
        return Err(format!("deployment {name:?} exceeded its progress deadline"));
    }
    let wanted = d["spec"]["replicas"].as_i64().unwrap_or(1);
    let (updated, total, available) =
        (n(&status["updatedReplicas"]), n(&status["replicas"]), n(&status["availableReplicas"]));
    let waiting = format!("Waiting for deployment {name:?} rollout to finish:");
    Ok(if updated < wanted {
        (format!("{waiting} {updated} out of {wanted} new replicas have been updated..."), false)
    } else if total > updated {
        (format!("{waiting} {} old replicas are pending termination...", total - updated), false)
    } else if available < updated {
        (format!("{waiting} {available} of {updated} updated replicas are available..."), false)
    } else {
        (format!("deployment {name:?} successfully rolled out"), true)
    })
}

async fn status(session: &Session, object: &Value, watch: bool, timeout: Duration) -> Result<(), CliError> {
    let (namespace, name) = identity(object);
    let deadline = (!timeout.is_zero()).then(|| Instant::now() + timeout);
    let mut said = String::new();
    let awaited = Awaited::new(Kind::Deployment, namespace, name, "");
    let late = until::until(session, vec![awaited], "", deadline, |a, now| {
        let d = now.ok_or_else(|| CliError::not_found(a.kind, &a.name))?;
        let (text, done) = progress(d).map_err(CliError::Local)?;
        if text != said {
            output::print(&format!("{text}\n"))?;
            said = text;
        }
        Ok(done || !watch)
    });
    match late.await?.is_empty() {
        true => Ok(()),
        false => Err(CliError::Timeout(format!("waiting for deployment {name:?} to roll out"))),
    }
}

async fn restart(session: &Session, object: &Value) -> Result<(), CliError> {
    not_paused(object, "restart")?;
    let (namespace, name) = identity(object);
    let now = Timestamp::now().to_string();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now}}}}});
    session.patch(Kind::Deployment, namespace, name, &patch, false).await?;
    output::print(&format!("deployment.apps/{name} restarted\n"))
}

async fn pause(session: &Session, object: &Value, wanted: bool) -> Result<(), CliError> {
    let (namespace, name) = identity(object);
    if is_paused(object) == wanted {
        let word = if wanted { "already paused" } else { "is not paused" };
        return Err(CliError::Local(format!("deployments.apps {name:?} {word}")));
    }
    session.patch(Kind::Deployment, namespace, name, &json!({"spec": {"paused": wanted}}), false).await?;
    output::print(&format!("deployment.apps/{name} {}\n", if wanted { "paused" } else { "resumed" }))
}

fn is_paused(deployment: &Value) -> bool {
    deployment["spec"]["paused"] == true
}

/// Neither what restarts nor what goes back would be rolled out.
fn not_paused(object: &Value, what: &str) -> Result<(), CliError> {
    let name = identity(object).1;
    match is_paused(object) {
        false => Ok(()),
        true => Err(CliError::Local(format!(
            "you cannot {what} a paused deployment; resume it first with `trellis rollout resume deployment/{name}`"
        ))),
    }
}

/// The Deployment's ReplicaSets by revision.
async fn revisions(session: &Session, object: &Value) -> Result<Vec<(u64, Value)>, CliError> {
    let uid = &object["metadata"]["uid"];
    let query = Query {
        namespace: Some(identity(object).0.to_owned()),
        labels: columns::selector(&object["spec"]["selector"]),
        ..Default::default()
    };
    let (sets, _) = session.list(Kind::ReplicaSet, &query).await?;
    let mut out: Vec<(u64, Value)> = sets
        .into_iter()
        .filter(|r| {
            let owners = r["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().any(|o| o["uid"] == *uid)
        })
        .filter_map(|r| {
            let n = r["metadata"]["annotations"][REVISION].as_str()?.parse().ok()?;
            Some((n, r))
        })
        .collect();
    out.sort_by_key(|(n, _)| *n);
    Ok(out)
}

async fn history(session: &Session, object: &Value) -> Result<(), CliError> {
    let rows: Vec<Vec<String>> = revisions(session, object)
        .await?
        .into_iter()
        .map(|(n, r)| {
            let cause = r["metadata"]["annotations"]["kubernetes.io/change-cause"].as_str();
            vec![n.to_string(), cause.unwrap_or("<none>").to_owned()]
        })
        .collect();
    let name = identity(object).1;
    output::print(&format!("deployment.apps/{name} \n{}\n", table::render(["REVISION", "CHANGE-CAUSE"], &rows)))
}

async fn undo(session: &Session, object: &Value, to: u64) -> Result<(), CliError> {
    not_paused(object, "rollback")?;
    let (namespace, name) = identity(object);
    let all = revisions(session, object).await?;
    let wanted = match to {
        0 => all.iter().rev().nth(1),
        n => all.iter().find(|(r, _)| *r == n),
    };
    let Some((n, set)) = wanted else {
        let known: Vec<String> = all.iter().map(|(n, _)| n.to_string()).collect();
        let asked = if to == 0 { "a former revision".to_owned() } else { format!("revision {to}") };
        return Err(CliError::Local(format!(
            "unable to find {asked} of deployment {name:?}: it has {}",
            known.join(", ")
        )));
    };
    let mut template = set["spec"]["template"].clone();
    if let Some(l) = template["metadata"]["labels"].as_object_mut() {
        l.shift_remove("pod-template-hash");
    }
    if template == object["spec"]["template"] {
        let why = format!("current template already matches revision {n}");
        return output::print(&format!("deployment.apps/{name} skipped rollback ({why})\n"));
    }
    // A merge patch adds; what the other template has not must go by null.
    let patch = json!({"metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
        "spec": {"template": replacing(&object["spec"]["template"], &template)}});
    session.patch(Kind::Deployment, namespace, name, &patch, false).await?;
    output::print(&format!("deployment.apps/{name} rolled back to revision {n}\n"))
}

/// The merge patch that turns `from` into `to`.
fn replacing(from: &Value, to: &Value) -> Value {
    match (from, to) {
        (Value::Object(a), Value::Object(b)) => {
            let gone = a.keys().filter(|k| !b.contains_key(*k)).map(|k| (k.clone(), Value::Null));
            let null = Value::Null;
            let kept = b.iter().map(|(k, v)| (k.clone(), replacing(a.get(k).unwrap_or(&null), v)));
            Value::Object(gone.chain(kept).collect())
        }
        _ => to.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn words() {
        let d = |status: Value| json!({"metadata":{"name":"web","generation":2},"spec":{"replicas":3},"status":status});
        let say = |s: Value| progress(&d(s)).unwrap();
        assert!(!say(json!({"observedGeneration":1})).1);
        assert_eq!(
            say(json!({"observedGeneration":2,"updatedReplicas":1})).0,
            "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated..."
        );
        assert_eq!(
            say(json!({"observedGeneration":2,"updatedReplicas":3,"replicas":4})).0,
            "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination..."
        );
        assert_eq!(
            say(json!({"observedGeneration":2,"updatedReplicas":3,"replicas":3,"availableReplicas":2})).0,
            "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available..."
        );
        assert_eq!(
            say(json!({"observedGeneration":2,"updatedReplicas":3,"replicas":3,"availableReplicas":3})),
            ("deployment \"web\" successfully rolled out".to_owned(), true)
        );
        let late =
            json!({"observedGeneration":2,"conditions":[{"type":"Progressing","reason":"ProgressDeadlineExceeded"}]});
        assert!(progress(&d(late)).is_err());
    }

    #[test]
    fn a_patch_back() {
        let from = json!({"a":1,"b":{"x":1,"y":2}});
        let to = json!({"b":{"x":3},"c":[1]});
        let patch = replacing(&from, &to);
        let mut got = from;
        trellis_model::merge::rfc7386(&mut got, &patch);
        assert_eq!(got, to);
    }
}

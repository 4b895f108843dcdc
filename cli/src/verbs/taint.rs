//! `taint`: add, change and remove taints of nodes.

use serde_json::{Value, json};
use trellis_model::Kind;

use super::choice::Choice;
use super::{DryRun, Failures, select};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::session::{Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis taint nodes n1 dedicated=gpu:NoSchedule
  trellis taint node n1 dedicated:NoSchedule-    remove one
  trellis taint node n1 dedicated-               remove all with the key";

/// Tries when somebody else changes the node meanwhile.
const TRIES: usize = 5;

/// Arguments of `taint`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// node NAME… and KEY[=VALUE]:EFFECT to add, KEY[:EFFECT]- to remove
    #[arg(value_name = "NODE|TAINT", required = true)]
    args: Vec<String>,
    /// Replace the value of a taint that is there
    #[arg(long)]
    overwrite: bool,
    /// All nodes
    #[arg(long)]
    all: bool,
    /// Labels of the nodes
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Edit {
    Add { key: String, value: String, effect: String },
    Remove { key: String, effect: Option<String> },
}

fn edit(text: &str) -> Result<Edit, CliError> {
    let bad = || {
        CliError::Usage(format!(
            "invalid taint {text:?}: write KEY=VALUE:EFFECT or KEY:EFFECT to add, KEY:EFFECT- or KEY- to remove; EFFECT is NoSchedule, PreferNoSchedule or NoExecute"
        ))
    };
    let known = |e: &str| matches!(e, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
    let (body, remove) = text.strip_suffix('-').map_or((text, false), |t| (t, true));
    let (left, effect) = match body.split_once(':') {
        Some((l, e)) if known(e) => (l, Some(e.to_owned())),
        Some(_) => return Err(bad()),
        None => (body, None),
    };
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    if key.is_empty() {
        return Err(bad());
    }
    match (remove, effect) {
        (true, effect) => Ok(Edit::Remove { key: key.to_owned(), effect }),
        (false, Some(effect)) => Ok(Edit::Add { key: key.to_owned(), value: value.to_owned(), effect }),
        (false, None) => Err(bad()),
    }
}

/// The taints after the edits, or why they cannot be made.
fn edited(before: &[Value], edits: &[Edit], overwrite: bool) -> Result<Vec<Value>, String> {
    let mut out = before.to_vec();
    for e in edits {
        match e {
            Edit::Remove { key, effect } => {
                let count = out.len();
                out.retain(|t| t["key"] != *key || effect.as_ref().is_some_and(|e| t["effect"] != **e));
                if out.len() == count {
                    let shown = effect.as_ref().map_or(key.clone(), |e| format!("{key}:{e}"));
                    return Err(format!("taint {shown:?} not found"));
                }
            }
            Edit::Add { key, value, effect } => {
                let mut taint = json!({"key": key, "effect": effect});
                if !value.is_empty() {
                    taint["value"] = json!(value);
                }
                match out.iter_mut().find(|t| t["key"] == **key && t["effect"] == **effect) {
                    Some(_) if !overwrite => {
                        return Err(format!("already has {key} taint(s) with same effect(s) and --overwrite is false"));
                    }
                    Some(t) => *t = taint,
                    None => out.push(taint),
                }
            }
        }
    }
    Ok(out)
}

/// Edits the taints of each node.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let (resources, changes) = target::split_changes(&taint_words(&args.args));
    let choice = Choice { labels: &args.selector, all: args.all, ..Choice::default() };
    let targets = choice.targets(&resources)?;
    if targets.iter().any(|t| t.kind != Kind::Node) {
        return Err(CliError::Usage("only nodes have taints: `trellis taint node NAME …`".into()));
    }
    if changes.is_empty() {
        return Err(CliError::Usage("at least one taint update is required".into()));
    }
    let edits: Vec<Edit> = changes.iter().map(|c| edit(c)).collect::<Result<_, _>>()?;
    let mut failures = Failures::new();
    for (_, node) in select(&session, &targets, &args.selector, &mut failures).await? {
        failures.take(one(&session, identity(&node).1, &edits, &args).await)?;
    }
    failures.end()
}

/// A taint to add without value (`k:NoSchedule`) has neither `=` nor a trailing `-`: mark it.
fn taint_words(args: &[String]) -> Vec<String> {
    args.iter()
        .map(|a| match a.split_once(':') {
            Some((k, e)) if !k.contains('=') && !e.ends_with('-') => format!("{k}=:{e}"),
            _ => a.clone(),
        })
        .collect()
}

async fn one(session: &Session, name: &str, edits: &[Edit], args: &Args) -> Result<(), CliError> {
    let removed = edits.iter().all(|e| matches!(e, Edit::Remove { .. }));
    for attempt in 1.. {
        let node = session.get(Kind::Node, "", name).await?;
        let before = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let after =
            edited(&before, edits, args.overwrite).map_err(|e| CliError::Local(format!("node {name:?}: {e}")))?;
        // The revision makes a list that changed meanwhile a conflict instead of a lost taint.
        let patch = json!({
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"taints": if after.is_empty() { Value::Null } else { Value::Array(after) }},
        });
        match session.patch(Kind::Node, "", name, &patch, args.dry_run.is_on()).await {
            Ok(_) => break,
            Err(e) if e.is_conflict() && attempt < TRIES => {}
            Err(e) => return Err(e),
        }
    }
    let word = if removed { "untainted" } else { "tainted" };
    output::print(&format!("node/{name} {word}{}\n", args.dry_run.suffix()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn edits() {
        let add = |k: &str, v: &str, e: &str| Edit::Add { key: k.into(), value: v.into(), effect: e.into() };
        assert_eq!(edit("k=v:NoSchedule").unwrap(), add("k", "v", "NoSchedule"));
        assert_eq!(edit("k:NoExecute").unwrap(), add("k", "", "NoExecute"));
        assert_eq!(edit("k-").unwrap(), Edit::Remove { key: "k".into(), effect: None });
        assert_eq!(edit("k:NoExecute-").unwrap(), Edit::Remove { key: "k".into(), effect: Some("NoExecute".into()) });
        for bad in ["k", "k=v", ":NoSchedule", "k:Never", "-"] {
            assert!(edit(bad).is_err(), "{bad}");
        }
        assert_eq!(taint_words(&["k:NoSchedule".into(), "k:NoSchedule-".into()]), ["k=:NoSchedule", "k:NoSchedule-"]);
    }

    #[test]
    fn lists() {
        let a = json!({"key":"a","value":"1","effect":"NoSchedule"});
        let add = edit("a=2:NoSchedule").unwrap();
        assert!(edited(std::slice::from_ref(&a), std::slice::from_ref(&add), false).is_err());
        let got = edited(std::slice::from_ref(&a), &[add], true).unwrap();
        assert_eq!(got, [json!({"key":"a","effect":"NoSchedule","value":"2"})]);
        assert_eq!(edited(std::slice::from_ref(&a), &[edit("a-").unwrap()], false).unwrap(), Vec::<Value>::new());
        assert!(edited(&[a], &[edit("a:NoExecute-").unwrap()], false).is_err());
    }
}

//! `label` and `annotate`.

use serde_json::{Map, Value, json};

use super::choice::Choice;
use super::{DryRun, Failures, select};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::session::{Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis label pod web-1 tier=front
  trellis label pods --all canary-            remove it everywhere
  trellis label node n1 zone=b --overwrite";
pub const ANNOTATE_EXAMPLES: &str = "Examples:
  trellis annotate deploy/web owner=team-a
  trellis annotate deploy/web owner-";

/// Which map of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// metadata.labels
    Labels,
    /// metadata.annotations
    Annotations,
}

/// Arguments of `label` and `annotate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TYPE NAME… or TYPE/NAME…, then KEY=VALUE to set, KEY- to remove
    #[arg(value_name = "RESOURCE|CHANGE", required = true)]
    args: Vec<String>,
    /// Replace values that are there
    #[arg(long)]
    overwrite: bool,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Only print what is set
    #[arg(long)]
    list: bool,
    /// Labels of the objects
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
}

fn changes(words: &[String]) -> Result<Map<String, Value>, CliError> {
    let mut out = Map::new();
    for w in words {
        let (k, v) = match (w.split_once('='), w.strip_suffix('-')) {
            (Some((k, v)), _) => (k, json!(v)),
            (None, Some(k)) => (k, Value::Null),
            (None, None) => {
                return Err(CliError::Usage(format!("{w:?}: write KEY=VALUE to set, KEY- to remove")));
            }
        };
        if k.is_empty() || out.insert(k.to_owned(), v).is_some() {
            return Err(CliError::Usage(format!("{w:?}: each key once, and not empty")));
        }
    }
    Ok(out)
}

/// Changes the map of each object.
pub async fn run(global: &Global, args: Args, field: Field) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let (name, one, done) = match field {
        Field::Labels => ("labels", "label", "labeled"),
        Field::Annotations => ("annotations", "annotation", "annotated"),
    };
    let (resources, words) = target::split_changes(&args.args);
    let changes = changes(&words)?;
    // To list is to look.
    let choice = Choice { labels: &args.selector, all: args.all, type_alone: args.list, ..Choice::default() };
    let targets = choice.targets(&resources)?;
    if changes.is_empty() && !args.list {
        return Err(CliError::Usage(format!("at least one {one} update is required")));
    }
    let mut failures = Failures::new();
    for (kind, object) in select(&session, &targets, &args.selector, &mut failures).await? {
        let now = &object["metadata"][name];
        if args.list {
            for (k, v) in now.as_object().into_iter().flatten() {
                output::print(&format!("{k}={}\n", v.as_str().unwrap_or_default()))?;
            }
            continue;
        }
        let taken = changes.iter().find(|(k, v)| !v.is_null() && now[k.as_str()].is_string() && now[k.as_str()] != **v);
        if let Some((k, _)) = taken.filter(|_| !args.overwrite) {
            let value = now[k.as_str()].as_str().unwrap_or_default();
            failures.add(&CliError::Local(format!("'{k}' already has a value ({value}), and --overwrite is false")));
            continue;
        }
        let same = changes.iter().all(|(k, v)| match now.get(k) {
            Some(old) => old == v,
            None => v.is_null(),
        });
        let id = output::name_of(kind, &object);
        if same {
            output::print(&format!("{id} not {done}\n"))?;
            continue;
        }
        let (namespace, object_name) = identity(&object);
        let patch = json!({"metadata": {name: changes}});
        let patched = session.patch(kind, namespace, object_name, &patch, args.dry_run.is_on()).await;
        if failures.take(patched)?.is_some() {
            let word = match (field, changes.values().all(Value::is_null)) {
                (Field::Labels, true) => "unlabeled",
                _ => done,
            };
            output::print(&format!("{id} {word}{}\n", args.dry_run.suffix()))?;
        }
    }
    failures.end()
}

//! `wait`: until objects are as wanted.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use trellis_model::Kind;

use super::{Failures, condition};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::session::{Query, Session, identity};
use crate::target::{self, Target};

pub const EXAMPLES: &str = "Examples:
  trellis wait --for=condition=Ready pod/web-1 --timeout=30s
  trellis wait --for=condition=Available deploy --all
  trellis wait --for=delete pod -l app=web
  trellis wait --for=jsonpath='{.status.phase}'=Running pod/web-1";

const POLL: Duration = Duration::from_millis(100);

/// Arguments of `wait`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TYPE NAME… or TYPE/NAME…
    #[arg(value_name = "RESOURCE", required = true)]
    resources: Vec<String>,
    /// condition=NAME[=VALUE], jsonpath='{.a.b}'[=VALUE], create, delete
    #[arg(long = "for", value_name = "WHAT", value_parser = parse)]
    wanted: Wanted,
    /// How long
    #[arg(long, value_parser = output::columns::seconds, default_value = "30")]
    timeout: u64,
    /// Labels of the objects
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Condition(String, String),
    JsonPath(Vec<String>, Option<String>),
    Create,
    Delete,
}

fn parse(text: &str) -> Result<Wanted, String> {
    if let Some(rest) = text.strip_prefix("condition=") {
        let (name, value) = rest.split_once('=').unwrap_or((rest, "True"));
        return Ok(Wanted::Condition(name.to_owned(), value.to_owned()));
    }
    if let Some(rest) = text.strip_prefix("jsonpath=") {
        let (path, value) = match rest.rsplit_once("}=") {
            Some((p, v)) => (format!("{p}}}"), Some(v.trim_matches(['\'', '"']).to_owned())),
            None => (rest.to_owned(), None),
        };
        return Ok(Wanted::JsonPath(json_path(&path)?, value));
    }
    match text {
        "create" => Ok(Wanted::Create),
        "delete" => Ok(Wanted::Delete),
        _ => Err("expected condition=NAME[=VALUE], jsonpath='{.a.b}'[=VALUE], create or delete".to_owned()),
    }
}

/// `{.status.containerStatuses[0].ready}` as keys and indices.
fn json_path(text: &str) -> Result<Vec<String>, String> {
    let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
    let inner =
        inner.strip_prefix('.').ok_or_else(|| format!("{text:?} must begin with a dot, as in {{.status.phase}}"))?;
    let mut out = Vec::new();
    for part in inner.split('.') {
        let (name, rest) = part.split_once('[').unwrap_or((part, ""));
        if !name.is_empty() {
            out.push(name.to_owned());
        }
        for index in rest.split('[').filter(|i| !i.is_empty()) {
            let index = index.strip_suffix(']').filter(|i| i.parse::<usize>().is_ok());
            out.push(index.ok_or_else(|| format!("{text:?}: only [NUMBER] is understood"))?.to_owned());
        }
    }
    Ok(out)
}

fn at<'v>(value: &'v Value, path: &[String]) -> &'v Value {
    path.iter().fold(value, |v, key| match v {
        Value::Array(a) => key.parse::<usize>().ok().and_then(|i| a.get(i)).unwrap_or(&Value::Null),
        v => &v[key.as_str()],
    })
}

fn is_met(wanted: &Wanted, object: Option<&Value>) -> bool {
    match (wanted, object) {
        (Wanted::Delete, o) => o.is_none(),
        (Wanted::Create, o) => o.is_some(),
        (_, None) => false,
        (Wanted::Condition(name, value), Some(o)) => {
            // A status of an older generation says nothing about this one.
            let seen = o["status"]["observedGeneration"].as_i64();
            let stale = seen.is_some_and(|s| s < o["metadata"]["generation"].as_i64().unwrap_or(0));
            let status = condition(o, name).and_then(|c| c["status"].as_str());
            !stale && status.is_some_and(|s| s.eq_ignore_ascii_case(value))
        }
        (Wanted::JsonPath(path, value), Some(o)) => match (at(o, path), value) {
            (Value::Null, _) => false,
            (_, None) => true,
            (Value::String(s), Some(v)) => s == v,
            (other, Some(v)) => {
                let text = other.to_string();
                text == *v
            }
        },
    }
}

/// Waits for each object.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let targets = target::parse(&args.resources)?;
    if targets.iter().any(|t| t.name.is_none()) && !args.all && args.selector.is_empty() {
        return Err(CliError::Usage("name the objects, or use -l or --all".into()));
    }
    let mut failures = Failures::new();
    for (kind, namespace, name, uid) in objects(&session, &targets, &args, deadline).await? {
        let id = format!("{}/{name}", kind.qualified_singular());
        loop {
            let object = match session.get(kind, &namespace, &name).await {
                Ok(o) => Some(o),
                Err(e) if e.is_not_found() && matches!(args.wanted, Wanted::Delete | Wanted::Create) => None,
                // As kubectl: the others are waited for all the same.
                Err(e) => {
                    failures.add(&e);
                    break;
                }
            };
            // For deletion, another object of the same name is as good as none.
            let same = |o: &Value| uid.is_empty() || o["metadata"]["uid"] == uid.as_str();
            let object = object.filter(|o| args.wanted != Wanted::Delete || same(o));
            if is_met(&args.wanted, object.as_ref()) {
                let word = if args.wanted == Wanted::Delete { "deleted" } else { "condition met" };
                output::print(&format!("{id} {word}\n"))?;
                break;
            }
            if Instant::now() >= deadline {
                failures.add(&CliError::Timeout(format!("waiting for the condition on {id}")));
                break;
            }
            tokio::time::sleep(POLL).await;
        }
    }
    failures.end()
}

type Found = (Kind, String, String, String);

async fn objects(
    session: &Session,
    targets: &[Target],
    args: &Args,
    deadline: Instant,
) -> Result<Vec<Found>, CliError> {
    let mut out = Vec::new();
    for t in targets {
        if let Some(name) = &t.name {
            let uid = match session.get(t.kind, &session.namespace, name).await {
                Ok(o) => o["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                Err(e) if e.is_not_found() && matches!(args.wanted, Wanted::Delete | Wanted::Create) => String::new(),
                Err(e) => return Err(e),
            };
            out.push((t.kind, session.namespace.clone(), name.clone(), uid));
            continue;
        }
        let query = Query {
            namespace: session.namespace_for(t.kind, false),
            labels: args.selector.clone(),
            ..Default::default()
        };
        loop {
            let (items, _) = session.list(t.kind, &query).await?;
            out.extend(items.iter().map(|o| {
                let (ns, name) = identity(o);
                (t.kind, ns.to_owned(), name.to_owned(), o["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
            }));
            match (items.is_empty(), &args.wanted) {
                (false, _) | (true, Wanted::Delete) => break,
                (true, Wanted::Create) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                (true, Wanted::Create) => {
                    return Err(CliError::Timeout(format!("waiting for {} to be created", t.kind.plural())));
                }
                (true, _) => return Err(CliError::Local("no matching resources found".into())),
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    #[test]
    fn forms() {
        assert_eq!(parse("condition=Ready").unwrap(), Wanted::Condition("Ready".into(), "True".into()));
        assert_eq!(parse("condition=Ready=false").unwrap(), Wanted::Condition("Ready".into(), "false".into()));
        let path = |p: &[&str]| p.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            parse("jsonpath={.status.phase}=Running").unwrap(),
            Wanted::JsonPath(path(&["status", "phase"]), Some("Running".into()))
        );
        assert_eq!(parse("jsonpath={.a[0].b}").unwrap(), Wanted::JsonPath(path(&["a", "0", "b"]), None));
        for bad in ["", "Ready", "jsonpath={a}", "jsonpath={.a[*]}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn met() {
        let o = json!({"metadata":{"generation":2},"status":{"observedGeneration":2,"phase":"Running","n":3,
            "conditions":[{"type":"Ready","status":"True"}]}});
        let is = |w: &str| is_met(&parse(w).unwrap(), Some(&o));
        assert!(is("condition=Ready") && is("condition=ready=true") && !is("condition=Available"));
        assert!(is("jsonpath={.status.phase}=Running") && is("jsonpath={.status.n}=3"));
        assert!(is("jsonpath={.status.conditions[0].type}=Ready") && !is("jsonpath={.status.x}"));
        assert!(is("create") && !is("delete") && is_met(&Wanted::Delete, None));
        let mut stale = o.clone();
        stale["status"]["observedGeneration"] = json!(1);
        assert!(!is_met(&parse("condition=Ready").unwrap(), Some(&stale)));
    }
}

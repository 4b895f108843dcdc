//! `wait`: until objects are as wanted.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use trellis_proto::api::EventType;

use super::choice::Choice;
use super::until::{self, Awaited, Seen};
use super::{Failures, condition};
use crate::cli::Global;
use crate::duration;
use crate::error::CliError;
use crate::output;
use crate::session::{Query, Session, identity};
use crate::target::Target;

pub const EXAMPLES: &str = "Examples:
  trellis wait --for=condition=Ready pod/web-1 --timeout=30s
  trellis wait --for=condition=Available deploy --all
  trellis wait --for=delete pod -l app=web
  trellis wait --for=jsonpath='{.status.phase}'=Running pod/web-1";

/// Arguments of `wait`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TYPE NAME… or TYPE/NAME…
    #[arg(value_name = "RESOURCE", required = true)]
    resources: Vec<String>,
    /// condition=NAME[=VALUE], jsonpath='{.a.b}'[=VALUE], create, delete
    #[arg(long = "for", value_name = "WHAT", value_parser = parse)]
    wanted: Wanted,
    /// How long; 0: look once, negative: a week
    #[arg(long, value_parser = duration::limit, default_value = "30s", allow_hyphen_values = true)]
    timeout: Duration,
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

/// Waits for all objects, in any order.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let deadline = Instant::now() + args.timeout;
    let choice = Choice { labels: &args.selector, all: args.all, ..Choice::default() };
    let targets = choice.targets(&args.resources)?;
    let mut failures = Failures::new();
    let awaited = objects(&session, &targets, &args, deadline, &mut failures).await?;
    let late = until::until(&session, awaited, "", Some(deadline), |a, now| {
        let met = match look(&args.wanted, a, now) {
            Ok(met) => met,
            // Gone meanwhile: no other is held up by it either.
            Err(e) => {
                failures.add(&e);
                return Ok(true);
            }
        };
        if met {
            let word = if args.wanted == Wanted::Delete { "deleted" } else { "condition met" };
            output::print(&format!("{} {word}\n", a.id()))?;
        }
        Ok(met)
    });
    for a in late.await? {
        failures.add(&CliError::Timeout(format!("waiting for the condition on {}", a.id())));
    }
    failures.end()
}

/// Whether an object is as wanted; one that is not there is an error, unless that or its coming is wanted.
fn look(wanted: &Wanted, a: &Awaited, now: Option<&Value>) -> Result<bool, CliError> {
    match (wanted, now) {
        (Wanted::Delete, now) => Ok(a.is_gone(now)),
        (Wanted::Create, now) => Ok(is_met(wanted, now)),
        (_, None) => Err(CliError::not_found(a.kind, &a.name)),
        (_, now) => Ok(is_met(wanted, now)),
    }
}

async fn objects(
    session: &Session,
    targets: &[Target],
    args: &Args,
    deadline: Instant,
    failures: &mut Failures,
) -> Result<Vec<Awaited>, CliError> {
    let uid = |o: &Value| o["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let mut out = Vec::new();
    for t in targets {
        if let Some(name) = &t.name {
            let uid = match session.get(t.kind, &session.namespace, name).await {
                Ok(o) => Some(uid(&o)),
                Err(e) if e.is_not_found() && matches!(args.wanted, Wanted::Delete | Wanted::Create) => {
                    Some(String::new())
                }
                // As kubectl: the others are waited for all the same.
                Err(e) => failures.take(Err(e))?,
            };
            out.extend(uid.map(|uid| Awaited::new(t.kind, &session.namespace, name, &uid)));
            continue;
        }
        let query = Query {
            namespace: session.namespace_for(t.kind, false),
            labels: args.selector.clone(),
            ..Default::default()
        };
        if args.wanted == Wanted::Create {
            let one = until::follow(session, t.kind, &query, Some(deadline), |seen| {
                Ok(match seen {
                    Seen::All(items) => !items.is_empty(),
                    Seen::Change(c) => c.event != EventType::Deleted,
                })
            });
            if !one.await? {
                return Err(CliError::Timeout(format!("waiting for {} to be created", t.kind.plural())));
            }
        }
        let (items, _) = session.list(t.kind, &query).await?;
        if items.is_empty() && args.wanted != Wanted::Delete {
            return Err(CliError::Local("no matching resources found".into()));
        }
        out.extend(items.iter().map(|o| {
            let (ns, name) = identity(o);
            Awaited::new(t.kind, ns, name, &uid(o))
        }));
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

    #[test]
    fn what_is_not_there() {
        let awaited = Awaited::new(trellis_model::Kind::Pod, "default", "p", "1");
        let of = |uid: &str| json!({"metadata": {"uid": uid}});
        let see = |w: &str, now: Option<&Value>| look(&parse(w).unwrap(), &awaited, now).map_err(|e| e.exit_code());
        assert_eq!(see("condition=Ready", None), Err(3));
        assert_eq!(see("jsonpath={.a}", None), Err(3));
        assert_eq!((see("create", None), see("create", Some(&of("1")))), (Ok(false), Ok(true)));
        assert_eq!((see("delete", None), see("delete", Some(&of("1")))), (Ok(true), Ok(false)));
        assert_eq!(see("delete", Some(&of("2"))), Ok(true), "another object of the same name is as good as none");
    }
}

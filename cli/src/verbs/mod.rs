//! One verb per file: its arguments, its examples, and what it does.

pub mod api_resources;
pub mod apply;
mod choice;
pub mod cluster;
pub mod completion;
pub mod config;
mod container;
pub mod cordon;
pub mod create;
pub mod delete;
pub mod describe;
pub mod drain;
pub mod events;
pub mod exec;
pub mod get;
pub mod image;
pub mod label;
pub mod logs;
pub mod node;
pub mod port_forward;
pub mod rollout;
pub mod scale;
pub mod taint;
mod until;
pub mod version;
pub mod wait;
mod write;

use serde_json::Value;
use trellis_model::Kind;

use crate::error::CliError;
use crate::session::{Query, Session, identity};
use crate::target::Target;

/// Objects that the targets and the selector mean. Of those that are named and not to be had the failures are
/// told; the others are not held up by them.
async fn select(
    session: &Session,
    targets: &[Target],
    labels: &str,
    failures: &mut Failures,
) -> Result<Vec<(Kind, Value)>, CliError> {
    let mut out = Vec::new();
    for t in targets {
        match &t.name {
            Some(name) => {
                let found = failures.take(session.get(t.kind, &session.namespace, name).await)?;
                out.extend(found.map(|o| (t.kind, o)));
            }
            None => {
                let query = Query {
                    namespace: session.namespace_for(t.kind, false),
                    labels: labels.to_owned(),
                    ..Default::default()
                };
                let (items, _) = session.list(t.kind, &query).await?;
                out.extend(items.into_iter().map(|o| (t.kind, o)));
            }
        }
    }
    Ok(out)
}

/// The same, for verbs that do nothing unless each of the named is there.
async fn select_all(session: &Session, targets: &[Target], labels: &str) -> Result<Vec<(Kind, Value)>, CliError> {
    let mut failures = Failures::new();
    let found = select(session, targets, labels, &mut failures).await?;
    failures.end().map(|()| found)
}

/// The running Pod that a Pod's, Deployment's or ReplicaSet's name means: of several the first
/// that is ready.
async fn pod_of(session: &Session, kind: Kind, name: &str) -> Result<Value, CliError> {
    let object = session.get(kind, &session.namespace, name).await?;
    if kind == Kind::Pod {
        return Ok(object);
    }
    if !matches!(kind, Kind::Deployment | Kind::ReplicaSet) {
        return Err(CliError::Usage(format!("a {kind} has no Pods: name a pod, deployment or replicaset")));
    }
    let labels = crate::output::columns::selector(&object["spec"]["selector"]);
    let namespace = Some(identity(&object).0.to_owned());
    let query = Query { namespace, labels, ..Default::default() };
    let (pods, _) = session.list(Kind::Pod, &query).await?;
    let ready = |p: &&Value| condition(p, "Ready").is_some_and(|c| c["status"] == "True");
    let alive = |p: &&Value| p["metadata"]["deletionTimestamp"].is_null();
    let best = pods
        .iter()
        .filter(alive)
        .find(ready)
        .or_else(|| pods.iter().find(|p| p["status"]["phase"] == "Running"))
        .or_else(|| pods.first());
    best.cloned().ok_or_else(|| CliError::Local(format!("{} {name:?} has no Pods", kind.name())))
}

/// The exit code of errors that have none in common.
const MIXED: u8 = 1;

/// A condition of an object's status.
fn condition<'o>(object: &'o Value, type_: &str) -> Option<&'o Value> {
    let list = object["status"]["conditions"].as_array()?;
    list.iter().find(|c| c["type"].as_str().is_some_and(|t| t.eq_ignore_ascii_case(type_)))
}

/// Tells an error and goes on; the caller ends with the errors' exit code where they have one in common, with 1
/// otherwise.
struct Failures {
    code: Option<u8>,
    count: usize,
}

impl Failures {
    fn new() -> Self {
        Failures { code: None, count: 0 }
    }

    /// Begins with what was found before anything was done.
    fn of(errors: &[CliError]) -> Self {
        let mut all = Failures::new();
        errors.iter().for_each(|e| all.add(e));
        all
    }

    fn add(&mut self, e: &CliError) {
        eprintln!("{e}");
        let code = e.exit_code();
        self.code = Some(self.code.filter(|c| *c != code).map_or(code, |_| MIXED));
        self.count += 1;
    }

    /// The answer, or none after telling why. What ends everything is handed back: nobody answers, and would not
    /// to what is asked next; or the reader of our output has gone.
    fn take<T>(&mut self, result: Result<T, CliError>) -> Result<Option<T>, CliError> {
        match result {
            Ok(answer) => Ok(Some(answer)),
            Err(e) if e.is_unreachable() || matches!(e, CliError::Exit(_)) => Err(e),
            Err(e) => {
                self.add(&e);
                Ok(None)
            }
        }
    }

    /// Says before it which of several files it is about.
    fn add_of(&mut self, e: &CliError, origin: Option<&str>) {
        if let Some(origin) = origin {
            eprintln!("{origin}:");
        }
        self.add(e);
    }

    fn end(self) -> Result<(), CliError> {
        self.code.map_or(Ok(()), |code| Err(CliError::Exit(code)))
    }
}

/// Only try, on the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Really do it
    #[default]
    None,
    /// Let the server check and answer without doing it
    Server,
    /// The same: the server is asked in any case
    Client,
}

impl DryRun {
    fn is_on(self) -> bool {
        self != DryRun::None
    }

    fn suffix(self) -> &'static str {
        match self {
            DryRun::None => "",
            DryRun::Server => " (server dry run)",
            DryRun::Client => " (dry run)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn failures_end_with_the_code_that_they_have_in_common() {
        let missing = || CliError::from(Status::not_found("x"));
        let conflict = || CliError::from(Status::aborted("x"));
        let local = || CliError::Local("x".into());
        for (errors, want) in [
            (vec![], None),
            (vec![missing()], Some(3)),
            (vec![missing(), missing(), missing()], Some(3)),
            (vec![missing(), conflict()], Some(1)),
            (vec![missing(), conflict(), conflict()], Some(1)),
            (vec![local(), missing()], Some(1)),
        ] {
            let got = Failures::of(&errors).end().err().map(|e| e.exit_code());
            assert_eq!(got, want, "{errors:?}");
        }
    }

    #[test]
    fn what_one_object_lacks_holds_up_no_other_and_what_ends_everything_does() {
        let mut failures = Failures::new();
        assert!(matches!(failures.take(Ok(7)), Ok(Some(7))));
        assert!(matches!(failures.take::<()>(Err(Status::not_found("x").into())), Ok(None)));
        assert!(failures.take::<()>(Err(Status::unavailable("x").into())).is_err());
        assert!(failures.take::<()>(Err(CliError::Exit(0))).is_err());
        assert_eq!(failures.count, 1);
        assert_eq!(failures.end().err().map(|e| e.exit_code()), Some(3));
    }
}

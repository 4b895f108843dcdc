//! Waiting for objects: a list, then one watch over it, however many objects of a kind are waited for.

use serde_json::Value;
use tokio::time::Instant;
use trellis_model::Kind;
use trellis_proto::api::EventType;

use crate::error::CliError;
use crate::session::{Change, Query, Session, identity};

/// What there is, and then what becomes of it.
#[derive(Debug)]
pub enum Seen<'a> {
    /// All objects of the query: at first, and again when changes were missed.
    All(&'a [Value]),
    /// A change of one.
    Change(&'a Change),
}

/// Shows `look` what there is and every change of it, until it answers that it has seen enough (true) or the
/// deadline has come (false).
pub async fn follow(
    session: &Session,
    kind: Kind,
    query: &Query,
    deadline: Option<Instant>,
    mut look: impl FnMut(Seen<'_>) -> Result<bool, CliError>,
) -> Result<bool, CliError> {
    loop {
        let (items, revision) = session.list(kind, query).await?;
        if look(Seen::All(&items))? {
            return Ok(true);
        }
        let watched = session.watch(kind, query, revision, |change| match change.event {
            EventType::Bookmark => Ok(true),
            _ => look(Seen::Change(&change)).map(|enough| !enough),
        });
        let ended = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, watched).await,
            None => Ok(watched.await),
        };
        match ended {
            Ok(Ok(())) => return Ok(true),
            // The history went on while no member could be reached: look at everything anew.
            Ok(Err(e)) if e.is_expired() => {}
            Ok(Err(e)) => return Err(e),
            Err(_) => return Ok(false),
        }
    }
}

/// An object that something is waited for of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    pub kind: Kind,
    /// Empty where the kind has none.
    pub namespace: String,
    pub name: String,
    /// Empty: whichever has the name.
    pub uid: String,
}

impl Awaited {
    /// An object by name.
    pub fn new(kind: Kind, namespace: &str, name: &str, uid: &str) -> Self {
        let namespace = if kind.namespaced() { namespace } else { "" };
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() }
    }

    /// `pod/x`, `deployment.apps/web`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.kind.qualified_singular(), self.name)
    }

    /// That very object is there no more; another of its name is as good as none.
    pub fn is_gone(&self, now: Option<&Value>) -> bool {
        now.is_none_or(|o| !self.uid.is_empty() && o["metadata"]["uid"] != self.uid.as_str())
    }

    fn is(&self, object: &Value) -> bool {
        identity(object) == (self.namespace.as_str(), self.name.as_str())
    }
}

/// Those that are still waited for. Pure.
struct Pending(Vec<Awaited>);

impl Pending {
    /// Shows `met` what is known of them now; those that it is through with go. True: nothing is left.
    fn look<F>(&mut self, seen: &Seen<'_>, met: &mut F) -> Result<bool, CliError>
    where
        F: FnMut(&Awaited, Option<&Value>) -> Result<bool, CliError>,
    {
        let mut left = Vec::with_capacity(self.0.len());
        for awaited in self.0.drain(..) {
            let through = match seen {
                Seen::All(items) => met(&awaited, items.iter().find(|o| awaited.is(o)))?,
                Seen::Change(c) if awaited.is(&c.object) => {
                    met(&awaited, Some(&c.object).filter(|_| c.event != EventType::Deleted))?
                }
                Seen::Change(_) => false,
            };
            if !through {
                left.push(awaited);
            }
        }
        self.0 = left;
        Ok(self.0.is_empty())
    }
}

/// Waits until `met` is through with each object, which it is shown as it is (None: not there) and as it
/// becomes. `fields` may narrow what is looked at. Answers those that the deadline came before.
pub async fn until(
    session: &Session,
    awaited: Vec<Awaited>,
    fields: &str,
    deadline: Option<Instant>,
    mut met: impl FnMut(&Awaited, Option<&Value>) -> Result<bool, CliError>,
) -> Result<Vec<Awaited>, CliError> {
    let mut late = Vec::new();
    for (kind, group) in by_kind(awaited) {
        let query = query(&group, fields);
        let mut pending = Pending(group);
        follow(session, kind, &query, deadline, |seen| pending.look(&seen, &mut met)).await?;
        late.append(&mut pending.0);
    }
    Ok(late)
}

/// In the order in which the kinds come first.
fn by_kind(awaited: Vec<Awaited>) -> Vec<(Kind, Vec<Awaited>)> {
    let mut groups: Vec<(Kind, Vec<Awaited>)> = Vec::new();
    for a in awaited {
        match groups.iter_mut().find(|(kind, _)| *kind == a.kind) {
            Some((_, group)) => group.push(a),
            None => groups.push((a.kind, vec![a])),
        }
    }
    groups
}

/// As little as holds all of them: never by label, which may change while they are waited for.
fn query(group: &[Awaited], fields: &str) -> Query {
    let namespace = group.first().map(|a| a.namespace.clone()).filter(|ns| !ns.is_empty());
    let fields = match group {
        [one] if fields.is_empty() => format!("metadata.name={}", one.name),
        _ => fields.to_owned(),
    };
    Query { namespace: namespace.filter(|ns| group.iter().all(|a| a.namespace == *ns)), fields, ..Default::default() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str) -> Value {
        json!({"metadata": {"namespace": "default", "name": name, "uid": uid}})
    }

    fn awaited(name: &str) -> Awaited {
        Awaited::new(Kind::Pod, "default", name, "1")
    }

    #[test]
    fn each_is_looked_at_until_it_is_through() {
        let mut pending = Pending(vec![awaited("a"), awaited("b"), awaited("c")]);
        let mut said = Vec::new();
        let mut look = |seen: Seen<'_>| {
            let mut gone = |a: &Awaited, now: Option<&Value>| {
                let gone = a.is_gone(now);
                said.extend(gone.then(|| a.name.clone()));
                Ok(gone)
            };
            pending.look(&seen, &mut gone).unwrap()
        };
        let change = |event, object| Change { event, object };
        assert!(!look(Seen::All(&[pod("a", "1"), pod("c", "1"), pod("d", "1")])), "b is not there");
        assert!(!look(Seen::Change(&change(EventType::Modified, pod("a", "1")))));
        assert!(!look(Seen::Change(&change(EventType::Deleted, pod("d", "1")))), "nobody's");
        assert!(!look(Seen::Change(&change(EventType::Deleted, pod("c", "1")))));
        assert!(look(Seen::Change(&change(EventType::Added, pod("a", "2")))), "another of its name");
        assert_eq!(said, ["b", "c", "a"]);
    }

    #[test]
    fn as_little_as_possible_is_watched() {
        let node = Awaited::new(Kind::Node, "default", "n1", "");
        let shown = |group: &[Awaited], fields: &str| {
            let q = query(group, fields);
            (q.namespace, q.fields)
        };
        let default = Some("default".to_owned());
        assert_eq!(shown(&[awaited("a")], ""), (default.clone(), "metadata.name=a".to_owned()));
        assert_eq!(shown(&[awaited("a"), awaited("b")], ""), (default, String::new()));
        let elsewhere = Awaited::new(Kind::Pod, "other", "a", "1");
        assert_eq!(
            shown(&[awaited("a"), elsewhere.clone()], "spec.nodeName=n1"),
            (None, "spec.nodeName=n1".to_owned())
        );
        assert_eq!(shown(std::slice::from_ref(&node), ""), (None, "metadata.name=n1".to_owned()));
        let groups = by_kind(vec![awaited("a"), node.clone(), elsewhere.clone()]);
        assert_eq!(groups, [(Kind::Pod, vec![awaited("a"), elsewhere]), (Kind::Node, vec![node])]);
    }
}

//! A connection to the cluster of a context, and the calls that verbs make, with objects as JSON.

use std::time::Duration;

use serde_json::Value;
use tonic::{Response, Status};
use trellis_model::Kind;
use trellis_proto::api::resources_client::ResourcesClient;
use trellis_proto::api::{
    self, ApplyOutcome, ApplyRequest, CreateRequest, DeleteRequest, EventType, GetRequest, ListRequest, PatchRequest,
    WatchRequest,
};
use trellis_proto::client::{Chan, Connection, Contexts, MESSAGE_LIMIT_BYTES, request_id};

use crate::cli::Global;
use crate::error::CliError;

/// Objects per page of a list.
const PAGE: u32 = 500;
/// A watch that has said nothing for so long, bookmarks included, is taken up elsewhere.
const WATCH_SILENCE: Duration = Duration::from_secs(15);
/// A watch that cannot be taken up again within this time ends.
const WATCH_RETRY: Duration = Duration::from_secs(30);

/// Which objects of a kind.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// None: all namespaces.
    pub namespace: Option<String>,
    /// One object only.
    pub name: Option<String>,
    /// kubectl's syntax; empty: all.
    pub labels: String,
    /// kubectl's syntax; empty: all.
    pub fields: String,
}

/// A change that a watch tells.
#[derive(Debug)]
pub struct Change {
    /// What happened.
    pub event: EventType,
    /// The object, Null for a bookmark.
    pub object: Value,
}

/// The cluster of a context.
#[derive(Clone)]
pub struct Session {
    /// The connection.
    pub conn: Connection,
    /// The namespace of calls that name none.
    pub namespace: String,
    /// Whether the namespace was asked for with -n.
    pub namespace_given: bool,
    /// Nobody wants to hear of unknown fields.
    pub ignore_unknown: bool,
}

fn client(chan: Chan) -> ResourcesClient<Chan> {
    ResourcesClient::new(chan)
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES)
}

/// The identity of an object on the wire.
pub fn key(kind: Kind, namespace: Option<&str>, name: &str) -> api::ObjectKey {
    api::ObjectKey {
        group: kind.group().to_owned(),
        kind: kind.name().to_owned(),
        namespace: if kind.namespaced() { namespace.unwrap_or_default().to_owned() } else { String::new() },
        name: name.to_owned(),
    }
}

fn decode(object: Option<api::Object>) -> Result<Value, CliError> {
    let object = object.ok_or_else(|| Status::internal("the reply holds no object"))?;
    serde_json::from_slice(&object.json)
        .map_err(|e| Status::internal(format!("the reply's object is not JSON: {e}")).into())
}

/// What the server says of a field that the kind does not have begins so.
const UNKNOWN_FIELD: &str = "unknown field ";

/// Whether a watch that broke so, or could not be opened, is taken up again after that much silence.
fn resumes(broken: &Status, silent: Duration) -> bool {
    silent <= WATCH_RETRY && trellis_proto::status::retryable(broken)
}

impl Session {
    /// Opens the context that the arguments name.
    pub fn open(global: &Global) -> Result<Session, CliError> {
        let path = global.config.clone().unwrap_or_else(Contexts::default_path);
        let contexts = Contexts::load(&path)?;
        let (name, context) = contexts.pick(global.context.as_deref(), &path)?;
        Ok(Session {
            conn: context.connect(name)?,
            namespace: global.namespace.clone().unwrap_or_else(|| context.namespace.clone()),
            namespace_given: global.namespace.is_some(),
            ignore_unknown: false,
        })
    }

    /// Sends a request, again on another member where that is harmless.
    async fn ask<R, T, F, Fut>(&self, request: R, send: F) -> Result<T, CliError>
    where
        R: Clone,
        F: Fn(ResourcesClient<Chan>, R) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        Ok(self.conn.call(|c| send(client(c), request.clone())).await?.into_inner())
    }

    fn warn(&self, warnings: &[String]) {
        for w in warnings.iter().filter(|w| !(self.ignore_unknown && w.starts_with(UNKNOWN_FIELD))) {
            eprintln!("Warning: {w}");
        }
    }

    /// One object.
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value, CliError> {
        let request = GetRequest { key: Some(key(kind, Some(namespace), name)), consistency: 0 };
        let reply = self.ask(request, |mut c, r| async move { c.get(r).await }).await?;
        decode(reply.object)
    }

    /// All objects of the query, and the revision that they are a snapshot of.
    pub async fn list(&self, kind: Kind, query: &Query) -> Result<(Vec<Value>, u64), CliError> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let request = ListRequest {
                key: Some(key(kind, query.namespace.as_deref(), "")),
                label_selector: query.labels.clone(),
                field_selector: query.fields.clone(),
                limit: PAGE,
                continue_token: token.clone(),
                ..Default::default()
            };
            let reply = self.ask(request, |mut c, r| async move { c.list(r).await }).await?;
            for object in reply.items {
                items.push(decode(Some(object))?);
            }
            if reply.continue_token.is_empty() {
                return Ok((items, reply.revision));
            }
            token = reply.continue_token;
        }
    }

    /// Creates an object; prints warnings.
    pub async fn create(&self, kind: Kind, object: &Value, dry_run: bool) -> Result<Value, CliError> {
        let (namespace, name) = identity(object);
        let request = CreateRequest {
            key: Some(key(kind, Some(namespace), name)),
            json: object.to_string().into(),
            request_id: request_id(),
            dry_run,
        };
        let reply = self.ask(request, |mut c, r| async move { c.create(r).await }).await?;
        self.warn(&reply.warnings);
        decode(reply.object)
    }

    /// Applies a manifest; prints warnings.
    pub async fn apply(&self, kind: Kind, object: &Value, dry_run: bool) -> Result<(Value, ApplyOutcome), CliError> {
        let (namespace, name) = identity(object);
        let request = ApplyRequest {
            key: Some(key(kind, Some(namespace), name)),
            json: object.to_string().into(),
            request_id: request_id(),
            dry_run,
        };
        let reply = self.ask(request, |mut c, r| async move { c.apply(r).await }).await?;
        self.warn(&reply.warnings);
        let outcome = reply.outcome();
        Ok((decode(reply.object)?, outcome))
    }

    /// Merges a JSON merge patch into an object; prints warnings.
    pub async fn patch(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
        dry_run: bool,
    ) -> Result<Value, CliError> {
        let request = PatchRequest {
            key: Some(key(kind, Some(namespace), name)),
            merge_patch: patch.to_string().into(),
            subresource: String::new(),
            request_id: request_id(),
            dry_run,
        };
        let reply = self.ask(request, |mut c, r| async move { c.patch(r).await }).await?;
        self.warn(&reply.warnings);
        decode(reply.object)
    }

    /// Deletes an object. Answers whether it is gone already, and its uid.
    pub async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        how: &Deletion,
    ) -> Result<(bool, String), CliError> {
        let request = DeleteRequest {
            key: Some(key(kind, Some(namespace), name)),
            grace_period_seconds: how.grace_period_seconds,
            uid: how.uid.clone(),
            request_id: request_id(),
            dry_run: how.dry_run,
            orphan: how.orphan,
            ..Default::default()
        };
        let reply = self.ask(request, |mut c, r| async move { c.delete(r).await }).await?;
        let object = decode(reply.object)?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        Ok((reply.removed, uid))
    }

    /// Follows changes after `revision`, over members that die, until `each` answers false.
    pub async fn watch(
        &self,
        kind: Kind,
        query: &Query,
        revision: u64,
        mut each: impl FnMut(Change) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let mut revision = revision;
        let mut silent_since = tokio::time::Instant::now();
        loop {
            let request = WatchRequest {
                key: Some(key(kind, query.namespace.as_deref(), query.name.as_deref().unwrap_or_default())),
                label_selector: query.labels.clone(),
                field_selector: query.fields.clone(),
                from_revision: revision,
                ..WatchRequest::default()
            };
            let opened = self
                .conn
                .call(|c| {
                    let request = request.clone();
                    async move { client(c).watch(request).await }
                })
                .await;
            let broken = match opened {
                Err(s) => s,
                Ok(reply) => {
                    let mut stream = reply.into_inner();
                    loop {
                        match tokio::time::timeout(WATCH_SILENCE, stream.message()).await {
                            Ok(Ok(Some(event))) => {
                                silent_since = tokio::time::Instant::now();
                                revision = revision.max(event.revision);
                                let kind = event.r#type();
                                let object = match event.object {
                                    Some(o) => decode(Some(o))?,
                                    None => Value::Null,
                                };
                                if !each(Change { event: kind, object })? {
                                    return Ok(());
                                }
                            }
                            Ok(Ok(None)) => break Status::unavailable("the watch ended"),
                            Ok(Err(s)) => break s,
                            Err(_) => break Status::unavailable("the watch is silent"),
                        }
                    }
                }
            };
            if !resumes(&broken, silent_since.elapsed()) {
                return Err(broken.into());
            }
            self.conn.next_endpoint();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The namespace for calls about `kind`: None where it has none.
    pub fn namespace_for(&self, kind: Kind, all: bool) -> Option<String> {
        (kind.namespaced() && !all).then(|| self.namespace.clone())
    }
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// None: the object's own.
    pub grace_period_seconds: Option<i64>,
    /// Only this very object; empty: whichever has the name.
    pub uid: String,
    /// Leave dependents.
    pub orphan: bool,
    /// Only try.
    pub dry_run: bool,
}

/// Namespace and name of an object.
pub fn identity(object: &Value) -> (&str, &str) {
    let text = |f: &str| object["metadata"][f].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_taken_up_again_while_there_is_hope() {
        let soon = Duration::from_secs(10);
        let nobody = Status::unavailable("no member of the control plane answered within 10s");
        assert!(resumes(&nobody, soon), "an election, or members that start again, take longer than one call");
        assert!(!resumes(&nobody, WATCH_RETRY + Duration::from_millis(1)));
        for hopeless in [Status::out_of_range("compacted"), Status::permission_denied("no"), Status::not_found("x")] {
            assert!(!resumes(&hopeless, soon), "{hopeless}");
        }
    }
}

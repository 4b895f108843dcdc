//! The Resources service: decodes, calls the operation, maps the error.

use std::pin::Pin;

use futures::Stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use trellis_model::Kind;
use trellis_proto::api;
use trellis_proto::api::resources_server::Resources;

use super::ops::{Answer, ApiError, ListArgs, Ops, Target, WatchArgs, WatchItem, WatchKind, WatchStream};
use super::session::{Limits, Permit};
use super::status::status;
use super::writes::{self, Writes};
use crate::raft::Leadership;

/// The service.
#[derive(Debug, Clone)]
pub struct ResourcesService {
    ops: Ops,
    writes: Writes,
    limits: Limits,
    leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
}

impl ResourcesService {
    /// On these operations, counting calls in `limits`; streams of writes tell who leads and end with `stop`.
    pub fn new(ops: Ops, limits: Limits, leadership: watch::Receiver<Leadership>, stop: CancellationToken) -> Self {
        Self { writes: Writes::new(ops.clone()), ops, limits, leadership, stop }
    }
}

pub(super) fn target(key: Option<api::ObjectKey>) -> Result<Target, Status> {
    let key = key.ok_or_else(|| status(ApiError::BadRequest("the key is missing".into())))?;
    let kind = Kind::from_group_kind(&key.group, &key.kind).map_err(|e| status(ApiError::BadRequest(e.to_string())))?;
    Ok(Target::new(kind, key.namespace, key.name))
}

pub(super) fn object(answer: Answer) -> api::Object {
    let key = api::ObjectKey {
        group: answer.key.group,
        kind: answer.key.kind,
        namespace: answer.key.namespace,
        name: answer.key.name,
    };
    api::Object { key: Some(key), revision: answer.revision, json: answer.json }
}

/// The answer to a read, and to a write that is no Apply.
pub(super) fn reply(mut answer: Answer) -> api::ObjectReply {
    let warnings = std::mem::take(&mut answer.warnings);
    let outcome = api::ApplyOutcome::Unspecified.into();
    api::ObjectReply { object: Some(object(answer)), warnings, outcome }
}

fn event(item: WatchItem) -> api::WatchEvent {
    let (kind, answer) = match item {
        WatchItem::Bookmark(revision) => {
            let kind = api::EventType::Bookmark.into();
            return api::WatchEvent { r#type: kind, object: None, revision };
        }
        WatchItem::Change(kind, answer) => (kind, answer),
    };
    let kind = match kind {
        WatchKind::Added => api::EventType::Added,
        WatchKind::Modified => api::EventType::Modified,
        WatchKind::Deleted => api::EventType::Deleted,
    };
    let revision = answer.revision;
    api::WatchEvent { r#type: kind.into(), object: Some(object(answer)), revision }
}

fn is_network(projection: i32) -> bool {
    projection == i32::from(api::Projection::Network)
}

fn is_stale(consistency: i32) -> bool {
    consistency == i32::from(api::Consistency::Stale)
}

/// Turns a running watch into messages, holding its place among the client's watches.
fn messages(watch: WatchStream, permit: Permit) -> impl Stream<Item = Result<api::WatchEvent, Status>> + Send {
    futures::stream::unfold(Some((watch, permit)), |state| async move {
        let (mut watch, permit) = state?;
        match watch.next().await {
            Ok(item) => Some((Ok(event(item)), Some((watch, permit)))),
            Err(error) => Some((Err(status(error)), None)),
        }
    })
}

#[tonic::async_trait]
impl Resources for ResourcesService {
    async fn create(&self, request: Request<api::CreateRequest>) -> Result<Response<api::ObjectReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        self.writes.create(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn apply(&self, request: Request<api::ApplyRequest>) -> Result<Response<api::ObjectReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        self.writes.apply(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn get(&self, request: Request<api::GetRequest>) -> Result<Response<api::ObjectReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        let r = request.into_inner();
        let (target, stale) = (target(r.key)?, is_stale(r.consistency));
        let answer = self.ops.get(&caller, &target, stale).await.map_err(status)?;
        Ok(Response::new(reply(answer)))
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<api::ListReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        let r = request.into_inner();
        let target = target(r.key)?;
        let args = ListArgs {
            label_selector: r.label_selector,
            field_selector: r.field_selector,
            limit: r.limit as usize,
            continue_token: r.continue_token,
            stale: is_stale(r.consistency),
            network: is_network(r.projection),
        };
        let listed = self.ops.list(&caller, &target, &args).await.map_err(status)?;
        Ok(Response::new(api::ListReply {
            items: listed.items.into_iter().map(object).collect(),
            revision: listed.revision,
            continue_token: listed.continue_token,
        }))
    }

    async fn update(&self, request: Request<api::UpdateRequest>) -> Result<Response<api::ObjectReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        self.writes.update(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn patch(&self, request: Request<api::PatchRequest>) -> Result<Response<api::ObjectReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        self.writes.patch(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn delete(&self, request: Request<api::DeleteRequest>) -> Result<Response<api::DeleteReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        self.writes.delete(&caller, request.into_inner()).await.map(Response::new)
    }

    type WriteStream = Pin<Box<dyn Stream<Item = Result<api::WriteReply, Status>> + Send>>;

    async fn write(
        &self,
        request: Request<Streaming<api::WriteRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let (caller, permit) = self.limits.watch(&request)?;
        let (writes, limits) = (self.writes.clone(), self.limits.clone());
        let (leadership, stop) = (self.leadership.clone(), self.stop.clone());
        let answers = writes::answers(writes, limits, (caller, permit), request.into_inner(), leadership, stop);
        Ok(Response::new(Box::pin(answers)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<api::WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<api::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (caller, permit) = self.limits.watch(&request)?;
        let r = request.into_inner();
        if r.key.is_some() && !r.kinds.is_empty() {
            return Err(status(ApiError::BadRequest("a watch is of a key or of kinds, not of both".into())));
        }
        let mut kinds = r.kinds.into_iter();
        let first = target(r.key.or_else(|| kinds.next()))?;
        let also = kinds.map(|key| target(Some(key))).collect::<Result<_, _>>()?;
        let args = WatchArgs {
            label_selector: r.label_selector,
            field_selector: r.field_selector,
            from_revision: r.from_revision,
            network: is_network(r.projection),
            also,
        };
        let watch = self.ops.watch(&caller, &first, &args).await.map_err(status)?;
        Ok(Response::new(Box::pin(messages(watch, permit))))
    }
}

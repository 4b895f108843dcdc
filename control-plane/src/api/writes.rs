//! Writes, however they come: each as a call of its own, or many in one call. A message in a call
//! that is open costs a fraction of a call, so who has many writes under way sends them so.

use std::sync::Arc;
use std::task::Poll;

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use trellis_proto::api::{self, write_reply::Result as Outcome, write_request::Write};

use super::ops::delete::DeleteArgs;
use super::ops::{ApiError, Effect, Ops, Part, WriteOptions};
use super::oversize::named;
use super::resources::{object, reply, target};
use super::session::{Limits, Permit};
use super::status::status;
use crate::auth::Caller;
use crate::raft::Leadership;

/// Writes of one stream at once: an eighth of what a client may have under way; more wait in the
/// connection, whose flow control holds the client up.
const AT_ONCE: usize = 128;

/// Decodes a write, does it, and encodes the answer. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Writes {
    ops: Ops,
}

fn options(request_id: String, dry_run: bool) -> WriteOptions {
    WriteOptions { request_id, dry_run }
}

impl Writes {
    pub(super) fn new(ops: Ops) -> Self {
        Self { ops }
    }

    pub(super) async fn create(&self, caller: &Caller, r: api::CreateRequest) -> Result<api::ObjectReply, Status> {
        let (target, options) = (target(r.key)?, options(r.request_id, r.dry_run));
        self.ops.create(caller, &target, &r.json, &options).await.map(reply).map_err(status)
    }

    pub(super) async fn apply(&self, caller: &Caller, r: api::ApplyRequest) -> Result<api::ObjectReply, Status> {
        let (target, options) = (target(r.key)?, options(r.request_id, r.dry_run));
        let answer = self.ops.apply(caller, &target, &r.json, &options).await.map_err(status)?;
        let outcome = match answer.effect {
            Effect::Created => api::ApplyOutcome::Created,
            Effect::Configured => api::ApplyOutcome::Configured,
            Effect::Unchanged => api::ApplyOutcome::Unchanged,
        };
        Ok(api::ObjectReply { outcome: outcome.into(), ..reply(answer) })
    }

    pub(super) async fn update(&self, caller: &Caller, r: api::UpdateRequest) -> Result<api::ObjectReply, Status> {
        let (target, options) = (target(r.key)?, options(r.request_id, r.dry_run));
        let part = Part::parse(target.kind, &r.subresource).map_err(status)?;
        self.ops.update(caller, &target, part, &r.json, &options).await.map(reply).map_err(status)
    }

    pub(super) async fn patch(&self, caller: &Caller, r: api::PatchRequest) -> Result<api::ObjectReply, Status> {
        let (target, options) = (target(r.key)?, options(r.request_id, r.dry_run));
        let part = Part::parse(target.kind, &r.subresource).map_err(status)?;
        self.ops.patch(caller, &target, part, &r.merge_patch, &options).await.map(reply).map_err(status)
    }

    pub(super) async fn delete(&self, caller: &Caller, r: api::DeleteRequest) -> Result<api::DeleteReply, Status> {
        let (target, options) = (target(r.key)?, options(r.request_id, r.dry_run));
        let args =
            DeleteArgs { grace_seconds: r.grace_period_seconds, uid: r.uid, revision: r.revision, orphan: r.orphan };
        let done = self.ops.delete(caller, &target, &args, &options).await.map_err(status)?;
        Ok(api::DeleteReply { object: Some(object(done.answer)), removed: done.removed })
    }

    async fn any(&self, caller: &Caller, write: Option<Write>) -> Result<Outcome, Status> {
        match write {
            Some(Write::Create(r)) => self.create(caller, r).await.map(Outcome::Done),
            Some(Write::Apply(r)) => self.apply(caller, r).await.map(Outcome::Done),
            Some(Write::Update(r)) => self.update(caller, r).await.map(Outcome::Done),
            Some(Write::Patch(r)) => self.patch(caller, r).await.map(Outcome::Done),
            Some(Write::Delete(r)) => self.delete(caller, r).await.map(Outcome::Deleted),
            None => Err(status(ApiError::BadRequest("a write of no kind that this member knows".into()))),
        }
    }
}

/// Who sends a stream of writes, and its place among that client's streams.
struct Sender {
    writes: Writes,
    limits: Limits,
    caller: Caller,
    _place: Permit,
}

impl Sender {
    async fn answer(&self, request: api::WriteRequest) -> api::WriteReply {
        // Each counts as the call that it would have been.
        let done = match self.limits.another(&self.caller) {
            Ok(_permit) => self.writes.any(&self.caller, request.write).await,
            Err(refused) => Err(refused),
        };
        let result = Some(done.unwrap_or_else(|s| Outcome::Refused(refusal(&s))));
        api::WriteReply { id: request.id, result, leads: None }
    }
}

fn refusal(status: &Status) -> api::Refusal {
    let details = bytes::Bytes::copy_from_slice(status.details());
    api::Refusal { code: status.code().into(), message: status.message().to_owned(), details }
}

/// Whether this member leads: at once, and whenever it changes. Ends with the member.
fn news(leadership: watch::Receiver<Leadership>) -> impl Stream<Item = api::WriteReply> + Send {
    let mut last = None;
    WatchStream::new(leadership).filter_map(move |now| {
        let changed = last != Some(now.is_leader);
        last = Some(now.is_leader);
        let said = changed.then(|| api::WriteReply { id: 0, result: None, leads: last });
        std::future::ready(said)
    })
}

/// The answers to a stream of writes, each when it is done, and news of the leadership. Ends with the stream, with
/// its error, or, with what is under way then, when this member is to stop.
pub(super) fn answers(
    writes: Writes,
    limits: Limits,
    (caller, place): (Caller, Permit),
    requests: Streaming<api::WriteRequest>,
    leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<api::WriteReply, Status>> + Send {
    let sender = Arc::new(Sender { writes, limits, caller, _place: place });
    let answer = move |request: Result<api::WriteRequest, Status>| {
        let sender = Arc::clone(&sender);
        async move { Ok(sender.answer(request.map_err(named)?).await) }
    };
    let mut answers = Box::pin(requests.take_until(stop.cancelled_owned()).map(answer).buffer_unordered(AT_ONCE));
    let mut news = Box::pin(news(leadership));
    stream::poll_fn(move |cx| {
        // The answers' end is the stream's.
        if let ready @ Poll::Ready(_) = answers.poll_next_unpin(cx) {
            return ready;
        }
        match news.poll_next_unpin(cx) {
            Poll::Ready(Some(reply)) => Poll::Ready(Some(Ok(reply))),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    })
}

//! Many writes in one call: what a connection's callers write at the same time goes down one
//! stream, and the answers come back on it as they are done. A message in a call that is open costs
//! a fraction of a call.
//!
//! A member from before this, or a write that would keep the others waiting, has a call of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Chan;
use crate::api::{
    ApplyRequest, CreateRequest, DeleteReply, DeleteRequest, ObjectReply, PatchRequest, UpdateRequest, WriteReply,
    WriteRequest, resources_client::ResourcesClient, write_reply::Result as Outcome, write_request::Write,
};

/// Writes that wait to be sent; more wait in their callers.
const QUEUE: usize = 512;
/// A larger one goes on its own: it would hold up those behind it.
const SMALL_BYTES: usize = 64 * 1024;

type Answer = oneshot::Sender<Result<Outcome, Status>>;

/// A stream of writes to one member; it ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<WriteRequest>,
    waiting: Shared,
}

/// Who waits for an answer, by the number of the write. An entry a caller, as long as it waits.
#[derive(Default)]
struct Waiting {
    last: u64,
    answers: HashMap<u64, Answer>,
    /// Why there will be no more answers.
    ended: Option<Status>,
}

type Shared = Arc<Mutex<Waiting>>;

fn lock(waiting: &Shared) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller that gave up needs no answer.
fn tell(answer: Answer, result: Result<Outcome, Status>) {
    drop(answer.send(result));
}

/// A caller's place among those that wait, given up when it goes.
struct Place<'a> {
    waiting: &'a Shared,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(self.waiting).answers.remove(&self.id);
    }
}

impl Writer {
    /// Opens the stream in the background; must be called within a runtime.
    pub(super) fn start(chan: Chan) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let waiting = Shared::default();
        tokio::spawn(run(chan, requests, Arc::clone(&waiting)));
        Self { queue, waiting }
    }

    pub(super) fn ended(&self) -> bool {
        self.queue.is_closed()
    }

    async fn send(&self, write: Write) -> Result<Outcome, Status> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if let Some(end) = &waiting.ended {
                return Err(end.clone());
            }
            waiting.last += 1;
            let id = waiting.last;
            waiting.answers.insert(id, answer);
            id
        };
        let _place = Place { waiting: &self.waiting, id };
        // When the stream has ended meanwhile, the answer is why.
        drop(self.queue.send(WriteRequest { id, write: Some(write) }).await);
        answered.await.unwrap_or_else(|_| Err(Status::unavailable("the stream of writes has ended")))
    }
}

async fn run(chan: Chan, requests: mpsc::Receiver<WriteRequest>, waiting: Shared) {
    let end = match answers(chan, ReceiverStream::new(requests), &waiting).await {
        Ok(()) => Status::unavailable("the member ended the stream of writes"),
        Err(status) => status,
    };
    let mut waiting = lock(&waiting);
    for (_, answer) in waiting.answers.drain() {
        tell(answer, Err(end.clone()));
    }
    waiting.ended = Some(end);
}

async fn answers<S>(chan: Chan, requests: S, waiting: &Shared) -> Result<(), Status>
where
    S: futures::Stream<Item = WriteRequest> + Send + 'static,
{
    // The connection is not held: when its last handle goes, the queue closes, and the stream ends.
    let mut replies = {
        let mut client = ResourcesClient::new(chan).max_decoding_message_size(super::MESSAGE_LIMIT_BYTES);
        client.write(requests).await?.into_inner()
    };
    while let Some(WriteReply { id, result }) = replies.message().await? {
        let Some(answer) = lock(waiting).answers.remove(&id) else { continue };
        tell(
            answer,
            match result {
                Some(Outcome::Refused(r)) => Err(Status::with_details(Code::from(r.code), r.message, r.details)),
                Some(done) => Ok(done),
                None => Err(Status::internal("the member answered a write without saying how it went")),
            },
        );
    }
    Ok(())
}

fn object(outcome: Outcome) -> Result<ObjectReply, Status> {
    match outcome {
        Outcome::Done(reply) => Ok(reply),
        Outcome::Deleted(_) | Outcome::Refused(_) => Err(mismatch()),
    }
}

fn mismatch() -> Status {
    Status::internal("the member answered another kind of write than was sent")
}

/// Writes beside others. Each has the answer, or the status, that it would have as a call of its
/// own, and is repeated by [`super::Connection::call`] alike.
impl Chan {
    /// Makes an object.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn create(self, request: CreateRequest) -> Result<ObjectReply, Status> {
        self.beside(Write::Create(request)).await.and_then(object)
    }

    /// Makes an object or brings it to what was applied.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn apply(self, request: ApplyRequest) -> Result<ObjectReply, Status> {
        self.beside(Write::Apply(request)).await.and_then(object)
    }

    /// Replaces an object or its status.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn update(self, request: UpdateRequest) -> Result<ObjectReply, Status> {
        self.beside(Write::Update(request)).await.and_then(object)
    }

    /// Changes parts of an object.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn patch(self, request: PatchRequest) -> Result<ObjectReply, Status> {
        self.beside(Write::Patch(request)).await.and_then(object)
    }

    /// Removes an object, or marks it.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn delete(self, request: DeleteRequest) -> Result<DeleteReply, Status> {
        match self.beside(Write::Delete(request)).await? {
            Outcome::Deleted(reply) => Ok(reply),
            Outcome::Done(_) | Outcome::Refused(_) => Err(mismatch()),
        }
    }

    async fn beside(self, write: Write) -> Result<Outcome, Status> {
        let request = WriteRequest { id: 0, write: Some(write) };
        let small = request.encoded_len() <= SMALL_BYTES;
        let Some(write) = request.write else { return Err(mismatch()) };
        if !small {
            return self.alone(write).await;
        }
        match self.shared.writer().send(write.clone()).await {
            Err(status) if status.code() == Code::Unimplemented => self.alone(write).await,
            done => done,
        }
    }

    async fn alone(self, write: Write) -> Result<Outcome, Status> {
        let mut client = ResourcesClient::new(self).max_decoding_message_size(super::MESSAGE_LIMIT_BYTES);
        match write {
            Write::Create(r) => client.create(r).await.map(|r| Outcome::Done(r.into_inner())),
            Write::Apply(r) => client.apply(r).await.map(|r| Outcome::Done(r.into_inner())),
            Write::Update(r) => client.update(r).await.map(|r| Outcome::Done(r.into_inner())),
            Write::Patch(r) => client.patch(r).await.map(|r| Outcome::Done(r.into_inner())),
            Write::Delete(r) => client.delete(r).await.map(|r| Outcome::Deleted(r.into_inner())),
        }
    }
}

//! Many writes in one call: what a connection's callers write at the same time goes down one
//! stream, and the answers come back on it as they are done. A message in a call that is open costs
//! a fraction of a call. A client that is busy sends them to the leader (see [`super::route`]).
//!
//! A write that would keep the others waiting has a call of its own, and so has every one to a member
//! that opens no stream: one from before there were any, or where this client has too many open.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::StreamExt as _;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, metadata::MetadataValue};

use super::{Chan, Shared};
use crate::api::{
    ApplyRequest, CreateRequest, DeleteReply, DeleteRequest, ObjectReply, PatchRequest, UpdateRequest, WriteReply,
    WriteRequest, resources_client::ResourcesClient, write_reply::Result as Outcome, write_request::Write,
};
use crate::status::retryable;

/// Writes that wait to be sent; more wait in their callers.
const QUEUE: usize = 512;
/// A larger one goes on its own: it would hold up those behind it.
const SMALL_BYTES: usize = 64 * 1024;

/// Marks what failed past the member in use, which is not to blame for it.
const AT_LEADER: &str = "trellis-at-leader";

/// Did this fail at the leader, past the member in use?
pub(super) fn was_leaders(status: &Status) -> bool {
    status.metadata().contains_key(AT_LEADER)
}

/// What came of a write; `None`: the member opens no stream, nothing was sent.
type Answer = oneshot::Sender<Option<Result<Outcome, Status>>>;

/// A stream of writes to one member. When the last handle goes, callers' included, nobody waits for
/// an answer any more, and the stream is reset: what it has under way at the member is given up.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<WriteRequest>,
    waiting: Callers,
    _task: Arc<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a stream takes no more writes.
#[derive(Clone)]
pub(super) enum End {
    /// The member opens none.
    NotOpened,
    /// There was nothing to write.
    Idle,
    Broken(Status),
}

impl End {
    fn answer(self) -> Option<Result<Outcome, Status>> {
        match self {
            Self::NotOpened | Self::Idle => None,
            Self::Broken(status) => Some(Err(status)),
        }
    }
}

/// Who waits for an answer, by the number of the write. An entry a caller, as long as it waits.
#[derive(Default)]
struct Waiting {
    last: u64,
    answers: HashMap<u64, Answer>,
    end: Option<End>,
}

type Callers = Arc<Mutex<Waiting>>;

fn lock(waiting: &Callers) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller that gave up needs no answer.
fn tell(answer: Answer, result: Option<Result<Outcome, Status>>) {
    drop(answer.send(result));
}

/// A caller's place among those that wait, given up when it goes.
struct Place<'a> {
    waiting: &'a Callers,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(self.waiting).answers.remove(&self.id);
    }
}

/// Whose stream it is, and its number there.
type Owner = (Weak<Shared>, u64);

/// The stream that a write is to go down.
pub(super) struct Line {
    pub(super) writer: Writer,
    /// It goes to the leader, past the member in use; the stream's number.
    pub(super) to_leader: Option<u64>,
}

impl Writer {
    /// Opens the stream in the background, and closes it when it was `idle` for so long; must be called
    /// within a runtime.
    pub(super) fn start(chan: Chan, owner: Owner, idle: Option<Duration>) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let waiting = Callers::default();
        let task = tokio::spawn(run(chan, requests, Arc::clone(&waiting), owner, idle));
        Self { queue, waiting, _task: Arc::new(AbortOnDrop(task.abort_handle())) }
    }

    /// Another is to be started for the next write. Not where the member opens none: this one knows.
    pub(super) fn has_ended(&self) -> bool {
        matches!(lock(&self.waiting).end, Some(End::Broken(_) | End::Idle))
    }

    /// Writes are under way.
    pub(super) fn is_busy(&self) -> bool {
        !lock(&self.waiting).answers.is_empty()
    }

    async fn send(&self, write: Write) -> Option<Result<Outcome, Status>> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if let Some(end) = &waiting.end {
                return end.clone().answer();
            }
            waiting.last += 1;
            let id = waiting.last;
            waiting.answers.insert(id, answer);
            id
        };
        let _place = Place { waiting: &self.waiting, id };
        // When the stream has ended meanwhile, the answer is why.
        drop(self.queue.send(WriteRequest { id, write: Some(write) }).await);
        answered.await.unwrap_or_else(|_| Some(Err(Status::unavailable("the stream of writes has ended"))))
    }
}

async fn run(
    chan: Chan,
    requests: mpsc::Receiver<WriteRequest>,
    waiting: Callers,
    (shared, id): Owner,
    idle: Option<Duration>,
) {
    let wanted = Arc::clone(&waiting);
    let requests = ReceiverStream::new(requests).filter(move |request| {
        // What its caller has given up meanwhile is not sent.
        std::future::ready(lock(&wanted).answers.contains_key(&request.id))
    });
    let says = |leads| {
        if let Some(shared) = shared.upgrade() {
            shared.member_says(id, leads);
        }
    };
    let end = match open(chan, requests).await {
        Ok(replies) => answers(replies, &waiting, says, idle).await,
        Err(end) => end,
    };
    if let Some(shared) = shared.upgrade() {
        shared.stream_ended(id, &end);
    }
    let mut waiting = lock(&waiting);
    for (_, answer) in waiting.answers.drain() {
        tell(answer, end.clone().answer());
    }
    waiting.end = Some(end);
}

/// The connection is not held beyond this: who holds this stream alone would hold itself.
async fn open<S>(chan: Chan, requests: S) -> Result<Streaming<WriteReply>, End>
where
    S: futures::Stream<Item = WriteRequest> + Send + 'static,
{
    let mut client = ResourcesClient::new(chan).max_decoding_message_size(super::MESSAGE_LIMIT_BYTES);
    match client.write(requests).await {
        Ok(replies) => Ok(replies.into_inner()),
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted) => Err(End::NotOpened),
        Err(status) => Err(End::Broken(status)),
    }
}

/// Gives each answer to who waits for it, and `says` whether the member leads, until the stream ends.
async fn answers(
    mut replies: Streaming<WriteReply>,
    waiting: &Callers,
    says: impl Fn(bool),
    idle: Option<Duration>,
) -> End {
    let mut looks = idle.map(|i| tokio::time::interval_at(tokio::time::Instant::now() + i, i));
    let mut used = true;
    loop {
        let look = async {
            match &mut looks {
                Some(looks) => looks.tick().await,
                None => std::future::pending().await,
            }
        };
        let reply = tokio::select! {
            biased;
            reply = replies.message() => reply,
            _ = look => {
                let mut waiting = lock(waiting);
                if !used && waiting.answers.is_empty() {
                    // From here on nobody comes to wait.
                    waiting.end = Some(End::Idle);
                    return End::Idle;
                }
                used = false;
                continue;
            }
        };
        used = true;
        let (id, result) = match reply {
            Ok(Some(WriteReply { id, result, leads })) => {
                if let Some(leads) = leads {
                    says(leads);
                }
                (id, result)
            }
            Ok(None) => return End::Broken(Status::unavailable("the member ended the stream of writes")),
            Err(status) => return End::Broken(status),
        };
        let Some(answer) = lock(waiting).answers.remove(&id) else { continue };
        let result = match result {
            Some(Outcome::Refused(r)) => Err(Status::with_details(Code::from(r.code), r.message, r.details)),
            Some(done) => Ok(done),
            None => Err(Status::internal("the member answered a write without saying how it went")),
        };
        tell(answer, Some(result));
    }
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
        let line = self.shared.line();
        let answer = line.writer.send(write.clone()).await;
        match (answer, line.to_leader) {
            (None, _) => self.alone(write).await,
            // Too many clients are as busy as this one; nothing was done.
            (Some(Err(status)), Some(_)) if status.code() == Code::ResourceExhausted => self.alone(write).await,
            (Some(Err(status)), Some(id)) => Err(self.failed_at_leader(id, status)),
            (Some(done), _) => done,
        }
    }

    /// A leader that does not take a write may be none any more; the member in use will know.
    fn failed_at_leader(&self, stream: u64, mut status: Status) -> Status {
        if retryable(&status) || status.code() == Code::DeadlineExceeded {
            self.shared.stream_ended(stream, &End::Broken(status.clone()));
            status.metadata_mut().insert(AT_LEADER, MetadataValue::from_static("true"));
        }
        status
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

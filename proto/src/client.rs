//! A client of the control plane that fails over between its members by itself.
//!
//! A [`Connection`] holds one HTTP/2 connection at a time. When it breaks, or the member behind
//! it says UNAVAILABLE, the next endpoint is taken. [`Connection::call`] sends a request again
//! where that is harmless (see [`crate::status::retryable`]) until its deadline; creates carry a
//! request id, so that sending one twice makes one object. Streams are resumed by who reads them:
//! a watch goes on from its last revision.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tonic::{Code, Status, body::Body, transport::Channel};
use tower::Service;

use crate::{
    api::{
        cluster_client::ClusterClient, images_client::ImagesClient, nodes_client::NodesClient, pods_client::PodsClient,
        resources_client::ResourcesClient,
    },
    patience::stretched,
    status::retryable,
    tls::ClientTls,
};

mod channel;
mod context;
mod refusal;
mod route;
mod writes;
use channel::{BULK_KEEPALIVE_TIMEOUT, KEEPALIVE_TIMEOUT, watched_channel};
pub use channel::{bulk_channel, channel};
pub use context::{Context as ClusterContext, ContextError, Contexts};
use refusal::Refusal;
use route::Route;
use writes::{End, Line, Writer};

/// Calls without a deadline of their own end after this.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries, doubling up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(320);
/// A stream to the leader that was opened for many writes is closed when there were none for so long.
const LINE_IDLE: Duration = Duration::from_secs(2);
/// Objects are at most 1.5 MB and a list page holds up to 500.
pub const MESSAGE_LIMIT_BYTES: usize = 64 << 20;

struct State {
    endpoints: Vec<String>,
    current: usize,
    /// Counts changes of `channel`, so that many calls failing together move on only once.
    generation: u64,
    channel: Option<(Channel, Refusal)>,
    /// Of that channel; made by the first write.
    writer: Option<Writer>,
    route: Route<Writer>,
}

impl State {
    fn new(endpoints: Vec<String>, current: usize) -> Self {
        Self { endpoints, current, generation: 0, channel: None, writer: None, route: Route::default() }
    }

    /// What uses the channel still goes on.
    fn leave(&mut self) {
        self.generation += 1;
        self.channel = None;
        self.writer = None;
    }
}

struct Shared {
    tls: ClientTls,
    keepalive_timeout: Duration,
    state: Mutex<State>,
}

/// A handle on the control plane; clones share the connection.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("endpoints", &self.endpoints()).finish()
    }
}

/// A channel to use, the generation it belongs to, and what TLS said on it.
type Ready = (u64, Channel, Refusal);

/// The transport that the generated clients run over.
#[derive(Clone)]
pub struct Chan {
    shared: Arc<Shared>,
    ready: Option<Ready>,
}

impl Connection {
    /// Endpoints are `https://IP:PORT` or `unix:///PATH`; nothing is dialled before the first call.
    #[must_use]
    pub fn new(endpoints: Vec<String>, tls: ClientTls) -> Self {
        let state = Mutex::new(State::new(endpoints, 0));
        Self { shared: Arc::new(Shared { tls, keepalive_timeout: KEEPALIVE_TIMEOUT, state }) }
    }

    /// A connection of its own to the member that is in use, for what is sent in bulk: it bears a slow line, and
    /// what is sent on it keeps nothing else waiting.
    #[must_use]
    pub fn for_bulk(&self) -> Self {
        let now = self.shared.lock();
        let state = Mutex::new(State::new(now.endpoints.clone(), now.current));
        let tls = self.shared.tls.clone();
        Self { shared: Arc::new(Shared { tls, keepalive_timeout: BULK_KEEPALIVE_TIMEOUT, state }) }
    }

    /// Takes over a new list of members; the connection in use is kept if it is still in it.
    pub fn set_endpoints(&self, endpoints: Vec<String>) {
        let mut state = self.shared.lock();
        if endpoints.is_empty() || endpoints == state.endpoints {
            return;
        }
        let now = state.endpoints.get(state.current).cloned();
        let kept = now.and_then(|n| endpoints.iter().position(|e| *e == n));
        state.current = kept.unwrap_or(0);
        if kept.is_none() {
            state.leave();
        }
        state.endpoints = endpoints;
        state.route.forget();
    }

    /// The endpoints known.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.shared.lock().endpoints.clone()
    }

    /// Names the member in use, for [`Connection::leave`].
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.shared.lock().generation
    }

    /// Turns away from the member that was in use when `in_use` was asked; does nothing if that
    /// happened already. For streams that share a connection: when their member dies all of them
    /// fail, one after the other, and together must go one member further, not each on its own.
    pub fn leave(&self, in_use: u64) {
        self.shared.move_on(in_use);
    }

    /// Turns to the next member: for a stream whose member has gone silent.
    pub fn next_endpoint(&self) {
        let generation = self.shared.lock().generation;
        self.shared.move_on(generation);
    }

    /// Do writes go to the leader past the member in use? So they do while there are many.
    #[must_use]
    pub fn follows_leader(&self) -> bool {
        self.shared.lock().route.leader().is_some()
    }

    /// The transport, for a generated client.
    #[must_use]
    pub fn chan(&self) -> Chan {
        Chan { shared: Arc::clone(&self.shared), ready: None }
    }

    /// Objects.
    #[must_use]
    pub fn resources(&self) -> ResourcesClient<Chan> {
        ResourcesClient::new(self.chan()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }

    /// Logs, exec, port-forward.
    #[must_use]
    pub fn pods(&self) -> PodsClient<Chan> {
        PodsClient::new(self.chan()).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
    }

    /// Images of nodes.
    #[must_use]
    pub fn images(&self) -> ImagesClient<Chan> {
        ImagesClient::new(self.chan())
    }

    /// Leases.
    #[must_use]
    pub fn nodes(&self) -> NodesClient<Chan> {
        NodesClient::new(self.chan())
    }

    /// Members, tokens, certificates.
    #[must_use]
    pub fn cluster(&self) -> ClusterClient<Chan> {
        ClusterClient::new(self.chan())
    }

    /// Runs `attempt`, again on another member where that is harmless, for at most 10 s.
    pub async fn call<T, F, Fut>(&self, attempt: F) -> Result<T, Status>
    where
        F: FnMut(Chan) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        self.call_within(stretched(DEFAULT_DEADLINE), attempt).await
    }

    /// Like [`Connection::call`] with a deadline of the caller's.
    pub async fn call_within<T, F, Fut>(&self, limit: Duration, mut attempt: F) -> Result<T, Status>
    where
        F: FnMut(Chan) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + limit;
        let mut pause = RETRY_PAUSE_MIN;
        let mut last: Option<Status> = None;
        loop {
            let generation = self.shared.lock().generation;
            let left = deadline.saturating_duration_since(Instant::now());
            let status = match tokio::time::timeout(left, attempt(self.chan())).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(status)) if retryable(&status) => status,
                Ok(Err(status)) => return Err(status),
                Err(_) => {
                    // Whoever calls again shall not wait for the same silent member, nor leader.
                    self.shared.move_on(generation);
                    self.shared.leave_leader();
                    return Err(self.gave_up(limit, last.as_ref()));
                }
            };
            if !writes::was_leaders(&status) {
                self.shared.move_on(generation);
            }
            if Instant::now() + pause >= deadline {
                return Err(self.gave_up(limit, Some(&status)));
            }
            tracing::debug!(error = %status.message(), "trying the next member");
            last = Some(status);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    fn gave_up(&self, limit: Duration, last: Option<&Status>) -> Status {
        let why = last.map_or_else(|| "no answer".to_owned(), describe);
        Status::new(
            Code::Unavailable,
            format!(
                "no member of the control plane answered within {limit:?} (tried {}): {why}",
                self.endpoints().join(", ")
            ),
        )
    }
}

/// The innermost cause of a transport failure says more than "transport error".
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self) -> Result<Ready, Status> {
        let mut state = self.lock();
        if let Some((channel, refusal)) = &state.channel {
            return Ok((state.generation, channel.clone(), refusal.clone()));
        }
        let endpoint = state.endpoints.get(state.current).cloned().ok_or_else(|| {
            Status::failed_precondition("no endpoint of the control plane is known: name one in the context")
        })?;
        let refusal = Refusal::default();
        let channel = watched_channel(&endpoint, &self.tls, &refusal, self.keepalive_timeout)?;
        state.channel = Some((channel.clone(), refusal.clone()));
        Ok((state.generation, channel, refusal))
    }

    /// The stream to send a write on: to the leader where this client is busy and has found it, else
    /// to the member in use. O(1), and now and then a connection.
    fn line(self: &Arc<Self>) -> Line {
        let mut state = self.lock();
        if let Some((id, writer)) = state.route.leader() {
            return Line { writer: writer.clone(), to_leader: Some(id) };
        }
        let known = state.writer.take().filter(|w| !w.has_ended());
        let writer = known.unwrap_or_else(|| {
            let id = state.route.new_home();
            Writer::start(Chan { shared: Arc::clone(self), ready: None }, (Arc::downgrade(self), id), None)
        });
        state.writer = Some(writer.clone());
        state.route.begins(writer.is_busy());
        if let Some(next) = state.route.wanted(state.current, state.endpoints.len(), Instant::now())
            && let Some(endpoint) = state.endpoints.get(next).cloned()
        {
            let other = Connection::new(vec![endpoint], self.tls.clone());
            state.route.opens(|id| Writer::start(other.chan(), (Arc::downgrade(self), id), Some(LINE_IDLE)));
        }
        Line { writer, to_leader: None }
    }

    /// The member at the end of a stream says whether it leads.
    fn member_says(&self, stream: u64, leads: bool) {
        let mut state = self.lock();
        let members = state.endpoints.len();
        state.route.says(stream, leads, members, Instant::now());
    }

    /// Writes go through the member in use for a while.
    fn leave_leader(&self) {
        let mut state = self.lock();
        let members = state.endpoints.len();
        if let Some(id) = state.route.leader().map(|(id, _)| id) {
            state.route.broke(id, members, Instant::now());
        }
    }

    /// A stream has ended.
    fn stream_ended(&self, stream: u64, end: &End) {
        let mut state = self.lock();
        let (members, now) = (state.endpoints.len(), Instant::now());
        match end {
            End::Idle => state.route.idle(stream, members, now),
            End::NotOpened | End::Broken(_) => state.route.broke(stream, members, now),
        }
    }

    /// Leaves the endpoint that was in use at `generation`; does nothing if that happened already.
    fn move_on(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.leave();
            state.current = (state.current + 1) % state.endpoints.len().max(1);
        }
    }
}

impl Service<http::Request<Body>> for Chan {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        if self.ready.is_none() {
            self.ready = Some(self.shared.channel()?);
        }
        let Some((generation, channel, refusal)) = self.ready.as_mut() else { return Poll::Pending };
        match channel.poll_ready(cx) {
            Poll::Ready(Err(error)) => {
                self.shared.move_on(*generation);
                let status = unavailable(&error, refusal);
                self.ready = None;
                Poll::Ready(Err(status))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let taken = self.ready.take();
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let Some((generation, mut channel, refusal)) = taken else {
                return Err(Status::internal("the transport was called before it was ready"));
            };
            channel.call(request).await.map_err(|error| {
                shared.move_on(generation);
                unavailable(&error, &refusal)
            })
        })
    }
}

/// A connection that could not be made or broke: worth another try, unless TLS itself said no.
fn unavailable(error: &tonic::transport::Error, refusal: &Refusal) -> Status {
    if let Some(said) = refusal.said() {
        return Status::unauthenticated(said);
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(said) = inner.downcast_ref::<io::Error>().and_then(refusal::text) {
            return Status::unauthenticated(said);
        }
        text = inner.to_string();
        source = inner.source();
    }
    Status::unavailable(text)
}

/// A fresh request id: 128 random bits, hex.
#[must_use]
pub fn request_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

//! A call that is passed on to an agent, in both directions.
//!
//! The agent must be able to tell three ends of a caller's messages apart: that all came, that the
//! caller went away, and that it only has nothing more to say yet. The first is the stream's end. At
//! the second the caller's own stream breaks, and so does the one to the agent, by a reset: an end
//! would tell a program that reads from it that it has all. What breaks it is that nobody reads the
//! answers any more: they are dropped with the caller's connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http_body::Frame;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tower::ServiceExt as _;
use tower::util::MapRequest;

/// The way to an agent for one call, which breaks when the guard is dropped: keep it with the answers.
pub fn breakable(
    channel: Channel,
) -> (MapRequest<Channel, impl FnMut(http::Request<Body>) -> http::Request<Body> + Clone + Send + 'static>, DropGuard) {
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    let service = channel.map_request(move |request: http::Request<Body>| {
        let gone = Box::pin(gone.clone().cancelled_owned());
        request.map(|inner| Body::new(Breakable { inner, gone }))
    });
    (service, guard)
}

/// The first message, changed, and then the others as they come. Where the caller's connection
/// breaks, this stalls instead of ending.
pub fn messages<T: Send + 'static>(first: T, rest: Streaming<T>) -> impl Stream<Item = T> + Send + 'static {
    let rest = stream::unfold(rest, |mut rest| async move {
        match rest.next().await {
            Some(Ok(message)) => Some((message, rest)),
            Some(Err(_)) => std::future::pending().await,
            None => None,
        }
    });
    stream::once(std::future::ready(first)).chain(rest)
}

/// Messages to an agent, broken off once `gone` is told.
struct Breakable {
    inner: Body,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Breakable {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Status::cancelled("the caller went away"))));
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }
}

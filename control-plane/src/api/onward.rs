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
use tower::Service;

/// The way to an agent for one call.
#[derive(Clone)]
pub struct Breakable {
    channel: Channel,
    gone: CancellationToken,
}

/// The way to an agent, which breaks when the guard is dropped: keep it with the answers.
pub fn breakable(channel: Channel) -> (Breakable, DropGuard) {
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    (Breakable { channel, gone }, guard)
}

impl Service<http::Request<Body>> for Breakable {
    type Response = http::Response<Body>;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let gone = Box::pin(self.gone.clone().cancelled_owned());
        self.channel.call(request.map(|inner| Body::new(Sending { inner, gone })))
    }
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
struct Sending {
    inner: Body,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Sending {
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

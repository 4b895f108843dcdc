//! What TLS had against the other side, or the other side against us.
//!
//! In TLS 1.3 a server judges the client's certificate after the client has finished its
//! handshake: the verdict arrives as an alert in the first read, where the HTTP layer turns it
//! into "connection closed". So the stream itself remembers it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The last refusal on a channel; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    pub fn said(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, error: &io::Error) {
        if let Some(said) = text(error) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        }
    }
}

/// What a person should know of a TLS error; None for any other.
pub(super) fn text(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    if let Some(said) = crate::tls::blamed_on_the_clock(error) {
        return Some(said);
    }
    match error {
        rustls::Error::AlertReceived(alert) => Some(format!(
            "the control plane refuses this certificate ({alert:?}): is it of this cluster's CA, and not expired?"
        )),
        rustls::Error::InvalidCertificate(reason) => Some(format!(
            "the server's certificate is not one of this cluster's control plane ({reason:?}): wrong address, or the CA of another cluster"
        )),
        rustls::Error::General(reason) => Some(reason.clone()),
        _ => None,
    }
}

/// A stream that remembers a refusal it reads.
pub(super) struct Watched<S> {
    stream: S,
    refusal: Refusal,
}

impl<S> Watched<S> {
    pub fn new(stream: S, refusal: Refusal) -> Self {
        Self { stream, refusal }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &polled {
            self.refusal.remember(error);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustls::CertificateError;

    fn said(error: rustls::Error) -> String {
        text(&io::Error::other(error)).unwrap()
    }

    #[test]
    fn a_wrong_clock_is_not_taken_for_a_wrong_cluster() {
        for reason in [CertificateError::NotValidYet, CertificateError::Expired] {
            let said = said(rustls::Error::InvalidCertificate(reason));
            assert!(said.contains("is the clock right?") && !said.contains("another cluster"), "{said}");
        }
        let unknown = said(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(unknown.contains("another cluster") && !unknown.contains("clock"), "{unknown}");
    }
}

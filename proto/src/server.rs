//! Accepting connections: TCP or a unix socket, the same mutual TLS on both.
//!
//! Handshakes run beside each other, each with a deadline, their number bounded in all and for each
//! address: who comes beyond that is refused at once, so that a peer that connects and says nothing
//! delays nobody. So are connections without a certificate, which also end after a while: they are
//! for redeeming a token, and anybody can have them. A refused connection is logged with its address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::identity::Identity;
use crate::patience::stretched;
use crate::quota::{Full, Lease, Quota};

/// A handshake takes two round trips; five seconds leave room for a slow machine.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once, per listener: more than all clients of a benchmark begin together.
const HANDSHAKES_AT_ONCE: usize = 512;
/// … from one address. A node has three daemons and some people.
const HANDSHAKES_A_SOURCE: usize = 128;
/// Connections without a certificate at once, per listener: that many machines join together.
const ANONYMOUS_AT_ONCE: usize = 128;
/// … from one address.
const ANONYMOUS_A_SOURCE: usize = 16;
/// … and how long each may last: joining takes some calls.
const ANONYMOUS_TIME: Duration = Duration::from_secs(60);
/// Connections accepted but not yet taken up by the server.
const ACCEPT_QUEUE: usize = 64;

/// Who is at the other end of a connection; in every request's extensions.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// None: no certificate was shown (only where [`crate::tls::ClientAuth::Optional`]).
    pub identity: Option<Identity>,
    /// Where from; for the log.
    pub address: String,
    /// The certificate shown, DER.
    pub certificate: Option<Arc<[u8]>>,
}

/// The peer of a request, as the listener found it.
pub fn peer<T>(request: &tonic::Request<T>) -> Option<&PeerInfo> {
    request.extensions().get::<PeerInfo>()
}

/// Both kinds of byte stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// An accepted, verified connection.
pub struct Connection {
    stream: Box<TlsStream<Box<dyn Stream>>>,
    peer: PeerInfo,
    /// Of a peer without a certificate.
    lease: Option<Lease>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(lease) = &mut self.lease
            && lease.poll_end(cx).is_ready()
        {
            tracing::info!(address = self.peer.address, "ended a connection without a certificate: its time is over");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut *self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write_vectored(cx, bufs)
    }
}

/// Where to listen.
#[derive(Clone, Debug)]
pub enum Listen {
    /// An address.
    Tcp(SocketAddr),
    /// A path; a stale socket there is replaced. Open to all local users: TLS decides.
    Unix(PathBuf),
}

/// What tonic's `serve_with_incoming` takes.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Listens and yields verified connections until the receiver is dropped.
pub async fn listen(at: &Listen, tls: Arc<ServerConfig>) -> io::Result<Incoming> {
    let (tx, rx) = mpsc::channel(ACCEPT_QUEUE);
    let acceptor = Acceptor {
        tls: TlsAcceptor::from(tls),
        handshakes: Quota::new(HANDSHAKES_AT_ONCE, HANDSHAKES_A_SOURCE),
        anonymous: Quota::new(ANONYMOUS_AT_ONCE, ANONYMOUS_A_SOURCE),
        tx,
    };
    match at {
        Listen::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            tokio::spawn(async move {
                while !acceptor.tx.is_closed() {
                    tokio::select! {
                        () = acceptor.tx.closed() => break,
                        accepted = listener.accept() => match accepted {
                            Ok((stream, from)) => {
                                // Small messages must not wait for each other.
                                drop(stream.set_nodelay(true));
                                acceptor.handshake(Box::new(stream), from.to_string(), Some(from.ip()));
                            }
                            Err(error) => pause_after(&error).await,
                        }
                    }
                }
            });
        }
        Listen::Unix(path) => {
            let listener = bind_unix(path)?;
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = acceptor.tx.closed() => break,
                        accepted = listener.accept() => match accepted {
                            Ok((stream, _)) => acceptor.handshake(Box::new(stream), "unix socket".to_owned(), None),
                            Err(error) => pause_after(&error).await,
                        }
                    }
                }
            });
        }
    }
    Ok(ReceiverStream::new(rx))
}

/// accept() fails for want of descriptors: trying again at once would spin.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "accepting a connection failed");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

struct Acceptor {
    tls: TlsAcceptor,
    handshakes: Arc<Quota>,
    anonymous: Arc<Quota>,
    tx: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    /// Never waits: other peers are behind this one. A stream that is dropped is closed.
    fn handshake(&self, stream: Box<dyn Stream>, address: String, source: Option<IpAddr>) {
        let slot = match self.handshakes.take(source, Instant::now()) {
            Ok(slot) => slot,
            Err(full) => return tell(&full, &address, "too many TLS handshakes under way"),
        };
        let anonymous = Arc::clone(&self.anonymous);
        let tls = self.tls.clone();
        let tx = self.tx.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let stream = match tokio::time::timeout(stretched(HANDSHAKE_TIMEOUT), tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::warn!(%address, %error, "refused a connection: TLS handshake failed");
                    return;
                }
                Err(_) => {
                    tracing::warn!(%address, "refused a connection: no TLS handshake within 5 s");
                    return;
                }
            };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.to_vec());
            let identity = match certificate.as_deref().map(Identity::from_der).transpose() {
                Ok(identity) => identity,
                Err(error) => {
                    tracing::warn!(%address, %error, "refused a connection: unknown role");
                    return;
                }
            };
            let lease = match identity.is_none().then(|| anonymous.take(source, Instant::now())).transpose() {
                Ok(slot) => slot.map(|slot| Lease::new(slot, stretched(ANONYMOUS_TIME))),
                Err(full) => return tell(&full, &address, "too many connections without a certificate"),
            };
            let peer = PeerInfo { identity, address, certificate: certificate.map(Into::into) };
            // The receiver is gone only when the server stops.
            drop(tx.send(Ok(Connection { stream: Box::new(stream), peer, lease })).await);
        });
    }
}

fn tell(full: &Full, address: &str, why: &str) {
    if let Some(refused) = full.tell {
        tracing::warn!(address, refused, "refused connections, this one the last: {why}");
    }
}

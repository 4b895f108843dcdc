//! Making a channel to one member: TCP or a unix socket, always with mutual TLS.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use super::refusal::{Refusal, Watched};
use crate::{patience::stretched, tls::ClientTls};

/// A peer that lost power sends no FIN: ask it twice a second …
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
/// … and give it this long to answer.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(500);
/// The same where much is sent at a time: a question, or its answer, waits behind what was sent before it, and a
/// slow line takes seconds for that.
pub(super) const BULK_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A member on a live network answers a connect in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Makes a channel over TCP (`https://ip:port`) or a unix socket (`unix:///path`), always with
/// mutual TLS, connecting at first use.
pub fn channel(endpoint: &str, tls: &ClientTls) -> Result<Channel, Status> {
    watched_channel(endpoint, tls, &Refusal::default(), KEEPALIVE_TIMEOUT)
}

/// The same for what is sent in bulk: a peer that is gone is noticed after 20 s only.
pub fn bulk_channel(endpoint: &str, tls: &ClientTls) -> Result<Channel, Status> {
    watched_channel(endpoint, tls, &Refusal::default(), BULK_KEEPALIVE_TIMEOUT)
}

pub(super) fn watched_channel(
    endpoint: &str,
    tls: &ClientTls,
    refusal: &Refusal,
    keepalive_timeout: Duration,
) -> Result<Channel, Status> {
    let target = Target::parse(endpoint)?;
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    let name = tls.server_name.clone();
    let refusal = refusal.clone();
    let service = tower::service_fn(move |_: Uri| {
        let (target, connector, name, refusal) = (target.clone(), connector.clone(), name.clone(), refusal.clone());
        async move {
            let connected = async {
                let stream: Box<dyn Stream> = match &target {
                    Target::Tcp(address) => {
                        let stream = TcpStream::connect(address).await?;
                        stream.set_nodelay(true)?;
                        Box::new(stream)
                    }
                    Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
                };
                connector.connect(name, stream).await
            };
            match tokio::time::timeout(stretched(CONNECT_TIMEOUT), connected).await {
                Ok(result) => result.map(|s| TokioIo::new(Watched::new(s, refusal))).map_err(|e| named(&target, e)),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{target}: no answer within {} s", stretched(CONNECT_TIMEOUT).as_secs()),
                )),
            }
        }
    });
    Ok(Endpoint::from_static("http://control-plane.trellis")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(stretched(keepalive_timeout))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .connect_with_connector_lazy(service))
}

/// Adds where to, but leaves TLS' own errors as they are, for [`super::refusal::text`].
fn named(target: &Target, error: io::Error) -> io::Error {
    match error.get_ref() {
        Some(inner) if inner.is::<rustls::Error>() => error,
        _ => io::Error::new(error.kind(), format!("{target}: {error}")),
    }
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Stream for T {}

#[derive(Clone, Debug)]
enum Target {
    Tcp(String),
    Unix(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(a) => f.write_str(a),
            Self::Unix(p) => write!(f, "unix://{}", p.display()),
        }
    }
}

impl Target {
    fn parse(endpoint: &str) -> Result<Self, Status> {
        if let Some(path) = endpoint.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        let address = endpoint.strip_prefix("https://").unwrap_or(endpoint).trim_end_matches('/');
        if address.is_empty() || address.contains('/') {
            return Err(Status::invalid_argument(format!(
                "endpoint {endpoint:?} is neither https://HOST:PORT nor unix:///PATH"
            )));
        }
        let has_port = address.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        Ok(Self::Tcp(if has_port { address.to_owned() } else { format!("{address}:{}", crate::ports::API) }))
    }
}

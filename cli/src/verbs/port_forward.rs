//! `port-forward`: local connections carried to a Pod's port.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use trellis_model::Kind;
use trellis_proto::api::{EventType, PortForwardData, PortForwardStart, pods_client::PodsClient};

use super::pod_of;
use crate::cli::Global;
use crate::error::CliError;
use crate::session::{Change, Query, Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis port-forward pod/web-1 8080:80
  trellis port-forward deploy/web 8080:http
  trellis port-forward web-1 :80                       any free local port
  trellis port-forward web-1 80 --listen unix:///run/web.sock";

/// Messages of one connection on their way, in each direction.
const QUEUE: usize = 16;
const CHUNK_BYTES: usize = 64 * 1024;
/// Connections at a time; more wait in the listener's backlog.
const CONNECTIONS: usize = 256;

/// After the control plane did not answer the question whether the Pod is still there.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Arguments of `port-forward`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// POD or TYPE/NAME
    #[arg(value_name = "POD|TYPE/NAME")]
    target: String,
    /// [LOCAL:]REMOTE ports; REMOTE may be a port's name, LOCAL empty
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    ports: Vec<String>,
    /// Local addresses to listen on
    #[arg(long, default_value = "127.0.0.1", value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// Listen on a unix socket instead (one port only)
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listens and forwards until it is interrupted.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let (kind, name) = target::one(&args.target, Kind::Pod)?;
    let pod = pod_of(&session, kind, &name).await?;
    let (namespace, name) = identity(&pod);
    let mut listeners = Vec::new();
    for p in &args.ports {
        let (local, remote) = ports(p, &pod)?;
        let start = PortForwardStart { namespace: namespace.to_owned(), pod: name.to_owned(), port: u32::from(remote) };
        for l in listen(&args, local).await? {
            println!("Forwarding from {} -> {remote}", l.1);
            listeners.push((l.0, start.clone()));
        }
    }
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    let mut tasks = tokio::task::JoinSet::new();
    for (listener, start) in listeners {
        tasks.spawn(accept(listener, session.clone(), start, permits.clone()));
    }
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(CliError::local)?;
    let ended = tokio::select! {
        gone = until_gone(&session, &pod) => gone,
        done = tasks.join_next() => match done {
            Some(Ok(r)) => r,
            Some(Err(e)) => Err(CliError::local(e)),
            None => Ok(()),
        },
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    if let Some(path) = args.listen.as_deref().and_then(unix_path) {
        // It is ours: we made it.
        let _ = std::fs::remove_file(path);
    }
    ended
}

/// Waits until there is nothing to forward to any more, and says so: the Pod is gone, another's, or has ended.
async fn until_gone(session: &Session, pod: &Value) -> Result<(), CliError> {
    let (namespace, name) = identity(pod);
    let fields = format!("metadata.name={name}");
    let query = Query { namespace: Some(namespace.to_owned()), fields, ..Default::default() };
    let lost = |why: String| Err(CliError::Local(format!("lost connection to pod {namespace}/{name}: {why}")));
    let ended = |o: &Value| match o["status"]["phase"].as_str() {
        Some(phase @ ("Succeeded" | "Failed")) => Some(format!("it has ended ({phase})")),
        _ if o["metadata"]["uid"] != pod["metadata"]["uid"] => Some("it was made anew".to_owned()),
        _ => None,
    };
    loop {
        let (now, revision) = match session.list(Kind::Pod, &query).await {
            Ok(found) => found,
            // Connections that stand may live on without a control plane; new ones tell for themselves.
            Err(_) => {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
        };
        match now.first() {
            None => return lost("it is gone".to_owned()),
            Some(o) => {
                if let Some(why) = ended(o) {
                    return lost(why);
                }
            }
        }
        let mut why = None;
        let watched = session.watch(Kind::Pod, &query, revision, |Change { event, object }| {
            why = match event {
                EventType::Deleted => Some("it is gone".to_owned()),
                EventType::Bookmark => None,
                _ => ended(&object),
            };
            Ok(why.is_none())
        });
        // An error of the watch: looked at anew.
        let broken = watched.await.is_err();
        if let Some(why) = why {
            return lost(why);
        }
        if broken {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn unix_path(listen: &str) -> Option<PathBuf> {
    listen.strip_prefix("unix://").map(PathBuf::from)
}

/// `8080:80`, `80`, `:80`, `8080:http`.
fn ports(text: &str, pod: &Value) -> Result<(u16, u16), CliError> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let bad = |why: &str| CliError::Usage(format!("port {text:?}: {why}"));
    let number = match remote.parse::<u16>() {
        Ok(0) => return Err(bad("the remote port is 1 to 65535")),
        Ok(n) => n,
        Err(_) => named(pod, remote).ok_or_else(|| bad("no container of the Pod has a port of that name"))?,
    };
    let local = match local {
        "" => 0,
        l if l == remote => number,
        l => l.parse().map_err(|_| bad("the local port is 0 to 65535"))?,
    };
    Ok((local, number))
}

fn named(pod: &Value, name: &str) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?;
    containers
        .iter()
        .flat_map(|c| c["ports"].as_array().into_iter().flatten())
        .find(|p| p["name"] == name)
        .and_then(|p| p["containerPort"].as_u64())
        .and_then(|n| u16::try_from(n).ok())
}

async fn listen(args: &Args, port: u16) -> Result<Vec<(Listener, String)>, CliError> {
    if let Some(l) = &args.listen {
        let path = unix_path(l).ok_or_else(|| CliError::Usage(format!("--listen={l}: expected unix:///PATH")))?;
        if args.ports.len() > 1 {
            return Err(CliError::Usage("--listen takes one port".into()));
        }
        // A socket that nobody listens on any more is left from a run that was killed.
        if tokio::net::UnixStream::connect(&path)
            .await
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            let _ = std::fs::remove_file(&path);
        }
        let bound =
            UnixListener::bind(&path).map_err(|e| CliError::Local(format!("listening on {}: {e}", path.display())))?;
        return Ok(vec![(Listener::Unix(bound), l.clone())]);
    }
    let mut out = Vec::new();
    for ip in &args.address {
        let wanted = SocketAddr::new(*ip, port);
        let bound =
            TcpListener::bind(wanted).await.map_err(|e| CliError::Local(format!("listening on {wanted}: {e}")))?;
        let local = bound.local_addr().map_err(CliError::local)?;
        out.push((Listener::Tcp(bound), local.to_string()));
    }
    Ok(out)
}

async fn accept(
    listener: Listener,
    session: Session,
    start: PortForwardStart,
    permits: std::sync::Arc<tokio::sync::Semaphore>,
) -> Result<(), CliError> {
    loop {
        let permit = permits.clone().acquire_owned().await.map_err(CliError::local)?;
        let (session, start) = (session.clone(), start.clone());
        let bad = |e: std::io::Error| CliError::Local(format!("accepting a connection: {e}"));
        match &listener {
            Listener::Tcp(l) => {
                let (stream, _) = l.accept().await.map_err(bad)?;
                // Interactive traffic must not wait for full packets.
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    told(carry(stream, &session, start).await);
                    drop(permit);
                });
            }
            Listener::Unix(l) => {
                let (stream, _) = l.accept().await.map_err(bad)?;
                tokio::spawn(async move {
                    told(carry(stream, &session, start).await);
                    drop(permit);
                });
            }
        }
    }
}

fn told(result: Result<(), CliError>) {
    if let Err(e) = result {
        eprintln!("{e}");
    }
}

/// Carries one connection: each direction ends by itself, as TCP's do.
async fn carry<S>(stream: S, session: &Session, start: PortForwardStart) -> Result<(), CliError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Nothing of the connection has been sent yet: another member may be asked.
    let opened = session.conn.call(|c| {
        let first = PortForwardData { start: Some(start.clone()), ..Default::default() };
        async move {
            let (tx, rx) = mpsc::channel(QUEUE);
            let gone = |_| tonic::Status::cancelled("the request was dropped");
            tx.send(first).await.map_err(gone)?;
            let replies = PodsClient::new(c).port_forward(ReceiverStream::new(rx)).await?;
            Ok((tx, replies.into_inner()))
        }
    });
    let (tx, mut replies) = opened.await?;
    let up = tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = reader.read(&mut buffer).await.unwrap_or(0);
            let message = PortForwardData { start: None, data: buffer[..n].to_vec().into(), eof: n == 0 };
            if tx.send(message).await.is_err() || n == 0 {
                // The sender must live until the other direction ends: dropping it ends the call.
                return tx;
            }
        }
    });
    let down = async {
        while let Some(m) = replies.message().await? {
            if !m.data.is_empty() && writer.write_all(&m.data).await.is_err() {
                return Ok(());
            }
            if m.eof {
                // The peer may have closed already.
                let _ = writer.shutdown().await;
            }
        }
        Ok::<(), CliError>(())
    };
    let result = down.await;
    up.abort();
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    #[test]
    fn port_forms() {
        let pod = json!({"spec":{"containers":[{"ports":[{"name":"http","containerPort":80}]}]}});
        for (text, want) in
            [("8080:80", (8080, 80)), ("80", (80, 80)), (":80", (0, 80)), ("8080:http", (8080, 80)), ("http", (80, 80))]
        {
            assert_eq!(ports(text, &pod).unwrap(), want, "{text}");
        }
        for bad in ["", "x", "80:0", "99999:80", "80:nope"] {
            assert!(ports(bad, &pod).is_err(), "{bad}");
        }
    }
}

//! Port-forward: a TCP connection made inside the Pod's network namespace, by a thread that enters
//! it and ends; the socket stays there and is then driven from here.
use super::Service;
use crate::{pod::registry::PodView, runtime::shim::Shim};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::Sender,
};
use tonic::{Status, Streaming};
use trellis_proto::api::PortForwardData;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CHUNK_BYTES: usize = 32 * 1024;
/// How long the client has to say which port it wants.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Opens the connection and carries both directions until both are finished.
pub async fn begin(
    service: &Service,
    mut input: Streaming<PortForwardData>,
    tx: Sender<Result<PortForwardData, Status>>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(START_WITHIN, input.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no start message within 10 s"))??
        .ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
    let start = first.start.ok_or_else(|| Status::invalid_argument("the first message must carry `start`"))?;
    let port = u16::try_from(start.port)
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| Status::invalid_argument(format!("port {} is out of range", start.port)))?;
    let view = service.pod(&start.namespace, &start.pod)?;
    if !view.attached {
        return Err(Status::failed_precondition(format!("pod {} has no network now", start.pod)));
    }
    let stream = connect(service, &view, port).await?;
    tokio::spawn(carry(stream, first.data, input, tx));
    Ok(())
}

async fn connect(service: &Service, view: &PodView, port: u16) -> Result<TcpStream, Status> {
    let refused = |e: String| Status::failed_precondition(format!("port {port} of the Pod: {e}"));
    let shim = Shim::at(&service.ctx.shim_dir(view.uid()));
    let (netns, _) = shim.netns().await.map_err(|e| refused(e.to_string()))?;
    let mut hosts: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    hosts.extend(view.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()));
    let made = tokio::task::spawn_blocking(move || {
        trellis_sandbox::netns::inside(netns.as_fd(), || {
            let mut last = String::new();
            for host in hosts {
                match std::net::TcpStream::connect_timeout(&SocketAddr::new(host, port), CONNECT_TIMEOUT) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error.to_string(),
                }
            }
            Err(last)
        })
    });
    let stream = made
        .await
        .map_err(|_| refused("the agent is ending".into()))?
        .map_err(|e| refused(e.to_string()))?
        .map_err(refused)?;
    stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)).map_err(|e| refused(e.to_string()))
}

async fn carry(
    stream: TcpStream,
    first: bytes::Bytes,
    mut input: Streaming<PortForwardData>,
    tx: Sender<Result<PortForwardData, Status>>,
) {
    let (mut from_pod, mut to_pod) = stream.into_split();
    let upwards = async {
        to_pod.write_all(&first).await?;
        while let Ok(Some(part)) = input.message().await {
            to_pod.write_all(&part.data).await?;
            if part.eof {
                return to_pod.shutdown().await;
            }
        }
        // The client is gone: so is its interest in what the Pod has to say.
        Err(std::io::ErrorKind::ConnectionAborted.into())
    };
    let downwards = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = from_pod.read(&mut buffer).await?;
            let data = PortForwardData { start: None, data: bytes::Bytes::copy_from_slice(&buffer[..n]), eof: n == 0 };
            if tx.send(Ok(data)).await.is_err() {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            if n == 0 {
                return Ok(());
            }
        }
    };
    let both: Result<((), ()), std::io::Error> = async { tokio::try_join!(upwards, downwards) }.await;
    if let Err(error) = both {
        tracing::debug!(%error, "a port-forward ended");
    }
}

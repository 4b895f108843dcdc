//! Port 10250: logs, exec, port-forward and images, for members of the control plane only. They
//! have authorised the person who asks; this side makes sure that it is a member who asks.
mod exec;
mod forward;
mod images;
mod log_file;
mod logs;

use crate::pod::{
    registry::{ContainerView, PodView},
    steps::Context,
};
use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::{
    api::{
        ExecInput, ExecOutput, ImportReply, ImportRequest, ListImagesReply, ListImagesRequest, LogChunk, LogsRequest,
        PortForwardData,
        images_server::{Images, ImagesServer},
        pods_server::{Pods, PodsServer},
    },
    identity::Identity,
    node_config::NodeConfig,
    patience::stretched,
    ports,
    server::{Listen, listen, peer},
    tls::{ClientAuth, Credentials, server_config},
};

/// Messages of one stream on their way to a slow reader.
const STREAM_QUEUE: usize = 16;
/// A member that lost power sends no FIN.
const KEEPALIVE: Duration = Duration::from_millis(2000);
/// It may be sending an archive, and its answer waits behind that.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two tries to listen: the address may come later than we do.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// Streams of one member at once.
const STREAMS_MAX: u32 = 1024;

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Listens on the node's address and serves until the process ends.
pub async fn start(ctx: Arc<Context>, config: &NodeConfig, credentials: &Arc<Credentials>) {
    let address = SocketAddr::new(config.advertise_address, ports::AGENT);
    let tls = match server_config(credentials, ClientAuth::Required) {
        Ok(tls) => tls,
        Err(error) => {
            tracing::error!(%error, "port 10250 is not served: logs, exec and port-forward will not work");
            return;
        }
    };
    tokio::spawn(async move {
        let mut said = false;
        loop {
            let incoming = match listen(&Listen::Tcp(address), tls.clone()).await {
                Ok(incoming) => incoming,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%address, %error, "cannot listen yet: trying again every second");
                    }
                    tokio::time::sleep(LISTEN_RETRY).await;
                    continue;
                }
            };
            let service = Service { ctx: ctx.clone() };
            let served = tonic::transport::Server::builder()
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(stretched(KEEPALIVE_TIMEOUT)))
                .max_concurrent_streams(STREAMS_MAX)
                .add_service(PodsServer::with_interceptor(service.clone(), members_only))
                .add_service(ImagesServer::with_interceptor(service, members_only))
                .serve_with_incoming(incoming)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the server on port 10250 ended: starting it again");
            }
            tokio::time::sleep(LISTEN_RETRY).await;
        }
    });
}

/// The handshake proved a certificate of the cluster; this wants a member's.
#[allow(clippy::result_large_err)]
fn members_only(request: Request<()>) -> Result<Request<()>, Status> {
    match peer(&request).and_then(|p| p.identity.clone()) {
        Some(Identity::Member(_)) => Ok(request),
        other => {
            let who = other.map_or_else(|| "nobody".to_owned(), |i| format!("{} {}", i.organization(), i.name()));
            tracing::warn!(who, "refused on port 10250");
            Err(Status::permission_denied("only members of the control plane may call a node agent"))
        }
    }
}

#[derive(Clone)]
struct Service {
    ctx: Arc<Context>,
}

impl Service {
    #[allow(clippy::result_large_err)]
    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<PodView>, Status> {
        self.ctx.registry.find(namespace, name).ok_or_else(|| {
            Status::not_found(format!("pod {namespace}/{name} is not on node {} (yet)", self.ctx.node_name))
        })
    }
}

/// The container that is meant: the named one, or the only one.
#[allow(clippy::result_large_err)]
fn container<'a>(view: &'a PodView, name: &str) -> Result<&'a ContainerView, Status> {
    let pod = view.pod.metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        let default = view.pod.metadata.annotations.as_ref();
        let default = default.and_then(|a| a.get("kubectl.kubernetes.io/default-container"));
        if let Some(c) = default.and_then(|name| view.containers.iter().find(|c| c.name == *name)) {
            return Ok(c);
        }
        let mut mains = view.containers.iter().filter(|c| c.main);
        return match (mains.next(), mains.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(Status::invalid_argument(format!(
                "a container name must be specified for pod {pod}, choose one of: [{}]",
                names(view)
            ))),
        };
    }
    view.containers
        .iter()
        .find(|c| c.name == name)
        .ok_or_else(|| Status::not_found(format!("container {name} is not in pod {pod}, it has: [{}]", names(view))))
}

fn names(view: &PodView) -> String {
    view.containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[tonic::async_trait]
impl Pods for Service {
    type LogsStream = Out<LogChunk>;
    type ExecStream = Out<ExecOutput>;
    type PortForwardStream = Out<PortForwardData>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let view = self.pod(&request.namespace, &request.pod)?;
        let found = container(&view, &request.container)?;
        let task = logs::Task::new(&self.ctx, &view, found, &request)?;
        let (tx, rx) = tokio::sync::mpsc::channel(STREAM_QUEUE);
        tokio::spawn(task.run(tx));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        let (tx, rx) = tokio::sync::mpsc::channel(STREAM_QUEUE);
        exec::begin(self, request.into_inner(), tx).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<PortForwardData>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        let (tx, rx) = tokio::sync::mpsc::channel(STREAM_QUEUE);
        forward::begin(self, request.into_inner(), tx).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

#[tonic::async_trait]
impl Images for Service {
    async fn import(&self, request: Request<Streaming<ImportRequest>>) -> Result<Response<ImportReply>, Status> {
        images::import(&self.ctx, request.into_inner()).await.map(Response::new)
    }

    async fn list(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesReply>, Status> {
        images::list(&self.ctx).map(Response::new)
    }
}

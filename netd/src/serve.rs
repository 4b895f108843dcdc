//! gRPC on unix sockets: PodNetwork for the agent, Membership for control plane and agent.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use trellis_gossip::View;
use trellis_proto::netd::membership_server::{Membership, MembershipServer};
use trellis_proto::netd::pod_network_server::{PodNetwork, PodNetworkServer};
use trellis_proto::netd::{
    AttachReply, AttachRequest, Attached, DetachReply, DetachRequest, Liveness, MemberState, MembershipView,
    StatusReply, StatusRequest, WatchRequest,
};

use crate::engine::{EngineError, Event};

/// Views followed at once: control plane, agent, and people who look.
const MAX_FOLLOWERS: usize = 64;
/// Calls under way on one connection of the membership socket.
const STREAMS: u32 = 16;

/// Listens for PodNetwork at `path`; the folder is root's alone.
pub fn bind_pod_network(path: &Path) -> io::Result<UnixListener> {
    bind(path, 0o700, 0o600)
}

/// Serves PodNetwork.
pub async fn pod_network(listener: UnixListener, events: mpsc::Sender<Event>) -> io::Result<()> {
    let service = PodNetworkServer::new(PodNetworkService { events });
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .map_err(io::Error::other)
}

/// Listens for Membership at `path`, for netd's own group, in which the control plane is as well.
/// Root's group has no other members: where netd runs in it (a lab's nodes are namespaces of their
/// own), the control plane could not listen, and the socket, which only tells, is everybody's.
pub fn bind_membership(path: &Path) -> io::Result<UnixListener> {
    bind(path, 0o755, membership_mode(rustix::process::getegid().is_root()))
}

fn membership_mode(in_roots_group: bool) -> u32 {
    if in_roots_group { 0o666 } else { 0o660 }
}

/// Serves Membership.
pub async fn membership(listener: UnixListener, view: watch::Receiver<Arc<View>>) -> io::Result<()> {
    let service = MembershipServer::new(MembershipService::new(view));
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .map_err(io::Error::other)
}

/// Makes the folder with its mode, replaces a stale socket, listens.
pub fn bind(path: &Path, folder_mode: u32, mode: u32) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(folder_mode))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

struct PodNetworkService {
    events: mpsc::Sender<Event>,
}

impl PodNetworkService {
    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Status::unavailable("netd is stopping");
        self.events.send(event(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

#[tonic::async_trait]
impl PodNetwork for PodNetworkService {
    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachReply>, Status> {
        let uid = required(request.into_inner().pod_uid)?;
        let attachment = self.ask(|reply| Event::Attach { uid, reply }).await?.map_err(|error| status(&error))?;
        Ok(Response::new(AttachReply {
            addresses: vec![attachment.address.to_string()],
            gateway: attachment.gateway.to_string(),
            mtu: attachment.mtu,
            policy_revision: attachment.revision,
        }))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachReply>, Status> {
        let uid = required(request.into_inner().pod_uid)?;
        self.ask(|reply| Event::Detach { uid, reply }).await?.map_err(|error| status(&error))?;
        Ok(Response::new(DetachReply {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let status = self.ask(|reply| Event::Status { reply }).await?;
        let attached = status.attached.into_iter().map(|pod| Attached {
            pod_uid: pod.uid,
            addresses: vec![pod.address.to_string()],
            interface: pod.interface,
            netns_held: pod.netns_held,
        });
        Ok(Response::new(StatusReply {
            attached: attached.collect(),
            pod_cidr: status.pod_cidr.map(|cidr| cidr.to_string()).unwrap_or_default(),
            applied_revision: status.applied_revision,
            repairs: status.repairs,
        }))
    }
}

fn required(uid: String) -> Result<String, Status> {
    if uid.is_empty() { Err(Status::invalid_argument("pod_uid is empty")) } else { Ok(uid) }
}

/// The one place where an engine's error becomes a status.
fn status(error: &EngineError) -> Status {
    let text = error.to_string();
    match error {
        EngineError::NotHandedOver(_) => Status::failed_precondition(text),
        EngineError::UnknownPod(_) | EngineError::NoPodCidr(_) => Status::unavailable(text),
        EngineError::Address(_) => Status::resource_exhausted(text),
        EngineError::Store(_) | EngineError::Kernel(..) => Status::internal(text),
    }
}

struct MembershipService {
    view: watch::Receiver<Arc<View>>,
    followers: Arc<Semaphore>,
}

impl MembershipService {
    fn new(view: watch::Receiver<Arc<View>>) -> Self {
        Self { view, followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)) }
    }
}

type ViewStream = Pin<Box<dyn Stream<Item = Result<MembershipView, Status>> + Send>>;

#[tonic::async_trait]
impl Membership for MembershipService {
    type WatchStream = ViewStream;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<ViewStream>, Status> {
        let follower = Arc::clone(&self.followers).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{MAX_FOLLOWERS} follow this node's membership already; end one"))
        })?;
        // Level, not edge: a slow reader misses views in between, never the last.
        let views = WatchStream::new(self.view.clone()).map(move |view| {
            let _while_followed = &follower;
            Ok(message(&view))
        });
        Ok(Response::new(Box::pin(views)))
    }
}

fn message(view: &View) -> MembershipView {
    let members = view.members.iter().map(|member| {
        let identity = &member.identity;
        let liveness = match member.liveness {
            trellis_gossip::Liveness::Alive => Liveness::Alive,
            trellis_gossip::Liveness::Suspect => Liveness::Suspect,
            trellis_gossip::Liveness::Dead => Liveness::Dead,
        };
        MemberState {
            node: identity.name.clone(),
            address: identity.address.ip().to_string(),
            pod_cidr: identity.pod_cidr.map(|cidr| cidr.to_string()).unwrap_or_default(),
            version: identity.version.clone(),
            liveness: liveness.into(),
            incarnation: member.incarnation,
            api_addresses: identity.api_addresses.clone(),
        }
    });
    MembershipView { members: members.collect(), healthy: view.healthy }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_membership_socket_is_of_netds_group_unless_that_is_roots() {
        assert_eq!((membership_mode(false), membership_mode(true)), (0o660, 0o666));
    }

    #[tokio::test]
    async fn so_many_may_follow_and_a_place_becomes_free() {
        let (_views, view) = watch::channel(Arc::default());
        let service = MembershipService::new(view);
        let mut followed = Vec::new();
        for _ in 0..MAX_FOLLOWERS {
            followed.push(service.watch(Request::new(WatchRequest {})).await.unwrap());
        }
        let refused = service.watch(Request::new(WatchRequest {})).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        followed.pop();
        service.watch(Request::new(WatchRequest {})).await.unwrap();
    }
}

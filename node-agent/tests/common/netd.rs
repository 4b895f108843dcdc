//! A netd that takes namespaces and gives addresses, without touching the kernel.
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    mem::MaybeUninit,
    path::Path,
    sync::{Arc, Mutex},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use trellis_proto::netd::*;

#[derive(Clone, Default)]
pub struct FakeNetd {
    /// uid → (netns handed over, attached)
    pub pods: Arc<Mutex<BTreeMap<String, (bool, bool)>>>,
}

impl FakeNetd {
    pub fn start(run_dir: &Path) -> Self {
        let this = Self::default();
        let dir = run_dir.join("netd");
        std::fs::create_dir_all(&dir).unwrap();
        let listener = tokio::net::UnixListener::bind(dir.join("attach.sock")).unwrap();
        let service = pod_network_server::PodNetworkServer::new(this.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(dir.join("handoff.sock")).unwrap()).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        let pods = this.pods.clone();
        std::thread::spawn(move || {
            while let Ok(peer) = rustix::net::accept(&socket) {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut buffer = [0; 256];
                let got = rustix::net::recvmsg(
                    &peer,
                    &mut [IoSliceMut::new(&mut buffer)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                );
                let Ok(got) = got else { continue };
                let fds: usize = control
                    .drain()
                    .map(|m| match m {
                        rustix::net::RecvAncillaryMessage::ScmRights(fds) => fds.count(),
                        _ => 0,
                    })
                    .sum();
                let uid = String::from_utf8_lossy(&buffer[..got.bytes]).into_owned();
                pods.lock().unwrap().entry(uid).or_default().0 = fds == 2;
                let _ = rustix::net::send(&peer, b"ok", SendFlags::NOSIGNAL);
            }
        });
        this
    }
}

#[tonic::async_trait]
impl pod_network_server::PodNetwork for FakeNetd {
    async fn attach(&self, r: Request<AttachRequest>) -> Result<Response<AttachReply>, Status> {
        let uid = r.into_inner().pod_uid;
        let mut pods = self.pods.lock().unwrap();
        let pod = pods.entry(uid).or_default();
        if !pod.0 {
            return Err(Status::failed_precondition("no namespace was handed over"));
        }
        pod.1 = true;
        let addresses = vec!["10.244.1.7".to_owned()];
        Ok(Response::new(AttachReply { addresses, gateway: "169.254.1.1".into(), mtu: 1450, policy_revision: 1 }))
    }

    async fn detach(&self, r: Request<DetachRequest>) -> Result<Response<DetachReply>, Status> {
        self.pods.lock().unwrap().remove(&r.into_inner().pod_uid);
        Ok(Response::new(DetachReply {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let pods = self.pods.lock().unwrap();
        let attached = pods.iter().filter(|(_, p)| p.1).map(|(uid, p)| Attached {
            pod_uid: uid.clone(),
            addresses: vec!["10.244.1.7".into()],
            interface: "t1".into(),
            netns_held: p.0,
        });
        Ok(Response::new(StatusReply {
            attached: attached.collect(),
            pod_cidr: "10.244.1.0/24".into(),
            applied_revision: 1,
            repairs: 0,
        }))
    }
}

//! The peer for writes: three members of Debian's etcd on loopback, data on the lab's disk.
//!
//! Spoken to over gRPC as its own clients do; the two messages needed are written out here.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    Error, Result,
    backend::Namespaces,
    cgroup::{self, CgroupDir},
    peer, wait,
};

/// etcdserverpb.PutRequest, the fields used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// etcdserverpb.PutResponse, of which nothing is read.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// Three members; ended when dropped.
pub struct Etcd {
    members: Vec<Child>,
    cgroups: Vec<CgroupDir>,
    endpoints: Vec<String>,
    data: tempdir::Folder,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Gone already is as good.
            drop(member.kill());
            drop(member.wait());
        }
        // What is left goes with the lab.
        drop(cgroup::remove(&self.cgroups));
        self.data.remove();
    }
}

impl Etcd {
    /// Starts three members with their data in the lab's folder, each in a cgroup of the lab like a node: they end
    /// with it, however this process ends.
    pub fn start(lab: &Namespaces, lab_exe: &Path) -> Result<Self> {
        let installed =
            std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|d| d.join("etcd").exists()));
        if !installed {
            return Err(Error::Lacking {
                what: "no etcd on this machine".to_owned(),
                how: "apt-get install etcd-server".to_owned(),
            });
        }
        let data = tempdir::Folder::new(lab.layout().root.join("etcd"))?;
        let ports = free_ports(6)?;
        let urls: Vec<[String; 2]> =
            ports.chunks(2).map(|p| [0, 1].map(|i| format!("http://127.0.0.1:{}", p[i]))).collect();
        let cluster: Vec<String> = urls.iter().enumerate().map(|(i, u)| format!("e{i}={}", u[1])).collect();
        let endpoints = urls.iter().map(|u| u[0].clone()).collect();
        let mut etcd = Self { members: Vec::new(), cgroups: Vec::new(), endpoints, data };
        for (i, [client, peer]) in urls.iter().enumerate() {
            let (mut command, cgroups) = peer::command(lab, lab_exe, &format!("etcd.e{i}"), "etcd")?;
            etcd.cgroups.extend(cgroups);
            let member = command
                .args(["--name", &format!("e{i}"), "--data-dir"])
                .arg(etcd.data.path().join(format!("e{i}")))
                .args(["--listen-client-urls", client, "--advertise-client-urls", client])
                .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
                .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(Error::io("start etcd"))?;
            etcd.members.push(member);
        }
        Ok(etcd)
    }

    /// `count` connections, spread over the members, once the cluster takes writes.
    pub fn connect(&self, runtime: &tokio::runtime::Runtime, count: usize) -> Result<Vec<Channel>> {
        // A channel's driver is spawned as it is made.
        let _inside = runtime.enter();
        let channels: Vec<Channel> = (0..count)
            .map(|i| {
                Endpoint::from_shared(self.endpoints[i % self.endpoints.len()].clone())
                    .map(|e| e.connect_lazy())
                    .map_err(|e| Error::Format { what: "an etcd endpoint".to_owned(), why: e.to_string() })
            })
            .collect::<Result<_>>()?;
        let first = channels[0].clone();
        wait::until("etcd takes writes", Duration::from_secs(30), || {
            runtime.block_on(put(first.clone(), b"ready".to_vec(), Vec::new()))
        })?;
        Ok(channels)
    }
}

/// One put.
pub async fn put(channel: Channel, key: Vec<u8>, value: Vec<u8>) -> std::result::Result<(), String> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|e| e.to_string())?;
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec: ProstCodec<PutRequest, PutResponse> = ProstCodec::default();
    let request = tonic::Request::new(PutRequest { key, value });
    grpc.unary(request, path, codec).await.map(drop).map_err(|e| e.to_string())
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").map_err(Error::io("find a free port")))
        .collect::<Result<_>>()?;
    listeners.iter().map(|l| l.local_addr().map(|a| a.port()).map_err(Error::io("find a free port"))).collect()
}

mod tempdir {
    //! A folder that goes with its owner.
    use std::path::{Path, PathBuf};

    use crate::{Error, Result};

    pub struct Folder(PathBuf);

    impl Folder {
        pub fn new(path: PathBuf) -> Result<Self> {
            std::fs::create_dir_all(&path).map_err(Error::io(path.display().to_string()))?;
            Ok(Self(path))
        }
        pub fn path(&self) -> &Path {
            &self.0
        }
        pub fn remove(&self) {
            // The lab's folder goes as a whole soon after.
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}

//! A cluster's files in a temporary folder, and members started in this process from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use trellis_control_plane::config::{Args, LogFormat, Settings};
use trellis_control_plane::run::{Running, start};
use trellis_proto::api;
use trellis_proto::client::Connection;
use trellis_proto::identity::Identity;
use trellis_proto::node_config::{MemberAddress, NodeConfig, Role, VERSION, write_private};
use trellis_proto::pki::{self, CertificateAuthority, Key};
use trellis_proto::tls::{ClientTls, Credentials, install_crypto};

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Two ports that are free now.
pub fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind((LOCALHOST, 0)).unwrap());
    listeners.map(|l| l.local_addr().unwrap().port())
}

pub struct Bed {
    pub ca: CertificateAuthority,
    pub kek: Key,
    pub gossip: Key,
    pub member: MemberAddress,
    pub dir: TempDir,
    pub running: Option<Running>,
}

pub fn write_config(dir: &Path, node: &NodeConfig, files: &[(&str, &str)]) {
    node.store(dir).unwrap();
    for (name, text) in files {
        write_private(&dir.join(name), text.as_bytes()).unwrap();
    }
}

pub fn node_config(name: &str, members: Vec<MemberAddress>) -> NodeConfig {
    NodeConfig {
        version: VERSION,
        node_name: name.into(),
        cluster_name: "test".into(),
        advertise_address: LOCALHOST,
        members,
        roles: vec![Role::ControlPlane],
        api_unix_socket: None,
        labels: BTreeMap::new(),
        taints: vec![],
        insecure_registries: vec![],
    }
}

pub fn args(dir: &Path) -> Args {
    Args {
        config_dir: dir.join("etc"),
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        listen: LOCALHOST,
        log_format: LogFormat::Text,
    }
}

impl Bed {
    /// What `cluster init` writes, and the member started from it.
    pub async fn start() -> Self {
        install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        let ca = CertificateAuthority::create("test").unwrap();
        let (kek, gossip) = (Key::generate(), Key::generate());
        let [api, peer] = free_ports();
        let member = MemberAddress {
            id: 1,
            name: "n1".into(),
            api_address: format!("127.0.0.1:{api}"),
            peer_address: format!("127.0.0.1:{peer}"),
        };
        let issued = ca.issue(&Identity::Member("n1".into())).unwrap();
        let bootstrap = json!({"version": 1, "cluster_name": "test", "pod_cidr": "10.244.0.0/16",
            "node_prefix": 24, "service_cidr": "10.96.0.0/16",
            "ca_key_sealed": pki::base64(&ca.seal_key(&kek))});
        let mut node = node_config("n1", vec![member.clone()]);
        node.api_unix_socket = Some(dir.path().join("api.sock"));
        let files = [
            ("pki/ca.crt", ca.certificate_pem()),
            ("pki/member.crt", &issued.pem),
            ("pki/member.key", &issued.key_pem),
            ("keys/kek", &kek.to_hex()),
            ("keys/gossip", &gossip.to_hex()),
            ("bootstrap.json", &bootstrap.to_string()),
        ];
        write_config(&etc, &node, &files);
        let mut bed = Self { ca, kek, gossip, member, dir, running: None };
        bed.run().await;
        bed
    }

    /// Starts the member (again) from its files.
    pub async fn run(&mut self) {
        let settings = Settings::load(&args(self.dir.path())).unwrap();
        self.running = Some(start(settings, CancellationToken::new()).await.unwrap());
        let admin = self.admin();
        eventually("the cluster is seeded", || async {
            get(&admin, "", "Namespace", "", "default").await.is_ok()
                && get(&admin, "", "Namespace", "", "kube-system").await.is_ok()
        })
        .await;
    }

    pub async fn stop(&mut self) {
        self.running.take().unwrap().shutdown().await;
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn endpoint(&self) -> String {
        format!("https://{}", self.member.api_address)
    }

    pub fn connect(&self, credentials: &Arc<Credentials>) -> Connection {
        Connection::new(vec![self.endpoint()], ClientTls::to_member(credentials).unwrap())
    }

    pub fn client(&self, profile: &Identity) -> Connection {
        self.connect(&credentials(&self.ca, profile))
    }

    pub fn admin(&self) -> Connection {
        self.client(&Identity::admin())
    }
}

pub fn credentials(ca: &CertificateAuthority, profile: &Identity) -> Arc<Credentials> {
    let issued = ca.issue(profile).unwrap();
    Credentials::from_pem(ca.certificate_pem(), &issued.pem, &issued.key_pem).unwrap()
}

/// Waits, with a deadline, until the predicate holds.
pub async fn eventually<F, Fut>(what: &str, mut predicate: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let until = Instant::now() + Duration::from_secs(20);
    while !predicate().await {
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

pub fn key(group: &str, kind: &str, namespace: &str, name: &str) -> Option<api::ObjectKey> {
    Some(api::ObjectKey { group: group.into(), kind: kind.into(), namespace: namespace.into(), name: name.into() })
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": "i:1"}]}})
}

/// An object that no controller touches.
pub fn config(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "web"}},
        "data": {"k": "v"}})
}

pub fn value(object: Option<api::Object>) -> Value {
    serde_json::from_slice(&object.unwrap().json).unwrap()
}

pub async fn get(client: &Connection, group: &str, kind: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let request = api::GetRequest { key: key(group, kind, namespace, name), consistency: 0 };
    Ok(value(client.resources().get(request).await?.into_inner().object))
}

pub async fn create(client: &Connection, kind: &str, object: &Value) -> Result<Value, Status> {
    let request = api::CreateRequest {
        key: key("", kind, "", ""),
        json: object.to_string().into(),
        ..api::CreateRequest::default()
    };
    Ok(value(client.resources().create(request).await?.into_inner().object))
}

/// The code of what was to be refused.
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.expect_err("this was to be refused").code()
}

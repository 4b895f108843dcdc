//! Certificates that live for seconds: everybody renews theirs, presents the new one, and is heard.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::json;
use trellis_lab::{
    Error,
    backend::{Backend, Namespaces},
    cluster::{Api, api::condition, up},
    netns, wait,
    workload::web,
};
use trellis_proto::{
    client::{ClusterContext, Contexts},
    identity::{MEMBER_SERVER_NAME, agent_server_name},
    pki, ports, tls,
};

use crate::{
    cluster::{Cluster, EXE, LIMIT, Ran, lab_command, run},
    harness::Outcome,
};

/// Long enough for a lab to come up with it on a busy machine.
const LIFETIME: &str = "40s";
/// Who has a certificate: node and daemon.
const HOLDERS: [(&str, &str); 5] = [("n1", "member"), ("n1", "agent"), ("n1", "netd"), ("n2", "agent"), ("n2", "netd")];
const CALL_EVERY: Duration = Duration::from_millis(200);

/// A lab beside the others', gone when dropped.
struct Short {
    name: String,
    folder: PathBuf,
    lab: Namespaces,
    api: Api,
}

impl Drop for Short {
    fn drop(&mut self) {
        // The command, which also forgets the context.
        let ran = run(lab_command(&self.name, &self.folder).arg("down"), LIMIT);
        if ran.code != 0 {
            eprintln!("taking the lab of short certificates down: {}", ran.stderr);
        }
    }
}

impl Short {
    fn up(name: &str, folder: &Path) -> Self {
        let topology = folder.join("short.toml");
        let text = format!("control_planes = 1\nworkers = 1\ncertificate_lifetime = {LIFETIME:?}\n");
        fs::write(&topology, text).unwrap();
        let ran = run(lab_command(name, folder).arg("up").arg("-f").arg(&topology), LIMIT * 2);
        let lab = Namespaces::open(name, EXE.into()).unwrap();
        let api = Api::open(&lab.layout().contexts());
        let api = api.unwrap_or_else(|e| panic!("{e}\n{}{}", ran.stdout, ran.stderr));
        let short = Self { name: name.to_owned(), folder: folder.to_owned(), api, lab };
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        short
    }

    fn pem(&self, node: &str, file: &str) -> String {
        fs::read_to_string(self.lab.layout().node(node).path("etc").join("pki").join(file)).unwrap()
    }

    /// What lies on disk now, by holder.
    fn certificates(&self) -> BTreeMap<(&'static str, &'static str), String> {
        HOLDERS.into_iter().map(|(node, name)| ((node, name), self.pem(node, &format!("{name}.crt")))).collect()
    }

    /// The certificate that a server shows to a member of the control plane.
    fn presented(&self, node: &str, port: u16, name: &str) -> Vec<u8> {
        tls::install_crypto();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem("n1", "ca.crt").as_bytes()).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(self.pem("n1", "member.crt").as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.pem("n1", "member.key").as_bytes()).unwrap();
        let mut config =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let address = SocketAddr::from((self.lab.topology().node(node).unwrap().address, port));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let shown = netns::inside(self.lab.init_of("n1").unwrap().pid, move || {
            let io = || Error::io(format!("a handshake with {address}"));
            let mut stream = TcpStream::connect_timeout(&address, LIMIT).map_err(io())?;
            let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut stream).map_err(io())?;
            }
            Ok(session.peer_certificates().unwrap()[0].to_vec())
        });
        shown.unwrap()
    }

    /// `trellis get node n2` with this certificate of its agent.
    fn as_agent(&self, cluster: &Cluster, certificate: &str) -> Ran {
        let context = ClusterContext {
            endpoints: vec![self.lab.api_endpoint("n1")],
            ca: self.pem("n2", "ca.crt"),
            certificate: certificate.to_owned(),
            key: self.pem("n2", "agent.key"),
            namespace: "default".to_owned(),
        };
        let mut contexts = Contexts { current: "agent".to_owned(), ..Contexts::default() };
        contexts.contexts.insert("agent".to_owned(), context);
        let file = cluster.folder().join("short-agent.json");
        contexts.store(&file).unwrap();
        self.trellis(cluster, &file, &["get", "node", "n2"])
    }

    fn trellis(&self, cluster: &Cluster, contexts: &Path, args: &[&str]) -> Ran {
        let mut command = std::process::Command::new(cluster.program("trellis"));
        run(command.args(args).env("TRELLIS_CONFIG", contexts).stdin(Stdio::null()), LIMIT)
    }

    /// A Pod on n2 that runs, has an address and a log.
    fn runs(&self, cluster: &Cluster, name: &str) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "nodeName": "n2", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": web::IMAGE,
                "command": ["sh", "-c", "echo here; sleep 1000"]}]}});
        wait::until("a Pod that is taken", LIMIT, || self.api.apply(&pod).map_err(|e| e.to_string()))
            .unwrap_or_else(|e| panic!("{e}"));
        wait::until("a Pod that runs", LIMIT, || {
            let pod = self.api.get("Pod", "default", name).map_err(|e| e.to_string())?.unwrap_or_default();
            if condition(&pod, "Ready") == Some("True") { Ok(()) } else { Err(pod["status"].to_string()) }
        })
        .unwrap_or_else(|e| panic!("{e}"));
        wait::until("its log, through the control plane and the agent", LIMIT, || {
            let ran = self.trellis(cluster, &self.lab.layout().contexts(), &["logs", name]);
            if ran.stdout == "here\n" { Ok(()) } else { Err(ran.stderr) }
        })
        .unwrap_or_else(|e| panic!("{e}"));
    }
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

pub fn short_lived(cluster: &mut Cluster) -> Outcome {
    let short = Short::up(&format!("{}short", cluster.name), cluster.folder());
    let first = short.certificates();
    let archive = web::write_archive(cluster.folder()).unwrap();
    let contexts = short.lab.layout().contexts();
    short.trellis(cluster, &contexts, &["image", "import", archive.to_str().unwrap(), "--all-nodes"]).ok();
    short.runs(cluster, "before");
    short.as_agent(cluster, &short.pem("n2", "agent.crt")).ok();
    let servers = [
        ("n1", ports::API, MEMBER_SERVER_NAME.to_owned(), ("n1", "member")),
        ("n1", ports::PEER, MEMBER_SERVER_NAME.to_owned(), ("n1", "member")),
        ("n1", ports::AGENT, agent_server_name("n1"), ("n1", "agent")),
        ("n2", ports::AGENT, agent_server_name("n2"), ("n2", "agent")),
    ];

    // All the while, somebody calls.
    let (stop, failed, all) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let caller = {
        let (stop, failed, all) = (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&all));
        let api = Api::open(&contexts).unwrap();
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                all.fetch_add(1, Ordering::Relaxed);
                let ready = api.ready_nodes().map_err(|e| e.to_string());
                if ready.as_ref().is_ok_and(|nodes| nodes.len() == 2) {
                    thread::sleep(CALL_EVERY);
                    continue;
                }
                eprintln!("  while certificates were renewed: {ready:?}");
                failed.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    // A certificate holds through the last second that it names.
    let over = first.values().map(|pem| pki::validity(pem).unwrap().1).max().unwrap() + Duration::from_secs(1);
    wait::until("the end of the first certificates, and newer ones", LIMIT * 2, || {
        let now = short.certificates();
        let old: Vec<_> = HOLDERS.into_iter().filter(|h| now[h] == first[h]).collect();
        if old.is_empty() && SystemTime::now() > over { Ok(()) } else { Err(format!("not renewed: {old:?}")) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    stop.store(true, Ordering::Relaxed);
    caller.join().unwrap();
    let (failed, all) = (failed.load(Ordering::Relaxed), all.load(Ordering::Relaxed));
    assert!(failed == 0 && all > 20, "{failed} of {all} calls failed, or saw a node that is not Ready");

    for (node, port, name, holder) in servers {
        // It may be renewed between the two looks.
        wait::until(&format!("what {node}:{port} shows"), LIMIT, || {
            let shown = short.presented(node, port, &name);
            assert_ne!(shown, der(&first[&holder]), "{node}:{port} shows the first one");
            if shown == der(&short.certificates()[&holder]) { Ok(()) } else { Err("another one".to_owned()) }
        })
        .unwrap_or_else(|e| panic!("{e}"));
    }
    let refused = short.as_agent(cluster, &first[&("n2", "agent")]);
    assert!(refused.code != 0 && refused.stderr.to_lowercase().contains("expired"), "{}", refused.stderr);
    short.as_agent(cluster, &short.pem("n2", "agent.crt")).ok();

    // Connections outlive the certificate that they began with; now all begin anew.
    short.lab.stop_daemon("n1", "control-plane").unwrap();
    up::start_daemons(&short.lab, short.lab.topology().node("n1").unwrap()).unwrap();
    short.runs(cluster, "after");
    let ready = || {
        let ready = short.api.ready_nodes().map_err(|e| e.to_string())?;
        if ready.len() == 2 { Ok(()) } else { Err(format!("{ready:?}")) }
    };
    wait::until("both nodes Ready", LIMIT, ready).unwrap_or_else(|e| panic!("{e}"));
    Outcome::Passed
}

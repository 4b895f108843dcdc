//! The ports of every node: the documented ones and no other, and what they answer to a stranger.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tonic::{Code, Status};
use trellis_lab::{Error, backend::Backend, netns};
use trellis_proto::{
    api::{CreateTokenRequest, ListImagesRequest, ListRequest, ObjectKey, StatusRequest},
    client::Connection,
    identity::{MEMBER_SERVER_NAME, agent_server_name},
    ports,
    tls::{self, ClientTls},
};

use crate::{
    cluster::{Cluster, LIMIT},
    harness::Outcome,
};

/// How HTTP/2 begins (RFC 9113, section 3.4), with no settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A listening socket's state in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Ports on which anybody listens in the network namespace of this process.
fn listening(pid: i32) -> BTreeSet<u16> {
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        // A kernel without IPv6 has no second one.
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        assert!(table != "tcp" || text.contains("local_address"), "{text:?}");
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == LISTEN {
                let (_, port) = fields[1].rsplit_once(':').unwrap();
                found.insert(u16::from_str_radix(port, 16).unwrap());
            }
        }
    }
    found
}

fn pem(cluster: &Cluster, node: &str, name: &str) -> String {
    fs::read_to_string(cluster.lab.layout().node(node).path("etc").join("pki").join(name)).unwrap()
}

/// What a server says first to a client on n4 that shows the certificate of n4's agent, or none.
fn knock(cluster: &Cluster, to: SocketAddr, name: &str, with_certificate: bool) -> Result<Vec<u8>, String> {
    tls::install_crypto();
    let pem = |name: &str| pem(cluster, "n4", name);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem("ca.crt").as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = if with_certificate {
        let chain = vec![CertificateDer::from_pem_slice(pem("agent.crt").as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(pem("agent.key").as_bytes()).unwrap();
        config.with_client_auth_cert(chain, key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let session = rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap());
    let told = netns::inside(cluster.lab.init_of("n4").unwrap().pid, move || {
        let stream = TcpStream::connect_timeout(&to, LIMIT).map_err(Error::io(format!("connect to {to}")))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(Error::io("set a limit"))?;
        let mut stream = rustls::StreamOwned::new(session.unwrap(), stream);
        let mut first = [0; 64];
        let done = stream.write_all(PREFACE).and_then(|()| stream.flush()).and_then(|()| stream.read(&mut first));
        Ok(done.map(|length| first[..length].to_vec()).map_err(|e| e.to_string()))
    });
    told.unwrap()
}

/// What the API on a node answers to a client on n4 without a certificate.
fn call(cluster: &Cluster, to: SocketAddr) -> Vec<(&'static str, Option<Status>)> {
    let tls = ClientTls::without_certificate(&pem(cluster, "n4", "ca.crt")).unwrap();
    let answers = netns::inside_async(cluster.lab.init_of("n4").unwrap().pid, move || async move {
        let api = Connection::new(vec![format!("https://{to}")], tls);
        let secrets = ObjectKey { kind: "Secret".to_owned(), ..ObjectKey::default() };
        let list = ListRequest { key: Some(secrets), ..ListRequest::default() };
        Ok(vec![
            ("list secrets", api.resources().list(list).await.err()),
            ("status", api.cluster().status(StatusRequest::default()).await.err()),
            ("create a token", api.cluster().create_token(CreateTokenRequest::default()).await.err()),
            ("list images", api.images().list(ListImagesRequest::default()).await.err()),
        ])
    });
    answers.unwrap()
}

pub fn no_anonymous_port(cluster: &mut Cluster) -> Outcome {
    cluster.wait_all_nodes_ready();
    for node in &cluster.lab.topology().nodes {
        let mut documented = BTreeSet::from([ports::AGENT]);
        if node.is_control_plane() {
            documented.extend([ports::API, ports::PEER]);
        }
        assert_eq!(listening(cluster.lab.init_of(&node.name).unwrap().pid), documented, "{}", node.name);
        for port in documented {
            let to = SocketAddr::from((node.address, port));
            let name = if port == ports::AGENT { agent_server_name(&node.name) } else { MEMBER_SERVER_NAME.to_owned() };
            // The positive control: to a client with a certificate of the cluster it speaks.
            let said = knock(cluster, to, &name, true);
            assert!(said.as_ref().is_ok_and(|said| !said.is_empty()), "{to}: {said:?}");
            if port == ports::API {
                // A machine that joins has no certificate yet: it comes through the door, and may do nothing else.
                for (what, refused) in call(cluster, to) {
                    assert_eq!(refused.map(|r| r.code()), Some(Code::Unauthenticated), "{to}: {what}");
                }
            } else {
                let refused = knock(cluster, to, &name, false);
                assert!(refused.as_ref().is_err_and(|e| e.contains("CertificateRequired")), "{to}: {refused:?}");
            }
        }
    }
    Outcome::Passed
}

//! Real TLS connections on loopback and on a unix socket: who gets in, who does not, and what a
//! client does when a member goes away.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};
use trellis_proto::{
    api::{
        self, RenewLeaseReply, RenewLeaseRequest, ReportNetworkReply, ReportNetworkRequest,
        nodes_server::{Nodes, NodesServer},
    },
    client::Connection,
    identity::Identity,
    pki::{self, CertificateAuthority},
    server::{self, Listen},
    tls::{self, ClientAuth, ClientTls, Credentials},
};

/// Answers who called in the term, and its own number in the TTL.
struct Echo {
    number: u64,
}

#[tonic::async_trait]
impl Nodes for Echo {
    async fn renew_lease(&self, request: Request<RenewLeaseRequest>) -> Result<Response<RenewLeaseReply>, Status> {
        let peer = server::peer(&request).unwrap().clone();
        let identity = peer.identity.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        assert_eq!(identity, Identity::Agent(request.get_ref().node.clone()));
        Ok(Response::new(RenewLeaseReply { ttl_millis: self.number, term: 1 }))
    }
    async fn report_network(&self, _: Request<ReportNetworkRequest>) -> Result<Response<ReportNetworkReply>, Status> {
        Err(Status::unavailable("this member is leaving"))
    }
}

/// Runs on a runtime of its own, so that its death takes its connections along.
struct Member {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn serve(ca: &CertificateAuthority, number: u64, auth: ClientAuth, unix: Option<&Path>) -> Member {
    let keys = ca.issue(&Identity::Member("m".into())).unwrap();
    let credentials = Credentials::from_pem(ca.certificate_pem(), &keys.pem, &keys.key_pem).unwrap();
    let config = tls::server_config(&credentials, auth).unwrap();
    let address = free_address();
    let at = unix.map_or(Listen::Tcp(address), |p| Listen::Unix(p.to_owned()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let incoming = runtime.spawn(async move { server::listen(&at, config).await.unwrap() }).await.unwrap();
    let router = tonic::transport::Server::builder().add_service(NodesServer::new(Echo { number }));
    runtime.spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
    Member { address, runtime: Some(runtime) }
}

fn agent(ca: &CertificateAuthority) -> Arc<Credentials> {
    let keys = ca.issue(&Identity::Agent("n1".into())).unwrap();
    Credentials::from_pem(ca.certificate_pem(), &keys.pem, &keys.key_pem).unwrap()
}

fn connect(tls: ClientTls, members: &[&Member]) -> Connection {
    Connection::new(members.iter().map(|m| format!("https://{}", m.address)).collect(), tls)
}

async fn renew(connection: &Connection) -> Result<u64, Status> {
    let request = RenewLeaseRequest { node: "n1".into(), instance: "i".into() };
    connection
        .call_within(Duration::from_secs(5), |chan| {
            let request = request.clone();
            async move { api::nodes_client::NodesClient::new(chan).renew_lease(request).await }
        })
        .await
        .map(|r| r.into_inner().ttl_millis)
}

#[tokio::test]
async fn a_certificate_of_the_ca_is_let_in_and_named() {
    let ca = CertificateAuthority::create("c").unwrap();
    let member = serve(&ca, 7, ClientAuth::Required, None).await;
    let connection = connect(ClientTls::to_member(&agent(&ca)).unwrap(), &[&member]);
    assert_eq!(renew(&connection).await.unwrap(), 7);
}

#[tokio::test]
async fn the_same_tls_runs_over_a_unix_socket() {
    let ca = CertificateAuthority::create("c").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/api.sock");
    let _member = serve(&ca, 7, ClientAuth::Required, Some(&path)).await;
    let endpoint = format!("unix://{}", path.display());
    let connection = Connection::new(vec![endpoint.clone()], ClientTls::to_member(&agent(&ca)).unwrap());
    assert_eq!(renew(&connection).await.unwrap(), 7);
    let stranger = CertificateAuthority::create("c").unwrap();
    let connection = Connection::new(vec![endpoint], ClientTls::to_member(&agent(&stranger)).unwrap());
    renew(&connection).await.unwrap_err();
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate_or_with_another_cas() {
    let ca = CertificateAuthority::create("c").unwrap();
    let stranger = CertificateAuthority::create("c").unwrap();
    let member = serve(&ca, 7, ClientAuth::Required, None).await;
    let none = ClientTls::without_certificate(ca.certificate_pem()).unwrap();
    renew(&connect(none, &[&member])).await.unwrap_err();
    // A client that believes the server, but shows a certificate of another CA.
    let keys = stranger.issue(&Identity::Agent("n1".into())).unwrap();
    let mixed = Credentials::from_pem(ca.certificate_pem(), &keys.pem, &keys.key_pem).unwrap();
    renew(&connect(ClientTls::to_member(&mixed).unwrap(), &[&member])).await.unwrap_err();
    // The control: the server still answers who belongs.
    renew(&connect(ClientTls::to_member(&agent(&ca)).unwrap(), &[&member])).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_believed() {
    let ca = CertificateAuthority::create("c").unwrap();
    let stranger = CertificateAuthority::create("c").unwrap();
    let member = serve(&stranger, 7, ClientAuth::Optional, None).await;
    let error = renew(&connect(ClientTls::to_member(&agent(&ca)).unwrap(), &[&member])).await.unwrap_err();
    assert!(error.message().contains("certificate"), "{error:?}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = CertificateAuthority::create("c").unwrap();
    let member = serve(&ca, 7, ClientAuth::Required, None).await;
    let keys = ca.issue_for(&Identity::Agent("n1".into()), Duration::ZERO).unwrap();
    let (_, end) = trellis_proto::pki::validity(&keys.pem).unwrap();
    // Certificates count whole seconds.
    while std::time::SystemTime::now() < end + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let expired = Credentials::from_pem(ca.certificate_pem(), &keys.pem, &keys.key_pem).unwrap();
    let error = renew(&connect(ClientTls::to_member(&expired).unwrap(), &[&member])).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unauthenticated, "{error:?}");
    assert!(error.message().contains("Expired"), "{error:?}");
}

#[tokio::test]
async fn a_pinned_hash_believes_one_ca_only() {
    let ca = CertificateAuthority::create("c").unwrap();
    let member = serve(&ca, 7, ClientAuth::Optional, None).await;
    let hash = pki::fingerprint(ca.certificate_pem()).unwrap();
    let error = renew(&connect(ClientTls::pinned(&hash).unwrap(), &[&member])).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unauthenticated, "the service answered, so TLS stood: {error:?}");
    let wrong = pki::fingerprint(CertificateAuthority::create("c").unwrap().certificate_pem()).unwrap();
    let error = renew(&connect(ClientTls::pinned(&wrong).unwrap(), &[&member])).await.unwrap_err();
    assert!(error.message().contains("token pins"), "{error:?}");
}

#[tokio::test]
async fn a_dead_member_is_left_for_the_next() {
    let ca = CertificateAuthority::create("c").unwrap();
    let (first, second) =
        (serve(&ca, 1, ClientAuth::Required, None).await, serve(&ca, 2, ClientAuth::Required, None).await);
    let connection = connect(ClientTls::to_member(&agent(&ca)).unwrap(), &[&first, &second]);
    assert_eq!(renew(&connection).await.unwrap(), 1);
    drop(first);
    assert_eq!(renew(&connection).await.unwrap(), 2);
    assert_eq!(renew(&connection).await.unwrap(), 2);
}

#[tokio::test]
async fn a_member_that_is_leaving_is_left_and_the_error_names_all() {
    let ca = CertificateAuthority::create("c").unwrap();
    let member = serve(&ca, 1, ClientAuth::Required, None).await;
    let connection = connect(ClientTls::to_member(&agent(&ca)).unwrap(), &[&member]);
    let error = connection
        .call_within(Duration::from_millis(300), |chan| async move {
            api::nodes_client::NodesClient::new(chan).report_network(ReportNetworkRequest::default()).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().contains(&member.address.to_string()), "{error:?}");
    assert!(error.message().contains("leaving"), "{error:?}");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let ca = CertificateAuthority::create("c").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |keys: &trellis_proto::pki::KeyAnd| {
        std::fs::write(dir.path().join("agent.crt"), &keys.pem).unwrap();
        std::fs::write(dir.path().join("agent.key"), &keys.key_pem).unwrap();
    };
    std::fs::write(dir.path().join("ca.crt"), ca.certificate_pem()).unwrap();
    write(&ca.issue(&Identity::Agent("n1".into())).unwrap());
    let credentials = Credentials::load(dir.path(), "agent").unwrap();
    let before = credentials.certificate_der();
    write(&ca.issue(&Identity::Agent("n1".into())).unwrap());
    credentials.reload().unwrap();
    assert_ne!(credentials.certificate_der(), before);
    let member = serve(&ca, 7, ClientAuth::Required, None).await;
    assert_eq!(renew(&connect(ClientTls::to_member(&credentials).unwrap(), &[&member])).await.unwrap(), 7);
}

/// A connection from another address of this machine, on which nothing is said.
async fn silent(member: &Member, from: &str) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(member.address).await.unwrap()
}

#[tokio::test]
async fn many_silent_connections_of_one_address_delay_nobody_else() {
    use tokio::io::AsyncReadExt;
    let ca = CertificateAuthority::create("c").unwrap();
    let member = serve(&ca, 7, ClientAuth::Required, None).await;
    let mut open = Vec::new();
    for _ in 0..300 {
        open.push(silent(&member, "127.0.0.2").await);
    }
    // Behind all of them in the queue, and answered long before their handshakes' time is over.
    let connection = connect(ClientTls::to_member(&agent(&ca)).unwrap(), &[&member]);
    let answer = tokio::time::timeout(Duration::from_secs(3), renew(&connection)).await;
    assert_eq!(answer.expect("the silent ones are in the way").unwrap(), 7);
    // Whoever came beyond the address's share was refused at once; the first ones have their time.
    let mut last = open.pop().unwrap();
    let end = tokio::time::timeout(Duration::from_secs(3), last.read(&mut [0; 1])).await.expect("still open");
    assert!(matches!(end, Ok(0) | Err(_)));
    assert!(open[0].try_read(&mut [0; 1]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
}

#[tokio::test]
async fn one_address_holds_few_connections_without_a_certificate() {
    let ca = CertificateAuthority::create("c").unwrap();
    let member = serve(&ca, 7, ClientAuth::Optional, None).await;
    let none = || connect(ClientTls::without_certificate(ca.certificate_pem()).unwrap(), &[&member]);
    let mut open = Vec::new();
    for _ in 0..16 {
        let connection = none();
        let error = renew(&connection).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unauthenticated, "the service answered, so TLS stood: {error:?}");
        open.push(connection);
    }
    let error = renew(&none()).await.unwrap_err();
    assert_ne!(error.code(), tonic::Code::Unauthenticated, "one too many got in");
    renew(&connect(ClientTls::to_member(&agent(&ca)).unwrap(), &[&member])).await.expect("with a certificate");
    // A place that becomes free can be taken.
    drop(open);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while renew(&none()).await.unwrap_err().code() != tonic::Code::Unauthenticated {
        assert!(tokio::time::Instant::now() < deadline, "no place becomes free");
    }
}

//! Who is let in, and what each role is refused, over the real port.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tonic::{Code, Status};
use trellis_proto::api;
use trellis_proto::client::Connection;
use trellis_proto::identity::Identity;
use trellis_proto::node_config::write_private;
use trellis_proto::peer;
use trellis_proto::pki::CertificateAuthority;
use trellis_proto::renewal;
use trellis_proto::tls::{ClientTls, Credentials};

use crate::bed::*;

async fn list(client: &Connection, group: &str, kind: &str, projection: api::Projection) -> Result<usize, Status> {
    let request = api::ListRequest {
        key: key(group, kind, "", ""),
        projection: projection.into(),
        ..api::ListRequest::default()
    };
    Ok(client.resources().list(request).await?.into_inner().items.len())
}

const FULL: api::Projection = api::Projection::Full;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_only_join_is_open() {
    let bed = Bed::start().await;
    let tls = ClientTls::without_certificate(bed.ca.certificate_pem()).unwrap();
    let nobody = Connection::new(vec![bed.endpoint()], tls);
    assert_eq!(code(list(&nobody, "", "Pod", FULL).await), Code::Unauthenticated);
    assert_eq!(code(create(&nobody, "Pod", &pod("a")).await), Code::Unauthenticated);
    let status = nobody.cluster().status(api::StatusRequest {}).await;
    assert_eq!(code(status), Code::Unauthenticated);
    let token = nobody.cluster().create_token(api::CreateTokenRequest::default()).await;
    assert_eq!(code(token), Code::Unauthenticated);
    let lease = nobody.nodes().renew_lease(api::RenewLeaseRequest::default()).await;
    assert_eq!(code(lease), Code::Unauthenticated);
    let logs = nobody.pods().logs(api::LogsRequest::default()).await;
    assert_eq!(code(logs.map(|_| ())), Code::Unauthenticated);
    let images = nobody.images().list(api::ListImagesRequest::default()).await;
    assert_eq!(code(images), Code::Unauthenticated);
    let renew = nobody.cluster().renew_certificate(api::RenewCertificateRequest::default()).await;
    assert_eq!(code(renew), Code::Unauthenticated);
    // Join is reached, and looks at the token.
    let join = nobody.cluster().join(api::JoinRequest::default()).await.unwrap_err();
    assert_eq!(join.code(), Code::Unauthenticated);
    assert!(join.message().contains("join token"), "{join}");
    // The control: the same connection with a certificate.
    assert_eq!(list(&bed.admin(), "", "Pod", FULL).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ca_and_an_expired_certificate_are_refused() {
    let bed = Bed::start().await;
    // A certificate of another CA; the server itself is believed, so that only ours is at fault.
    let other = CertificateAuthority::create("other").unwrap();
    let issued = other.issue(&Identity::admin()).unwrap();
    let ours = bed.ca.certificate_pem();
    let stranger = Credentials::from_pem(ours, &issued.pem, &issued.key_pem).unwrap();
    let logged = crate::log::mark();
    // Why, the server says in its log.
    let told = async |why: &str| {
        eventually(&format!("the log says {why}"), || async {
            let text = crate::log::since(logged);
            text.lines().any(|l| l.contains("refused a connection: TLS handshake failed") && l.contains(why))
        })
        .await;
    };
    let refused = list(&bed.connect(&stranger), "", "Pod", FULL).await;
    assert!(refused.is_err(), "{refused:?}");
    told("invalid peer certificate: UnknownIssuer").await;
    let expired = bed.ca.issue_until(&Identity::admin(), SystemTime::now() - Duration::from_secs(60)).unwrap();
    let late = Credentials::from_pem(ours, &expired.pem, &expired.key_pem).unwrap();
    let refused = list(&bed.connect(&late), "", "Pod", FULL).await;
    assert!(refused.is_err(), "{refused:?}");
    told("invalid peer certificate: certificate expired").await;
    // Whoever trusts another CA does not talk to this server.
    let elsewhere = credentials(&other, &Identity::admin());
    assert!(list(&bed.connect(&elsewhere), "", "Pod", FULL).await.is_err());
    assert!(list(&bed.admin(), "", "Pod", FULL).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_key_does_not_reach_further_than_its_node() {
    let bed = Bed::start().await;
    let (admin, agent) = (bed.admin(), bed.client(&Identity::Agent("n1".into())));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "data": {"k": "dg=="}});
    create(&admin, "Secret", &secret).await.unwrap();
    create(&admin, "Pod", &pod("a")).await.unwrap();
    assert_eq!(list(&agent, "", "Pod", FULL).await.unwrap(), 0);
    for (group, kind) in [
        ("", "Secret"),
        ("", "ConfigMap"),
        ("", "Namespace"),
        ("", "Event"),
        ("apps", "Deployment"),
        ("apps", "ReplicaSet"),
        ("networking.k8s.io", "NetworkPolicy"),
    ] {
        assert_eq!(code(list(&agent, group, kind, FULL).await), Code::PermissionDenied, "{kind}");
    }
    assert_eq!(code(get(&agent, "", "Secret", "default", "s").await), Code::PermissionDenied);
    assert_eq!(code(get(&agent, "", "Pod", "default", "a").await), Code::PermissionDenied);
    assert_eq!(code(create(&agent, "Pod", &pod("b")).await), Code::PermissionDenied);
    let delete = api::DeleteRequest {
        key: key("", "Pod", "default", "a"),
        grace_period_seconds: Some(0),
        ..api::DeleteRequest::default()
    };
    assert_eq!(code(agent.resources().delete(delete).await), Code::PermissionDenied);
    let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    assert_eq!(code(create(&agent, "Node", &node("n2")).await), Code::PermissionDenied);
    create(&agent, "Node", &node("n1")).await.unwrap();
    let lease = |node: &str| api::RenewLeaseRequest { node: node.into(), instance: "i".into() };
    assert_eq!(code(agent.nodes().renew_lease(lease("n2")).await), Code::PermissionDenied);
    agent.nodes().renew_lease(lease("n1")).await.unwrap();
    no_cluster_rights(&agent).await;
    let report = api::ReportNetworkRequest { node: "n1".into(), applied_revision: 1, ..Default::default() };
    assert_eq!(code(agent.nodes().report_network(report).await), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_netds_key_reads_the_network_and_no_more() {
    let bed = Bed::start().await;
    let (admin, netd) = (bed.admin(), bed.client(&Identity::Netd("n1".into())));
    let mut bound = pod("a");
    bound["spec"]["nodeName"] = json!("n1");
    create(&admin, "Pod", &bound).await.unwrap();
    assert_eq!(list(&netd, "", "Pod", api::Projection::Network).await.unwrap(), 1);
    assert_eq!(list(&netd, "", "Node", FULL).await.unwrap(), 0);
    assert!(list(&netd, "", "Namespace", FULL).await.unwrap() >= 2);
    assert_eq!(list(&netd, "networking.k8s.io", "NetworkPolicy", FULL).await.unwrap(), 0);
    assert_eq!(code(list(&netd, "", "Pod", FULL).await), Code::PermissionDenied);
    for kind in ["Secret", "ConfigMap", "Event"] {
        assert_eq!(code(list(&netd, "", kind, FULL).await), Code::PermissionDenied, "{kind}");
    }
    assert_eq!(code(create(&netd, "Pod", &pod("b")).await), Code::PermissionDenied);
    let watch = api::WatchRequest { key: key("", "Pod", "", ""), ..Default::default() };
    let refused = netd.resources().watch(watch).await.map(|_| ());
    assert_eq!(code(refused), Code::PermissionDenied);
    no_cluster_rights(&netd).await;
    let lease = api::RenewLeaseRequest { node: "n1".into(), instance: "i".into() };
    assert_eq!(code(netd.nodes().renew_lease(lease).await), Code::PermissionDenied);
    let report =
        |node: &str| api::ReportNetworkRequest { node: node.into(), applied_revision: 1, ..Default::default() };
    assert_eq!(code(netd.nodes().report_network(report("n2")).await), Code::PermissionDenied);
    netd.nodes().report_network(report("n1")).await.unwrap();
}

/// What is for administrators and members alone.
async fn no_cluster_rights(client: &Connection) {
    let denied = Code::PermissionDenied;
    // The members' addresses are for every daemon.
    client.cluster().status(api::StatusRequest {}).await.unwrap();
    let token = client.cluster().create_token(api::CreateTokenRequest::default()).await;
    assert_eq!(code(token), denied);
    let add = api::AddMemberRequest { name: "n1".into(), ..Default::default() };
    assert_eq!(code(client.cluster().add_member(add).await), denied);
    let remove = api::RemoveMemberRequest { member: "n1".into() };
    assert_eq!(code(client.cluster().remove_member(remove).await), denied);
    let transfer = client.cluster().transfer_leader(api::TransferLeaderRequest::default()).await;
    assert_eq!(code(transfer), denied);
    let logs = client.pods().logs(api::LogsRequest::default()).await.map(|_| ());
    assert_eq!(code(logs), denied);
    assert_eq!(code(client.images().list(api::ListImagesRequest::default()).await), denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peer_port_is_for_members() {
    let bed = Bed::start().await;
    let ask = |profile: Identity| {
        let tls = ClientTls::to_member(&credentials(&bed.ca, &profile)).unwrap();
        let address = format!("https://{}", bed.member.peer_address);
        async move {
            let channel = trellis_proto::client::channel(&address, &tls).unwrap();
            let mut client = peer::leader_client::LeaderClient::new(channel);
            client.read_index(peer::ReadIndexRequest {}).await
        }
    };
    for profile in [Identity::Agent("n1".into()), Identity::Netd("n1".into()), Identity::admin()] {
        assert_eq!(code(ask(profile).await), Code::PermissionDenied);
    }
    ask(Identity::Member("n2".into())).await.unwrap();
    // Without a certificate of the cluster's CA the handshake fails already, and it is logged.
    let other = CertificateAuthority::create("other").unwrap().issue(&Identity::Member("n2".into())).unwrap();
    let stranger = Credentials::from_pem(bed.ca.certificate_pem(), &other.pem, &other.key_pem).unwrap();
    let nobody = ClientTls::without_certificate(bed.ca.certificate_pem()).unwrap();
    for (tls, said) in
        [(ClientTls::to_member(&stranger).unwrap(), "invalid peer certificate"), (nobody, "no certificates")]
    {
        let logged = crate::log::mark();
        let address = format!("https://{}", bed.member.peer_address);
        let channel = trellis_proto::client::channel(&address, &tls).unwrap();
        let mut client = peer::leader_client::LeaderClient::new(channel.clone());
        client.read_index(peer::ReadIndexRequest {}).await.unwrap_err();
        let mut raft = peer::raft_client::RaftClient::new(channel);
        raft.vote(peer::RaftMessage::default()).await.unwrap_err();
        eventually("the refusal is logged", || async {
            let text = crate::log::since(logged);
            text.contains("refused a connection: TLS handshake failed") && text.contains(said)
        })
        .await;
    }
    // A role's certificate that is good for the API is refused here, and that is logged too.
    let logged = crate::log::mark();
    ask(Identity::Agent("n1".into())).await.unwrap_err();
    let text = crate::log::since(logged);
    assert!(text.contains("refused") && text.contains("agent:n1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_the_same_identity_alone() {
    let bed = Bed::start().await;
    let agent = bed.client(&Identity::Agent("n1".into()));
    let renew = |profile: &Identity| {
        let csr = trellis_proto::pki::request(profile).unwrap().pem;
        let mut client = agent.cluster();
        async move { client.renew_certificate(api::RenewCertificateRequest { csr }).await }
    };
    renew(&Identity::Agent("n1".into())).await.unwrap();
    // Of machines that are in the cluster.
    let member = |name: &str| Identity::Member(name.into());
    for (identity, good) in [(member("n1"), true), (member("n9"), false), (Identity::Netd("n9".into()), false)] {
        let csr = trellis_proto::pki::request(&identity).unwrap().pem;
        let client = bed.client(&identity);
        let renewed = client.cluster().renew_certificate(api::RenewCertificateRequest { csr }).await;
        assert_eq!(renewed.is_ok(), good, "{identity:?}: {renewed:?}");
    }
    for other in [Identity::Agent("n2".into()), Identity::Member("n1".into()), Identity::admin()] {
        assert_eq!(code(renew(&other).await), Code::PermissionDenied, "{other:?}");
    }
    // A Node that is deleted takes its machine's right with it.
    let admin = bed.admin();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    create(&admin, "Node", &node).await.unwrap();
    let delete = api::DeleteRequest { key: key("", "Node", "", "n1"), ..Default::default() };
    admin.resources().delete(delete).await.unwrap();
    let refused = renew(&Identity::Agent("n1".into())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("join it anew"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unix_socket_asks_for_the_same_certificates() {
    let bed = Bed::start().await;
    let path = format!("unix://{}", bed.dir.path().join("api.sock").display());
    let tls = ClientTls::without_certificate(bed.ca.certificate_pem()).unwrap();
    let nobody = Connection::new(vec![path.clone()], tls);
    assert_eq!(code(list(&nobody, "", "Pod", FULL).await), Code::Unauthenticated);
    let tls = ClientTls::to_member(&credentials(&bed.ca, &Identity::admin())).unwrap();
    assert_eq!(list(&Connection::new(vec![path], tls), "", "Pod", FULL).await.unwrap(), 0);
}

/// How long the certificates of these tests still live.
const LEFT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn daemons_renew_their_certificates_and_go_on_with_the_new_ones() {
    let mut bed = Bed::start().await;
    let pki = bed.dir.path().join("etc/pki");
    let short = |name: &str, identity: &Identity| {
        let made = bed.ca.issue_for(identity, LEFT).unwrap();
        for (end, text) in [("crt", &made.pem), ("key", &*made.key_pem)] {
            write_private(&pki.join(format!("{name}.{end}")), text.as_bytes()).unwrap();
        }
        Credentials::load(&pki, name).unwrap()
    };
    let (agent, netd) = (Identity::Agent("n1".into()), Identity::Netd("n1".into()));
    let (agents, netds) = (short("agent", &agent), short("netd", &netd));
    // The control: the same certificates with nobody who renews them.
    let stale = Credentials::from_pem(
        bed.ca.certificate_pem(),
        &std::fs::read_to_string(pki.join("agent.crt")).unwrap(),
        &std::fs::read_to_string(pki.join("agent.key")).unwrap(),
    )
    .unwrap();
    short("member", &Identity::Member("n1".into()));
    let before = ["agent", "netd", "member"].map(|name| std::fs::read(pki.join(format!("{name}.crt"))).unwrap());
    bed.stop().await;
    bed.run().await;
    let ends = tokio::time::Instant::now() + LEFT + Duration::from_secs(2);
    let connections = [bed.connect(&agents), bed.connect(&netds)];
    for (identity, credentials, name, connection) in
        [(agent, &agents, "agent", connections[0].clone()), (netd, &netds, "netd", connections[1].clone())]
    {
        let (credentials, files) = (credentials.clone(), renewal::Files::new(&pki, name));
        tokio::spawn(async move {
            renewal::keep_valid(identity, credentials, files, |csr| renewal::ask(&connection, csr)).await;
        });
    }
    for (name, before) in ["agent", "netd", "member"].into_iter().zip(before) {
        eventually(&format!("{name}'s certificate is renewed"), || async {
            std::fs::read(pki.join(format!("{name}.crt"))).unwrap() != before
        })
        .await;
    }
    tokio::time::sleep_until(ends).await;
    let status = |connection: Connection| async move { connection.cluster().status(api::StatusRequest {}).await };
    status(bed.connect(&stale)).await.expect_err("the old certificate has ended");
    // A new connection on either side is a new handshake.
    for connection in connections {
        connection.next_endpoint();
        status(connection).await.unwrap();
    }
    status(bed.admin()).await.expect("and the member serves with its new one");
}

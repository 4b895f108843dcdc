//! Tokens: good once, in time, for this cluster.

use tonic::{Code, Status};
use trellis_proto::api;
use trellis_proto::client::Connection;
use trellis_proto::identity::Identity;
use trellis_proto::pki;
use trellis_proto::tls::{ClientTls, Credentials};

use crate::bed::*;

async fn token(bed: &Bed, ttl_seconds: u64, control_plane: bool) -> String {
    let request = api::CreateTokenRequest { ttl_seconds, control_plane };
    bed.admin().cluster().create_token(request).await.unwrap().into_inner().token
}

/// A connection as a machine makes it that has nothing but the token.
fn newcomer(bed: &Bed, token: &str) -> Connection {
    let tls = ClientTls::pinned(token.rsplit('.').next().unwrap()).unwrap();
    Connection::new(vec![bed.endpoint()], tls)
}

fn asking(node: &str, token: &str) -> (api::JoinRequest, pki::KeyAnd) {
    let agent = pki::request(&Identity::Agent(node.into())).unwrap();
    let netd = pki::request(&Identity::Netd(node.into())).unwrap();
    let request = api::JoinRequest {
        token: token.into(),
        node_name: node.into(),
        agent_csr: agent.pem.clone(),
        netd_csr: netd.pem,
        ..api::JoinRequest::default()
    };
    (request, agent)
}

async fn join(bed: &Bed, request: &api::JoinRequest) -> Result<api::JoinReply, Status> {
    let client = newcomer(bed, &request.token);
    client.cluster().join(request.clone()).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_redeemed_for_certificates_that_work_once() {
    let bed = Bed::start().await;
    let text = token(&bed, 600, false).await;
    let (request, key) = asking("w1", &text);
    let reply = join(&bed, &request).await.unwrap();
    assert_eq!(reply.cluster_name, "test");
    assert_eq!(reply.gossip_key.as_ref(), bed.gossip.as_bytes());
    assert!(reply.key_encryption_key.is_empty(), "a worker does not get it");
    assert_eq!(reply.members[0].name, "n1");
    let agent = Credentials::from_pem(&reply.ca_certificate, &reply.agent_certificate, &key.key_pem);
    let agent = bed.connect(&agent.unwrap());
    let lease = api::RenewLeaseRequest { node: "w1".into(), instance: "i".into() };
    agent.nodes().renew_lease(lease).await.unwrap();
    // The same machine whose answer was lost is answered again; anybody else is refused.
    join(&bed, &request).await.unwrap();
    let (replayed, _) = asking("w2", &text);
    let logged = crate::log::mark();
    let refused = join(&bed, &replayed).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("was used already"), "{refused}");
    let text = crate::log::since(logged);
    assert!(text.contains("refused to join") && text.contains("was used already") && text.contains("w2"), "{text}");
    let (same_name, _) = asking("w1", &text);
    assert_eq!(code(join(&bed, &same_name).await), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_wrong_and_misused_tokens_are_refused() {
    let bed = Bed::start().await;
    // Expired: true within a second.
    let short = token(&bed, 1, false).await;
    let logged = crate::log::mark();
    eventually("the token expires", || async {
        // A name that is refused later than the token: until it expires, nothing is used up.
        let mut request = asking("w1", &short).0;
        request.node_name = "Not_A_Name".into();
        join(&bed, &request).await.unwrap_err().message().contains("has expired")
    })
    .await;
    let (request, _) = asking("w1", &short);
    let refused = join(&bed, &request).await.unwrap_err();
    assert!(refused.message().contains("has expired"), "{refused}");
    let text = crate::log::since(logged);
    assert!(text.contains("refused to join") && text.contains("has expired"), "{text}");
    // A wrong secret.
    let good = token(&bed, 600, false).await;
    let parts: Vec<&str> = good.split('.').collect();
    let forged = [parts[0], parts[1], parts[2], &"0".repeat(64), parts[4]].join(".");
    let (request, _) = asking("w1", &forged);
    assert_eq!(code(join(&bed, &request).await), Code::Unauthenticated);
    // A pin of another CA: the client does not even speak to this server.
    let elsewhere = [parts[0], parts[1], parts[2], parts[3], &"0".repeat(64)].join(".");
    let (request, _) = asking("w1", &elsewhere);
    assert!(join(&bed, &request).await.is_err());
    // A worker's token does not make members.
    let (mut request, _) = asking("w1", &good);
    request.member_csr = pki::request(&Identity::Member("w1".into())).unwrap().pem;
    request.api_address = "127.0.0.1:1".into();
    request.peer_address = "127.0.0.1:2".into();
    let refused = join(&bed, &request).await.unwrap_err();
    assert!(refused.message().contains("does not admit control-plane members"), "{refused}");
    // A request for somebody else's identity costs nothing but the attempt.
    let (mut request, _) = asking("w1", &good);
    request.agent_csr = pki::request(&Identity::Agent("w9".into())).unwrap().pem;
    assert_eq!(code(join(&bed, &request).await), Code::InvalidArgument);
    let (mut request, _) = asking("Not_A_Name", &good);
    request.netd_csr.clear();
    assert_eq!(code(join(&bed, &request).await), Code::InvalidArgument);
    let (request, _) = asking("w1", &good);
    join(&bed, &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_joins_once_until_its_node_is_deleted() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let (first, _) = asking("w1", &token(&bed, 600, false).await);
    join(&bed, &first).await.unwrap();
    let (second, _) = asking("w1", &token(&bed, 600, false).await);
    let refused = join(&bed, &second).await.unwrap_err();
    assert!(refused.message().contains("has joined as \"w1\" already"), "{refused}");
    let (own, _) = asking("n1", &token(&bed, 600, false).await);
    assert!(join(&bed, &own).await.is_err());
    let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1"}});
    create(&admin, "Node", &node).await.unwrap();
    let delete = api::DeleteRequest { key: key("", "Node", "", "w1"), ..Default::default() };
    admin.resources().delete(delete).await.unwrap();
    join(&bed, &second).await.unwrap();
}

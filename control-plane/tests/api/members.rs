//! A second member joins with a token, is added, loses its log, and comes back under another id.

use tokio_util::sync::CancellationToken;
use trellis_control_plane::config::Settings;
use trellis_control_plane::run::{Running, start};
use trellis_proto::api;
use trellis_proto::client::Connection;
use trellis_proto::node_config::MemberAddress;
use trellis_proto::pki::{self, Profile};
use trellis_proto::tls::ClientTls;

use crate::bed::*;

/// What `cluster join --control-plane` does on the machine `name`.
async fn joined(bed: &Bed, dir: &std::path::Path, name: &str) -> u64 {
    let request = api::CreateTokenRequest { ttl_seconds: 600, control_plane: true };
    let token = bed.admin().cluster().create_token(request).await.unwrap().into_inner().token;
    let [api, peer] = free_ports();
    let asked = pki::request(&Profile::Member(name.into())).unwrap();
    let request = api::JoinRequest {
        token: token.clone(),
        node_name: name.into(),
        member_csr: asked.pem.clone(),
        api_address: format!("127.0.0.1:{api}"),
        peer_address: format!("127.0.0.1:{peer}"),
        ..api::JoinRequest::default()
    };
    let tls = ClientTls::pinned(token.rsplit('.').next().unwrap()).unwrap();
    let newcomer = Connection::new(vec![bed.endpoint()], tls);
    let reply = newcomer.cluster().join(request).await.unwrap().into_inner();
    assert_eq!(reply.key_encryption_key.as_ref(), bed.kek.as_bytes());
    let members = reply.members.iter().map(|m| MemberAddress {
        id: m.id,
        name: m.name.clone(),
        api_address: m.api_address.clone(),
        peer_address: m.peer_address.clone(),
    });
    let node = node_config(name, members.collect());
    let key = |bytes: &[u8]| pki::Key::from_bytes(bytes).unwrap().to_hex();
    let files = [
        ("pki/ca.crt", reply.ca_certificate.as_str()),
        ("pki/member.crt", &reply.member_certificate),
        ("pki/member.key", &asked.key_pem),
        ("keys/kek", &key(&reply.key_encryption_key)),
        ("keys/gossip", &key(&reply.gossip_key)),
    ];
    write_config(&dir.join("etc"), &node, &files);
    reply.member_id
}

async fn run(dir: &std::path::Path) -> Running {
    let settings = Settings::load(&args(dir)).unwrap();
    start(settings, CancellationToken::new()).await.unwrap()
}

async fn voters(bed: &Bed) -> Vec<(u64, String)> {
    let status = bed.admin().cluster().status(api::StatusRequest {}).await;
    let Ok(status) = status else { return vec![] };
    let members = status.into_inner().members.into_iter();
    members.filter(|m| m.role != "learner").map(|m| (m.id, m.name)).collect()
}

async fn until_voters(bed: &Bed, expected: &[(u64, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(id, name)| (*id, (*name).to_owned())).collect();
    eventually(&format!("voters are {expected:?}"), || async { voters(bed).await == expected }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_lose_their_log_come_back_and_leave() {
    let bed = Bed::start().await;
    create(&bed.admin(), "Pod", &pod("a")).await.unwrap();
    let (two, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(joined(&bed, two.path(), "n2").await, 2);
    let second = run(two.path()).await;
    until_voters(&bed, &[(1, "n1"), (2, "n2")]).await;
    assert_eq!(joined(&bed, three.path(), "n3").await, 3);
    let third = run(three.path()).await;
    until_voters(&bed, &[(1, "n1"), (2, "n2"), (3, "n3")]).await;
    // A new member serves reads and writes itself, and node.json on the first follows.
    let me = Settings::load(&args(two.path())).unwrap().me().unwrap().clone();
    let tls = ClientTls::to_member(&credentials(&bed.ca, &Profile::Admin)).unwrap();
    let through = Connection::new(vec![format!("https://{}", me.api_address)], tls);
    get(&through, "", "Pod", "default", "a").await.unwrap();
    create(&through, "Pod", &pod("b")).await.unwrap();
    get(&bed.admin(), "", "Pod", "default", "b").await.unwrap();
    eventually("node.json follows", || async {
        Settings::load(&args(bed.dir.path())).unwrap().node.members.len() == 3
    })
    .await;
    // A member asks to be added for itself alone.
    let other = bed.client(&Profile::Member("n9".into()));
    let add = api::AddMemberRequest { name: "n2".into(), ..Default::default() };
    assert_eq!(code(other.cluster().add_member(add).await), tonic::Code::PermissionDenied);
    // Whoever loses its log comes back by itself, under an id that no log was written under.
    third.shutdown().await;
    std::fs::remove_dir_all(three.path().join("data")).unwrap();
    let third = run(three.path()).await;
    until_voters(&bed, &[(1, "n1"), (2, "n2"), (4, "n3")]).await;
    // Removed, the name may join anew.
    let remove = api::RemoveMemberRequest { member: "n3".into() };
    bed.admin().cluster().remove_member(remove).await.unwrap();
    until_voters(&bed, &[(1, "n1"), (2, "n2")]).await;
    third.shutdown().await;
    let again = tempfile::tempdir().unwrap();
    assert_eq!(joined(&bed, again.path(), "n3").await, 5);
    // Leadership moves on request, and when its holder stops.
    let transfer = api::TransferLeaderRequest { member: "n2".into() };
    bed.admin().cluster().transfer_leader(transfer).await.unwrap();
    eventually("n2 leads", || async { second.consensus.leadership().borrow().is_leader }).await;
    second.shutdown().await;
}

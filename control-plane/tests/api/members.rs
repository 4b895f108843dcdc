//! A second member joins with a token, is added, loses its log, and comes back under another id.

use tokio_util::sync::CancellationToken;
use trellis_control_plane::config::Settings;
use trellis_control_plane::run::{RunError, Running, start};
use trellis_proto::api;
use trellis_proto::client::Connection;
use trellis_proto::identity::Identity;
use trellis_proto::node_config::MemberAddress;
use trellis_proto::pki;
use trellis_proto::tls::ClientTls;

use crate::bed::*;

async fn token(bed: &Bed) -> String {
    let request = api::CreateTokenRequest { ttl_seconds: 600, control_plane: true };
    bed.admin().cluster().create_token(request).await.unwrap().into_inner().token
}

/// The first half of what `cluster join --control-plane` does: it redeems the token.
async fn redeem(bed: &Bed, token: &str, name: &str) -> Result<(api::JoinReply, pki::KeyAnd), tonic::Status> {
    let [api, peer] = free_ports();
    let asked = pki::request(&Identity::Member(name.into())).unwrap();
    let request = api::JoinRequest {
        token: token.to_owned(),
        node_name: name.into(),
        member_csr: asked.pem.clone(),
        api_address: format!("127.0.0.1:{api}"),
        peer_address: format!("127.0.0.1:{peer}"),
        ..api::JoinRequest::default()
    };
    let tls = ClientTls::pinned(token.rsplit('.').next().unwrap()).unwrap();
    let newcomer = Connection::new(vec![bed.endpoint()], tls);
    Ok((newcomer.cluster().join(request).await?.into_inner(), asked))
}

/// What `cluster join --control-plane` does on the machine `name`.
pub async fn joined(bed: &Bed, dir: &std::path::Path, name: &str) -> u64 {
    let (reply, asked) = redeem(bed, &token(bed).await, name).await.unwrap();
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

pub async fn run(dir: &std::path::Path) -> Running {
    let settings = Settings::load(&args(dir)).unwrap();
    start(settings, CancellationToken::new()).await.unwrap()
}

async fn voters(bed: &Bed) -> Vec<(u64, String)> {
    let status = bed.admin().cluster().status(api::StatusRequest {}).await;
    let Ok(status) = status else { return vec![] };
    let members = status.into_inner().members.into_iter();
    members.filter(|m| m.role != "learner").map(|m| (m.id, m.name)).collect()
}

pub async fn until_voters(bed: &Bed, expected: &[(u64, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(id, name)| (*id, (*name).to_owned())).collect();
    eventually(&format!("voters are {expected:?}"), || async { voters(bed).await == expected }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sixth_machine_does_not_join_the_control_plane() {
    let bed = Bed::start().await;
    for name in ["n2", "n3", "n4", "n5"] {
        redeem(&bed, &token(&bed).await, name).await.unwrap();
    }
    let late = token(&bed).await;
    let refused = redeem(&bed, &late, "n6").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("5 machines have, and 5 may; remove one first"), "{refused}");
    // The control: in the place of one that leaves, with the token that was not spent.
    remove(&bed, "n5").await.unwrap();
    redeem(&bed, &late, "n6").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_majority_answers_stale_reads_only() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    create(&admin, "ConfigMap", &config("a")).await.unwrap();
    let two = tempfile::tempdir().unwrap();
    joined(&bed, two.path(), "n2").await;
    let second = run(two.path()).await;
    until_voters(&bed, &[(1, "n1"), (2, "n2")]).await;
    let reads = async |consistency: api::Consistency| {
        let one = api::GetRequest { key: key("", "ConfigMap", "default", "a"), consistency: consistency.into() };
        let all = api::ListRequest {
            key: key("", "ConfigMap", "default", ""),
            consistency: consistency.into(),
            ..api::ListRequest::default()
        };
        let got = admin.resources().get(one).await.map(|r| value(r.into_inner().object));
        let listed = admin.resources().list(all).await.map(|r| r.into_inner().items.len());
        (got, listed)
    };
    // The control: while both are there, both ways answer the same.
    let (before, listed) = reads(api::Consistency::default()).await;
    let before = before.unwrap();
    assert_eq!(listed.unwrap(), 1);
    second.shutdown().await;
    let unavailable = async || {
        let (got, listed) = reads(api::Consistency::default()).await;
        got.is_err_and(|e| e.code() == tonic::Code::Unavailable)
            && listed.is_err_and(|e| e.code() == tonic::Code::Unavailable)
    };
    eventually("default reads are UNAVAILABLE", || async { unavailable().await }).await;
    let (got, listed) = reads(api::Consistency::Stale).await;
    assert_eq!((got.unwrap(), listed.unwrap()), (before, 1));
    assert!(unavailable().await, "the other way round: still");
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
    let tls = ClientTls::to_member(&credentials(&bed.ca, &Identity::admin())).unwrap();
    let through = Connection::new(vec![format!("https://{}", me.api_address)], tls);
    get(&through, "", "Pod", "default", "a").await.unwrap();
    create(&through, "Pod", &pod("b")).await.unwrap();
    get(&bed.admin(), "", "Pod", "default", "b").await.unwrap();
    eventually("node.json follows", || async {
        Settings::load(&args(bed.dir.path())).unwrap().node.members.len() == 3
    })
    .await;
    // A member asks to be added for itself alone.
    let other = bed.client(&Identity::Member("n9".into()));
    let add = api::AddMemberRequest { name: "n2".into(), ..Default::default() };
    assert_eq!(code(other.cluster().add_member(add).await), tonic::Code::PermissionDenied);
    // Whoever loses its log, if nothing else, comes back by itself, under an id that no log was written under.
    third.shutdown().await;
    std::fs::remove_dir_all(three.path().join("data/raft")).unwrap();
    let third = run(three.path()).await;
    until_voters(&bed, &[(1, "n1"), (2, "n2"), (4, "n3")]).await;
    // Added by hand although it is one: said so, and nothing changed; with other addresses: refused.
    let told = add_by_hand(&bed, "n3", "").await.unwrap();
    assert!(told.unchanged && told.your_id == 4 && told.members.len() == 3, "{told:?}");
    let refused = add_by_hand(&bed, "n3", "127.0.0.1:9").await.unwrap_err();
    assert!(refused.message().contains("is a member already"), "{refused}");
    let refused = add_by_hand(&bed, "n7", "").await.unwrap_err();
    assert!(refused.message().contains("no machine has joined as control-plane member \"n7\""), "{refused}");
    // Removed through itself, it cannot hear of it; the name may join anew.
    let me = Settings::load(&args(three.path())).unwrap().me().unwrap().clone();
    let tls = ClientTls::to_member(&credentials(&bed.ca, &Identity::admin())).unwrap();
    let itself = Connection::new(vec![format!("https://{}", me.api_address)], tls);
    let mut itself = itself.cluster();
    let removal = itself.remove_member(api::RemoveMemberRequest { member: "n3".into() });
    let left = tokio::time::timeout(std::time::Duration::from_secs(15), removal).await.unwrap().unwrap().into_inner();
    assert_eq!(left.members.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2]);
    until_voters(&bed, &[(1, "n1"), (2, "n2")]).await;
    let refused = remove(&bed, "n3").await.unwrap_err();
    assert!(refused.message().contains("there is no member \"n3\": members are n1, n2"), "{refused}");
    // Asking again, as its daemon does, does not bring it back.
    let back = bed.client(&Identity::Member("n3".into()));
    let add = api::AddMemberRequest { name: "n3".into(), ..Default::default() };
    assert_eq!(code(back.cluster().add_member(add).await), tonic::Code::FailedPrecondition);
    third.shutdown().await;
    let again = tempfile::tempdir().unwrap();
    assert_eq!(joined(&bed, again.path(), "n3").await, 5);
    // Leadership moves on request, and when its holder stops.
    let transfer = api::TransferLeaderRequest { member: "n2".into() };
    bed.admin().cluster().transfer_leader(transfer).await.unwrap();
    eventually("n2 leads", || async { second.consensus.leadership().borrow().is_leader }).await;
    // Two at a time: n2, which leads, is removed while it is told to hand over. Whichever comes
    // first, n1 is left, and the last one stays.
    let (removed, _) = tokio::join!(remove(&bed, "n2"), async {
        bed.admin().cluster().transfer_leader(api::TransferLeaderRequest { member: "n1".into() }).await
    });
    removed.unwrap();
    until_voters(&bed, &[(1, "n1")]).await;
    let refused = remove(&bed, "n1").await.unwrap_err();
    assert!(refused.message().contains("is the last voter"), "{refused}");
    // What was refused left no trace: it is a member still, by name too.
    let told = add_by_hand(&bed, "n1", "").await.unwrap();
    assert!(told.unchanged && told.leader_id == 1, "{told:?}");
    assert!(
        bed.running.as_ref().unwrap().ops.store().sys_get(&trellis_control_plane::api::names::member("n1")).is_some()
    );
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_member_that_lost_its_log_makes_no_second_cluster() {
    let mut bed = Bed::start().await;
    let done = bed.dir.path().join("etc/bootstrap.json.done");
    eventually("bootstrap.json is put away", || async { done.exists() }).await;
    bed.stop().await;
    std::fs::remove_dir_all(bed.data().join("raft")).unwrap();
    let logged = crate::log::mark();
    let (settings, stop) = (Settings::load(&args(bed.dir.path())).unwrap(), CancellationToken::new());
    let starting = tokio::spawn(start(settings, stop.clone()));
    eventually("it sees that its log is gone", || async {
        crate::log::since(logged).contains("the Raft log is not there")
    })
    .await;
    // It waits for others to add it; whoever makes a cluster is started, whatever it is told then.
    stop.cancel();
    assert!(matches!(starting.await.unwrap(), Err(RunError::Stopped)));
}

async fn add_by_hand(bed: &Bed, name: &str, peer_address: &str) -> Result<api::MembersReply, tonic::Status> {
    let request = api::AddMemberRequest {
        name: name.into(),
        peer_address: peer_address.into(),
        ..api::AddMemberRequest::default()
    };
    bed.admin().cluster().add_member(request).await.map(tonic::Response::into_inner)
}

async fn remove(bed: &Bed, name: &str) -> Result<api::MembersReply, tonic::Status> {
    let request = api::RemoveMemberRequest { member: name.into() };
    bed.admin().cluster().remove_member(request).await.map(tonic::Response::into_inner)
}

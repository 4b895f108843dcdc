//! Many writes in one call: each as it would be in a call of its own, refusals too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{StreamExt as _, stream};
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::Code;
use trellis_control_plane::config::Settings;
use trellis_control_plane::run::Running;
use trellis_proto::api::{self, write_reply, write_request::Write};
use trellis_proto::client::Connection;
use trellis_proto::identity::Identity;
use trellis_proto::status::details;
use trellis_proto::tls::ClientTls;

use crate::bed::*;
use crate::members::{joined, run, until_voters};

fn create_of(name: &str, request_id: &str) -> api::CreateRequest {
    api::CreateRequest {
        key: key("", "ConfigMap", "default", name),
        json: config(name).to_string().into(),
        request_id: request_id.into(),
        dry_run: false,
    }
}

/// Everything that is written goes down one call's stream: as many streams as connections.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_writes_share_a_call_and_each_has_its_own_answer() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let create = |i: usize| {
        let (chan, name) = (admin.chan(), format!("m{i}"));
        async move { (name.clone(), chan.create(create_of(&name, "")).await) }
    };
    // More at once than a member takes of one client: none is refused, since the stream holds them up.
    let answers: Vec<_> = stream::iter((0..2_000).map(create)).buffer_unordered(2_000).collect().await;
    assert_eq!(answers.len(), 2_000);
    for (name, answer) in answers {
        let made = value(answer.unwrap().object);
        assert_eq!(made["metadata"]["name"], json!(name));
        assert!(made["metadata"]["uid"].is_string() && made["metadata"]["resourceVersion"].is_string());
    }
    let all = api::ListRequest { key: key("", "ConfigMap", "default", ""), limit: 5_000, ..Default::default() };
    let mut seen = 0;
    let mut request = all.clone();
    loop {
        let page = admin.resources().list(request.clone()).await.unwrap().into_inner();
        seen += page.items.iter().filter(|i| i.key.as_ref().unwrap().name.starts_with('m')).count();
        if page.continue_token.is_empty() {
            break;
        }
        request.continue_token = page.continue_token;
    }
    assert_eq!(seen, 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_write_answers_as_its_own_call_would() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let made = admin.chan().create(create_of("a", "r1")).await.unwrap();
    // Repeated, it is answered, not done again: in either way of sending it.
    assert_eq!(admin.chan().create(create_of("a", "r1")).await.unwrap(), made);
    assert_eq!(admin.resources().create(create_of("a", "r1")).await.unwrap().into_inner(), made);
    let alone = admin.resources().create(create_of("a", "r2")).await.unwrap_err();
    let beside = admin.chan().create(create_of("a", "r2")).await.unwrap_err();
    assert_eq!((beside.code(), beside.message()), (alone.code(), alone.message()));
    assert_eq!(details(&beside).unwrap(), details(&alone).unwrap());
    assert_eq!(details(&beside).unwrap().reason, "AlreadyExists");
    // An update, whose repetition is of another revision.
    let mut object = value(made.object);
    object["metadata"]["labels"]["x"] = "y".into();
    let update = |object: &serde_json::Value| api::UpdateRequest {
        key: key("", "ConfigMap", "default", "a"),
        json: object.to_string().into(),
        ..Default::default()
    };
    admin.chan().update(update(&object)).await.unwrap();
    let refused = admin.chan().update(update(&object)).await.unwrap_err();
    assert_eq!((refused.code(), details(&refused).unwrap().reason.as_str()), (Code::Aborted, "Conflict"));
    let patch = api::PatchRequest {
        key: key("", "ConfigMap", "default", "a"),
        merge_patch: json!({"data": {"k": "w"}}).to_string().into(),
        ..Default::default()
    };
    assert_eq!(value(admin.chan().patch(patch).await.unwrap().object)["data"]["k"], "w");
    let apply = api::ApplyRequest {
        key: key("", "ConfigMap", "default", "b"),
        json: config("b").to_string().into(),
        ..Default::default()
    };
    assert_eq!(admin.chan().apply(apply.clone()).await.unwrap().outcome(), api::ApplyOutcome::Created);
    assert_eq!(admin.chan().apply(apply).await.unwrap().outcome(), api::ApplyOutcome::Unchanged);
    let delete = api::DeleteRequest { key: key("", "ConfigMap", "default", "a"), ..Default::default() };
    assert!(admin.chan().delete(delete.clone()).await.unwrap().removed);
    assert_eq!(admin.chan().delete(delete).await.unwrap_err().code(), Code::NotFound);
    // All problems of a manifest, after which the stream goes on.
    let bad = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"},
        "spec": {"containers": [{"name": "A!", "image": ""}]}});
    let bad = api::CreateRequest { key: key("", "Pod", "", ""), json: bad.to_string().into(), ..Default::default() };
    assert!(details(&admin.chan().create(bad).await.unwrap_err()).unwrap().causes.len() >= 2);
    admin.chan().create(create_of("after", "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_writes_gives_no_right_that_a_call_has_not() {
    let bed = Bed::start().await;
    let node = |name: &str| api::CreateRequest {
        key: key("", "Node", "", name),
        json: json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string().into(),
        ..Default::default()
    };
    let agent = bed.client(&Identity::Agent("n1".into()));
    assert_eq!(code(agent.chan().create(create_of("a", "")).await), Code::PermissionDenied);
    assert_eq!(code(agent.chan().create(node("n2")).await), Code::PermissionDenied);
    // What it may, it may here too.
    agent.chan().create(node("n1")).await.unwrap();
    let netd = bed.client(&Identity::Netd("n1".into()));
    assert_eq!(code(netd.chan().create(node("n3")).await), Code::PermissionDenied);
}

/// What a client of ours would not send.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_no_kind_is_refused_and_the_next_one_done() {
    let bed = Bed::start().await;
    let create = Write::Create(create_of("a", ""));
    let requests = [(7, None), (7, Some(create))].map(|(id, write)| api::WriteRequest { id, write });
    let mut replies = bed.admin().resources().write(stream::iter(requests)).await.unwrap().into_inner();
    let (mut refused, mut done) = (0, 0);
    while let Some(reply) = replies.message().await.unwrap() {
        if reply.leads.is_some() {
            // News of the member, no answer.
            assert!(reply.id == 0 && reply.result.is_none());
            continue;
        }
        assert_eq!(reply.id, 7);
        match reply.result.unwrap() {
            write_reply::Result::Refused(r) => {
                assert_eq!(Code::from(r.code), Code::InvalidArgument, "{}", r.message);
                refused += 1;
            }
            write_reply::Result::Done(_) => done += 1,
            write_reply::Result::Deleted(_) => panic!("nothing was deleted"),
        }
    }
    assert_eq!((refused, done), (1, 1));
}

/// A large object has a call of its own, with the limit and the words of such a call.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_too_large_ends_no_other() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let large = |bytes: usize| {
        let mut object = config("large");
        object["data"]["k"] = "x".repeat(bytes).into();
        api::CreateRequest { json: object.to_string().into(), ..create_of("large", "") }
    };
    let others = (0..50).map(|i| {
        let chan = admin.chan();
        async move { chan.create(create_of(&format!("o{i}"), "")).await }
    });
    let (refused, others) = tokio::join!(admin.chan().create(large(9 << 20)), futures::future::join_all(others));
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    assert!(others.iter().all(Result::is_ok));
    admin.chan().create(large(500_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_when_their_member_ends_and_comes_again() {
    let mut bed = Bed::start().await;
    let admin = bed.admin();
    // Each writes without a pause, so that the stop finds writes under way.
    let done = Arc::new(AtomicBool::new(false));
    let writers = writers(&admin, &done);
    let first = bed.admin();
    eventually("writes are under way", || async { get(&first, "", "ConfigMap", "default", "w19-1").await.is_ok() })
        .await;
    bed.stop().await;
    bed.run().await;
    done.store(true, Ordering::Relaxed);
    // A connection of its own: this one may have been closed since its last answer.
    all_written(writers, &bed.admin()).await;
    admin.call(|chan| chan.create(create_of("after", "id-after"))).await.unwrap();
}

/// Twenty who write without a pause until `done`; each answers with the names that it wrote.
fn writers(client: &Connection, done: &Arc<AtomicBool>) -> Vec<JoinHandle<Vec<String>>> {
    let writer = |writer: usize| {
        let (client, done) = (client.clone(), Arc::clone(done));
        tokio::spawn(async move {
            let mut names = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let name = format!("w{writer}-{}", names.len());
                let request = create_of(&name, &format!("id-{name}"));
                client.call(|chan| chan.create(request.clone())).await.unwrap();
                names.push(name);
            }
            names
        })
    };
    (0..20).map(writer).collect()
}

async fn all_written(writers: Vec<JoinHandle<Vec<String>>>, reader: &Connection) {
    for writer in writers {
        for name in writer.await.unwrap() {
            get(reader, "", "ConfigMap", "default", &name).await.unwrap();
        }
    }
}

/// A second member, n2, with its files in `dir`.
async fn second_member(bed: &Bed, dir: &std::path::Path) -> Running {
    joined(bed, dir, "n2").await;
    let second = run(dir).await;
    until_voters(bed, &[(1, "n1"), (2, "n2")]).await;
    second
}

/// A client that uses the member with its files in `dir`, and knows of the leader at `leader`.
fn client_of(bed: &Bed, dir: &std::path::Path, leader: String) -> Connection {
    let me = Settings::load(&args(dir)).unwrap().me().unwrap().clone();
    let tls = ClientTls::to_member(&credentials(&bed.ca, &Identity::admin())).unwrap();
    Connection::new(vec![format!("https://{}", me.api_address), leader], tls)
}

/// A client that uses a follower, and is busy, sends its writes to whoever leads, whoever that is; when it is busy no
/// more, it has one connection again.
#[tokio::test(flavor = "multi_thread")]
async fn many_writes_follow_the_leader() {
    let bed = Bed::start().await;
    let dir = tempfile::tempdir().unwrap();
    let second = second_member(&bed, dir.path()).await;
    let client = client_of(&bed, dir.path(), bed.endpoint());
    // One write at a time is no reason for another connection.
    for i in 0..50 {
        client.chan().create(create_of(&format!("one-{i}"), "")).await.unwrap();
        assert!(!client.follows_leader());
    }
    let done = Arc::new(AtomicBool::new(false));
    let writers = writers(&client, &done);
    let lead = |member: &'static str| {
        let admin = bed.admin();
        async move {
            let request = api::TransferLeaderRequest { member: member.into() };
            admin.cluster().transfer_leader(request).await.unwrap();
        }
    };
    eventually("writes go to n1, which leads", || async { client.follows_leader() }).await;
    lead("n2").await;
    eventually("the member in use leads itself", || async { !client.follows_leader() }).await;
    lead("n1").await;
    eventually("writes go to n1 again", || async { client.follows_leader() }).await;
    done.store(true, Ordering::Relaxed);
    eventually("the stream to the leader is closed", || async { !client.follows_leader() }).await;
    all_written(writers, &client).await;
    second.shutdown().await;
}

/// A way to a member that breaks when the guard is dropped, and is refused from then on.
async fn breakable(to: String) -> (String, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let mut all = tokio::task::JoinSet::new();
    all.spawn(async move {
        let mut ways = tokio::task::JoinSet::new();
        loop {
            let (mut here, _) = listener.accept().await.unwrap();
            let mut there = tokio::net::TcpStream::connect(&to).await.unwrap();
            ways.spawn(async move { drop(tokio::io::copy_bidirectional(&mut here, &mut there).await) });
        }
    });
    (endpoint, all)
}

/// The way to the leader breaks with writes of a busy client under way: they are done through the member in use, which
/// the client does not leave for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_lost_is_not_the_fault_of_the_member_in_use() {
    let bed = Bed::start().await;
    let dir = tempfile::tempdir().unwrap();
    let second = second_member(&bed, dir.path()).await;
    let (leader, way) = breakable(bed.member.api_address.clone()).await;
    let client = client_of(&bed, dir.path(), leader);
    let done = Arc::new(AtomicBool::new(false));
    let writers = writers(&client, &done);
    eventually("writes go to n1, which leads", || async { client.follows_leader() }).await;
    let in_use = client.in_use();
    drop(way);
    eventually("that is noticed", || async { !client.follows_leader() }).await;
    client.call(|chan| chan.create(create_of("after", "id-after"))).await.unwrap();
    done.store(true, Ordering::Relaxed);
    all_written(writers, &client).await;
    assert_eq!(client.in_use(), in_use);
    second.shutdown().await;
}

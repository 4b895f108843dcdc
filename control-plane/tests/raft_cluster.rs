//! Three members over real gRPC on loopback: writes, failover, partitions, membership.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod raft_support;

use std::sync::Arc;
use std::time::Duration;

use raft_support::{Cluster, eventually, key, put, within};
use trellis_control_plane::raft::disk::SyncSite;
use trellis_control_plane::raft::simdisk::SimDisk;
use trellis_control_plane::raft::{LeaderError, MemberError, ProposeError, Tuning};
use trellis_control_plane::store::{Command, Op, OpError, Outcome, When};

const SOON: Duration = Duration::from_secs(10);

/// Builds and tests share two cores here: slower clocks keep elections out of what does not test them.
fn calm() -> Tuning {
    Tuning {
        heartbeat: Duration::from_millis(150),
        election_min: Duration::from_millis(900),
        election_max: Duration::from_millis(1_500),
        deadline: Duration::from_secs(15),
        ..Tuning::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_member_writes_and_reads_its_own_write() {
    let cluster = Cluster::new(3, calm()).await;
    for id in 1..=3 {
        let name = format!("from-{id}");
        let outcome = within("the write", SOON, cluster.node(id).propose(put(&name, "x"))).await.unwrap();
        let revision = outcome.done().unwrap()[0];
        let found = cluster.node(id).store().get(&key(&name)).expect("applied here");
        assert_eq!(found.revision, revision);
        for other in 1..=3 {
            cluster.node(other).read_barrier().await.unwrap();
            assert_eq!(cluster.node(other).store().get(&key(&name)).unwrap().revision, revision);
        }
    }
    let stale = Command::new(
        1,
        vec![Op::Put { key: key("from-1"), when: When::Absent, object: raft_support::object("from-1", "y") }],
    );
    let refused = cluster.node(2).propose(stale).await.unwrap();
    assert!(matches!(refused, Outcome::Failed { op: 0, why: OpError::AlreadyExists, .. }), "{refused:?}");
    let grant = cluster.node(2).renew_lease("abc", "i").await.unwrap();
    assert_eq!(grant.term, 3, "answered by the leader's hooks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_concurrent_writes_are_applied_once_each() {
    let cluster = Cluster::new(3, calm()).await;
    let mut tasks = Vec::new();
    for i in 0..300 {
        let consensus = cluster.node(1 + i % 3).clone();
        tasks.push(tokio::spawn(async move {
            let command = put(&format!("w{i}"), "v").with_request_id(format!("r{i}"));
            let first = consensus.propose(command.clone()).await.unwrap();
            let again = consensus.propose(command).await.unwrap();
            assert_eq!(first.done(), again.done(), "a repeated request is answered from memory");
            assert!(matches!(again, Outcome::Done { replayed: true, .. }));
        }));
    }
    for task in tasks {
        within("a write", SOON, task).await.unwrap();
    }
    for id in 1..=3 {
        cluster.node(id).read_barrier().await.unwrap();
        assert_eq!(cluster.node(id).store().revision(), 300);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_concurrent_writes_share_one_fsync() {
    const WRITES: u64 = 300;
    let disk = SimDisk::new(7);
    let mut cluster = Cluster::prepare(1, Tuning { segment_bytes: 256 * 1024, ..calm() }).await;
    cluster.disk = Arc::new(disk.clone());
    cluster.start(1).await;
    let first = cluster.nodes[&1].member.clone();
    cluster.node(1).bootstrap(first).await.unwrap();
    cluster.leader(&[1]).await;
    disk.slow(Duration::from_millis(5));
    let syncs = || disk.syncs(SyncSite::Append);
    // The control: whoever waits for each write waits for an fsync of its own.
    let before = syncs();
    for i in 0..20 {
        within("a write", SOON, cluster.node(1).propose(put(&format!("one-{i}"), "v"))).await.unwrap();
    }
    let alone = syncs() - before;
    assert!(alone >= 20, "{alone} fsyncs for 20 writes one after another");
    let before = syncs();
    let writes = (0..WRITES).map(|i| {
        let consensus = cluster.node(1).clone();
        tokio::spawn(async move { consensus.propose(put(&format!("many-{i}"), "v")).await.unwrap() })
    });
    for write in writes.collect::<Vec<_>>() {
        within("a write", SOON, write).await.unwrap();
    }
    let together = syncs() - before;
    assert!(together <= WRITES / 5, "{together} fsyncs for {WRITES} writes at a time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_members_write_with_two_dead_and_not_with_three() {
    let mut cluster = Cluster::new(5, Tuning { deadline: Duration::from_secs(3), ..calm() }).await;
    let leader = cluster.leader(&[1, 2, 3, 4, 5]).await;
    let others: Vec<u64> = (1..=5).filter(|id| *id != leader).collect();
    for id in &others[..2] {
        cluster.stop(*id).await;
    }
    within("a write with two dead", SOON, cluster.node(leader).propose(put("two", "v"))).await.unwrap();
    within("a read with two dead", SOON, cluster.node(leader).read_barrier()).await.unwrap();
    cluster.stop(others[2]).await;
    let refused = within("it gives up", SOON, cluster.node(leader).propose(put("three", "v"))).await;
    assert!(matches!(refused, Err(ProposeError::Unknown { .. } | ProposeError::Unavailable { .. })), "{refused:?}");
    let read = within("it gives up", SOON, cluster.node(leader).read_barrier()).await;
    assert!(matches!(read, Err(LeaderError::Unavailable { .. })), "{read:?}");
    // With one of them back there is a majority again, and what was acknowledged is there.
    cluster.start(others[0]).await;
    let back = [leader, others[3], others[0]];
    within("all three read", SOON * 3, async {
        for id in back {
            while cluster.node(id).read_barrier().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(cluster.node(id).store().get(&key("two")).is_some(), "on {id}");
        }
        while cluster.node(leader).propose(put("four", "v")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sixth_voter_is_refused() {
    let mut cluster = Cluster::prepare(6, calm()).await;
    cluster.start(1).await;
    let first = cluster.nodes[&1].member.clone();
    cluster.node(1).bootstrap(first).await.unwrap();
    for id in 2..=6 {
        cluster.start(id).await;
    }
    let member = |id: u64| cluster.nodes[&id].member.clone();
    for id in 2..=5 {
        within("adding", SOON, cluster.node(1).add_member(member(id))).await.unwrap();
    }
    // Asked of a member that does not lead, so that the words come over the wire.
    let leader = cluster.leader(&[1, 2, 3, 4, 5]).await;
    let asked = (1..=5).find(|id| *id != leader).unwrap();
    let refused = cluster.node(asked).add_member(member(6)).await.unwrap_err();
    assert!(matches!(refused, MemberError::TooMany { id: 6, voters: 5, limit: 5 }), "{refused:?}");
    assert_eq!(
        refused.to_string(),
        "member 6 cannot be added: the cluster has 5 voters, and may have 5; remove one first"
    );
    assert_eq!(cluster.node(leader).members().len(), 5, "it is no learner either");
    within("one that votes is added again", SOON, cluster.node(asked).add_member(member(5))).await.unwrap();
    let gone = (1..=5).find(|id| *id != leader && *id != asked).unwrap();
    within("removing one", SOON, cluster.node(asked).remove_member(gone)).await.unwrap();
    within("the control: in its place", SOON, cluster.node(asked).add_member(member(6))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dead_leader_is_replaced_and_nothing_is_lost() {
    let mut cluster = Cluster::new(3, Tuning { deadline: Duration::from_secs(15), ..Tuning::default() }).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    for i in 0..20 {
        cluster.node(leader).propose(put(&format!("before-{i}"), "v")).await.unwrap();
    }
    cluster.stop(leader).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    // A retried write finds the new leader by itself.
    let command = put("after", "v").with_request_id("after");
    within("a write after the failover", SOON, cluster.node(others[0]).propose(command)).await.unwrap();
    let successor = cluster.leader(&others).await;
    for i in 0..20 {
        assert!(cluster.node(successor).store().get(&key(&format!("before-{i}"))).is_some());
    }
    cluster.start(leader).await;
    within("the old leader catches up", SOON, cluster.node(leader).read_barrier()).await.unwrap();
    assert!(cluster.node(leader).store().get(&key("after")).is_some());
}

/// What a partition did to the terms: the leader's before it, the lonely member's at its end, and
/// that of the leader whom all follow afterwards.
struct Terms {
    before: u64,
    lonely: u64,
    after: u64,
    same_leader: bool,
}

/// Cuts a member off and lets it back. `ends` is asked again and again: with how much the lonely
/// one's term has grown, and for how long it has been lonely.
async fn cut_off_and_back(pre_vote: bool, mut ends: impl FnMut(u64, Duration) -> bool) -> Terms {
    let cluster = Cluster::new(3, Tuning { pre_vote, ..calm() }).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let before = cluster.node(leader).leadership().borrow().term;
    cluster.isolate(away, true);
    let alone = tokio::time::Instant::now();
    let mut i = 0;
    loop {
        within("a write", SOON, cluster.node(leader).propose(put(&format!("p{i}"), "v"))).await.unwrap();
        if ends(cluster.node(away).stats().term - before, alone.elapsed()) {
            break;
        }
        i += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lonely = cluster.node(away).stats().term;
    cluster.isolate(away, false);
    let last = key(&format!("p{i}"));
    eventually("it hears a leader again", SOON, || cluster.node(away).store().get(&last)).await;
    within("it reads again", SOON, cluster.node(away).read_barrier()).await.unwrap();
    let now = cluster.leader(&[1, 2, 3]).await;
    let after = cluster.node(now).leadership().borrow().term;
    Terms { before, lonely, after, same_leader: now == leader }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_back_from_a_partition_raises_no_term() {
    // The control: without a pre-vote it stands for election again and again, and the term that it
    // brings back unseats the leader.
    let mut enough = Duration::ZERO;
    let control = cut_off_and_back(false, |grown, alone| {
        enough = alone;
        assert!(alone < SOON * 2, "it does not stand for election: this proves nothing");
        grown >= 3
    });
    let control = control.await;
    assert!(control.lonely >= control.before + 3 && control.after >= control.lonely, "the control");
    // It is cut off for as long as it took to stand three times.
    let with = cut_off_and_back(true, |_, alone| alone > enough).await;
    assert_eq!(with.lonely, with.before, "pre-vote keeps the lonely member's term");
    assert_eq!((with.after, with.same_leader), (with.before, true), "nobody was disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_isolated_leader_acknowledges_nothing_and_the_rest_goes_on() {
    let tuning = Tuning { deadline: Duration::from_secs(4), ..calm() };
    let cluster = Cluster::new(3, tuning).await;
    let old = cluster.leader(&[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    cluster.isolate(old, true);
    let lost = cluster.node(old).clone();
    let lonely = tokio::spawn(async move { lost.propose(put("lonely", "v")).await });
    let read = cluster.node(old).clone();
    let stale = tokio::spawn(async move { read.read_barrier().await });
    let successor = cluster.leader(&others).await;
    within("the majority writes", SOON, cluster.node(successor).propose(put("majority", "v"))).await.unwrap();
    let lonely = within("it gives up", SOON, lonely).await.unwrap();
    assert!(matches!(lonely, Err(ProposeError::Unknown { .. } | ProposeError::Unavailable { .. })), "{lonely:?}");
    assert!(within("it gives up", SOON, stale).await.unwrap().is_err(), "a cut-off leader serves no linearizable read");
    // It notices, though nobody tells it of the next term: a node that still reaches it must
    // not take its word for a lease, and whoever asks it turns to another member at once.
    let noticed = async {
        while cluster.node(old).renew_lease("n1", "i").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("it notices", SOON, noticed).await;
    let asked = tokio::time::Instant::now();
    cluster.node(old).read_barrier().await.unwrap_err();
    cluster.node(old).propose(put("lonely", "v")).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(1), "refused after {:?}", asked.elapsed());
    cluster.isolate(old, false);
    eventually("it returns", SOON, || cluster.node(old).store().get(&key("majority"))).await;
    assert!(cluster.node(successor).store().get(&key("lonely")).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_member_tells_what_the_leader_knows_and_one_cut_off_names_no_leader() {
    let cluster = Cluster::new(3, calm()).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    within("a write", SOON, cluster.node(leader).propose(put("x", "y"))).await.unwrap();
    for id in 1..=3 {
        let told = within("the overview", SOON, cluster.node(id).overview()).await;
        assert_eq!((told.leader_id, told.note.as_deref()), (Some(leader), None), "asked of {id}");
        assert_eq!(told.members.iter().map(|m| m.member.id).collect::<Vec<_>>(), [1, 2, 3]);
        for m in &told.members {
            assert!(m.matched_index.is_some_and(|i| i > 0), "asked of {id}: {m:?}");
            assert!(m.silent_millis.is_some_and(|s| s < 2_000), "asked of {id}: {m:?}");
            assert_eq!(m.leader, m.member.id == leader);
        }
    }
    // It still takes itself for the leader, but nobody confirms it: that is what it must say, at
    // once, not only when it notices.
    cluster.isolate(leader, true);
    let alone = within("the lonely leader's overview", SOON, cluster.node(leader).overview()).await;
    assert_eq!(alone.leader_id, None);
    assert!(alone.note.is_some_and(|n| n.contains(&format!("member {leader}"))));
    assert!(alone.members.iter().all(|m| !m.leader && (m.member.id == leader) == m.matched_index.is_some()));
    eventually("it notices", SOON, || cluster.node(leader).cut_off()).await;
    let refused = cluster.node(leader).propose(put("lonely", "v")).await.unwrap_err();
    match refused {
        ProposeError::Unavailable { leader_api_address: None, .. } => {}
        other => panic!("it must not send a client to itself: {other:?}"),
    }
    let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let successor = cluster.leader(&rest).await;
    let told = within("the others' overview", SOON, cluster.node(rest[0]).overview()).await;
    assert_eq!(told.leader_id, Some(successor));
    let lost = told.members.iter().find(|m| m.member.id == leader).unwrap();
    assert!(lost.silent_millis.is_none_or(|s| s > 0));
    cluster.isolate(leader, false);
    eventually("the old leader follows", SOON, || {
        cluster
            .node(leader)
            .cut_off()
            .is_none()
            .then_some(())
            .filter(|()| cluster.node(leader).leadership().borrow().leader_id == Some(successor))
    })
    .await;
    let told = within("its overview", SOON, cluster.node(leader).overview()).await;
    assert_eq!(told.leader_id, Some(successor));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_the_log_does_not_reach_keeps_nobody_waiting() {
    let cluster = Cluster::new(3, calm()).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let deaf = (1..=3).find(|id| *id != leader).unwrap();
    within("the control", SOON, cluster.node(deaf).propose(put("before", "v"))).await.unwrap();
    // It can ask the leader, which therefore tells it how far to read, but hears no entries.
    cluster.cut(leader, deaf, true);
    let (reader, writer) = (cluster.node(deaf).clone(), cluster.node(deaf).clone());
    within("a write elsewhere", SOON, cluster.node(leader).propose(put("elsewhere", "v"))).await.unwrap();
    let (read, written) = tokio::join!(
        within("the barrier ends", SOON * 2, reader.read_barrier()),
        within("the write ends", SOON * 2, writer.propose(put("through", "v"))),
    );
    assert!(matches!(read, Err(LeaderError::Unavailable { .. })), "{read:?}");
    assert!(matches!(written, Err(ProposeError::Unknown { .. })), "{written:?}");
    assert!(cluster.node(leader).store().get(&key("through")).is_some(), "the control: it got there");
    cluster.cut(leader, deaf, false);
    eventually("it hears the leader again", SOON, || cluster.node(deaf).store().get(&key("through"))).await;
    within("it reads again", SOON, cluster.node(deaf).read_barrier()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leadership_is_handed_over() {
    let cluster = Cluster::new(3, calm()).await;
    let mut leader = cluster.leader(&[1, 2, 3]).await;
    for _ in 0..3 {
        let to = leader % 3 + 1;
        // Asked of a member that neither leads nor is to lead: it is passed on.
        let asked = (1..=3).find(|id| *id != leader && *id != to).unwrap();
        within("the handover", SOON, cluster.node(asked).transfer_leader(to)).await.unwrap();
        leader = cluster.leader(&[1, 2, 3]).await;
        assert_eq!(leader, to);
        within("a write", SOON, cluster.node(asked).propose(put("x", &leader.to_string()))).await.unwrap();
    }
    let error = cluster.node(1).transfer_leader(9).await.unwrap_err();
    assert!(matches!(error, MemberError::Unknown { id: 9, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wiped_member_catches_up_by_snapshot() {
    let tuning = Tuning { snapshot_entries: 50, keep_entries: 5, segment_bytes: 8 * 1024, ..calm() };
    let mut cluster = Cluster::new(3, tuning).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let victim = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop(victim).await;
    cluster.wipe(victim);
    for i in 0..400 {
        within("a write", SOON, cluster.node(leader).propose(put(&format!("k{}", i % 40), &i.to_string())))
            .await
            .unwrap();
    }
    eventually("the log is purged", SOON, || cluster.node(leader).stats().purged_index.filter(|p| *p > 50)).await;
    cluster.start(victim).await;
    within("it catches up", SOON, cluster.node(victim).read_barrier()).await.unwrap();
    let (ours, theirs) = (cluster.node(victim).store(), cluster.node(leader).store());
    assert_eq!(ours.revision(), theirs.revision());
    assert_eq!(ours.list_kinds(&["ConfigMap"]).0, theirs.list_kinds(&["ConfigMap"]).0);
    // A watch that began on another member goes on here: the history came along.
    let mut watcher = ours.watch(trellis_control_plane::store::WatchFilter::default(), 390).unwrap();
    assert_eq!(watcher.poll().unwrap().events.len(), 10);
    // Everything restarts from what lies on disk.
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    cluster.leader(&[1, 2, 3]).await;
    within("a read after the restart", SOON, cluster.node(victim).read_barrier()).await.unwrap();
    assert_eq!(cluster.node(victim).store().revision(), 400);
    // Segments and snapshots behind the purge are gone.
    let files = |sub: &str| std::fs::read_dir(cluster.nodes[&leader].dir.join(sub)).unwrap().count();
    assert!(files("snapshots") == 1, "one snapshot is kept");
    assert!(files("log") < 12, "old segments are dropped: {}", files("log"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_member_whose_beginning_of_the_log_is_gone_catches_up_by_snapshot() {
    let tuning = Tuning { snapshot_entries: 50, keep_entries: 5, segment_bytes: 8 * 1024, ..calm() };
    let mut cluster = Cluster::prepare(2, tuning).await;
    cluster.start(1).await;
    let first = cluster.nodes[&1].member.clone();
    cluster.node(1).bootstrap(first).await.unwrap();
    cluster.leader(&[1]).await;
    for i in 0..400 {
        let write = put(&format!("k{}", i % 40), &i.to_string());
        within("a write", SOON, cluster.node(1).propose(write)).await.unwrap();
    }
    let purged =
        eventually("the log is purged", SOON, || cluster.node(1).stats().purged_index.filter(|p| *p > 50)).await;
    cluster.start(2).await;
    let second = cluster.nodes[&2].member.clone();
    within("it catches up and votes", SOON * 2, cluster.node(1).add_member(second)).await.unwrap();
    within("it reads", SOON, cluster.node(2).read_barrier()).await.unwrap();
    let taken = cluster.node(2).stats().snapshot_index;
    assert!(taken.is_some_and(|i| i >= purged), "by snapshot: {taken:?}, purged up to {purged}");
    let (ours, theirs) = (cluster.node(2).store(), cluster.node(1).store());
    assert_eq!((ours.revision(), theirs.revision()), (400, 400));
    assert_eq!(ours.list_kinds(&["ConfigMap"]).0, theirs.list_kinds(&["ConfigMap"]).0);
    within("it writes", SOON, cluster.node(2).propose(put("after", "v"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn members_are_added_and_removed_safely() {
    let mut cluster = Cluster::prepare(4, Tuning { catch_up: Duration::from_secs(2), ..calm() }).await;
    cluster.start(1).await;
    let first = cluster.nodes[&1].member.clone();
    cluster.node(1).bootstrap(first.clone()).await.unwrap();
    let last = cluster.node(1).remove_member(1).await.unwrap_err();
    assert!(matches!(last, MemberError::LastVoter { id: 1 }), "{last}");
    for id in [2, 3] {
        cluster.start(id).await;
        let member = cluster.nodes[&id].member.clone();
        // Asked of the newest member but one; repeating changes nothing.
        within("adding", SOON, cluster.node(id - 1).add_member(member.clone())).await.unwrap();
        within("adding again", SOON, cluster.node(1).add_member(member)).await.unwrap();
    }
    let leader = cluster.leader(&[1, 2, 3]).await;
    let mut clash = cluster.nodes[&2].member.clone();
    clash.id = 7;
    let error = cluster.node(leader).add_member(clash).await.unwrap_err();
    assert!(matches!(error, MemberError::Clash { .. }), "{error}");
    // Nobody listens there: it stays a learner, and the voters are as before.
    let ghost = trellis_control_plane::raft::Member {
        id: 4,
        name: "ghost".into(),
        api_address: "x".into(),
        peer_address: "127.0.0.1:1".into(),
    };
    let error = cluster.node(leader).add_member(ghost).await.unwrap_err();
    assert!(matches!(error, MemberError::NotCaughtUp { id: 4, .. }), "{error}");
    let voters = |of: u64| cluster.node(of).members().iter().filter(|m| m.voter).count();
    assert_eq!(voters(leader), 3);
    within("removing the learner", SOON, cluster.node(leader).remove_member(4)).await.unwrap();
    // The leader removes itself: it hands over first.
    within("removing the leader", Duration::from_secs(20), cluster.node(leader).remove_member(leader)).await.unwrap();
    let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let successor = cluster.leader(&rest).await;
    assert_eq!(voters(successor), 2);
    within("a write", SOON, cluster.node(successor).propose(put("x", "y"))).await.unwrap();
    // While one does not catch up, another change waits for its turn.
    let other = rest.iter().copied().find(|id| *id != successor).unwrap();
    let slow = trellis_control_plane::raft::Member {
        id: 5,
        name: "slow".into(),
        api_address: "y".into(),
        peer_address: "127.0.0.1:1".into(),
    };
    let (first, again) = tokio::join!(cluster.node(successor).add_member(slow.clone()), async {
        eventually("the learner is known", SOON, || {
            cluster.node(successor).members().iter().any(|m| m.member.id == 5).then_some(())
        })
        .await;
        cluster.node(successor).transfer_leader(other).await
    });
    assert!(matches!(first, Err(MemberError::NotCaughtUp { id: 5, .. })), "{first:?}");
    again.expect("catching up was given up before this had waited too long");
    let (successor, other) = (other, successor);
    cluster.leader(&rest).await;
    within("removing the learner", SOON, cluster.node(successor).remove_member(5)).await.unwrap();
    // With the other one silent, removing the live one would leave nobody who can write.
    cluster.isolate(other, true);
    let silent = |cluster: &Cluster| {
        let all = cluster.node(successor).members();
        all.iter().any(|m| m.member.id == other && m.silent_millis.is_none_or(|s| s >= 1_600)).then_some(())
    };
    eventually("the other one is silent", SOON, || silent(&cluster)).await;
    let refused = cluster.node(successor).remove_member(successor).await.unwrap_err();
    let expected =
        matches!(refused, MemberError::WouldLoseQuorum { voters: 1, alive: 0, needed: 1, .. } | MemberError::Leader(_));
    assert!(expected, "no majority would be left: {refused}");
    cluster.isolate(other, false);
    within("the control: with it back, that works", Duration::from_secs(20), async {
        while cluster.node(other).remove_member(successor).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// A write lies on the leader and one of two others. That one is restarted, with its disk or
/// without; the leader is away for a while, and the third one, which knows nothing of the write,
/// asks for votes.
struct TwoLeft {
    cluster: Cluster,
    leader: u64,
    behind: u64,
    restarted: u64,
    asked_before: u64,
}

impl TwoLeft {
    async fn new(wipe: bool) -> Self {
        let mut cluster = Cluster::new(3, calm()).await;
        let leader = cluster.leader(&[1, 2, 3]).await;
        let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        let (behind, restarted) = (rest[0], rest[1]);
        cluster.stop(behind).await;
        within("a write", SOON, cluster.node(leader).propose(put("precious", "v"))).await.unwrap();
        cluster.stop(restarted).await;
        cluster.stop(leader).await;
        if wipe {
            cluster.wipe(restarted);
        }
        let asked_before = cluster.asked(restarted, "PreVote");
        cluster.start(restarted).await;
        cluster.start(behind).await;
        Self { cluster, leader, behind, restarted, asked_before }
    }

    /// How often the member without the write has asked the other one for its vote.
    fn asked(&self) -> u64 {
        self.cluster.asked(self.restarted, "PreVote") - self.asked_before
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_lost_its_disk_elects_nobody_who_lacks_acknowledged_writes() {
    // The control: with its disk kept it has the write, and the two elect it.
    let kept = TwoLeft::new(false).await;
    let elected = kept.cluster.leader(&[kept.behind, kept.restarted]).await;
    assert_eq!(elected, kept.restarted, "the one that has the write");
    within("a read", SOON, kept.cluster.node(elected).read_barrier()).await.unwrap();
    assert!(kept.cluster.node(elected).store().get(&key("precious")).is_some());
    drop(kept);

    let mut lost = TwoLeft::new(true).await;
    eventually("the one without the write asks for votes, several times", SOON * 3, || {
        for id in [lost.behind, lost.restarted] {
            assert!(!lost.cluster.node(id).leadership().borrow().is_leader, "{id} leads without the write");
        }
        (lost.asked() >= 4).then_some(())
    })
    .await;
    let cluster = &mut lost.cluster;
    cluster.start(lost.leader).await;
    for id in 1..=3 {
        within("it reads", SOON * 2, cluster.node(id).read_barrier()).await.unwrap();
        assert!(cluster.node(id).store().get(&key("precious")).is_some(), "on {id}");
    }
    // Caught up, the wiped one votes again.
    cluster.stop(lost.leader).await;
    cluster.leader(&[lost.behind, lost.restarted]).await;
}

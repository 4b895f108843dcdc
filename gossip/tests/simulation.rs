//! The gossip machine on a simulated network: what a cluster relies on.
#![allow(clippy::unwrap_used, missing_docs)]

mod network;

use network::{KEY, Network, address, identity, ms};
use proptest::prelude::*;
use trellis_gossip::{Config, Gossip, GossipKey, Liveness, MAX_PACKET_BYTES};

/// A cluster in which everybody knows everybody.
fn settled(size: usize, seed: u64) -> Network {
    let mut network = Network::new(size, seed);
    network.run_until(ms(20_000), Network::all_alive).expect("the cluster must form");
    network.run(ms(2000));
    network
}

#[test]
fn five_nodes_find_each_other_fast() {
    for seed in 0..10 {
        let mut network = Network::new(5, seed);
        let took = network.run_until(ms(20_000), Network::all_alive).expect("must form");
        assert!(took <= ms(1500), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_killed_node_is_known_to_all_within_two_seconds() {
    for loss in [0.0, 0.02] {
        for seed in 0..30 {
            let mut network = settled(5, seed);
            network.loss = loss;
            let killed_at = network.now;
            network.kill((seed % 5) as usize);
            let victim = (seed % 5) as usize;
            let took = network.run_until(ms(10_000), |n| n.all_see(victim, Liveness::Dead)).expect("must be noticed");
            assert!(took <= ms(2000), "loss {loss} seed {seed}: {took:?}");
            let false_ones: Vec<_> =
                network.deaths_since(killed_at).into_iter().filter(|v| v.2 != format!("n{victim}")).collect();
            assert!(false_ones.is_empty(), "{false_ones:?}");
        }
    }
}

#[test]
fn two_and_three_nodes_notice_a_death_too() {
    for size in [2, 3] {
        for seed in 0..30 {
            let mut network = settled(size, seed);
            network.kill(1);
            let took = network.run_until(ms(10_000), |n| n.all_see(1, Liveness::Dead)).expect("must be noticed");
            assert!(took <= ms(2000), "{size} nodes, seed {seed}: {took:?}");
        }
    }
}

#[test]
fn a_paused_observer_declares_nobody_dead_and_comes_back() {
    for pause in [300, 700, 1500, 5000, 60_000] {
        for seed in 0..10 {
            let mut network = settled(5, seed);
            network.pause(2);
            network.run(ms(pause));
            let resumed = network.now;
            network.resume(2);
            let back = network.run_until(ms(10_000), Network::all_alive);
            assert!(back.is_some(), "pause {pause} seed {seed}: all alive again");
            network.run(ms(5000));
            let wrong: Vec<_> = network.deaths_since(resumed).into_iter().filter(|v| v.2 != "n2").collect();
            assert!(wrong.is_empty(), "pause {pause} seed {seed}: {wrong:?}");
            assert!(network.machine(2).is_healthy());
        }
    }
}

#[test]
fn a_pause_is_told_as_doubt_until_fresh_answers_come() {
    let mut network = settled(5, 1);
    assert!(network.machine(2).is_healthy());
    network.pause(2);
    network.run(ms(5000));
    network.resume(2);
    assert!(!network.machine(2).view().healthy);
    assert_eq!(network.machine(2).counters().doubts, 1);
    let took = network.run_until(ms(5000), |n| n.machine(2).view().healthy).expect("recovers");
    assert!(took <= ms(3000), "{took:?}");
}

#[test]
fn an_observer_that_stutters_declares_nobody_dead() {
    // Runs 150 ms in every 450: half starved, for a minute.
    let mut network = settled(5, 3);
    let begin = network.now;
    for _ in 0..130 {
        network.pause(2);
        network.run(ms(300));
        network.resume(2);
        network.run(ms(150));
    }
    network.run(ms(5000));
    let wrong: Vec<_> = network.deaths_since(begin).into_iter().filter(|v| v.1 == 2 || v.2 != "n2").collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn no_false_deaths_with_two_percent_loss_over_minutes() {
    for (size, seed) in [(3, 11), (5, 12), (8, 13)] {
        let mut network = settled(size, seed);
        network.loss = 0.02;
        let begin = network.now;
        network.run(ms(600_000));
        assert!(network.deaths_since(begin).is_empty(), "{:?}", network.deaths_since(begin));
    }
}

#[test]
fn partition_and_heal() {
    for seed in 0..10 {
        let mut network = settled(5, seed);
        network.split(1, &[3, 4]);
        network
            .run_until(ms(15_000), |n| {
                (0..3).all(|a| {
                    (3..5).all(|b| n.sees(a, b) == Some(Liveness::Dead) && n.sees(b, a) == Some(Liveness::Dead))
                })
            })
            .expect("both sides notice");
        network.run(ms(30_000));
        network.heal();
        let took = network.run_until(ms(20_000), Network::all_alive).expect("heals");
        assert!(took <= ms(5000), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_node_cut_off_alone_returns() {
    for seed in 0..10 {
        let mut network = settled(5, seed);
        network.split(1, &[4]);
        network.run(ms(20_000));
        assert!(network.running().filter(|n| *n != 4).all(|n| network.sees(n, 4) == Some(Liveness::Dead)));
        network.heal();
        let took = network.run_until(ms(20_000), Network::all_alive).expect("heals");
        assert!(took <= ms(5000), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_restarted_node_is_taken_back_at_once() {
    for (seed, down_for, epoch) in [(1, 50, 2000), (2, 1000, 2000), (3, 10_000, 2000)] {
        let mut network = settled(5, seed);
        let begin = network.now;
        network.kill(4);
        network.run(ms(down_for));
        network.start(4, epoch);
        let took = network
            .run_until(ms(10_000), |n| {
                n.all_alive() && n.running().all(|o| n.machine(o).view().member("n4").unwrap().identity.epoch >= epoch)
            })
            .expect("rejoins");
        assert!(took <= ms(1500), "down for {down_for}: {took:?}");
        network.run(ms(5000));
        if down_for < 500 {
            assert!(network.deaths_since(begin).is_empty(), "a quick restart is no death");
        }
    }
}

#[test]
fn a_node_whose_clock_went_back_rejoins_above_its_old_epoch() {
    let mut network = settled(5, 5);
    network.kill(4);
    network.run(ms(5000));
    network.start(4, 3);
    let took = network.run_until(ms(10_000), Network::all_alive).expect("rejoins");
    assert!(took <= ms(3000), "{took:?}");
    assert!(network.machine(4).epoch() > 1000);
}

#[test]
fn an_old_packet_of_a_node_that_has_said_something_new_changes_nothing() {
    let mut network = settled(5, 9);
    network.recorded = Some(Vec::new());
    network.run(ms(2000));
    let recorded = network.recorded.take().unwrap();
    // It restarts, and is given its pod CIDR once it runs.
    network.kill(4);
    network.run(ms(500));
    network.start(4, 2000);
    network.run_until(ms(10_000), Network::all_alive).expect("rejoins");
    network.update(4, "10.99.0.0/24");
    let knows = |n: &Network, epoch: u64| {
        n.running().all(|o| n.machine(o).view().member("n4").is_some_and(|m| m.identity.epoch == epoch))
    };
    let before = network.machine(4).identity().clone();
    network.run_until(ms(10_000), |n| knows(n, before.epoch)).expect("known to all");
    network.run(ms(2000));
    assert_eq!(*network.machine(4).identity(), before);
    assert!(before.epoch > 2000, "it has said something new since its start");
    let begin = network.now;
    let mut replayed = 0;
    for (to, from, bytes) in recorded.iter().filter(|(to, from, _)| *to != 4 && *from == address(4)) {
        network.deliver(*to, *from, bytes);
        replayed += 1;
    }
    assert!(replayed > 10, "{replayed}");
    network.run(ms(3000));
    assert_eq!(*network.machine(4).identity(), before, "a notice that tells nothing new");
    assert!(network.all_alive() && knows(&network, before.epoch));
    assert!(network.deaths_since(begin).is_empty());
}

#[test]
fn a_new_pod_cidr_reaches_everybody_without_a_death() {
    let mut network = settled(5, 6);
    let begin = network.now;
    let cidr = "10.99.0.0/24".parse().unwrap();
    let now = network.now;
    let node = network.nodes[1].as_mut().unwrap();
    // The effects are dropped on purpose: as if every packet of the first round were lost.
    let _lost = node.machine.update_identity(now, Some(cidr), vec!["a:6443".into()]).unwrap();
    network
        .run_until(ms(10_000), |n| {
            n.all_alive()
                && n.running().all(|o| {
                    let view = n.machine(o).view();
                    view.member("n1").unwrap().identity.pod_cidr == Some(cidr)
                })
        })
        .expect("known to all");
    network.run(ms(5000));
    assert!(network.deaths_since(begin).is_empty(), "{:?}", network.deaths_since(begin));
}

#[test]
fn recorded_packets_replayed_or_tampered_with_change_nothing() {
    let mut network = settled(4, 7);
    network.recorded = Some(Vec::new());
    network.run(ms(3000));
    let recorded = network.recorded.take().unwrap();
    assert!(recorded.len() > 100);
    // A death after the recording: replays must not bring the node back.
    network.kill(3);
    network.run_until(ms(5000), |n| n.all_see(3, Liveness::Dead)).unwrap();
    let refused = |n: &Network| -> u64 { n.running().map(|i| n.machine(i).counters().refused).sum() };
    let before = refused(&network);
    let mut injected = 0;
    for (to, from, bytes) in recorded {
        if to == 3 {
            continue;
        }
        network.deliver(to, from, &bytes);
        let mut tampered = bytes.clone();
        let at = injected % tampered.len();
        tampered[at] ^= 0x10;
        network.deliver(to, from, &tampered);
        injected += 1;
    }
    assert_eq!(refused(&network) - before, 2 * injected as u64, "every single one is refused");
    assert!(network.all_see(3, Liveness::Dead));
    network.run(ms(3000));
    assert!(network.all_see(3, Liveness::Dead));
}

#[test]
fn a_restarted_observer_accepts_no_packet_from_before() {
    for remembers in [true, false] {
        let mut network = settled(4, 14);
        // Announcements above all: they are addressed to whoever is there.
        network.recorded = Some(Vec::new());
        for n in 1..4 {
            network.kill(n);
            network.start(n, 1500);
        }
        network.run_until(ms(10_000), Network::all_alive).expect("all are back");
        network.run(ms(2000));
        let recorded = network.recorded.take().unwrap();
        // What is still on its way arrives.
        network.run(ms(100));
        let heard = network.machine(0).heard();
        assert_eq!(heard.len(), 3);
        network.kill(0);
        // Nobody is left who would tell better.
        network.split(1, &[1, 2, 3]);
        network.run(ms(1000));
        network.start(0, 2000);
        if remembers {
            network.nodes[0].as_mut().unwrap().machine.remember(heard);
        }
        let refused = network.machine(0).counters().refused;
        let mut replayed = 0;
        for (to, from, bytes) in &recorded {
            if *to == 0 {
                network.deliver(0, *from, bytes);
                replayed += 1;
            }
        }
        assert!(replayed > 10, "{replayed}");
        let accepted = network.machine(0).counters().received;
        let alone = (1..4).all(|n| network.sees(0, n).is_none());
        if remembers {
            assert_eq!((accepted, network.machine(0).counters().refused - refused), (0, replayed));
            assert!(alone);
            // And nobody is deaf to what is new.
            network.heal();
            network.run_until(ms(20_000), Network::all_alive).expect("all find each other");
        } else {
            assert!(accepted > 0 && !alone, "the positive control");
        }
    }
}

#[test]
fn a_stranger_with_another_key_gets_no_answer() {
    let mut network = settled(3, 8);
    let mut stranger =
        Gossip::new(identity(9, 1), &GossipKey::new([1; 32]), Config::default(), 9, network.now).unwrap();
    let now = network.now;
    let sent = network.packets;
    for effect in stranger.announce(now, [address(0)]) {
        if let trellis_gossip::Effect::Send { packet, .. } = effect {
            network.deliver(0, address(9), &packet);
        }
    }
    assert_eq!(network.packets, sent);
    assert!(network.machine(0).view().member("n9").is_none());
    // The positive control: the same with the right key is answered.
    let mut friend = Gossip::new(identity(9, 1), &GossipKey::new(KEY), Config::default(), 9, network.now).unwrap();
    for effect in friend.announce(now, [address(0)]) {
        if let trellis_gossip::Effect::Send { packet, .. } = effect {
            network.deliver(0, address(9), &packet);
        }
    }
    assert!(network.packets > sent);
}

#[test]
fn a_hundred_nodes() {
    let mut network = Network::new(100, 21);
    let formed = network.run_until(ms(60_000), Network::all_alive).expect("forms");
    assert!(formed <= ms(20_000), "{formed:?}");
    network.run(ms(5000));
    let (packets, begin) = (network.packets, network.now);
    network.run(ms(10_000));
    let rate = (network.packets - packets) as f64 / 100.0 / 10.0;
    assert!(rate < 40.0, "{rate} packets/s a node in peace");
    assert!(network.deaths_since(begin).is_empty());
    network.loss = 0.02;
    network.kill(50);
    let took = network.run_until(ms(10_000), |n| n.all_see(50, Liveness::Dead)).expect("noticed");
    assert!(took <= ms(2000), "{took:?}");
    let wrong: Vec<_> = network.deaths_since(begin).into_iter().filter(|v| v.2 != "n50").collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(network.largest_packet <= MAX_PACKET_BYTES);
    eprintln!("formed in {formed:?}, {rate:.1} packets/s a node, death known in {took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is paused for however long under loss: the others' lives are never denied by the
    /// one that was paused, and all end up seeing all.
    #[test]
    fn pauses_never_kill_others(
        seed in any::<u64>(),
        size in 3usize..7,
        pauses in proptest::collection::vec((50u64..4000, 100u64..3000), 1..5),
    ) {
        let mut network = settled(size, seed);
        network.loss = 0.02;
        let begin = network.now;
        let sleeper = size - 1;
        for (pause, gap) in pauses {
            network.pause(sleeper);
            network.run(ms(pause));
            network.resume(sleeper);
            network.run(ms(gap));
        }
        network.run(ms(5000));
        let name = format!("n{sleeper}");
        let wrong: Vec<_> =
            network.deaths_since(begin).into_iter().filter(|v| v.2 != name).collect();
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
        prop_assert!(network.all_alive());
    }
}

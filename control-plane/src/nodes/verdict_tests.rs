#![allow(clippy::unwrap_used, missing_docs)]
use super::super::leases::{LEASE_TTL, OVERDUE_AFTER};
use super::*;
use proptest::prelude::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn view(nodes: &[(&str, bool)], healthy: bool) -> Option<Arc<GossipView>> {
    let dead = nodes.iter().map(|(n, d)| (Arc::from(*n), *d)).collect();
    Some(Arc::new(GossipView { dead, healthy }))
}

fn nodes(a: &mut Assessor, names: &[&str], now: Instant) {
    for n in names {
        a.add(&Arc::from(*n), Standing::Healthy, now);
    }
}

fn renewed(names: &[&str], at: Instant) -> BTreeMap<Arc<str>, Instant> {
    names.iter().map(|n| (Arc::from(*n), at)).collect()
}

#[test]
fn the_table() {
    use Liveness::*;
    let table = [
        (Alive, true, Standing::Healthy),
        (Unknown, true, Standing::Healthy),
        (Dead, true, Standing::Cut),
        (Alive, false, Standing::Silent),
        (Unknown, false, Standing::Silent),
        (Dead, false, Standing::Dead),
    ];
    for (gossip, lease, want) in table {
        assert_eq!(judge(gossip, lease), want, "{gossip:?} {lease}");
    }
}

#[test]
fn a_killed_node_is_known_dead_when_its_lease_ends() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b", "c"], t0);
    let gossip = view(&[("a", false), ("b", false), ("c", true)], true);
    let t = t0 + ms(1_199);
    a.set_signals(Signals { renewed: renewed(&["a", "b"], t), gossip: gossip.clone() });
    let changed = a.assess(t);
    assert_eq!(changed, vec![Arc::from("c")]);
    assert_eq!(a.track("c").unwrap().standing, Standing::Cut);
    assert_eq!(a.next_deadline(t), Some(t0 + LEASE_TTL));
    let t = t0 + LEASE_TTL;
    a.set_signals(Signals { renewed: renewed(&["a", "b"], t), gossip });
    a.assess(t);
    assert_eq!(a.track("c").unwrap().standing, Standing::Dead);
    assert!(!a.suspended());
}

#[test]
fn the_forgotten_dead_stay_dead_until_they_are_heard() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b"], t0);
    a.add(&Arc::from("c"), Standing::Dead, t0);
    let gossip = view(&[("a", false), ("b", false)], true);
    assert!(a.assess(t0).is_empty(), "a new leader does not revive the dead");
    let t = t0 + ms(10_000);
    a.set_signals(Signals { renewed: renewed(&["a", "b"], t), gossip });
    a.assess(t);
    assert_eq!(a.track("c").unwrap().standing, Standing::Dead);
    // Gossip sees it again, the agent does not renew yet.
    a.set_signals(Signals { renewed: renewed(&["a", "b"], t), gossip: view(&[("c", false)], true) });
    a.assess(t);
    assert_eq!(a.track("c").unwrap().standing, Standing::Silent);
    a.set_signals(Signals { renewed: renewed(&["a", "b", "c"], t), gossip: view(&[("c", false)], true) });
    a.assess(t);
    assert_eq!(a.track("c").unwrap().standing, Standing::Healthy);
}

#[test]
fn silence_alone_is_held_for_a_failover_of_the_agent() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b", "c"], t0);
    let gossip = view(&[("a", false), ("b", false), ("c", false)], true);
    let at = |a: &mut Assessor, t: Instant| {
        a.set_signals(Signals { renewed: renewed(&["a", "b"], t), gossip: gossip.clone() });
        a.assess(t);
        a.track("c").unwrap().standing
    };
    assert_eq!(at(&mut a, t0 + LEASE_TTL), Standing::Healthy);
    assert_eq!(at(&mut a, t0 + LEASE_TTL + SILENT_HOLD), Standing::Silent);
}

#[test]
fn a_new_leader_leaves_the_silent_silent_until_they_are_heard() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b"], t0);
    a.add(&Arc::from("c"), Standing::Silent, t0);
    a.set_signals(Signals { renewed: BTreeMap::new(), gossip: view(&[("c", false)], true) });
    assert!(a.assess(t0 + ms(100)).is_empty());
    a.set_signals(Signals { renewed: renewed(&["c"], t0 + ms(200)), gossip: view(&[("c", false)], true) });
    assert_eq!(a.assess(t0 + ms(200)), vec![Arc::from("c")]);
    assert_eq!(a.track("c").unwrap().standing, Standing::Healthy);
}

#[test]
fn nodes_that_die_together_suspend_eviction_before_the_first_one_is_evicted() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b", "c"], t0);
    // a last renewed 400 ms after b; both are cut off; c is well.
    let gossip = view(&[("a", true), ("b", true), ("c", false)], true);
    let t = t0 + LEASE_TTL;
    let mut r = renewed(&["a"], t0 + ms(399));
    r.insert(Arc::from("c"), t);
    a.set_signals(Signals { renewed: r, gossip });
    a.assess(t);
    assert_eq!(a.track("b").unwrap().standing, Standing::Dead);
    assert!(a.suspended());
}

#[test]
fn agents_that_turn_from_a_dead_leader_to_another_member_are_not_taken_for_lost() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b", "c", "d", "e"], t0);
    let gossip = view(&[("e", true)], true);
    // a and b were heard soon; c and d had spoken to the dead leader's member, e.
    let t = t0 + ms(1_000);
    a.set_signals(Signals { renewed: renewed(&["a", "b"], t), gossip: gossip.clone() });
    a.assess(t);
    assert!(!a.suspended());
    let t = t0 + LEASE_TTL;
    a.set_signals(Signals { renewed: renewed(&["c", "d"], t - ms(50)), gossip: gossip.clone() });
    a.assess(t);
    assert_eq!(a.track("e").unwrap().standing, Standing::Dead);
    assert!(!a.suspended(), "e is replaced now, not {RETURN_HOLD:?} later");
    // Once heard, a renewal missed by most counts at once.
    let t = t0 + ms(1_150) + OVERDUE_AFTER;
    a.assess(t);
    assert!(a.suspended());
}

#[test]
fn the_last_to_return_after_a_mass_loss_is_waited_for() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b", "c", "d", "e"], t0);
    let dead = view(&[("c", true), ("d", true), ("e", true)], true);
    let t1 = t0 + ms(3000);
    a.set_signals(Signals { renewed: renewed(&["a", "b"], t1), gossip: dead });
    a.assess(t1);
    assert!(a.suspended());
    // c and d are heard, e is still on its way: it alone is lost now.
    let late = view(&[("e", true)], true);
    let t2 = t1 + ms(500);
    a.set_signals(Signals { renewed: renewed(&["a", "b", "c", "d"], t2), gossip: late });
    a.assess(t2);
    assert_eq!(a.track("e").unwrap().standing, Standing::Dead);
    assert!(a.suspended(), "e has had no time yet");
    let end = t1 + RETURN_HOLD;
    let names = ["a", "b", "c", "d"];
    a.set_signals(Signals { renewed: renewed(&names, end - ms(1)), gossip: None });
    a.assess(end - ms(1));
    assert!(a.suspended());
    assert_eq!(a.next_deadline(end - ms(1)), Some(end), "it wakes by itself");
    a.assess(end);
    assert!(!a.suspended(), "e did not return: it is lost for good");
}

#[test]
fn a_leader_whose_netd_is_cut_off_does_not_believe_it() {
    let t0 = Instant::now();
    let mut a = Assessor::default();
    nodes(&mut a, &["a", "b", "c"], t0);
    let gossip = view(&[("a", false), ("b", true), ("c", true)], true);
    a.set_signals(Signals { renewed: renewed(&["a", "b", "c"], t0), gossip });
    assert!(a.assess(t0 + ms(100)).is_empty());
}

proptest! {
    /// Whoever renewed within its lease is never silent or dead; whoever is dead was called
    /// dead by gossip at some time and has no lease.
    #[test]
    fn no_verdict_from_one_observer(
        steps in proptest::collection::vec((0u64..700, 0usize..4, any::<bool>(), any::<bool>()), 1..60)
    ) {
        let names = ["a", "b", "c", "d"];
        let t0 = Instant::now();
        let mut now = t0;
        let mut a = Assessor::default();
        nodes(&mut a, &names, t0);
        let mut last: BTreeMap<&str, Instant> = names.iter().map(|n| (*n, t0)).collect();
        let mut called_dead: BTreeMap<&str, bool> = BTreeMap::new();
        for (dt, who, renews, dead) in steps {
            now += ms(dt);
            if renews { last.insert(names[who], now); }
            if dead { called_dead.insert(names[who], true); }
            let v: Vec<(&str, bool)> = names.iter().map(|n| (*n, *n == names[who] && dead)).collect();
            let r = last.iter().map(|(n, t)| (Arc::from(*n), *t)).collect();
            a.set_signals(Signals { renewed: r, gossip: view(&v, true) });
            a.assess(now);
            for n in names {
                let s = a.track(n).unwrap().standing;
                let alive = now.duration_since(last[n]) < LEASE_TTL;
                if alive { prop_assert!(s <= Standing::Cut); }
                if s == Standing::Dead {
                    prop_assert!(called_dead.contains_key(n) && !alive);
                }
            }
            prop_assert!(a.next_deadline(now).is_none_or(|d| d > now));
        }
    }
}

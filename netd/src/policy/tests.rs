#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;
use trellis_model::policy::Block;

/// Does to the model of the kernel what the steps say, all or nothing.
fn execute(steps: &[Step], actual: &mut Option<ActualTable>) {
    for step in steps {
        if let Step::Rebuild(ruleset) = step {
            *actual = Some(ActualTable::of(ruleset));
            continue;
        }
        let table = actual.as_mut().unwrap();
        match step {
            Step::Rebuild(_) => {}
            Step::AddSet(name, ranges) => {
                assert!(table.sets.insert(name.clone(), SetContent::Addresses(ranges.clone())).is_none());
            }
            Step::AddChain(name, rules) => {
                let tags = rules.iter().map(Rule::tag).collect();
                assert!(table.chains.insert(name.clone(), tags).is_none());
            }
            Step::RemoveElements(set, elements) => change(table, set, elements, false),
            Step::AddElements(set, elements) => change(table, set, elements, true),
            Step::DeleteChain(name) => {
                let used = table.sets.values().any(|set| match set {
                    SetContent::Verdicts(map) => map.values().any(|chain| chain == name),
                    SetContent::Addresses(_) => false,
                });
                assert!(!used, "{name} is still jumped to");
                table.chains.remove(name).unwrap();
            }
            Step::DeleteSet(name) => {
                table.sets.remove(name).unwrap();
            }
        }
    }
}

fn change(table: &mut ActualTable, set: &str, elements: &BTreeMap<Ipv4Addr, Option<String>>, add: bool) {
    match table.sets.get_mut(set).unwrap() {
        SetContent::Verdicts(map) => {
            for (ip, chain) in elements {
                let before = map.remove(ip);
                assert_eq!(before.is_some(), !add);
                if add {
                    map.insert(*ip, chain.clone().unwrap());
                }
            }
        }
        SetContent::Addresses(ranges) => {
            let mut all: BTreeSet<(u32, u32)> = ranges.ranges().iter().copied().collect();
            for ip in elements.keys() {
                let element = (u32::from(*ip), u32::from(*ip));
                assert!(if add { all.insert(element) } else { all.remove(&element) });
            }
            *ranges = AddressRanges::from_ranges(all.into_iter().collect(), true);
        }
    }
}

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, n)
}

fn ports() -> impl Strategy<Value = Vec<PortRange>> {
    proptest::collection::vec(
        (0usize..3, 1u16..5, 0u16..3).prop_map(|(protocol, first, more)| PortRange {
            protocol: Protocol::ALL[protocol],
            first: first * 10,
            last: first * 10 + more,
        }),
        0..2,
    )
}

fn peers() -> impl Strategy<Value = Peers> {
    let addresses = proptest::collection::btree_set((2u8..12).prop_map(|n| IpAddr::V4(ip(n))), 0..4);
    let blocks = proptest::collection::vec(
        (0u8..12, 28u8..=32, proptest::collection::vec(0u8..16, 0..3)).prop_map(|(n, prefix, holes)| Block {
            cidr: format!("10.244.1.{n}/{prefix}").parse().unwrap(),
            except: holes.iter().map(|n| format!("10.244.1.{n}/32").parse().unwrap()).collect(),
        }),
        0..3,
    );
    prop_oneof![Just(Peers::Any), (addresses, blocks).prop_map(|(addresses, blocks)| Peers::Set { addresses, blocks })]
}

fn rules() -> impl Strategy<Value = Rules> {
    let allow = (peers(), ports()).prop_map(|(peers, ports)| Allow { peers, ports });
    (any::<bool>(), proptest::collection::vec(allow, 0..3))
        .prop_map(|(isolated, allow)| Rules { isolated, allow: if isolated { allow } else { Vec::new() } })
}

fn policies() -> impl Strategy<Value = BTreeMap<Ipv4Addr, PodPolicy>> {
    let policy = (rules(), rules()).prop_map(|(ingress, egress)| PodPolicy { ingress, egress });
    proptest::collection::btree_map((2u8..12).prop_map(ip), policy, 0..6)
}

fn ruleset(policies: &BTreeMap<Ipv4Addr, PodPolicy>) -> Ruleset {
    Ruleset::build(policies.iter().map(|(ip, policy)| (*ip, policy)))
}

/// What the table decides about a new connection, rule by rule.
fn table_passes(ruleset: &Ruleset, connection: &Connection) -> bool {
    Direction::BOTH.into_iter().all(|direction| {
        let (own, peer) = match direction {
            Direction::Ingress => (connection.destination, connection.source),
            Direction::Egress => (connection.source, connection.destination),
        };
        let Some(chain) = ruleset.maps[direction.map()].get(&own) else { return true };
        for rule in &ruleset.chains[chain] {
            match rule {
                Rule::Allow { peers, ports, .. } => {
                    let peer_fits = peers.as_ref().is_none_or(|set| {
                        let ranges = ruleset.sets[set].ranges();
                        ranges.iter().any(|(first, last)| (*first..=*last).contains(&u32::from(peer)))
                    });
                    let port_fits = ports.is_none_or(|range| {
                        range.protocol.number() == connection.protocol
                            && (range.first..=range.last).contains(&connection.port)
                    });
                    if peer_fits && port_fits {
                        return true;
                    }
                }
                Rule::Deny => return false,
                other => panic!("{other} in a Pod's chain"),
            }
        }
        true
    })
}

proptest! {
    #[test]
    fn planning_again_yields_nothing(first in policies(), second in policies(), third in policies()) {
        let mut actual = None;
        for wanted in [first, second, third] {
            let wanted = ruleset(&wanted);
            let steps = plan(&wanted, actual.as_ref());
            execute(&steps, &mut actual);
            prop_assert_eq!(actual.as_ref(), Some(&ActualTable::of(&wanted)));
            prop_assert_eq!(plan(&wanted, actual.as_ref()), vec![]);
        }
    }

    /// Whoever is kept stays isolated as the kernel has it, whatever is wanted; the plan still ends,
    /// and with nobody to keep any more the table is as wanted.
    #[test]
    fn what_is_kept_is_not_loosened(older in policies(), newer in policies(), broken in any::<bool>()) {
        let kept: BTreeSet<Ipv4Addr> = newer.keys().copied().collect();
        let mut found = ActualTable::of(&ruleset(&newer));
        if broken {
            found.chains.remove(FORWARD);
        }
        let mut actual = Some(found.clone());
        let wanted = ruleset(&older);
        let steps = plan_keeping(&wanted, actual.as_ref(), &kept);
        let expected = after(&steps, &wanted, actual.as_ref(), &kept);
        execute(&steps, &mut actual);
        let now = actual.clone().unwrap();
        prop_assert_eq!(&now, &expected);
        prop_assert_eq!(plan_keeping(&wanted, actual.as_ref(), &kept), vec![]);
        for direction in Direction::BOTH {
            let of = |table: &ActualTable| match &table.sets[direction.map()] {
                SetContent::Verdicts(map) => map.clone(),
                other => panic!("{other:?}"),
            };
            for (address, chain) in of(&found) {
                let chain_now = of(&now).remove(&address);
                prop_assert!(chain_now.is_some(), "{} is open", address);
                prop_assert!(broken || chain_now == Some(chain), "{} has another chain", address);
            }
        }
        execute(&plan(&wanted, actual.as_ref()), &mut actual);
        prop_assert_eq!(actual, Some(ActualTable::of(&wanted)));
    }

    /// The table and the judgement of existing connections are the same decision.
    #[test]
    fn table_and_judgement_agree(
        policies in policies(),
        source in 2u8..14, destination in 2u8..14,
        protocol in prop_oneof![Just(6u8), Just(17), Just(132), Just(1)],
        port in 8u16..45,
    ) {
        let connection = Connection {
            source: ip(source), destination: ip(destination), protocol,
            port: if protocol == 1 { 0 } else { port },
        };
        let judged = permits(&connection, &policies, &BTreeSet::new());
        prop_assert_eq!(judged, table_passes(&ruleset(&policies), &connection));
    }

    #[test]
    fn ranges_hold_what_peers_contain(peers in peers(), n in 0u8..255) {
        if let Peers::Set { addresses, blocks } = &peers {
            let ranges = AddressRanges::new(addresses, blocks);
            let key = u32::from(ip(n));
            let inside = ranges.ranges().iter().any(|(first, last)| (*first..=*last).contains(&key));
            prop_assert_eq!(inside, peers.contains(IpAddr::V4(ip(n))));
            for pair in ranges.ranges().windows(2) {
                prop_assert!(pair[0].1 < pair[1].0);
            }
        }
    }
}

#[test]
fn what_somebody_changed_is_written_anew() {
    let policy = PodPolicy { ingress: Rules { isolated: true, allow: Vec::new() }, ..PodPolicy::default() };
    let wanted = ruleset(&BTreeMap::from([(ip(2), policy)]));
    let good = ActualTable::of(&wanted);
    let chain = wanted.maps["ingress"][&ip(2)].clone();
    let rebuilds = |table: &ActualTable| matches!(plan(&wanted, Some(table))[..], [Step::Rebuild(_)]);

    let mut flushed = good.clone();
    flushed.chains.insert(chain, Vec::new());
    assert!(rebuilds(&flushed), "a chain's rules are gone");
    let mut without = good.clone();
    without.chains.remove(FORWARD);
    assert!(rebuilds(&without), "the base chain is gone");
    let mut foreign = good.clone();
    foreign.chains.get_mut(FORWARD).unwrap().insert(0, String::new());
    assert!(rebuilds(&foreign), "somebody's rule stands before ours");
    let mut element = good.clone();
    element.sets.insert("ingress".into(), SetContent::Verdicts(BTreeMap::new()));
    assert_eq!(plan(&wanted, Some(&element)).len(), 1, "a lost element is put back alone");
    assert!(plan(&wanted, Some(&good)).is_empty());
}

#[test]
fn pods_with_one_policy_share_a_chain_and_the_text_is_nfts() {
    let peers = Peers::Set { addresses: BTreeSet::from([IpAddr::V4(ip(9))]), blocks: Vec::new() };
    let range = PortRange { protocol: Protocol::Tcp, first: 80, last: 80 };
    let allow = vec![Allow { peers, ports: vec![range] }];
    let policy = PodPolicy { ingress: Rules { isolated: true, allow }, ..PodPolicy::default() };
    let ruleset = ruleset(&BTreeMap::from([(ip(2), policy.clone()), (ip(3), policy)]));
    assert_eq!(ruleset.maps["ingress"][&ip(2)], ruleset.maps["ingress"][&ip(3)]);
    assert_eq!(ruleset.sets.len(), 1);
    let chain = &ruleset.chains[&ruleset.maps["ingress"][&ip(2)]];
    let set = ruleset.sets.keys().next().unwrap();
    assert_eq!(
        chain.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("ip saddr @{set} tcp dport 80-80 return"), "drop".to_owned()]
    );
}

#[test]
fn a_node_reaches_its_pods_whatever_the_policy() {
    let policy = PodPolicy { ingress: Rules { isolated: true, allow: Vec::new() }, ..PodPolicy::default() };
    let policies = BTreeMap::from([(ip(2), policy)]);
    let node = Ipv4Addr::new(172, 30, 0, 11);
    let connection = Connection { source: node, destination: ip(2), protocol: 6, port: 80 };
    assert!(permits(&connection, &policies, &BTreeSet::from([node])));
    assert!(!permits(&connection, &policies, &BTreeSet::new()), "another machine does not");
}

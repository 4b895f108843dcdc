//! Routes of the node: to its own Pods, and to the pod CIDRs of other nodes. Pure.
//!
//! Only routes that carry our protocol number are ever changed or removed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::kernel::rtnl::{ROUTE_PROTOCOL, Route, Target};

/// How to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A Pod behind an interface.
    Interface(String),
    /// Another node, by its underlay address.
    Node(Ipv4Addr),
    /// A dead node, or an address nobody has: tell senders at once.
    Nowhere,
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredRoutes {
    /// Destination to hop.
    pub routes: BTreeMap<Ipv4Network, Hop>,
    /// The node's own address: the source of what it sends to Pods itself.
    pub source: Option<Ipv4Addr>,
}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActualRoutes {
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Interface indices by name.
    pub interfaces: BTreeMap<String, u32>,
    /// The underlay interface and its network.
    pub underlay: Option<(u32, Ipv4Network)>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make it, replacing the one to the same destination.
    Set(Route),
    /// Remove it.
    Delete(Route),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, route) = match self {
            Self::Set(route) => ("set", route),
            Self::Delete(route) => ("delete", route),
        };
        write!(f, "{verb} route {} ", route.destination)?;
        match route.target {
            Target::Link(index) => write!(f, "dev {index}"),
            Target::Gateway(gateway, index) => write!(f, "via {gateway} dev {index}"),
            Target::Unreachable | Target::Other => f.write_str("unreachable"),
        }
    }
}

/// What to do; empty when all is as it should be. Removals come first, so that an interface's
/// route never competes with an old one.
pub fn plan(desired: &DesiredRoutes, actual: &ActualRoutes) -> Vec<Step> {
    let wanted: Vec<Route> = desired
        .routes
        .iter()
        .filter_map(|(destination, hop)| resolve(*destination, hop, desired.source, actual))
        .collect();
    let mut steps: Vec<Step> = actual
        .routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL && !same_destination(&wanted, route))
        .map(|route| Step::Delete(*route))
        .collect();
    steps.extend(wanted.iter().filter(|route| !actual.routes.contains(route)).map(|route| Step::Set(*route)));
    steps
}

fn same_destination(wanted: &[Route], route: &Route) -> bool {
    wanted.iter().any(|other| other.destination == route.destination && other.metric == route.metric)
}

/// Nodes that no route leads to, since their addresses are not of our own network: packets to Pods
/// are routed, not wrapped, and a router between would not know where to send them.
pub fn off_link(desired: &DesiredRoutes, actual: &ActualRoutes) -> BTreeMap<Ipv4Network, Ipv4Addr> {
    let Some((_, network)) = actual.underlay else { return BTreeMap::new() };
    let nodes = desired.routes.iter().filter_map(|(cidr, hop)| match hop {
        Hop::Node(address) if !network.contains(*address) => Some((*cidr, *address)),
        _ => None,
    });
    nodes.collect()
}

/// None: not possible now (the interface is not there yet).
fn resolve(destination: Ipv4Network, hop: &Hop, source: Option<Ipv4Addr>, actual: &ActualRoutes) -> Option<Route> {
    let route = |target, source| Route { destination, target, source, metric: 0, protocol: ROUTE_PROTOCOL };
    Some(match hop {
        Hop::Interface(name) => route(Target::Link(*actual.interfaces.get(name)?), source),
        Hop::Node(address) => {
            let (index, network) = actual.underlay?;
            if network.contains(*address) {
                route(Target::Gateway(*address, index), source)
            } else {
                // Senders are told, rather than left waiting behind a default route.
                route(Target::Unreachable, None)
            }
        }
        Hop::Nowhere => route(Target::Unreachable, None),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Does to the model of the kernel what the steps say.
    fn execute(steps: &[Step], actual: &mut ActualRoutes) {
        for step in steps {
            match step {
                Step::Set(route) => {
                    actual
                        .routes
                        .retain(|other| other.destination != route.destination || other.metric != route.metric);
                    actual.routes.push(*route);
                }
                Step::Delete(route) => actual.routes.retain(|other| other != route),
            }
        }
    }

    fn kernel() -> ActualRoutes {
        ActualRoutes {
            routes: vec![Route {
                destination: "172.30.0.0/24".parse().unwrap(),
                target: Target::Link(2),
                source: None,
                metric: 0,
                protocol: 2,
            }],
            interfaces: BTreeMap::from([("trl1".into(), 5), ("trl2".into(), 6)]),
            underlay: Some((2, "172.30.0.11/24".parse().unwrap())),
        }
    }

    fn hop() -> impl Strategy<Value = Hop> {
        prop_oneof![
            Just(Hop::Interface("trl1".into())),
            Just(Hop::Interface("missing".into())),
            Just(Hop::Node("172.30.0.12".parse().unwrap())),
            Just(Hop::Node("192.168.0.12".parse().unwrap())),
            Just(Hop::Nowhere),
        ]
    }

    fn desired() -> impl Strategy<Value = DesiredRoutes> {
        proptest::collection::btree_map(0u8..20, hop(), 0..10).prop_map(|map| DesiredRoutes {
            routes: map.into_iter().map(|(n, hop)| (format!("10.244.{n}.0/24").parse().unwrap(), hop)).collect(),
            source: Some("172.30.0.11".parse().unwrap()),
        })
    }

    proptest! {
        #[test]
        fn planning_again_yields_nothing(first in desired(), second in desired()) {
            let mut actual = kernel();
            for wanted in [&first, &second] {
                let steps = plan(wanted, &actual);
                execute(&steps, &mut actual);
                prop_assert_eq!(plan(wanted, &actual), vec![]);
            }
            prop_assert!(actual.routes.contains(&kernel().routes[0]), "others' routes stay");
        }
    }

    #[test]
    fn a_dead_nodes_route_becomes_unreachable() {
        let mut actual = kernel();
        let cidr: Ipv4Network = "10.244.2.0/24".parse().unwrap();
        let alive =
            DesiredRoutes { routes: BTreeMap::from([(cidr, Hop::Node("172.30.0.12".parse().unwrap()))]), source: None };
        execute(&plan(&alive, &actual), &mut actual);
        let dead = DesiredRoutes { routes: BTreeMap::from([(cidr, Hop::Nowhere)]), source: None };
        let steps = plan(&dead, &actual);
        assert_eq!(steps.iter().map(ToString::to_string).collect::<Vec<_>>(), ["set route 10.244.2.0/24 unreachable"]);
    }

    #[test]
    fn a_node_of_another_network_is_named_and_its_pods_are_unreachable() {
        let actual = kernel();
        let [near, far]: [Ipv4Network; 2] = ["10.244.2.0/24", "10.244.3.0/24"].map(|text| text.parse().unwrap());
        let [on_link, elsewhere]: [Ipv4Addr; 2] = ["172.30.0.12", "172.31.0.13"].map(|text| text.parse().unwrap());
        let desired = DesiredRoutes {
            routes: BTreeMap::from([(near, Hop::Node(on_link)), (far, Hop::Node(elsewhere))]),
            source: None,
        };
        assert_eq!(off_link(&desired, &actual), BTreeMap::from([(far, elsewhere)]));
        let steps: Vec<String> = plan(&desired, &actual).iter().map(ToString::to_string).collect();
        assert_eq!(steps, ["set route 10.244.2.0/24 via 172.30.0.12 dev 2", "set route 10.244.3.0/24 unreachable"]);
        // Before the own address is known, nobody is judged.
        let unknown = ActualRoutes { underlay: None, ..actual };
        assert!(off_link(&desired, &unknown).is_empty() && plan(&desired, &unknown).is_empty());
    }
}

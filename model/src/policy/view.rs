//! What the decision needs to know of Pods, Namespaces and policies, freed from their objects.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{End, Namespaces};
use crate::selector::{LabelSelector, SelectorError};

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// The default.
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// From the API's word; absent means TCP.
    pub fn parse(text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("TCP" | "") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }

    /// The number in an IP header (IANA).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// A container port that policies may name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedPort {
    /// `http`
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A Pod as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodView {
    /// metadata.uid
    pub uid: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// metadata.labels
    pub labels: BTreeMap<String, String>,
    /// status.podIPs; none before it has any, nor after it has finished.
    pub addresses: Vec<IpAddr>,
    /// Named ports of its containers.
    pub ports: Vec<NamedPort>,
    /// Pods in the node's own network are not subject to policy.
    pub host_network: bool,
}

impl PodView {
    /// From the API's object, full or projected.
    pub fn from_pod(pod: &Pod) -> PodView {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let mut addresses: Vec<IpAddr> = Vec::new();
        if !crate::resources::is_finished(pod) {
            let many = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
            let one = status.and_then(|s| s.pod_ip.as_deref());
            for ip in many.map(|i| i.ip.as_str()).chain(one).filter_map(|t| t.parse().ok()) {
                if !addresses.contains(&ip) {
                    addresses.push(ip);
                }
            }
        }
        let containers = spec.map(|s| {
            let sidecars = s.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            s.containers.iter().chain(sidecars)
        });
        let mut ports = Vec::new();
        for p in containers.into_iter().flatten().flat_map(|c| c.ports.iter().flatten()) {
            let number = u16::try_from(p.container_port).ok();
            if let (Some(name), Some(protocol), Some(port)) =
                (p.name.clone(), Protocol::parse(p.protocol.as_deref()), number)
            {
                ports.push(NamedPort { name, protocol, port });
            }
        }
        PodView {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            addresses,
            ports,
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
        }
    }

    /// The number of a named port, for that protocol.
    pub fn port_named(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.iter().find(|p| p.name == name && p.protocol == protocol).map(|p| p.port)
    }
}

/// A Namespace as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceView {
    /// metadata.labels, with `kubernetes.io/metadata.name`.
    pub labels: BTreeMap<String, String>,
}

impl NamespaceView {
    /// From the API's object.
    pub fn from_namespace(ns: &Namespace) -> NamespaceView {
        NamespaceView { labels: ns.metadata.labels.clone().unwrap_or_default() }
    }
}

/// A policy cannot be understood. Validation refuses such; one that got past it is told here.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A selector is none.
    #[error("NetworkPolicy {policy}: {source}")]
    Selector {
        /// namespace/name
        policy: String,
        /// What is wrong.
        source: SelectorError,
    },
    /// An address block or port is none.
    #[error("NetworkPolicy {policy}: {what}")]
    Value {
        /// namespace/name
        policy: String,
        /// What is wrong.
        what: String,
    },
}

/// A NetworkPolicy, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// metadata.namespace: the Pods that it selects, and those of peers without a
    /// namespaceSelector, are of this namespace.
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// Which Pods it is for.
    pub pods: LabelSelector,
    /// Rules for connections to the Pods; None: this policy says nothing about them.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for connections from the Pods; None: this policy says nothing about them.
    pub egress: Option<Vec<Rule>>,
}

/// Connections to or from any of the peers, on any of the ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Empty: anybody.
    pub peers: Vec<Peer>,
    /// Empty: every port and every protocol.
    pub ports: Vec<Port>,
}

/// Who may be at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods by label, in the policy's own namespace or in those selected.
    Pods {
        /// Which Pods.
        pods: LabelSelector,
        /// Of which namespaces; None: the policy's own.
        namespaces: Option<LabelSelector>,
    },
    /// Addresses, wherever they are.
    Block {
        /// Allowed.
        cidr: IpNetwork,
        /// But not these.
        except: Vec<IpNetwork>,
    },
}

/// Which destination ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Every port of the protocol.
    Any(Protocol),
    /// From the first to the last.
    Range(Protocol, u16, u16),
    /// What the destination's containers call so.
    Named(Protocol, String),
}

impl Port {
    pub(super) fn fits(&self, protocol: Protocol, port: u16, destination: Option<&PodView>) -> bool {
        match self {
            Port::Any(p) => *p == protocol,
            Port::Range(p, first, last) => *p == protocol && (*first..=*last).contains(&port),
            Port::Named(p, name) => *p == protocol && destination.and_then(|d| d.port_named(name, *p)) == Some(port),
        }
    }
}

impl Peer {
    pub(super) fn selects(&self, pod: &PodView, home: &str, namespaces: &Namespaces) -> bool {
        match self {
            Peer::Block { .. } => false,
            Peer::Pods { pods, namespaces: which } => {
                !pod.host_network
                    && pods.matches(&pod.labels)
                    && match which {
                        None => pod.namespace == home,
                        Some(s) => namespaces.get(&pod.namespace).is_some_and(|n| s.matches(&n.labels)),
                    }
            }
        }
    }

    pub(super) fn fits(&self, peer: End<'_>, home: &str, namespaces: &Namespaces) -> bool {
        match self {
            Peer::Pods { .. } => peer.pod().is_some_and(|p| self.selects(p, home, namespaces)),
            Peer::Block { cidr, except } => {
                let ip = peer.address();
                cidr.contains(ip) && !except.iter().any(|e| e.contains(ip))
            }
        }
    }
}

impl Policy {
    /// Parses a NetworkPolicy. Absent `policyTypes` mean Ingress, and Egress where egress rules
    /// are given.
    pub fn from_k8s(policy: &NetworkPolicy) -> Result<Policy, PolicyError> {
        let meta = &policy.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let id = format!("{namespace}/{name}");
        let spec = policy.spec.clone().unwrap_or_default();
        let types = spec.policy_types.unwrap_or_else(|| {
            let mut t = vec!["Ingress".to_owned()];
            if spec.egress.as_ref().is_some_and(|e| !e.is_empty()) {
                t.push("Egress".to_owned());
            }
            t
        });
        let has = |t: &str| types.iter().any(|x| x == t);
        let ingress = spec.ingress.unwrap_or_default();
        let egress = spec.egress.unwrap_or_default();
        let rules = |list: Vec<RawRule>| {
            list.into_iter().map(|(peers, ports)| rule(&id, peers, ports)).collect::<Result<_, _>>()
        };
        Ok(Policy {
            pods: selector(&id, spec.pod_selector.as_ref())?,
            ingress: match has("Ingress") {
                true => Some(rules(ingress.into_iter().map(|r| (r.from, r.ports)).collect())?),
                false => None,
            },
            egress: match has("Egress") {
                true => Some(rules(egress.into_iter().map(|r| (r.to, r.ports)).collect())?),
                false => None,
            },
            namespace,
            name,
        })
    }

    /// Whether what the policy allows may depend on this Pod being a peer. True too often only for
    /// named egress ports, which may be any Pod's.
    pub fn names(&self, pod: &PodView, namespaces: &Namespaces) -> bool {
        let selected = |rule: &Rule| rule.peers.iter().any(|peer| peer.selects(pod, &self.namespace, namespaces));
        let named_ports = |rule: &Rule| rule.ports.iter().any(|port| matches!(port, Port::Named(..)));
        self.ingress.iter().flatten().any(selected)
            || self.egress.iter().flatten().any(|rule| selected(rule) || named_ports(rule))
    }

    /// Whether the policy is for this Pod.
    pub fn selects(&self, pod: &PodView) -> bool {
        !pod.host_network && pod.namespace == self.namespace && self.pods.matches(&pod.labels)
    }
}

type RawRule = (Option<Vec<NetworkPolicyPeer>>, Option<Vec<NetworkPolicyPort>>);
type K8sSelector = k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

fn selector(id: &str, s: Option<&K8sSelector>) -> Result<LabelSelector, PolicyError> {
    s.map_or_else(|| Ok(LabelSelector::everything()), LabelSelector::from_k8s)
        .map_err(|source| PolicyError::Selector { policy: id.to_owned(), source })
}

fn rule(
    id: &str,
    peers: Option<Vec<NetworkPolicyPeer>>,
    ports: Option<Vec<NetworkPolicyPort>>,
) -> Result<Rule, PolicyError> {
    Ok(Rule {
        peers: peers.unwrap_or_default().iter().map(|p| peer(id, p)).collect::<Result<_, _>>()?,
        ports: ports.unwrap_or_default().iter().map(|p| port(id, p)).collect::<Result<_, _>>()?,
    })
}

fn peer(id: &str, p: &NetworkPolicyPeer) -> Result<Peer, PolicyError> {
    let net = |t: &str| {
        t.parse::<IpNetwork>()
            .map_err(|e| PolicyError::Value { policy: id.to_owned(), what: format!("{t:?} is no address block: {e}") })
    };
    if let Some(b) = &p.ip_block {
        let except = b.except.iter().flatten().map(|t| net(t)).collect::<Result<_, _>>()?;
        return Ok(Peer::Block { cidr: net(&b.cidr)?, except });
    }
    Ok(Peer::Pods {
        pods: selector(id, p.pod_selector.as_ref())?,
        namespaces: match &p.namespace_selector {
            Some(s) => Some(selector(id, Some(s))?),
            None => None,
        },
    })
}

fn port(id: &str, p: &NetworkPolicyPort) -> Result<Port, PolicyError> {
    let bad = |what: String| PolicyError::Value { policy: id.to_owned(), what };
    let protocol = Protocol::parse(p.protocol.as_deref()).ok_or_else(|| bad(format!("protocol {:?}", p.protocol)))?;
    let number = |n: i32| u16::try_from(n).map_err(|_| bad(format!("port {n}")));
    Ok(match &p.port {
        None => Port::Any(protocol),
        Some(IntOrString::String(name)) => Port::Named(protocol, name.clone()),
        Some(IntOrString::Int(n)) => {
            let first = number(*n)?;
            Port::Range(protocol, first, p.end_port.map_or(Ok(first), number)?)
        }
    })
}

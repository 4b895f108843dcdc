//! What netd knows of the cluster: Nodes, Namespaces, NetworkPolicies, Pods, each reduced to what
//! it acts on; and what follows from it for this node's routes. Pure; stored as a whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use trellis_gossip::{Liveness, View};
use trellis_model::policy::{NamedPort, NamespaceView, Namespaces, PodView, Policy, PolicyError, Protocol};

use crate::routes::Hop;

/// An object that cannot be understood; what was known of it before stays in force.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// Not the JSON of its kind.
    #[error("{kind} {key}: {source}")]
    Decode {
        /// Which kind.
        kind: &'static str,
        /// namespace/name
        key: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A policy that validation should have refused.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// The kinds that netd watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Nodes: pod CIDRs and underlay addresses.
    Node,
    /// Namespaces: labels.
    Namespace,
    /// NetworkPolicies.
    NetworkPolicy,
    /// Pods: labels, addresses, named ports.
    Pod,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Node, Kind::Namespace, Kind::NetworkPolicy, Kind::Pod];

    /// API group and kind name.
    pub fn group_and_name(self) -> (&'static str, &'static str) {
        match self {
            Self::Node => ("", "Node"),
            Self::Namespace => ("", "Namespace"),
            Self::NetworkPolicy => ("networking.k8s.io", "NetworkPolicy"),
            Self::Pod => ("", "Pod"),
        }
    }
}

/// A Node, reduced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// spec.podCIDRs, IPv4.
    pub pod_cidrs: Vec<Ipv4Network>,
    /// status.addresses, InternalIP.
    pub address: Option<Ipv4Addr>,
    /// Condition Ready is True.
    pub ready: bool,
}

/// A Pod, reduced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    addresses: Vec<IpAddr>,
    /// (name, IANA protocol number, port)
    ports: Vec<(String, u8, u16)>,
    host_network: bool,
    /// Succeeded or Failed: its address is nobody's.
    #[serde(default)]
    finished: bool,
}

impl PodRecord {
    fn new(view: PodView, finished: bool) -> Self {
        Self {
            namespace: view.namespace,
            name: view.name,
            labels: view.labels,
            addresses: view.addresses,
            ports: view.ports.into_iter().map(|port| (port.name, port.protocol.number(), port.port)).collect(),
            host_network: view.host_network,
            finished,
        }
    }

    /// As the model takes it; `address` stands in for what the API says.
    pub fn view(&self, uid: &str, address: Option<Ipv4Addr>) -> PodView {
        let protocol = |number: u8| Protocol::ALL.into_iter().find(|p| p.number() == number).unwrap_or_default();
        PodView {
            uid: uid.into(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            addresses: match address {
                Some(ip) => vec![IpAddr::V4(ip)],
                None => self.addresses.clone(),
            },
            ports: self
                .ports
                .iter()
                .map(|(name, number, port)| NamedPort { name: name.clone(), protocol: protocol(*number), port: *port })
                .collect(),
            host_network: self.host_network,
        }
    }
}

/// Everything known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cluster {
    /// By name.
    pub nodes: BTreeMap<String, NodeRecord>,
    /// Labels by name.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Objects by namespace/name.
    policies: BTreeMap<String, NetworkPolicy>,
    /// By uid.
    pub pods: BTreeMap<String, PodRecord>,
    /// Pods attached on this node as they were last seen: their policy stays in force when the
    /// API does not show them any more.
    #[serde(default)]
    pub local: BTreeMap<String, PodRecord>,
    /// How far each kind has been heard; a kind that is missing was never listed. They differ only
    /// while one after the other is listed.
    revisions: BTreeMap<Kind, u64>,
    #[serde(skip)]
    parsed: BTreeMap<String, Policy>,
    /// Counts changes of what policies depend on.
    #[serde(skip)]
    policy_inputs: u64,
    /// Counts changes of what is stored.
    #[serde(skip)]
    changes: u64,
}

/// One object of a list or watch.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// metadata.namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// The object.
    pub json: Vec<u8>,
}

impl Cluster {
    /// To be called after reading from disk.
    pub fn restored(&mut self) -> Vec<ObjectError> {
        let mut errors = Vec::new();
        for (key, policy) in &self.policies {
            match Policy::from_k8s(policy) {
                Ok(parsed) => drop(self.parsed.insert(key.clone(), parsed)),
                Err(error) => errors.push(error.into()),
            }
        }
        errors
    }

    /// Has every kind been listed at least once (now or before the restart)?
    pub fn is_complete(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.revisions.contains_key(kind))
    }

    /// Everything up to this revision is known.
    pub fn revision(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.revisions.get(kind).copied().unwrap_or(0)).min().unwrap_or(0)
    }

    /// While this stays the same, no object is new, changed or gone.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// All is known up to `revision`: of every kind that was listed.
    pub fn seen(&mut self, revision: u64) {
        for seen in self.revisions.values_mut() {
            *seen = (*seen).max(revision);
        }
    }

    /// A complete list of a kind replaces what was known of it.
    pub fn reset(&mut self, kind: Kind, revision: u64, objects: &[Incoming]) -> Vec<ObjectError> {
        self.changes += 1;
        self.policy_inputs += u64::from(kind != Kind::Node);
        match kind {
            Kind::Node => self.nodes.clear(),
            Kind::Namespace => self.namespaces.clear(),
            Kind::NetworkPolicy => {
                self.policies.clear();
                self.parsed.clear();
            }
            Kind::Pod => self.pods.clear(),
        }
        let errors = objects.iter().filter_map(|object| self.upsert(kind, object).err()).collect();
        // A restored cluster may have begun its revisions anew: the list's is the truth.
        self.revisions.insert(kind, revision);
        errors
    }

    /// An object is new or changed.
    pub fn upsert(&mut self, kind: Kind, object: &Incoming) -> Result<(), ObjectError> {
        let key = key_of(object);
        match kind {
            Kind::Node => {
                let node: Node = decode("Node", &key, &object.json)?;
                let record = node_record(&node);
                self.changes += u64::from(self.nodes.get(&object.name) != Some(&record));
                self.nodes.insert(object.name.clone(), record);
            }
            Kind::Namespace => {
                let namespace: Namespace = decode("Namespace", &key, &object.json)?;
                let labels = NamespaceView::from_namespace(&namespace).labels;
                let changed = self.namespaces.get(&object.name) != Some(&labels);
                self.policy_inputs += u64::from(changed);
                self.changes += u64::from(changed);
                self.namespaces.insert(object.name.clone(), labels);
            }
            Kind::NetworkPolicy => {
                let policy: NetworkPolicy = decode("NetworkPolicy", &key, &object.json)?;
                let parsed = Policy::from_k8s(&policy)?;
                self.policy_inputs += u64::from(self.parsed.get(&key) != Some(&parsed));
                self.changes += u64::from(self.policies.get(&key) != Some(&policy));
                self.parsed.insert(key.clone(), parsed);
                self.policies.insert(key, policy);
            }
            Kind::Pod => {
                let pod: Pod = decode("Pod", &key, &object.json)?;
                let view = PodView::from_pod(&pod);
                let finished = trellis_model::resources::is_finished(&pod);
                let uid = view.uid.clone();
                let record = PodRecord::new(view, finished);
                let old = self.pods.insert(uid.clone(), record);
                self.note_pod(&uid, old.as_ref());
            }
        }
        Ok(())
    }

    /// An object is gone; `json` is its last state.
    pub fn remove(&mut self, kind: Kind, object: &Incoming) -> Result<(), ObjectError> {
        let key = key_of(object);
        self.changes += 1;
        match kind {
            Kind::Node => drop(self.nodes.remove(&object.name)),
            Kind::Namespace => {
                self.policy_inputs += 1;
                self.namespaces.remove(&object.name);
            }
            Kind::NetworkPolicy => {
                self.policy_inputs += 1;
                self.policies.remove(&key);
                self.parsed.remove(&key);
            }
            Kind::Pod => {
                let pod: Pod = decode("Pod", &key, &object.json)?;
                let uid = pod.metadata.uid.unwrap_or_default();
                let old = self.pods.remove(&uid);
                self.note_pod(&uid, old.as_ref());
            }
        }
        Ok(())
    }

    /// A Pod changed from `old` to what is known now: does any policy look at it?
    fn note_pod(&mut self, uid: &str, old: Option<&PodRecord>) {
        let new = self.pods.get(uid);
        if old == new {
            return;
        }
        self.changes += 1;
        let counts = self.local.contains_key(uid) || {
            let namespaces = self.namespaces();
            let views: Vec<PodView> = old.into_iter().chain(new).map(|record| record.view(uid, None)).collect();
            self.parsed.values().any(|policy| views.iter().any(|view| policy.names(view, &namespaces)))
        };
        self.policy_inputs += u64::from(counts);
    }

    /// While this stays the same, the policies mean the same for the same Pods of this node.
    pub fn policy_inputs(&self) -> u64 {
        self.policy_inputs
    }

    /// Keeps what the API shows of these Pods of this node; true when that is news.
    pub fn remember_local<'u>(&mut self, uids: impl IntoIterator<Item = &'u String>) -> bool {
        let mut news = false;
        for uid in uids {
            if let Some(record) = self.pods.get(uid)
                && self.local.get(uid) != Some(record)
            {
                self.local.insert(uid.clone(), record.clone());
                self.changes += 1;
                news = true;
            }
        }
        news
    }

    /// The policies.
    pub fn policies(&self) -> Vec<Policy> {
        self.parsed.values().cloned().collect()
    }

    /// The Namespaces as the model takes them.
    pub fn namespaces(&self) -> Namespaces {
        self.namespaces.iter().map(|(name, labels)| (name.clone(), NamespaceView { labels: labels.clone() })).collect()
    }

    /// Does the API show a Pod that may use an address?
    pub fn shows_pod(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|pod| !pod.finished)
    }

    /// Addresses that Pods are shown to have, or had when they were last seen here.
    pub fn shown_addresses(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        let pods = self.pods.iter().chain(&self.local);
        pods.flat_map(|(uid, pod)| pod.addresses.iter().filter_map(|ip| v4(*ip)).map(move |ip| (uid.as_str(), ip)))
    }

    /// Whose pod CIDR it is.
    pub fn node_of(&self, cidr: Ipv4Network) -> Option<String> {
        self.nodes.iter().find(|(_, node)| node.pod_cidrs.contains(&cidr)).map(|(name, _)| name.clone())
    }

    /// Routes to other nodes' pod CIDRs, as the API says them; gossip only says who lives, and where
    /// a Node is that has no address yet. A pod CIDR that is only gossiped gets no route: everybody
    /// who has the gossip key could claim any network with one, the machine's own or the nodes'.
    ///
    /// While the control plane answers (`api_is_fresh`), a Node whose lease is alive keeps its
    /// route although gossip holds it for dead: its netd may be restarting, its Pods are there.
    pub fn node_routes(&self, own: &str, view: &View, api_is_fresh: bool) -> BTreeMap<Ipv4Network, Hop> {
        let mut routes = BTreeMap::new();
        for (name, node) in self.nodes.iter().filter(|(name, _)| *name != own) {
            let member = view.member(name);
            let dead = member.is_some_and(|m| m.liveness == Liveness::Dead) && !(api_is_fresh && node.ready);
            let gossiped = member.and_then(|m| v4(m.identity.address.ip()));
            let Some(address) = node.address.or(gossiped) else { continue };
            for cidr in &node.pod_cidrs {
                routes.insert(*cidr, if dead { Hop::Nowhere } else { Hop::Node(address) });
            }
        }
        routes
    }
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn key_of(object: &Incoming) -> String {
    if object.namespace.is_empty() { object.name.clone() } else { format!("{}/{}", object.namespace, object.name) }
}

fn decode<T: serde::de::DeserializeOwned>(kind: &'static str, key: &str, json: &[u8]) -> Result<T, ObjectError> {
    serde_json::from_slice(json).map_err(|source| ObjectError::Decode { kind, key: key.into(), source })
}

fn node_record(node: &Node) -> NodeRecord {
    let spec = node.spec.as_ref();
    let many = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let one = spec.and_then(|spec| spec.pod_cidr.as_ref());
    let mut pod_cidrs: Vec<Ipv4Network> = Vec::new();
    for cidr in many.iter().chain(one).filter_map(|text| text.parse().ok()) {
        if !pod_cidrs.contains(&cidr) {
            pod_cidrs.push(cidr);
        }
    }
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    NodeRecord {
        pod_cidrs,
        address: addresses.iter().filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse().ok()),
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;

//! Kubernetes 1.35's defaults, one file per family of kinds. Doing it twice changes nothing more.

mod pod;
mod workload;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus, Node, PodStatus, Secret};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};

use crate::object::Object;
use crate::resources;

pub use pod::{image_pull_policy, tolerations};

/// The label that every Namespace carries: its own name, for namespaceSelectors.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Fills in what the manifest left out.
pub fn apply(object: &mut Object) {
    match object {
        Object::Namespace(o) => namespace(o),
        Object::Pod(o) => pod::pod(o),
        Object::ReplicaSet(o) => workload::replica_set(o),
        Object::Deployment(o) => workload::deployment(o),
        Object::NetworkPolicy(o) => network_policy(o),
        Object::Secret(o) => secret(o),
        Object::Node(o) => node(o),
        Object::ConfigMap(_) | Object::Event(_) => {}
    }
}

/// The pod CIDR in two fields: each is filled in from the other.
fn node(o: &mut Node) {
    let Some(spec) = o.spec.as_mut() else { return };
    let first = spec.pod_cidrs.as_ref().and_then(|c| c.first()).cloned();
    match (spec.pod_cidr.clone().filter(|c| !c.is_empty()), first) {
        (Some(cidr), None) => spec.pod_cidrs = Some(vec![cidr]),
        (None, Some(first)) => spec.pod_cidr = Some(first),
        _ => {}
    }
}

/// The status that an object is created with: what a client wrote there is dropped, as in
/// Kubernetes. Nodes keep theirs: agents register with it.
pub fn initial_status(object: &mut Object) {
    match object {
        Object::Namespace(o) => {
            o.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), ..Default::default() });
        }
        Object::Pod(o) => {
            let qos = o.spec.as_ref().map(|s| resources::qos_class(s).to_owned());
            o.status = Some(PodStatus { phase: Some("Pending".to_owned()), qos_class: qos, ..Default::default() });
        }
        Object::ReplicaSet(o) => o.status = Some(Default::default()),
        Object::Deployment(o) => o.status = Some(Default::default()),
        _ => {}
    }
}

fn namespace(o: &mut Namespace) {
    if let Some(name) = o.metadata.name.clone() {
        let labels = o.metadata.labels.get_or_insert_with(BTreeMap::new);
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name);
    }
    o.spec.get_or_insert_default();
}

fn secret(o: &mut Secret) {
    if o.type_.as_deref().unwrap_or_default().is_empty() {
        o.type_ = Some("Opaque".to_owned());
    }
    // stringData is write-only: it lands in data.
    if let Some(plain) = o.string_data.take() {
        let data = o.data.get_or_insert_with(BTreeMap::new);
        for (k, v) in plain {
            data.insert(k, k8s_openapi::ByteString(v.into_bytes()));
        }
    }
}

fn network_policy(o: &mut NetworkPolicy) {
    let Some(spec) = o.spec.as_mut() else { return };
    if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
        let mut types = vec!["Ingress".to_owned()];
        if spec.egress.as_ref().is_some_and(|e| !e.is_empty()) {
            types.push("Egress".to_owned());
        }
        spec.policy_types = Some(types);
    }
    spec.pod_selector.get_or_insert_default();
    let ports = |list: &mut Option<Vec<NetworkPolicyPort>>| {
        for p in list.iter_mut().flatten() {
            p.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    };
    for rule in spec.ingress.iter_mut().flatten() {
        ports(&mut rule.ports);
    }
    for rule in spec.egress.iter_mut().flatten() {
        ports(&mut rule.ports);
    }
}

#[cfg(test)]
mod tests;

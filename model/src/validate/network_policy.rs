//! Rules for NetworkPolicies.

use ipnetwork::IpNetwork;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{complain, meta, one_of, port_number};
use crate::field::{FieldError, Path};
use crate::names;

pub(super) fn network_policy(o: &NetworkPolicy, out: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let Some(s) = &o.spec else {
        out.push(FieldError::required(&path, ""));
        return;
    };
    if let Some(sel) = &s.pod_selector {
        meta::selector(sel, &path.child("podSelector"), out);
    }
    for (i, r) in s.ingress.iter().flatten().enumerate() {
        let p = path.child("ingress").index(i);
        ports(r.ports.as_deref(), &p.child("ports"), out);
        peers(r.from.as_deref(), &p.child("from"), out);
    }
    for (i, r) in s.egress.iter().flatten().enumerate() {
        let p = path.child("egress").index(i);
        ports(r.ports.as_deref(), &p.child("ports"), out);
        peers(r.to.as_deref(), &p.child("to"), out);
    }
    let types = s.policy_types.as_deref().unwrap_or_default();
    let p = path.child("policyTypes");
    if types.len() > 2 {
        out.push(FieldError::invalid(&p, types.to_vec(), "may not specify more than two policyTypes"));
        return;
    }
    for (i, t) in types.iter().enumerate() {
        one_of(out, &p.index(i), Some(t), &["Egress", "Ingress"]);
    }
}

fn ports(list: Option<&[NetworkPolicyPort]>, path: &Path, out: &mut Vec<FieldError>) {
    for (i, port) in list.into_iter().flatten().enumerate() {
        let p = path.index(i);
        one_of(out, &p.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
        match &port.port {
            Some(IntOrString::Int(n)) => {
                port_number(out, &p.child("port"), *n);
                if let Some(end) = port.end_port {
                    port_number(out, &p.child("endPort"), end);
                    if end < *n {
                        let m = "must be greater than or equal to `port`";
                        out.push(FieldError::invalid(&p.child("endPort"), end, m));
                    }
                }
            }
            Some(IntOrString::String(name)) => {
                complain(out, &p.child("port"), name, names::check_port_name(name));
                if let Some(end) = port.end_port {
                    let m = "may not be specified when `port` is non-numeric";
                    out.push(FieldError::invalid(&p.child("endPort"), end, m));
                }
            }
            None => {
                if let Some(end) = port.end_port {
                    let m = "may not be specified when `port` is not specified";
                    out.push(FieldError::invalid(&p.child("endPort"), end, m));
                }
            }
        }
    }
}

fn peers(list: Option<&[NetworkPolicyPeer]>, path: &Path, out: &mut Vec<FieldError>) {
    for (i, peer) in list.into_iter().flatten().enumerate() {
        let p = path.index(i);
        if let Some(s) = &peer.pod_selector {
            meta::selector(s, &p.child("podSelector"), out);
        }
        if let Some(s) = &peer.namespace_selector {
            meta::selector(s, &p.child("namespaceSelector"), out);
        }
        let selectors = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            None if !selectors => out.push(FieldError::required(&p, "must specify a peer")),
            None => {}
            Some(_) if selectors => {
                out.push(FieldError::forbidden(&p, "may not specify both ipBlock and another peer"));
            }
            Some(b) => ip_block(b, &p.child("ipBlock"), out),
        }
    }
}

fn network(text: &str, path: &Path, out: &mut Vec<FieldError>) -> Option<IpNetwork> {
    // A bare address parses as a network of one; the API wants the prefix.
    let parsed = text.contains('/').then(|| text.parse::<IpNetwork>().ok()).flatten();
    if parsed.is_none() {
        out.push(FieldError::invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
    }
    parsed
}

fn ip_block(b: &IPBlock, path: &Path, out: &mut Vec<FieldError>) {
    if b.cidr.is_empty() {
        out.push(FieldError::required(&path.child("cidr"), ""));
        return;
    }
    let Some(cidr) = network(&b.cidr, &path.child("cidr"), out) else { return };
    for (i, text) in b.except.iter().flatten().enumerate() {
        let p = path.child("except").index(i);
        let Some(hole) = network(text, &p, out) else { continue };
        let inside = cidr.contains(hole.ip()) && hole.prefix() > cidr.prefix();
        if !inside {
            out.push(FieldError::invalid(&p, text.as_str(), "must be a strict subset of `cidr`"));
        }
    }
}

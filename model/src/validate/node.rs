//! Rules for Nodes.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;

use super::{complain, one_of, shown};
use crate::field::{FieldError, Path};
use crate::names;

/// What a taint may do.
pub(super) const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

pub(super) fn node(o: &Node, out: &mut Vec<FieldError>) {
    let Some(s) = &o.spec else { return };
    let path = Path::new("spec");
    let mut seen = BTreeSet::new();
    for (i, t) in s.taints.iter().flatten().enumerate() {
        let p = path.child("taints").index(i);
        if t.key.is_empty() {
            out.push(FieldError::required(&p.child("key"), ""));
        } else {
            complain(out, &p.child("key"), &t.key, names::check_qualified_name(&t.key));
        }
        if let Some(v) = t.value.as_deref() {
            complain(out, &p.child("value"), v, names::check_label_value(v));
        }
        if t.effect.is_empty() {
            out.push(FieldError::required(&p.child("effect"), ""));
        } else {
            one_of(out, &p.child("effect"), Some(&t.effect), EFFECTS);
        }
        if !seen.insert((&t.key, &t.effect)) {
            out.push(FieldError::duplicate(&p, format!("{}:{}", t.key, t.effect)));
        }
    }
    let cidrs = s.pod_cidrs.as_deref().unwrap_or_default();
    for (i, c) in cidrs.iter().enumerate() {
        if !c.contains('/') || c.parse::<IpNetwork>().is_err() {
            out.push(FieldError::invalid(
                &path.child("podCIDRs").index(i),
                c.as_str(),
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
        }
    }
    let of_family = |v4: bool| cidrs.iter().filter(|c| c.parse::<IpNetwork>().is_ok_and(|c| c.is_ipv4() == v4)).count();
    if of_family(true) > 1 || of_family(false) > 1 {
        let m = "may specify no more than one CIDR for each IP family";
        out.push(FieldError::invalid(&path.child("podCIDRs"), shown(&cidrs), m));
    }
    // Each is the other's default, so that they differ only where somebody wrote both.
    let first = s.pod_cidr.as_deref().unwrap_or_default();
    if first != cidrs.first().map_or("", String::as_str) {
        out.push(FieldError::invalid(&path.child("podCIDR"), first, "must be the first of `podCIDRs`"));
    }
}

pub(super) fn update(a: &Node, b: &Node, out: &mut Vec<FieldError>) {
    let cidrs = |n: &Node| n.spec.as_ref().and_then(|s| s.pod_cidrs.clone()).unwrap_or_default();
    let (old, new) = (cidrs(a), cidrs(b));
    if !old.is_empty() && old != new {
        out.push(FieldError::forbidden(
            &Path::new("spec").child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
}

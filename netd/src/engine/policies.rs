//! What the policies mean for this node's Pods, computed anew only when something changed that
//! they depend on: most changes in a cluster are about Pods of other nodes that no policy names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use trellis_model::policy::{Compiler, PodPolicy, PodView};

use super::Engine;
use crate::cluster::Cluster;
use crate::policy::Ruleset;

/// The policy of each Pod that has an address here.
pub(super) type Compiled = Arc<BTreeMap<Ipv4Addr, PodPolicy>>;

/// A result, and what it was computed from.
#[derive(Debug)]
pub(super) struct Cached {
    inputs: u64,
    here: BTreeMap<String, Ipv4Addr>,
    policies: Compiled,
    ruleset: Arc<Ruleset>,
}

impl Engine {
    pub(super) fn compile_policies(&mut self) -> Compiled {
        let Some(ipam) = &self.ipam else { return Compiled::default() };
        let here: BTreeMap<String, Ipv4Addr> = ipam.in_use().map(|(uid, address)| (uid.to_owned(), address)).collect();
        if self.cluster.remember_local(here.keys()) {
            self.unsaved = true;
            self.compiled = None;
        }
        let inputs = self.cluster.policy_inputs();
        if let Some(cached) = &self.compiled
            && cached.inputs == inputs
            && cached.here == here
        {
            return Arc::clone(&cached.policies);
        }
        let policies = Compiled::new(compile(&self.cluster, &here));
        let ruleset = Ruleset::build(policies.iter().map(|(address, policy)| (*address, policy)));
        let ruleset = Arc::new(ruleset.with_local(here.values().copied()));
        self.compiled = Some(Cached { inputs, here, policies: Arc::clone(&policies), ruleset });
        policies
    }

    /// Pods whose policy in the kernel may be newer than what is known here, and is not taken out:
    /// after a restart all, until everything has been listed; then those that were never shown.
    pub(super) fn kept(&self) -> BTreeSet<Ipv4Addr> {
        let cautious = self.is_cautious();
        let in_use = self.ipam.iter().flat_map(crate::ipam::Ipam::in_use);
        in_use
            .filter(|(uid, _)| cautious || !self.cluster.local.contains_key(*uid))
            .map(|(_, address)| address)
            .collect()
    }

    /// The table for what [`Engine::compile_policies`] answered last.
    pub(super) fn desired_ruleset(&self) -> Arc<Ruleset> {
        match &self.compiled {
            Some(cached) => Arc::clone(&cached.ruleset),
            None => Arc::new(Ruleset::build([])),
        }
    }
}

/// Cost: O(Pods of the cluster + Pods here · policies + peers of the policies that select one).
fn compile(cluster: &Cluster, here: &BTreeMap<String, Ipv4Addr>) -> BTreeMap<Ipv4Addr, PodPolicy> {
    let policies = cluster.policies();
    let namespaces = cluster.namespaces();
    // A Pod of this node has its address before the API shows it.
    let pods: Vec<PodView> = if policies.is_empty() {
        Vec::new()
    } else {
        cluster.pods.iter().map(|(uid, record)| record.view(uid, here.get(uid).copied())).collect()
    };
    let mut compiler = Compiler::new(&policies, &pods, &namespaces);
    here.iter()
        .filter_map(|(uid, address)| {
            let view = cluster.local.get(uid)?.view(uid, Some(*address));
            Some((*address, compiler.compile(&view)))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::cluster::{Incoming, Kind};

    fn object(namespace: &str, name: &str, json: &serde_json::Value) -> Incoming {
        Incoming { namespace: namespace.into(), name: name.into(), json: serde_json::to_vec(json).unwrap() }
    }

    fn pod(n: usize, phase: &str) -> Incoming {
        let (name, namespace) = (format!("p{n}"), format!("ns{}", n % 10));
        let ip = Ipv4Addr::from(0x0af4_0000 + u32::try_from(n).unwrap());
        let json = json!({
            "metadata": {"name": name, "namespace": namespace, "uid": name,
                         "labels": {"app": format!("a{}", n % 50), "role": "x"}},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]},
        });
        object(&namespace, &name, &json)
    }

    fn policy(n: usize, spec: &serde_json::Value) -> Incoming {
        let (name, namespace) = (format!("np{n}"), format!("ns{}", n % 10));
        object(&namespace, &name, &json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec}))
    }

    fn cluster(pods: usize, policies: usize) -> Cluster {
        let mut cluster = Cluster::default();
        let namespaces: Vec<_> =
            (0..10).map(|n| object("", &format!("ns{n}"), &json!({"metadata": {"name": format!("ns{n}")}}))).collect();
        assert!(cluster.reset(Kind::Namespace, 1, &namespaces).is_empty());
        assert!(cluster.reset(Kind::Node, 1, &[]).is_empty());
        let all: Vec<_> = (0..pods).map(|n| pod(n, "Running")).collect();
        assert!(cluster.reset(Kind::Pod, 1, &all).is_empty());
        let all: Vec<_> = (0..policies)
            .map(|n| {
                let from = json!([{"podSelector": {"matchLabels": {"app": format!("a{}", n % 50)}}}]);
                policy(n, &json!({"podSelector": {}, "ingress": [{"from": from, "ports": [{"port": 80}]}]}))
            })
            .collect();
        assert!(cluster.reset(Kind::NetworkPolicy, 1, &all).is_empty());
        cluster
    }

    fn here(count: usize) -> BTreeMap<String, Ipv4Addr> {
        (0..count).map(|n| (format!("p{n}"), Ipv4Addr::new(10, 244, 0, u8::try_from(n).unwrap()))).collect()
    }

    #[test]
    fn only_what_policies_depend_on_counts_as_a_change() {
        let mut cluster = cluster(100, 20);
        cluster.remember_local(here(5).keys());
        let mut inputs = cluster.policy_inputs();
        let mut change = |cluster: &mut Cluster, what: &str, counts: bool, act: &dyn Fn(&mut Cluster)| {
            act(cluster);
            assert_eq!(cluster.policy_inputs() != inputs, counts, "{what}");
            inputs = cluster.policy_inputs();
        };
        // p40 is in ns0 and has label a40, which no policy names; p10 is named by np10 of ns0.
        change(&mut cluster, "the same again", false, &|c| c.upsert(Kind::Pod, &pod(10, "Running")).unwrap());
        change(&mut cluster, "a Pod that nobody names", false, &|c| c.upsert(Kind::Pod, &pod(240, "Running")).unwrap());
        change(&mut cluster, "its end", false, &|c| c.remove(Kind::Pod, &pod(240, "Running")).unwrap());
        change(&mut cluster, "a peer's end", true, &|c| c.remove(Kind::Pod, &pod(10, "Running")).unwrap());
        change(&mut cluster, "a new peer", true, &|c| c.upsert(Kind::Pod, &pod(10, "Running")).unwrap());
        change(&mut cluster, "a Pod of this node", true, &|c| {
            let mut moved = pod(4, "Running");
            moved.json = String::from_utf8(moved.json).unwrap().replace("\"role\":\"x\"", "\"role\":\"y\"").into();
            c.upsert(Kind::Pod, &moved).unwrap();
        });
        let open = json!({"podSelector": {}, "ingress": [{}]});
        change(&mut cluster, "a policy", true, &|c| c.upsert(Kind::NetworkPolicy, &policy(3, &open)).unwrap());
        change(&mut cluster, "the same policy", false, &|c| c.upsert(Kind::NetworkPolicy, &policy(3, &open)).unwrap());
        let labelled = |label: &str| object("", "ns1", &json!({"metadata": {"name": "ns1", "labels": {"l": label}}}));
        change(&mut cluster, "a namespace", true, &|c| c.upsert(Kind::Namespace, &labelled("a")).unwrap());
        change(&mut cluster, "the same namespace", false, &|c| c.upsert(Kind::Namespace, &labelled("a")).unwrap());
    }

    /// Not asserted, but printed: how long a node with 100 Pods works on a change in a cluster of
    /// 5,000 Pods and 200 policies.
    #[test]
    fn what_a_change_costs() {
        let here = here(100);
        for (pods, policies) in [(500, 20), (5000, 200)] {
            let mut cluster = cluster(pods, policies);
            cluster.remember_local(here.keys());
            let begin = Instant::now();
            let compiled = compile(&cluster, &here);
            let compiling = begin.elapsed();
            let begin = Instant::now();
            let ruleset = Ruleset::build(compiled.iter().map(|(a, p)| (*a, p)));
            let building = begin.elapsed();
            let begin = Instant::now();
            for n in 0..100 {
                cluster.upsert(Kind::Pod, &pod(n, "Running")).unwrap();
            }
            let unchanged = begin.elapsed() / 100;
            eprintln!(
                "{pods} Pods, {policies} policies, 100 Pods here: {compiling:?} to compile, {building:?} for the \
                 ruleset of {} chains; {unchanged:?} for a Pod whose status changed",
                ruleset.chains.len()
            );
            assert_eq!(compiled.len(), 100);
        }
    }
}

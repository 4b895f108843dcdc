//! Which Pods a ReplicaSet deletes first: Kubernetes' `ActivePodsWithRanks`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::controllers::cache::node_of;
use crate::controllers::object::{Item, Now};
use crate::controllers::pods;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What is compared, least valuable first.
#[derive(Debug)]
struct Rank<'a> {
    bound: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    /// Pods of the same Deployment on the same node.
    neighbours: usize,
    /// Age in the ready state, as a power of two of seconds.
    ready_age: Option<u32>,
    restarts: i32,
    /// Age, as a power of two of seconds.
    age: u32,
    name: &'a str,
}

/// The `count` Pods that are missed least. O(related + active · log active).
pub fn victims<'a>(
    active: &[&'a Arc<Item<Pod>>],
    related: &[Arc<Item<Pod>>],
    count: usize,
    now: &Now,
) -> Vec<&'a Arc<Item<Pod>>> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|p| pods::active(p)) {
        if let Some(node) = node_of(pod) {
            *per_node.entry(node).or_default() += 1;
        }
    }
    let mut ranked: Vec<(Rank<'_>, &'a Arc<Item<Pod>>)> =
        active.iter().map(|p| (rank(p, &per_node, now), *p)).collect();
    ranked.sort_by(|a, b| compare(&a.0, &b.0));
    ranked.into_iter().take(count).map(|(_, p)| p).collect()
}

fn rank<'a>(pod: &'a Item<Pod>, per_node: &HashMap<&str, usize>, now: &Now) -> Rank<'a> {
    let node = node_of(pod);
    let status = pod.object.status.as_ref();
    let restarts = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten().map(|c| c.restart_count);
    let created = pod.object.metadata.creation_timestamp.as_ref();
    Rank {
        bound: node.is_some(),
        phase: match pods::phase(&pod.object) {
            "Pending" => 0,
            "Running" => 2,
            _ => 1,
        },
        ready: pods::ready(&pod.object),
        cost: pod
            .object
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(DELETION_COST))
            .and_then(|c| c.parse().ok())
            .unwrap_or(0),
        neighbours: node.and_then(|n| per_node.get(n)).copied().unwrap_or(0),
        ready_age: pods::ready_since(&pod.object).map(|t| log2(now.since(t).as_secs())),
        restarts: restarts.max().unwrap_or(0),
        age: created.map_or(0, |t| log2(now.since(t).as_secs())),
        name: pod.name(),
    }
}

fn log2(seconds: u64) -> u32 {
    // 0 for zero, else 1 + floor(log2): Kubernetes' logarithmic buckets.
    seconds.checked_ilog2().map_or(0, |l| l + 1)
}

fn compare(a: &Rank<'_>, b: &Rank<'_>) -> Ordering {
    // Bound, running, ready, dear, lonely, long ready, steady and old Pods are kept.
    a.bound
        .cmp(&b.bound)
        .then(a.phase.cmp(&b.phase))
        .then(a.ready.cmp(&b.ready))
        .then(a.cost.cmp(&b.cost))
        .then(b.neighbours.cmp(&a.neighbours))
        .then_with(|| match (a.ready_age, b.ready_age) {
            (Some(x), Some(y)) if a.ready && b.ready => x.cmp(&y),
            _ => Ordering::Equal,
        })
        .then(b.restarts.cmp(&a.restarts))
        .then(a.age.cmp(&b.age))
        .then_with(|| a.name.cmp(b.name))
}

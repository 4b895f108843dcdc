//! Eviction by NoExecute taints, honouring tolerationSeconds.
//!
//! Durations are counted from when this leader first saw the taint, not from its wall-clock
//! timeAdded: after a change of leader a toleration may last longer, never shorter.
//!
//! A Pod is evicted by marking it deleted, so that its agent stops it with its grace period. On
//! a node that is dead nobody would: there it is removed at once, which lets its ReplicaSet
//! replace it. When the node returns, its agent finds that its Pods are gone and cleans up.
//!
//! Cost: O(Pods on the node · its NoExecute taints · tolerations).

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use trellis_model::Kind;
use trellis_model::resources::is_finished;
use trellis_model::taints::{self, Eviction};

use crate::controllers::object::{HasMeta, Item, Note, Now, Plan};
use crate::controllers::pods;
use crate::nodes::Standing;

/// Pods evicted in one transaction.
const BURST: usize = 250;
const COMPONENT: &str = "taint-eviction-controller";

/// What a plan is made from.
pub struct Input<'a> {
    /// The Node.
    pub node: &'a Item<Node>,
    /// The verdict.
    pub standing: Standing,
    /// Nothing is to be evicted for a node's silence now.
    pub suspended: bool,
    /// The Pods bound to it.
    pub pods: &'a [Arc<Item<Pod>>],
    /// When this leader first saw a taint (key, effect) of this Node.
    pub first_seen: &'a dyn Fn(&Taint) -> Instant,
}

/// Plans the evictions that are due, and says when the next one is.
pub fn plan(input: &Input<'_>, now: &Now) -> Plan {
    let mut plan = Plan::default();
    let silence = |t: &Taint| t.key == taints::UNREACHABLE || t.key == taints::NOT_READY;
    let spec = input.node.object.spec.as_ref();
    let active: Vec<&Taint> = spec
        .and_then(|s| s.taints.as_ref())
        .into_iter()
        .flatten()
        .filter(|t| t.effect == taints::NO_EXECUTE && !(input.suspended && silence(t)))
        .collect();
    let dead = input.standing == Standing::Dead && !input.suspended;
    if active.is_empty() && !dead {
        return plan;
    }
    for pod in input.pods {
        if plan.writes.len() == BURST {
            plan.again(now.mono);
            break;
        }
        if dead && pod.deleting() {
            // Somebody wants it gone already, and nobody is left to confirm it.
            plan.writes.extend(pods::remove(pod, now));
            continue;
        }
        if is_finished(&pod.object) {
            continue;
        }
        match due(pod, &active, input.first_seen) {
            None => {}
            Some(at) if at > now.mono => plan.again(at),
            Some(_) => evict(pod, dead, now, &mut plan),
        }
    }
    plan
}

fn due(pod: &Item<Pod>, active: &[&Taint], first_seen: &dyn Fn(&Taint) -> Instant) -> Option<Instant> {
    let none: Vec<Toleration> = Vec::new();
    let tolerations = pod.object.spec.as_ref().and_then(|s| s.tolerations.as_ref()).unwrap_or(&none);
    let one = |t: &&Taint| match taints::eviction(std::slice::from_ref(*t), tolerations) {
        Eviction::Stay => None,
        Eviction::AfterSeconds(s) => Some(first_seen(t) + Duration::from_secs(s.min(u64::from(u32::MAX)))),
    };
    active.iter().filter_map(one).min()
}

fn evict(pod: &Item<Pod>, dead: bool, now: &Now, plan: &mut Plan) {
    let write = if dead { pods::remove(pod, now) } else { pods::delete(pod, now) };
    let Some(write) = write else { return };
    plan.writes.push(write);
    let message = match dead {
        true => format!("Removing Pod {}/{}: its node is dead", pod.namespace(), pod.name()),
        false => format!("Marking for deletion Pod {}/{}", pod.namespace(), pod.name()),
    };
    plan.notes.push(Note::new(Kind::Pod, pod.object.meta(), COMPONENT, "TaintManagerEviction", message));
}

//! Where a Pod runs best: first where the fewest Pods of its workload are, then where the least
//! is allocated.

use super::node::NodeInfo;
use super::pod::PodInfo;

/// Lower is better; compared from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Pods of the same workload there.
    pub siblings: u32,
    /// Share of cpu and memory that would be requested, in thousandths, mean of the two.
    pub allocated: i64,
    /// Pods there: decides between Pods that request nothing.
    pub pods: i64,
}

/// Scores a node that fits. O(1).
pub fn score(pod: &PodInfo, node: &NodeInfo) -> Score {
    let siblings = pod.owner.as_ref().and_then(|o| node.owners.get(o)).copied().unwrap_or(0);
    let share = |taken: i64, wants: i64, has: i64| {
        // In 128 bits: bytes times a thousand may not fit 64.
        let all = i128::from(taken.saturating_add(wants)) * 1_000;
        if has <= 0 { 1_000 } else { i64::try_from(all / i128::from(has)).unwrap_or(i64::MAX) }
    };
    let allocated = node.offer.as_ref().map_or(i64::MAX, |offer| {
        let has = &offer.allocatable;
        let cpu = share(node.taken.cpu_milli, pod.requests.cpu_milli, has.cpu_milli);
        let memory = share(node.taken.memory_bytes, pod.requests.memory_bytes, has.memory_bytes);
        cpu.saturating_add(memory) / 2
    });
    Score { siblings, allocated, pods: node.pods }
}

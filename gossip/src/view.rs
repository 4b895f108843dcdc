//! What an observer publishes: every node it knows, and how alive it holds it to be.

use crate::identity::NodeIdentity;

/// How alive a node is, in the eyes of this observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// Somebody's probes went unanswered; the node has not refuted yet.
    Suspect,
    /// It did not refute in time.
    Dead,
}

/// One node in a [`View`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// What the node last said about itself.
    pub identity: NodeIdentity,
    /// How alive it is.
    pub liveness: Liveness,
    /// Grows when the node restarts, renews itself or refutes a suspicion.
    pub incarnation: u64,
}

/// All nodes, this one included, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The nodes.
    pub members: Vec<MemberView>,
    /// false while this observer doubts itself: nodes that would be dead are shown as suspect.
    pub healthy: bool,
}

impl View {
    /// The node called `name`, if known.
    pub fn member(&self, name: &str) -> Option<&MemberView> {
        let at = self.members.binary_search_by(|member| member.identity.name.as_str().cmp(name)).ok()?;
        self.members.get(at)
    }

    /// One member a name: a node whose address changed leaves its old identity behind, so the
    /// livelier and then the younger one stands for the name.
    pub(crate) fn build(mut members: Vec<MemberView>, healthy: bool) -> Self {
        members.sort_by(|a, b| {
            (&a.identity.name, a.liveness, std::cmp::Reverse(a.incarnation)).cmp(&(
                &b.identity.name,
                b.liveness,
                std::cmp::Reverse(b.incarnation),
            ))
        });
        members.dedup_by(|later, earlier| later.identity.name == earlier.identity.name);
        Self { members, healthy }
    }
}

//! Conditions of Pods, Nodes and Deployments: one per type, with the time of their last change of
//! status.

use k8s_openapi::api::apps::v1::DeploymentCondition;
use k8s_openapi::api::core::v1::{NodeCondition, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A condition of any kind's status.
pub trait Condition {
    /// `Ready`, `PodScheduled`, …
    fn type_(&self) -> &str;
    /// `True`, `False` or `Unknown`.
    fn status(&self) -> &str;
    /// When the status last changed.
    fn transition_mut(&mut self) -> &mut Option<Time>;
    /// Whether reason and message are equal too.
    fn same_text(&self, other: &Self) -> bool;
}

macro_rules! condition {
    ($t:ty) => {
        impl Condition for $t {
            fn type_(&self) -> &str {
                &self.type_
            }
            fn status(&self) -> &str {
                &self.status
            }
            fn transition_mut(&mut self) -> &mut Option<Time> {
                &mut self.last_transition_time
            }
            fn same_text(&self, other: &Self) -> bool {
                self.reason == other.reason && self.message == other.message
            }
        }
    };
}
condition!(PodCondition);
condition!(NodeCondition);
condition!(DeploymentCondition);

/// The condition of that type, if there is one.
pub fn find<'a, C: Condition>(list: Option<&'a Vec<C>>, type_: &str) -> Option<&'a C> {
    list?.iter().find(|c| c.type_() == type_)
}

/// Whether the condition of that type has status `True`.
pub fn is_true<C: Condition>(list: Option<&Vec<C>>, type_: &str) -> bool {
    find(list, type_).is_some_and(|c| c.status() == "True")
}

/// Puts `new` in place of the condition of its type. The transition time is `now` when the status
/// differs from before, and kept otherwise. Answers whether anything but heartbeat times changed.
pub fn set<C: Condition + Clone>(list: &mut Option<Vec<C>>, mut new: C, now: Time) -> bool {
    let list = list.get_or_insert_default();
    match list.iter_mut().find(|c| c.type_() == new.type_()) {
        Some(old) => {
            let same_status = old.status() == new.status();
            let changed = !same_status || !old.same_text(&new);
            let before = old.transition_mut().clone();
            *new.transition_mut() = if same_status { before.or(Some(now)) } else { Some(now) };
            *old = new;
            changed
        }
        None => {
            *new.transition_mut() = Some(now);
            list.push(new);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(s: i64) -> Time {
        Time(Timestamp::from_second(s).unwrap())
    }

    #[test]
    fn the_transition_time_follows_the_status_only() {
        let mut list = None;
        let c = |status: &str, reason: &str| PodCondition {
            type_: "Ready".into(),
            status: status.into(),
            reason: Some(reason.into()),
            ..Default::default()
        };
        assert!(set(&mut list, c("False", "a"), at(1)));
        assert!(!set(&mut list, c("False", "a"), at(2)));
        assert!(set(&mut list, c("False", "b"), at(3)));
        assert_eq!(find(list.as_ref(), "Ready").unwrap().last_transition_time, Some(at(1)));
        assert!(set(&mut list, c("True", "b"), at(4)));
        assert_eq!(find(list.as_ref(), "Ready").unwrap().last_transition_time, Some(at(4)));
        assert!(is_true(list.as_ref(), "Ready"));
        assert_eq!(list.unwrap().len(), 1);
    }
}

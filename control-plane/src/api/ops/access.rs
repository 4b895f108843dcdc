//! Applying a [`Rule`] to the object at hand. Every refusal is logged here.

use std::sync::Arc;

use trellis_model::{Kind, Object};

use super::{ApiError, Ops, Target, encode};
use crate::auth::Caller;
use crate::auth::references::refers_to;
use crate::auth::rules::{self, Rule, Verb};
use crate::store::Versioned;

/// Labels that only administrators put on Nodes (KEP-279).
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

fn bound_to(pod: &Versioned, node: &str) -> bool {
    pod.object.index.field("spec.nodeName") == Some(node)
}

impl Ops {
    /// The rule for the caller's verb, or the refusal, logged.
    pub(super) fn rule(&self, caller: &Caller, verb: Verb, target: &Target) -> Result<Rule, ApiError> {
        let rule = rules::resources(caller, verb, target.kind)
            .ok_or_else(|| refuse(caller, verb, target, "the role does not grant it"))?;
        match &rule {
            // Many are narrowed by a selector; one to be made under a generated name has none yet.
            Rule::Named(name) if *name != target.name && (!target.name.is_empty() || verb == Verb::Create) => {
                Err(refuse(caller, verb, target, "it may do so with its own alone"))
            }
            Rule::ReferencedOn(node) if !self.referenced(node, target) => {
                Err(refuse(caller, verb, target, "no Pod bound to its node refers to it"))
            }
            _ => Ok(rule),
        }
    }

    /// The object as the rule must see it: one that seems not to be bound to the caller's node may only
    /// be newer than this replica, and is looked at again behind a read barrier.
    pub(super) async fn current_under(&self, target: &Target, rule: &Rule) -> Result<Arc<Versioned>, ApiError> {
        let current = self.current(target).await?;
        match rule {
            Rule::BoundTo(node) | Rule::TerminatingOn(node) if !bound_to(&current, node) => {
                self.backend().read_barrier().await?;
                self.current(target).await
            }
            _ => Ok(current),
        }
    }

    /// Does the rule allow the verb on this very object?
    pub(super) fn allows(
        &self,
        caller: &Caller,
        verb: Verb,
        target: &Target,
        rule: &Rule,
        object: &Versioned,
    ) -> Result<(), ApiError> {
        match rule {
            Rule::BoundTo(node) | Rule::TerminatingOn(node) if !bound_to(object, node) => {
                Err(refuse(caller, verb, target, "the Pod is not bound to its node"))
            }
            Rule::Named(name) if object.key.name != *name => {
                Err(refuse(caller, verb, target, "it may do so with its own alone"))
            }
            _ => Ok(()),
        }
    }

    /// Does the rule allow this very change? An agent tells the status and labels of its Node;
    /// taints, cordoning and the pod CIDR are the control plane's.
    pub(super) fn allows_change(
        &self,
        caller: &Caller,
        target: &Target,
        rule: &Rule,
        old: Option<&Object>,
        new: &Object,
    ) -> Result<(), ApiError> {
        let Rule::Named(own) = rule else { return Ok(()) };
        let verb = if old.is_some() { Verb::Update } else { Verb::Create };
        if new.name() != own {
            return Err(refuse(caller, verb, target, "it may do so with its own alone"));
        }
        let Object::Node(new) = new else { return Ok(()) };
        let restricted = |labels: &Option<std::collections::BTreeMap<String, String>>| {
            let all = labels.iter().flatten();
            let own = all.filter(|(k, _)| k.starts_with(RESTRICTED_LABELS));
            own.map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
        };
        let why = match old {
            Some(Object::Node(old)) => {
                let (a, b) = (&old.metadata, &new.metadata);
                if old.spec.clone().unwrap_or_default() != new.spec.clone().unwrap_or_default() {
                    Some("an agent may not change the spec of its Node")
                } else if a.finalizers != b.finalizers || a.owner_references != b.owner_references {
                    Some("an agent may not change finalizers or owners of its Node")
                } else if restricted(&a.labels) != restricted(&b.labels) {
                    Some("labels of node-restriction.kubernetes.io are for administrators")
                } else {
                    None
                }
            }
            _ => {
                let spec = new.spec.clone().unwrap_or_default();
                if spec.pod_cidr.is_some() || spec.pod_cidrs.is_some_and(|c| !c.is_empty()) {
                    Some("the leader gives a Node its pod CIDR")
                } else if !restricted(&new.metadata.labels).is_empty() {
                    Some("labels of node-restriction.kubernetes.io are for administrators")
                } else {
                    None
                }
            }
        };
        why.map_or(Ok(()), |why| Err(refuse(caller, verb, target, why)))
    }

    /// Does a Pod that is bound to the node refer to the target?
    fn referenced(&self, node: &str, target: &Target) -> bool {
        if target.name.is_empty() {
            return false;
        }
        self.store().by_field(Kind::Pod.name(), "spec.nodeName", node).iter().any(|pod| {
            pod.key.namespace == target.namespace
                && match encode::decode(pod, self.sealer()) {
                    Ok(Object::Pod(pod)) => {
                        pod.spec.as_ref().is_some_and(|spec| refers_to(spec, target.kind, &target.name))
                    }
                    _ => false,
                }
        })
    }
}

/// Logs and makes a refusal.
pub(super) fn refuse(caller: &Caller, verb: Verb, target: &Target, why: &str) -> ApiError {
    let Target { kind, namespace, name } = target;
    tracing::warn!(%caller, %verb, %kind, %namespace, %name, why, "refused");
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let plural = kind.qualified_plural();
    ApiError::forbidden(*kind, name, format!("{caller} cannot {verb} {plural} {place}: {why}"))
}

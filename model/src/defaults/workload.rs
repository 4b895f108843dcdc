//! Defaults of ReplicaSets and Deployments.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStrategy, ReplicaSet, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::pod_spec;

pub(super) fn replica_set(o: &mut ReplicaSet) {
    let Some(spec) = o.spec.as_mut() else { return };
    spec.replicas.get_or_insert(1);
    if let Some(s) = spec.template.as_mut().and_then(|t| t.spec.as_mut()) {
        pod_spec(s);
    }
}

pub(super) fn deployment(o: &mut Deployment) {
    let Some(spec) = o.spec.as_mut() else { return };
    spec.replicas.get_or_insert(1);
    spec.revision_history_limit.get_or_insert(10);
    spec.progress_deadline_seconds.get_or_insert(600);
    strategy(spec.strategy.get_or_insert_default());
    if let Some(s) = spec.template.spec.as_mut() {
        pod_spec(s);
    }
}

fn strategy(s: &mut DeploymentStrategy) {
    if s.type_.as_deref().unwrap_or_default().is_empty() {
        s.type_ = Some("RollingUpdate".to_owned());
    }
    if s.type_.as_deref() == Some("RollingUpdate") {
        let r = s.rolling_update.get_or_insert_with(RollingUpdateDeployment::default);
        let quarter = || IntOrString::String("25%".to_owned());
        r.max_surge.get_or_insert_with(quarter);
        r.max_unavailable.get_or_insert_with(quarter);
    }
}

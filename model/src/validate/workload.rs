//! Rules for ReplicaSets and Deployments.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStrategy, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{IMMUTABLE, meta, not_negative, pod, shown};
use crate::field::{FieldError, Path};
use crate::selector::LabelSelector;

pub(super) fn replica_set(o: &ReplicaSet, out: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let Some(s) = &o.spec else {
        out.push(FieldError::required(&path, ""));
        return;
    };
    not_negative(out, &path.child("replicas"), s.replicas.map(i64::from));
    not_negative(out, &path.child("minReadySeconds"), s.min_ready_seconds.map(i64::from));
    match &s.template {
        Some(t) => workload_template(&s.selector, t, "replicaset", &path, out),
        None => out.push(FieldError::required(&path.child("template"), "")),
    }
}

pub(super) fn deployment(o: &Deployment, out: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let Some(s) = &o.spec else {
        out.push(FieldError::required(&path, ""));
        return;
    };
    not_negative(out, &path.child("replicas"), s.replicas.map(i64::from));
    not_negative(out, &path.child("minReadySeconds"), s.min_ready_seconds.map(i64::from));
    not_negative(out, &path.child("revisionHistoryLimit"), s.revision_history_limit.map(i64::from));
    if let Some(d) = s.progress_deadline_seconds {
        let p = path.child("progressDeadlineSeconds");
        not_negative(out, &p, Some(i64::from(d)));
        if d <= s.min_ready_seconds.unwrap_or(0) {
            out.push(FieldError::invalid(&p, d, "must be greater than minReadySeconds"));
        }
    }
    workload_template(&s.selector, &s.template, "deployment", &path, out);
    if let Some(st) = &s.strategy {
        strategy(st, &path.child("strategy"), out);
    }
}

fn workload_template(
    selector: &K8sSelector,
    template: &PodTemplateSpec,
    kind: &str,
    path: &Path,
    out: &mut Vec<FieldError>,
) {
    let sel = path.child("selector");
    meta::selector(selector, &sel, out);
    let parsed = LabelSelector::from_k8s(selector);
    if let Ok(s) = &parsed {
        if s.is_everything() {
            let m = format!("empty selector is invalid for {kind}");
            out.push(FieldError::invalid(&sel, shown(selector), &m));
        } else if !s.matches(&template.metadata.as_ref().and_then(|m| m.labels.clone())) {
            out.push(FieldError::invalid(
                &path.child("template").child("metadata").child("labels"),
                shown(&template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default()),
                "`selector` does not match template `labels`",
            ));
        }
    }
    let t = path.child("template");
    pod::template(template, &t, out);
    let Some(spec) = &template.spec else { return };
    if let Some(r) = spec.restart_policy.as_deref().filter(|r| *r != "Always") {
        let p = t.child("spec").child("restartPolicy");
        // An unknown word has been told by the Pod's own rules.
        if matches!(r, "Never" | "OnFailure") {
            out.push(FieldError::not_supported(&p, r, &["Always"]));
        }
    }
    if spec.active_deadline_seconds.is_some() {
        out.push(FieldError::forbidden(
            &t.child("spec").child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

fn strategy(s: &DeploymentStrategy, path: &Path, out: &mut Vec<FieldError>) {
    let rolling = path.child("rollingUpdate");
    match s.type_.as_deref() {
        Some("Recreate") => {
            if s.rolling_update.is_some() {
                out.push(FieldError::forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'"));
            }
        }
        Some("RollingUpdate") => {
            let Some(r) = &s.rolling_update else { return };
            let zero = IntOrString::Int(0);
            let unavailable = r.max_unavailable.as_ref().unwrap_or(&zero);
            let surge = r.max_surge.as_ref().unwrap_or(&zero);
            amount(unavailable, &rolling.child("maxUnavailable"), true, out);
            amount(surge, &rolling.child("maxSurge"), false, out);
            if is_zero(unavailable) && is_zero(surge) {
                out.push(FieldError::invalid(
                    &rolling.child("maxUnavailable"),
                    shown(unavailable),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
        }
        other => out.push(FieldError::not_supported(
            &path.child("type"),
            other.unwrap_or_default(),
            &["Recreate", "RollingUpdate"],
        )),
    }
}

fn percent(v: &IntOrString) -> Option<u64> {
    match v {
        IntOrString::Int(_) => None,
        IntOrString::String(s) => s.strip_suffix('%').and_then(|n| n.parse().ok()),
    }
}

fn is_zero(v: &IntOrString) -> bool {
    match v {
        IntOrString::Int(n) => *n == 0,
        IntOrString::String(_) => percent(v) == Some(0),
    }
}

fn amount(v: &IntOrString, path: &Path, at_most_all: bool, out: &mut Vec<FieldError>) {
    match v {
        IntOrString::Int(n) => not_negative(out, path, Some(i64::from(*n))),
        IntOrString::String(s) => match percent(v) {
            None => out.push(FieldError::invalid(
                path,
                s.as_str(),
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
            )),
            Some(p) if at_most_all && p > 100 => {
                out.push(FieldError::invalid(path, s.as_str(), "must not be greater than 100%"));
            }
            Some(_) => {}
        },
    }
}

fn selector_kept(a: &K8sSelector, b: &K8sSelector, out: &mut Vec<FieldError>) {
    if a != b {
        let p = Path::new("spec").child("selector");
        out.push(FieldError::invalid(&p, shown(b), IMMUTABLE));
    }
}

pub(super) fn deployment_update(a: &Deployment, b: &Deployment, out: &mut Vec<FieldError>) {
    if let (Some(x), Some(y)) = (&a.spec, &b.spec) {
        selector_kept(&x.selector, &y.selector, out);
    }
}

pub(super) fn replica_set_update(a: &ReplicaSet, b: &ReplicaSet, out: &mut Vec<FieldError>) {
    if let (Some(x), Some(y)) = (&a.spec, &b.spec) {
        selector_kept(&x.selector, &y.selector, out);
    }
}

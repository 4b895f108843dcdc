//! Defaults of Pods and Pod templates.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, EnvVar, HTTPGetAction, Pod, PodSpec, Probe, Toleration, Volume,
};

use crate::taints;

/// Seconds that a Pod may take to end, as in Kubernetes.
const GRACE_SECONDS: i64 = 30;
/// Mode of files from ConfigMaps and Secrets: 0644.
const FILE_MODE: i32 = 0o644;
/// Seconds that a Pod stays on a node that is not ready or unreachable. Kubernetes adds 300; here
/// the node's death is already certain when the taint comes, so that nothing is gained by waiting.
const NODE_LOST_SECONDS: i64 = 0;

pub(super) fn pod(o: &mut Pod) {
    let Some(spec) = o.spec.as_mut() else { return };
    pod_spec(spec);
    host_ports(spec);
    spec.enable_service_links.get_or_insert(true);
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        requests_from_limits(c);
    }
    tolerations(spec);
}

/// What a Pod and a Pod template have in common.
pub(super) fn pod_spec(spec: &mut PodSpec) {
    text(&mut spec.dns_policy, "ClusterFirst");
    text(&mut spec.restart_policy, "Always");
    text(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(GRACE_SECONDS);
    spec.security_context.get_or_insert_default();
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container(c);
    }
    for v in spec.volumes.iter_mut().flatten() {
        volume(v);
    }
}

/// Adds the tolerations of a lost node, unless the Pod has its own.
pub fn tolerations(spec: &mut PodSpec) {
    for key in [taints::NOT_READY, taints::UNREACHABLE] {
        let list = spec.tolerations.get_or_insert_default();
        let has_own = list.iter().any(|t| {
            let own_key = t.key.as_deref().unwrap_or_default();
            let effect = t.effect.as_deref().unwrap_or_default();
            (own_key == key || own_key.is_empty()) && (effect == taints::NO_EXECUTE || effect.is_empty())
        });
        if !has_own {
            list.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some(taints::NO_EXECUTE.to_owned()),
                toleration_seconds: Some(NODE_LOST_SECONDS),
                ..Default::default()
            });
        }
    }
}

/// `Always` for `:latest`, be a digest behind it or not, and for neither tag nor digest, else
/// `IfNotPresent`.
pub fn image_pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let (name, digest) = last.split_once('@').map_or((last, None), |(name, digest)| (name, Some(digest)));
    match (name.split_once(':'), digest) {
        (Some((_, "latest")), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

fn text(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}

/// In the host's network each port is the host's. Of Pods only: a template is kept as it was
/// written.
fn host_ports(spec: &mut PodSpec) {
    if spec.host_network != Some(true) {
        return;
    }
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for p in containers.flat_map(|c| c.ports.iter_mut().flatten()) {
        if p.host_port.unwrap_or(0) == 0 {
            p.host_port = Some(p.container_port);
        }
    }
}

fn container(c: &mut Container) {
    let policy = image_pull_policy(c.image.as_deref().unwrap_or_default());
    text(&mut c.image_pull_policy, policy);
    text(&mut c.termination_message_path, "/dev/termination-log");
    text(&mut c.termination_message_policy, "File");
    c.resources.get_or_insert_default();
    for p in c.ports.iter_mut().flatten() {
        text(&mut p.protocol, "TCP");
    }
    for e in c.env.iter_mut().flatten() {
        env(e);
    }
    let probes = [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe];
    for p in probes.into_iter().flatten() {
        probe(p);
    }
    if let Some(l) = &mut c.lifecycle {
        for h in [&mut l.post_start, &mut l.pre_stop].into_iter().flatten() {
            if let Some(get) = &mut h.http_get {
                http_get(get);
            }
        }
    }
}

fn env(e: &mut EnvVar) {
    if let Some(f) = e.value_from.as_mut().and_then(|v| v.field_ref.as_mut()) {
        text(&mut f.api_version, "v1");
    }
}

fn probe(p: &mut Probe) {
    let number = |field: &mut Option<i32>, default: i32| {
        if field.unwrap_or(0) == 0 {
            *field = Some(default);
        }
    };
    number(&mut p.timeout_seconds, 1);
    number(&mut p.period_seconds, 10);
    number(&mut p.success_threshold, 1);
    number(&mut p.failure_threshold, 3);
    if let Some(get) = &mut p.http_get {
        http_get(get);
    }
    if let Some(grpc) = &mut p.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn http_get(get: &mut HTTPGetAction) {
    text(&mut get.path, "/");
    text(&mut get.scheme, "HTTP");
}

/// A request that is not given is the limit.
fn requests_from_limits(c: &mut Container) {
    let Some(r) = &mut c.resources else { return };
    let Some(limits) = &r.limits else { return };
    let requests = r.requests.get_or_insert_with(BTreeMap::new);
    for (name, amount) in limits {
        requests.entry(name.clone()).or_insert_with(|| amount.clone());
    }
}

fn volume(v: &mut Volume) {
    let files = |list: &mut Option<Vec<DownwardAPIVolumeFile>>| {
        for f in list.iter_mut().flatten().filter_map(|f| f.field_ref.as_mut()) {
            text(&mut f.api_version, "v1");
        }
    };
    if has_no_source(v) {
        v.empty_dir = Some(Default::default());
    }
    if let Some(s) = &mut v.secret {
        s.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(s) = &mut v.config_map {
        s.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(s) = &mut v.host_path {
        s.type_.get_or_insert_default();
    }
    if let Some(s) = &mut v.downward_api {
        s.default_mode.get_or_insert(FILE_MODE);
        files(&mut s.items);
    }
    if let Some(s) = &mut v.projected {
        s.default_mode.get_or_insert(FILE_MODE);
        for source in s.sources.iter_mut().flatten() {
            if let Some(t) = &mut source.service_account_token {
                t.expiration_seconds.get_or_insert(3600);
            }
            if let Some(d) = &mut source.downward_api {
                files(&mut d.items);
            }
        }
    }
}

fn has_no_source(v: &Volume) -> bool {
    *v == Volume { name: v.name.clone(), ..Default::default() }
}

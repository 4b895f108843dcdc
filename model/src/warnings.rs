//! Fields that are accepted but not acted on: none is dropped silently.
//!
//! The list below names what Trellis acts on; whatever else a manifest sets is warned about by its
//! path. Values that ask for nothing (empty, false, Kubernetes' own default) are passed over.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::kind::Kind;

/// What Trellis acts on below a Pod's spec. `x.**`: `x` and all below it.
const POD_SPEC: &[&str] = &[
    "containers.**",
    "initContainers.**",
    "volumes.[].name",
    "volumes.[].emptyDir.medium",
    "volumes.[].emptyDir.sizeLimit",
    "volumes.[].hostPath.**",
    "volumes.[].configMap.**",
    "volumes.[].secret.**",
    "volumes.[].downwardAPI.**",
    "volumes.[].projected.defaultMode",
    "volumes.[].projected.sources.[].configMap.**",
    "volumes.[].projected.sources.[].secret.**",
    "volumes.[].projected.sources.[].downwardAPI.**",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.fsGroup",
    "securityContext.supplementalGroups.**",
    "securityContext.seccompProfile.**",
    "securityContext.sysctls.**",
    "activeDeadlineSeconds",
    "dnsConfig.**",
    "dnsPolicy",
    "hostAliases.**",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostname",
    "imagePullSecrets.**",
    "nodeName",
    "nodeSelector.**",
    "priority",
    "restartPolicy",
    "schedulerName",
    "schedulingGates.**",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations.**",
];

/// What Trellis acts on in a container.
const CONTAINER: &[&str] = &[
    "name",
    "image",
    "imagePullPolicy",
    "command.**",
    "args.**",
    "workingDir",
    "env.[].name",
    "env.[].value",
    "env.[].valueFrom.fieldRef.**",
    "env.[].valueFrom.resourceFieldRef.**",
    "env.[].valueFrom.configMapKeyRef.**",
    "env.[].valueFrom.secretKeyRef.**",
    "envFrom.**",
    "lifecycle.postStart.**",
    "lifecycle.preStop.**",
    "lifecycle.stopSignal",
    "ports.[].name",
    "ports.[].containerPort",
    "ports.[].protocol",
    "resources.limits.cpu",
    "resources.limits.memory",
    "resources.requests.cpu",
    "resources.requests.memory",
    "resources.requests.ephemeral-storage",
    "restartPolicy",
    "livenessProbe.**",
    "readinessProbe.**",
    "startupProbe.**",
    "stdin",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts.[].name",
    "volumeMounts.[].mountPath",
    "volumeMounts.[].mountPropagation",
    "volumeMounts.[].subPath",
    "volumeMounts.[].subPathExpr",
    "volumeMounts.[].readOnly",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.capabilities.**",
    "securityContext.privileged",
    "securityContext.procMount",
    "securityContext.readOnlyRootFilesystem",
    "securityContext.allowPrivilegeEscalation",
    "securityContext.seccompProfile.**",
];

/// Holes in what is acted on as a whole.
const NOT_ACTED: &[&str] =
    &["livenessProbe.terminationGracePeriodSeconds", "startupProbe.terminationGracePeriodSeconds"];

/// Asking for false is asking for something: Kubernetes' default is true.
const FALSE_ASKS: &[&str] = &["hostUsers"];

/// Default values: asking for them asks for nothing.
const DEFAULTS: &[(&str, &str)] = &[
    ("enableServiceLinks", "true"),
    ("preemptionPolicy", "\"PreemptLowerPriority\""),
    ("serviceAccountName", "\"default\""),
    ("serviceAccount", "\"default\""),
    ("os", "{\"name\":\"linux\"}"),
    ("hostUsers", "true"),
];

/// Fields of patterns, one level deep per name.
#[derive(Default)]
struct Tree {
    below: BTreeMap<&'static str, Tree>,
    /// Everything from here on is acted on.
    whole: bool,
}

impl Tree {
    fn of(patterns: &[&'static str]) -> Tree {
        let mut root = Tree::default();
        for p in patterns {
            root.add(p);
        }
        root
    }

    fn add(&mut self, pattern: &'static str) {
        let mut at = self;
        for part in pattern.split('.') {
            if part == "**" {
                break;
            }
            at = at.below.entry(part).or_default();
        }
        at.whole = true;
    }

    fn unacted(&self, value: &Value, path: &str, out: &mut Vec<String>) {
        if self.whole || asks_nothing(path, value) {
            return;
        }
        match value {
            Value::Object(m) if !self.below.is_empty() => {
                for (k, v) in m {
                    let at = if path.is_empty() { k.clone() } else { format!("{path}.{k}") };
                    match self.below.get(k.as_str()) {
                        Some(t) => t.unacted(v, &at, out),
                        None if asks_nothing(&at, v) => {}
                        None => out.push(at),
                    }
                }
            }
            Value::Array(items) if self.below.contains_key("[]") => {
                for (i, v) in items.iter().enumerate() {
                    self.below["[]"].unacted(v, &format!("{path}[{i}]"), out);
                }
            }
            _ => out.push(path.to_owned()),
        }
    }
}

fn asks_nothing(path: &str, value: &Value) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    let empty = match value {
        Value::Null => true,
        Value::Bool(false) => !FALSE_ASKS.contains(&name),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.is_empty(),
        _ => false,
    };
    let text = || value.to_string();
    empty || DEFAULTS.iter().any(|(n, v)| *n == name && text() == *v)
}

static POD_TREE: LazyLock<Tree> = LazyLock::new(|| Tree::of(POD_SPEC));
static CONTAINER_TREE: LazyLock<Tree> = LazyLock::new(|| Tree::of(CONTAINER));

/// One warning for each field of the manifest, as written and before defaults, that Trellis does
/// not act on yet.
pub fn unacted(kind: Kind, manifest: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    let spec = manifest.get("spec");
    match kind {
        Kind::Pod => pod_spec(spec, "spec", &mut paths),
        Kind::Deployment | Kind::ReplicaSet => {
            let inner = spec.and_then(|s| s.get("template")).and_then(|t| t.get("spec"));
            pod_spec(inner, "spec.template.spec", &mut paths);
        }
        Kind::Namespace | Kind::Node | Kind::NetworkPolicy | Kind::ConfigMap | Kind::Secret | Kind::Event => {}
    }
    paths.into_iter().map(|p| format!("{p}: Trellis does not act on this field yet")).collect()
}

fn pod_spec(spec: Option<&Value>, path: &str, out: &mut Vec<String>) {
    let Some(spec) = spec else { return };
    POD_TREE.unacted(spec, path, out);
    for (i, v) in spec.get("volumes").and_then(Value::as_array).into_iter().flatten().enumerate() {
        empty_dir(v, &format!("{path}.volumes[{i}].emptyDir"), out);
    }
    for list in ["containers", "initContainers"] {
        let items = spec.get(list).and_then(Value::as_array);
        for (i, c) in items.into_iter().flatten().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            CONTAINER_TREE.unacted(c, &at, out);
            for hole in NOT_ACTED {
                let pointer = format!("/{}", hole.replace('.', "/"));
                if c.pointer(&pointer).is_some_and(|v| !v.is_null()) {
                    out.push(format!("{at}.{hole}"));
                }
            }
            // Only a sidecar's own policy is followed; the others follow the Pod's.
            let policy = c.get("restartPolicy").and_then(Value::as_str).filter(|p| !p.is_empty());
            if policy.is_some_and(|p| (list, p) != ("initContainers", "Always")) {
                out.push(format!("{at}.restartPolicy"));
            }
        }
    }
}

/// Only memory has a limit, since a tmpfs keeps it.
fn empty_dir(volume: &Value, path: &str, out: &mut Vec<String>) {
    let Some(source) = volume.get("emptyDir") else { return };
    let medium = source.get("medium").and_then(Value::as_str).unwrap_or_default();
    if !matches!(medium, "" | "Memory") {
        out.push(format!("{path}.medium"));
    }
    if medium != "Memory" && source.get("sizeLimit").is_some_and(|v| !v.is_null()) {
        out.push(format!("{path}.sizeLimit"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::object::Object;
    use serde_json::json;

    fn paths(v: &Value) -> Vec<String> {
        let kind = Object::kind_of_value(v).unwrap();
        unacted(kind, v).iter().map(|w| w.split(':').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_field_is_named() {
        let v = json!({"apiVersion":"apps/v1","kind":"Deployment","spec":{"template":{"spec":{
            "affinity":{"nodeAffinity":{"x":1}},"priorityClassName":"high","hostNetwork":false,"hostUsers":false,
            "topologySpreadConstraints":[{"maxSkew":1}],
            "initContainers":[{"name":"s","image":"b","restartPolicy":"Always"},{"name":"i","image":"b","restartPolicy":"Never"}],
            "containers":[{"name":"a","image":"b","restartPolicy":"OnFailure","startupProbe":{"exec":{"command":["x"]}},
               "resources":{"limits":{"cpu":"1","ephemeral-storage":"1Gi"},"requests":{"ephemeral-storage":"1Gi"}},
               "lifecycle":{"stopSignal":"SIGUSR1"},"ports":[{"containerPort":1,"hostPort":2}],
               "livenessProbe":{"grpc":{"port":1},"terminationGracePeriodSeconds":1},"volumeDevices":[{"name":"x"}]}],
            "volumes":[{"name":"v","nfs":{"server":"x"}},{"name":"w","emptyDir":{"medium":"Memory","sizeLimit":"1Mi"}},
               {"name":"x","emptyDir":{"sizeLimit":"1Gi"}},{"name":"y","emptyDir":{"medium":"HugePages"}}]}}}});
        assert_eq!(
            paths(&v),
            [
                "spec.template.spec.affinity",
                "spec.template.spec.priorityClassName",
                "spec.template.spec.hostUsers",
                "spec.template.spec.topologySpreadConstraints",
                "spec.template.spec.volumes[0].nfs",
                "spec.template.spec.volumes[2].emptyDir.sizeLimit",
                "spec.template.spec.volumes[3].emptyDir.medium",
                "spec.template.spec.containers[0].resources.limits.ephemeral-storage",
                "spec.template.spec.containers[0].ports[0].hostPort",
                "spec.template.spec.containers[0].volumeDevices",
                "spec.template.spec.containers[0].livenessProbe.terminationGracePeriodSeconds",
                "spec.template.spec.containers[0].restartPolicy",
                "spec.template.spec.initContainers[1].restartPolicy",
            ]
        );
    }

    #[test]
    fn a_defaulted_pod_is_not_warned_about() {
        let v = json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{
            "containers":[{"name":"a","image":"b","ports":[{"containerPort":1}],"resources":{"limits":{"cpu":1}},
               "env":[{"name":"a","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}],
               "livenessProbe":{"httpGet":{"port":1}}}],
            "volumes":[{"name":"v","secret":{"secretName":"x","items":[{"key":"a","path":"b"}]}},{"name":"e","emptyDir":{}}]}});
        let (mut o, _) = Object::from_value(Kind::Pod, &v).unwrap();
        crate::defaults::apply(&mut o);
        assert_eq!(paths(&o.to_value()), Vec::<String>::new());
    }
}

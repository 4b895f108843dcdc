//! A table of what is refused: where, and in which words; and for each its good neighbour.
#![allow(clippy::unwrap_used, missing_docs)]

use super::tests::{deployment, object, pod, problems};
use super::*;
use serde_json::json;

/// Each bad value is refused with just these words at this field, each good one is not.
fn refused(of: impl Fn(Value) -> Value, cases: &[(Value, &str)]) {
    for (value, want) in cases {
        let got = problems(of(value.clone()));
        let good = if want.is_empty() { got.is_empty() } else { got.len() == 1 && got[0].starts_with(want) };
        assert!(good, "{value}\nshall say {want:?}, says\n{}", got.join("\n"));
    }
}

/// A Pod whose only container has these fields too.
fn container(fields: &Value) -> Value {
    let mut c = json!({"name":"c","image":"i"});
    c.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"containers":[c]})
}

#[test]
fn node_pod_cidrs() {
    let node = |spec: Value| json!({"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"spec":spec});
    refused(
        node,
        &[
            (json!({"podCIDR":"10.1.0.0/24"}), ""),
            (json!({"podCIDR":"10.1.0.0/24","podCIDRs":["10.1.0.0/24","fd00::/64"]}), ""),
            (
                json!({"podCIDR":"10.2.0.0/24","podCIDRs":["10.1.0.0/24"]}),
                "spec.podCIDR: Invalid value: \"10.2.0.0/24\"",
            ),
            (json!({"podCIDR":"10.2.0.0"}), "spec.podCIDRs[0]: Invalid value: \"10.2.0.0\": must be a valid CIDR"),
            (json!({"podCIDRs":["10.1.0.0/24","10.2.0.0/24"]}), "spec.podCIDRs: Invalid value: [\"10.1.0.0/24\""),
        ],
    );
    let mut filled = object(node(json!({"podCIDR":"10.1.0.0/24"})));
    assert_eq!(filled.to_value()["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
    let changes = |old: &Object, spec: Value| {
        let told = update(old, &object(node(spec)));
        told.iter().map(|e| e.field.clone()).collect::<Vec<_>>()
    };
    assert_eq!(changes(&filled, json!({"podCIDRs":["10.1.0.0/24"]})), Vec::<String>::new());
    assert_eq!(changes(&object(node(json!({}))), json!({"podCIDR":"10.9.0.0/24"})), Vec::<String>::new());
    assert_eq!(changes(&filled, json!({"podCIDR":"10.2.0.0/24"})), ["spec.podCIDRs"]);
    assert_eq!(changes(&filled, json!({"podCIDR":"10.2.0.0/24","podCIDRs":["10.1.0.0/24"]})), ["spec.podCIDR"]);
    assert_eq!(changes(&filled, json!({})), ["spec.podCIDRs"]);
    // What was stored before there was the rule can still be written to, and mended.
    if let Object::Node(n) = &mut filled {
        n.spec.as_mut().unwrap().pod_cidr = Some("10.2.0.0/24".into());
    }
    assert_eq!(update(&filled, &filled), []);
    assert_eq!(changes(&filled, json!({"podCIDRs":["10.1.0.0/24"]})), Vec::<String>::new());
    assert_eq!(changes(&filled, json!({"podCIDR":"10.3.0.0/24","podCIDRs":["10.1.0.0/24"]})), ["spec.podCIDR"]);
}

#[test]
fn what_only_privileged_containers_may() {
    let spec = |v: Value| {
        let mut s = container(&v["c"]);
        s["volumes"] = json!([{"name":"v","emptyDir":{}}]);
        s["hostUsers"] = v["hostUsers"].clone();
        pod(s)
    };
    let mount = |privileged: bool, how: &str| {
        json!({"c":{"securityContext":{"privileged":privileged},
            "volumeMounts":[{"name":"v","mountPath":"/v","mountPropagation":how}]}})
    };
    refused(
        spec,
        &[
            (mount(true, "Bidirectional"), ""),
            (mount(false, "HostToContainer"), ""),
            (
                mount(false, "Bidirectional"),
                "spec.containers[0].volumeMounts[0].mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
            ),
            (json!({"hostUsers":false,"c":{"securityContext":{"procMount":"Unmasked"}}}), ""),
            (
                json!({"c":{"securityContext":{"procMount":"Unmasked"}}}),
                "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
            ),
        ],
    );
}

#[test]
fn lifecycle_hooks() {
    let hook = |h: Value| pod(container(&json!({"lifecycle":{"preStop":h}})));
    let at = "spec.containers[0].lifecycle.preStop";
    let cases = [
        (json!({"exec":{"command":["true"]}}), ""),
        (json!({"httpGet":{"port":"http"}}), ""),
        (json!({"tcpSocket":{"port":80}}), ""),
        (json!({"sleep":{"seconds":30}}), ""),
        (json!({}), ": Required value: must specify a handler type"),
        (json!({"exec":{}}), ".exec.command: Required value"),
        (json!({"httpGet":{"port":0}}), ".httpGet.port: Invalid value: 0: must be between 1 and 65535"),
        (json!({"tcpSocket":{"port":70000}}), ".tcpSocket.port: Invalid value: 70000"),
        (
            json!({"sleep":{"seconds":31}}),
            ".sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ),
        (json!({"sleep":{"seconds":-1}}), ".sleep: Invalid value: -1"),
        (
            json!({"exec":{"command":["true"]},"sleep":{"seconds":1}}),
            ".sleep: Forbidden: may not specify more than 1 handler type",
        ),
    ];
    for (value, want) in cases {
        let want = if want.is_empty() { String::new() } else { format!("{at}{want}") };
        refused(hook, &[(value, &want)]);
    }
    let post = |h: Value| pod(container(&json!({"lifecycle":{"postStart":h}})));
    refused(post, &[(json!({"exec":{}}), "spec.containers[0].lifecycle.postStart.exec.command: Required value")]);
    let sidecar = |h: Value| {
        pod(json!({"containers":[{"name":"c","image":"i"}],
            "initContainers":[{"name":"s","image":"i","restartPolicy":"Always","lifecycle":{"preStop":h}}]}))
    };
    refused(sidecar, &[(json!({"exec":{}}), "spec.initContainers[0].lifecycle.preStop.exec.command: Required value")]);
}

#[test]
fn security_contexts() {
    let cases = [
        (json!({"type":"RuntimeDefault"}), ""),
        (json!({"type":"Localhost","localhostProfile":"a/b.json"}), ""),
        (json!({"type":""}), ".type: Required value: type is required when seccompProfile is set"),
        (
            json!({"type":"None"}),
            ".type: Unsupported value: \"None\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\"",
        ),
        (json!({"type":"Localhost"}), ".localhostProfile: Required value: must be set when seccomp type is Localhost"),
        (
            json!({"type":"Localhost","localhostProfile":"/x"}),
            ".localhostProfile: Invalid value: \"/x\": must be a relative path",
        ),
        (
            json!({"type":"Unconfined","localhostProfile":"x"}),
            ".localhostProfile: Invalid value: \"x\": can only be set when seccomp type is Localhost",
        ),
    ];
    for (profile, want) in cases {
        let want = |at: &str| if want.is_empty() { String::new() } else { format!("{at}.seccompProfile{want}") };
        let of_container = |p: Value| pod(container(&json!({"securityContext":{"seccompProfile":p}})));
        refused(of_container, &[(profile.clone(), &want("spec.containers[0].securityContext"))]);
        let of_pod = |p: Value| {
            let mut s = container(&json!({}));
            s["securityContext"] = json!({"seccompProfile":p});
            pod(s)
        };
        refused(of_pod, &[(profile, &want("spec.securityContext"))]);
    }
    let sysctls = |v: Value| {
        let mut s = container(&json!({}));
        let all: Vec<Value> = v["names"].as_array().unwrap().iter().map(|n| json!({"name":n,"value":"1"})).collect();
        s["securityContext"] = json!({"sysctls":all});
        s["hostNetwork"] = v["net"].clone();
        s["hostIPC"] = v["ipc"].clone();
        pod(s)
    };
    refused(
        sysctls,
        &[
            (
                json!({"names":["net.ipv4.ip_local_port_range","kernel/shm_rmid_forced","net.ipv4.conf.eth0/1.rp_filter"]}),
                "",
            ),
            (json!({"names":["kernel.sem"],"net":true}), ""),
            (json!({"names":["net.core.somaxconn"],"ipc":true}), ""),
            (json!({"names":[""]}), "spec.securityContext.sysctls[0].name: Required value"),
            (
                json!({"names":["net..x"]}),
                "spec.securityContext.sysctls[0].name: Invalid value: \"net..x\": must have at most 253 characters and match regex ^(",
            ),
            (json!({"names":["Net.x"]}), "spec.securityContext.sysctls[0].name: Invalid value: \"Net.x\""),
            (json!({"names":["net.x","net.x"]}), "spec.securityContext.sysctls[1].name: Duplicate value: \"net.x\""),
            (
                json!({"names":["net/core/somaxconn"],"net":true}),
                "spec.securityContext.sysctls[0].name: Invalid value: \"net/core/somaxconn\": may not be specified when 'hostNetwork' is true",
            ),
            (
                json!({"names":["kernel.sem"],"ipc":true}),
                "spec.securityContext.sysctls[0].name: Invalid value: \"kernel.sem\": may not be specified when 'hostIPC' is true",
            ),
        ],
    );
}

#[test]
fn references_to_resources_and_fields() {
    let env = |r: Value| pod(container(&json!({"env":[{"name":"A","valueFrom":{"resourceFieldRef":r}}]})));
    let at = "spec.containers[0].env[0].valueFrom.resourceFieldRef";
    let cases = [
        (json!({"resource":"limits.cpu","divisor":"1m"}), ""),
        (json!({"resource":"requests.memory","divisor":"1Mi"}), ""),
        (json!({"resource":"limits.hugepages-2Mi"}), ""),
        (json!({"resource":"limits.cpu","divisor":"0"}), ""),
        (json!({"resource":""}), ".resource: Required value"),
        (
            json!({"resource":"limits.gpu"}),
            ".resource: Unsupported value: \"limits.gpu\": supported values: \"limits.cpu\"",
        ),
        (
            json!({"resource":"limits.cpu","divisor":"1Mi"}),
            ".divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource",
        ),
        (
            json!({"resource":"limits.memory","divisor":"1m"}),
            ".divisor: Invalid value: \"limits.memory\": only divisor's values 1, 1k, 1M",
        ),
    ];
    for (value, want) in cases {
        let want = if want.is_empty() { String::new() } else { format!("{at}{want}") };
        refused(env, &[(value, &want)]);
    }
    let volume = |source: &Value| {
        let mut v = json!({"name":"v"});
        v.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        let mut s = container(&json!({}));
        s["volumes"] = json!([v]);
        pod(s)
    };
    let field = json!({"fieldPath":"metadata.name"});
    let cases = [
        (json!({"path":"p","fieldRef":{"fieldPath":"metadata.labels"}}), ""),
        (json!({"path":"p","fieldRef":{"fieldPath":"metadata.annotations['a/b']"}}), ""),
        (json!({"path":"p","resourceFieldRef":{"containerName":"c","resource":"limits.cpu"}}), ""),
        (json!({"path":"p"}), ": Required value: one of fieldRef and resourceFieldRef is required"),
        (
            json!({"path":"p","fieldRef":field,"resourceFieldRef":{"containerName":"c","resource":"limits.cpu"}}),
            ": Invalid value: \"resource\": fieldRef and resourceFieldRef can not be specified simultaneously",
        ),
        (
            json!({"path":"p","fieldRef":{"fieldPath":"spec.nodeName"}}),
            ".fieldRef.fieldPath: Unsupported value: \"spec.nodeName\": supported values: \"metadata.annotations\"",
        ),
        (
            json!({"path":"p","resourceFieldRef":{"resource":"limits.cpu"}}),
            ".resourceFieldRef.containerName: Required value",
        ),
    ];
    for (item, want) in cases {
        let want = |at: &str| if want.is_empty() { String::new() } else { format!("spec.volumes[0].{at}{want}") };
        let plain = |item: Value| volume(&json!({"downwardAPI":{"items":[item]}}));
        refused(plain, &[(item.clone(), &want("downwardAPI.items[0]"))]);
        let projected = |item: Value| volume(&json!({"projected":{"sources":[{"downwardAPI":{"items":[item]}}]}}));
        refused(projected, &[(item, &want("projected.sources[0].downwardAPI.items[0]"))]);
    }
    let sources = |s: Value| volume(&json!({"projected":{"sources":[s]}}));
    refused(
        sources,
        &[
            (json!({"configMap":{"name":"m"}}), ""),
            (json!({}), "spec.volumes[0].projected.sources[0]: Required value: must specify a volume type"),
            (
                json!({"configMap":{"name":"m"},"secret":{"name":"s"}}),
                "spec.volumes[0].projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
            ),
        ],
    );
}

#[test]
fn dns_and_gates() {
    let dns = |v: Value| {
        let mut s = container(&json!({}));
        s["dnsPolicy"] = v["policy"].clone();
        s["dnsConfig"] = v["config"].clone();
        pod(s)
    };
    let many: Vec<String> = (0..33).map(|i| format!("s{i}.x")).collect();
    let long: Vec<String> =
        (0..9).map(|i| format!("{}.s{i}", vec!["x".repeat(62); 4].join(".")[..240].to_owned())).collect();
    refused(
        dns,
        &[
            (
                json!({"policy":"None","config":{"nameservers":["10.0.0.1"],"searches":["a.b.","_srv.x","."],"options":[{"name":"ndots"}]}}),
                "",
            ),
            (
                json!({"policy":"None"}),
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ),
            (
                json!({"policy":"None","config":{}}),
                "spec.dnsConfig.nameservers: Required value: must provide at least one",
            ),
            (
                json!({"config":{"nameservers":["10.0.0.1","10.0.0.2","10.0.0.3","10.0.0.4"]}}),
                "spec.dnsConfig.nameservers: Invalid value: [\"10.0.0.1\",\"10.0.0.2\",\"10.0.0.3\",\"10.0.0.4\"]: must not have more than 3 nameservers",
            ),
            (
                json!({"config":{"nameservers":["a.b"]}}),
                "spec.dnsConfig.nameservers[0]: Invalid value: \"a.b\": must be a valid IP",
            ),
            (json!({"config":{"searches":many}}), "spec.dnsConfig.searches: Invalid value: [\"s0.x\""),
            (json!({"config":{"searches":long}}), "spec.dnsConfig.searches: Invalid value: [\"xxx"),
            (
                json!({"config":{"searches":["A b"]}}),
                "spec.dnsConfig.searches[0]: Invalid value: \"A b\": a lowercase RFC 1123",
            ),
            (json!({"config":{"searches":["a\nnameserver 1.2.3.4"]}}), "spec.dnsConfig.searches[0]: Invalid value"),
            (
                json!({"config":{"options":[{"value":"1"}]}}),
                "spec.dnsConfig.options[0]: Required value: must not be empty",
            ),
        ],
    );
    let gates = |v: Value| {
        let mut s = container(&json!({}));
        s.as_object_mut().unwrap().extend(v.as_object().unwrap().clone());
        pod(s)
    };
    refused(
        gates,
        &[
            (json!({"schedulingGates":[{"name":"a.b/c"}],"readinessGates":[{"conditionType":"a.b/C"}]}), ""),
            (json!({"schedulingGates":[{"name":"a b"}]}), "spec.schedulingGates[0]: Invalid value: \"a b\": name part"),
            (json!({"schedulingGates":[{"name":"g"},{"name":"g"}]}), "spec.schedulingGates[1]: Duplicate value: \"g\""),
            (
                json!({"readinessGates":[{"conditionType":"/x"}]}),
                "spec.readinessGates[0].conditionType: Invalid value: \"/x\"",
            ),
        ],
    );
}

#[test]
fn finalizers_and_tokens() {
    let map = |finalizers: Value| json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m","namespace":"d","finalizers":finalizers}});
    refused(
        map,
        &[
            (json!(["example.com/a", "orphan", "foregroundDeletion"]), ""),
            (
                json!(["orphan", "mine"]),
                "metadata.finalizers[1]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified",
            ),
        ],
    );
    let old = object(map(json!(["mine"])));
    assert_eq!(update(&old, &object(map(json!(["mine", "orphan"])))), []);
    assert_eq!(update(&old, &object(map(json!(["mine", "yours"]))))[0].field, "metadata.finalizers[1]");
    let token = |annotations: Value| {
        json!({"apiVersion":"v1","kind":"Secret","type":"kubernetes.io/service-account-token",
            "metadata":{"name":"s","namespace":"d","annotations":annotations}})
    };
    refused(
        token,
        &[
            (json!({"kubernetes.io/service-account.name":"default"}), ""),
            (json!({}), "metadata.annotations[kubernetes.io/service-account.name]: Required value"),
        ],
    );
}

#[test]
fn ports_in_the_hosts_network() {
    let ports = |port: &Value| json!({"hostNetwork":true,"containers":[{"name":"c","image":"i","ports":[port]}]});
    let in_template = |port: Value| {
        deployment(json!({"selector":{"matchLabels":{"a":"b"}},
            "template":{"metadata":{"labels":{"a":"b"}},"spec":ports(&port)}}))
    };
    let word = "ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true";
    let (of_pod, of_template) =
        (format!("spec.containers[0].{word}"), format!("spec.template.spec.containers[0].{word}"));
    let (free, same, other) = (
        json!({"containerPort":80}),
        json!({"containerPort":80,"hostPort":80}),
        json!({"containerPort":80,"hostPort":81}),
    );
    refused(|p| pod(ports(&p)), &[(free.clone(), ""), (same.clone(), ""), (other.clone(), &of_pod)]);
    // A template's ports are filled in when its Pods are made.
    refused(in_template, &[(free, ""), (same, ""), (other, &of_template)]);
}

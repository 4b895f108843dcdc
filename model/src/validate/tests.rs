#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use crate::defaults;
use serde_json::json;

pub(super) fn object(v: Value) -> Object {
    let kind = Object::kind_of_value(&v).unwrap();
    let (mut o, unknown) = Object::from_value(kind, &v).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    defaults::apply(&mut o);
    o
}

pub(super) fn problems(v: Value) -> Vec<String> {
    create(&object(v)).iter().map(ToString::to_string).collect()
}

pub(super) fn pod(spec: Value) -> Value {
    json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"d"},"spec":spec})
}

pub(super) fn deployment(spec: Value) -> Value {
    json!({"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","namespace":"d"},"spec":spec})
}

#[test]
fn no_file_of_a_volume_lies_outside_of_it() {
    let of = |volumes: Value, mount: Value| {
        problems(pod(json!({"containers":[{"name":"c","image":"i","volumeMounts":[mount]}],"volumes":[volumes]})))
    };
    let plain = json!({"name":"v","mountPath":"/v"});
    let field = json!({"fieldPath":"metadata.name"});
    let sources = |path: &str| {
        [
            ("downwardAPI.items[0].path", json!({"name":"v","downwardAPI":{"items":[{"path":path,"fieldRef":field}]}})),
            ("configMap.items[0].path", json!({"name":"v","configMap":{"name":"m","items":[{"key":"k","path":path}]}})),
            (
                "projected.sources[0].configMap.items[0].path",
                json!({"name":"v","projected":{"sources":[{"configMap":{"name":"m","items":[{"key":"k","path":path}]}}]}}),
            ),
            (
                "projected.sources[0].secret.items[0].path",
                json!({"name":"v","projected":{"sources":[{"secret":{"name":"s","items":[{"key":"k","path":path}]}}]}}),
            ),
            (
                "projected.sources[0].downwardAPI.items[0].path",
                json!({"name":"v","projected":{"sources":[{"downwardAPI":{"items":[{"path":path,"fieldRef":field}]}}]}}),
            ),
            (
                "projected.sources[0].serviceAccountToken.path",
                json!({"name":"v","projected":{"sources":[{"serviceAccountToken":{"path":path}}]}}),
            ),
        ]
    };
    for (field, volume) in sources("a/b..c/d") {
        assert_eq!(of(volume, plain.clone()), Vec::<String>::new(), "the positive control: {field}");
    }
    for bad in ["", "/etc/shadow", "../x", "a/../../x", "..data"] {
        for (field, volume) in sources(bad) {
            let got = of(volume, plain.clone());
            let want = format!("spec.volumes[0].{field}: ");
            assert!(!got.is_empty() && got.iter().all(|g| g.starts_with(&want)), "{bad:?} in {field}: {got:?}");
        }
    }
    let empty = || json!({"name":"v","emptyDir":{}});
    let expression = |text: &str| of(empty(), json!({"name":"v","mountPath":"/v","subPathExpr":text}));
    assert_eq!(expression("$(NAME)/x"), Vec::<String>::new());
    for bad in ["/x", "../$(NAME)", "$(NAME)/.."] {
        let got = expression(bad);
        assert!(got[0].starts_with("spec.containers[0].volumeMounts[0].subPathExpr: Invalid value"), "{bad}: {got:?}");
    }
}

#[test]
fn all_problems_of_a_pod_at_once() {
    let got = problems(pod(json!({
        "restartPolicy":"Sometimes",
        "containers":[
            {"name":"Bad","ports":[{"containerPort":70000,"protocol":"ICMP"}],
             "volumeMounts":[{"name":"nope","mountPath":"/x"}]},
            {"name":"b","image":"x","resources":{"limits":{"cpu":"1"},"requests":{"cpu":"2","memory":"x"}},
             "livenessProbe":{"periodSeconds":-1},
             "env":[{"name":"A=B","value":"x"},{"name":"C","valueFrom":{"fieldRef":{"fieldPath":"spec.foo"}}}]},
            {"name":"b","image":"x"}],
        "volumes":[{"name":"v","configMap":{"name":"c","defaultMode":1000}},{"name":"v","hostPath":{"path":"/a/../b"},"emptyDir":{}}]
    })));
    for want in [
        "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        "spec.containers[0].name: Invalid value: \"Bad\": a lowercase RFC 1123 label",
        "spec.containers[0].image: Required value",
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        "spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        "spec.containers[0].volumeMounts[0].name: Not found: \"nope\"",
        "spec.containers[1].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        "spec.containers[1].resources.requests[memory]: Invalid value: \"x\": quantities must match",
        "spec.containers[1].livenessProbe: Required value: must specify a handler type",
        "spec.containers[1].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
        "spec.containers[1].env[0].name: Invalid value: \"A=B\"",
        "spec.containers[1].env[1].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.foo\"",
        "spec.containers[2].name: Duplicate value: \"b\"",
        "spec.volumes[0].configMap.defaultMode: Invalid value: 1000: must be a number between 0 and 0777 (octal), both inclusive",
        "spec.volumes[1].name: Duplicate value: \"v\"",
        "spec.volumes[1]: Forbidden: may not specify more than 1 volume type",
        "spec.volumes[1].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
    ] {
        assert!(got.iter().any(|g| g.starts_with(want)), "{want}\nis not in\n{}", got.join("\n"));
    }
    assert_eq!(got.len(), 17, "{}", got.join("\n"));
}

#[test]
fn good_pods_have_no_problems() {
    for spec in [
        json!({"containers":[{"name":"a","image":"nginx:1.27","ports":[{"containerPort":80,"name":"http"}]}]}),
        json!({"containers":[{"name":"a","image":"x","readinessProbe":{"httpGet":{"port":"http","path":"/"}},
                "env":[{"name":"L","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['app']"}}}],
                "envFrom":[{"configMapRef":{"name":"c"}}]}],
               "initContainers":[{"name":"i","image":"x"},{"name":"s","image":"x","restartPolicy":"Always"}],
               "tolerations":[{"operator":"Exists"},{"key":"k","value":"v","effect":"NoSchedule"}]}),
    ] {
        assert_eq!(problems(pod(spec)), Vec::<String>::new());
    }
}

#[test]
fn metadata() {
    let got = problems(json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"A_b","labels":{"a b":"c d"}}}));
    assert!(got[0].starts_with("metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain"), "{got:?}");
    assert_eq!(got[1], "metadata.namespace: Required value");
    assert!(got[2].starts_with("metadata.labels: Invalid value: \"a b\": name part"), "{got:?}");
    assert!(got[3].starts_with("metadata.labels: Invalid value: \"c d\": a valid label"), "{got:?}");
    assert_eq!(
        problems(json!({"apiVersion":"v1","kind":"Namespace","metadata":{"namespace":"x"}})),
        [
            "metadata.name: Required value: name or generateName is required",
            "metadata.namespace: Forbidden: not allowed on this type"
        ]
    );
}

#[test]
fn a_deployment_that_selects_others() {
    let got = problems(deployment(json!({"replicas":-1,"selector":{"matchLabels":{"app":"a"}},
        "template":{"metadata":{"labels":{"app":"b"}},"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"x"}]}},
        "strategy":{"rollingUpdate":{"maxSurge":0,"maxUnavailable":"0%"}}})));
    assert_eq!(
        got,
        [
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`",
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
        ]
    );
}

#[test]
fn what_may_change_in_a_pod() {
    let base = || json!({"containers":[{"name":"a","image":"x:1"}]});
    let old = object(pod(base()));
    let mut image = base();
    image["containers"][0]["image"] = json!("x:2");
    image["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    image["activeDeadlineSeconds"] = json!(5);
    image["tolerations"] = json!([{"operator":"Exists"}]);
    let mut new = object(pod(image));
    if let (Object::Pod(n), Object::Pod(o)) = (&mut new, &old) {
        // Additions only: what admission added stays.
        let list = n.spec.as_mut().unwrap().tolerations.as_mut().unwrap();
        list.extend(o.spec.as_ref().unwrap().tolerations.clone().unwrap());
    }
    assert_eq!(update(&old, &new), []);
    let mut other = base();
    other["containers"][0]["command"] = json!(["true"]);
    other["hostname"] = json!("h");
    let got = update(&old, &object(pod(other)));
    assert_eq!(got.len(), 1);
    assert!(got[0].message.starts_with("Forbidden: pod updates may not change fields other than"));
    assert!(got[0].message.ends_with("changed: spec.containers[0].command, spec.hostname"), "{}", got[0]);
}

#[test]
fn gates_only_go() {
    let gated = |gates: &[&str], selector: Value| {
        let gates: Vec<Value> = gates.iter().map(|g| json!({"name": g})).collect();
        object(pod(json!({"containers":[{"name":"a","image":"x:1"}],"schedulingGates":gates,"nodeSelector":selector})))
    };
    let old = gated(&["a/1", "a/2"], json!({"k":"v"}));
    let of = |old: &Object, new: Object| update(old, &new).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(of(&old, gated(&["a/2"], json!({"k":"v","l":"w"}))), Vec::<String>::new());
    assert_eq!(of(&old, gated(&[], json!({"k":"v"}))), Vec::<String>::new());
    assert_eq!(
        of(&old, gated(&["a/1", "a/3"], json!({"k":"v"}))),
        ["spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'a/3'"]
    );
    let got = of(&old, gated(&["a/1"], json!({"k":"other"})));
    assert_eq!(got.len(), 1);
    assert!(
        got[0].starts_with("spec.nodeSelector: Invalid value: {\"k\":\"other\"}: only additions to spec.nodeSelector"),
        "{got:?}"
    );
    // Without gates nothing of it changes any more.
    let free = gated(&[], json!({"k":"v"}));
    let got = of(&free, gated(&[], json!({"k":"v","l":"w"})));
    assert!(got[0].ends_with("changed: spec.nodeSelector.l"), "{got:?}");
    let got = of(&free, gated(&["a/1"], json!({"k":"v"})));
    assert!(got[0].starts_with("spec.schedulingGates[0].name: Forbidden: only deletion"), "{got:?}");
    let got =
        problems(pod(json!({"containers":[{"name":"a","image":"x"}],"nodeName":"n","schedulingGates":[{"name":"g"}]})));
    assert_eq!(got, ["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"]);
}

#[test]
fn what_never_changes() {
    let d = |l: &str| {
        deployment(json!({"selector":{"matchLabels":{"app":l}},
        "template":{"metadata":{"labels":{"app":l}},"spec":{"containers":[{"name":"c","image":"x"}]}}}))
    };
    let got = update(&object(d("a")), &object(d("b")));
    assert_eq!(
        got[0].to_string(),
        "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"
    );
    let s = |v: Value| {
        let mut o = json!({"apiVersion":"v1","kind":"Secret","metadata":{"name":"s","namespace":"d"}});
        o.as_object_mut().unwrap().extend(v.as_object().unwrap().clone());
        object(o)
    };
    let old = s(json!({"immutable":true,"data":{"a":"YQ=="}}));
    let got: Vec<String> = update(&old, &s(json!({"data":{"a":"Yg=="}}))).iter().map(|e| e.field.clone()).collect();
    assert_eq!(got, ["immutable", "data"]);
    assert_eq!(update(&old, &s(json!({"immutable":true,"data":{"a":"YQ=="},"type":"x/y"})))[0].field, "type");
}

#[test]
fn network_policies() {
    let got = problems(json!({"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
        "metadata":{"name":"a","namespace":"d"},"spec":{"podSelector":{},"policyTypes":["In"],
        "ingress":[{"from":[{},{"ipBlock":{"cidr":"10.0.0.0/8","except":["11.0.0.0/16"]}},
                            {"ipBlock":{"cidr":"10.0.0.1"}},{"podSelector":{},"ipBlock":{"cidr":"10.0.0.0/8"}}],
                    "ports":[{"port":80,"endPort":70},{"port":"http","endPort":90}]}]}}));
    assert_eq!(
        got,
        [
            "spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`",
            "spec.ingress[0].ports[1].endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
            "spec.ingress[0].from[0]: Required value: must specify a peer",
            "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[2].ipBlock.cidr: Invalid value: \"10.0.0.1\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            "spec.ingress[0].from[3]: Forbidden: may not specify both ipBlock and another peer",
            "spec.policyTypes[0]: Unsupported value: \"In\": supported values: \"Egress\", \"Ingress\"",
        ]
    );
}

#[test]
fn node_taints() {
    let got = problems(json!({"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},
        "spec":{"taints":[{"key":"a","effect":"Never"},{"key":"a","effect":"Never"}]}}));
    assert_eq!(got.len(), 3, "{got:?}");
    assert_eq!(got[2], "spec.taints[1]: Duplicate value: \"a:Never\"");
}

#[test]
fn secrets_never_show_their_content() {
    let got = problems(json!({"apiVersion":"v1","kind":"Secret","metadata":{"name":"s","namespace":"d"},
        "type":"kubernetes.io/dockerconfigjson","stringData":{".dockerconfigjson":"hunter2"}}));
    assert_eq!(got.len(), 1);
    assert!(!got[0].contains("hunter2"), "{got:?}");
}

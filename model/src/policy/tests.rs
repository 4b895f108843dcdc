#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn policy(v: Value) -> Policy {
    let full = json!({"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
        "metadata":{"name":"p","namespace":"a"},"spec":v});
    Policy::from_k8s(&serde_json::from_value(full).unwrap()).unwrap()
}

fn pod(ns: &str, n: u8, label: &str) -> PodView {
    PodView {
        uid: format!("{ns}-{n}"),
        namespace: ns.into(),
        name: format!("p{n}"),
        labels: [("app".to_owned(), label.to_owned())].into(),
        addresses: vec![IpAddr::from([10, 244, ns.as_bytes()[0], n])],
        ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 + u16::from(n % 2) }],
        host_network: false,
    }
}

fn namespaces() -> Namespaces {
    ["a", "b"]
        .into_iter()
        .map(|n| (n.to_owned(), NamespaceView { labels: [("team".to_owned(), n.to_owned())].into() }))
        .collect()
}

fn ask(policies: &[Policy], from: &PodView, to: &PodView, port: u16) -> bool {
    let flow = Flow {
        source: End::Pod(from, from.addresses[0]),
        destination: End::Pod(to, to.addresses[0]),
        protocol: Protocol::Tcp,
        port,
    };
    decide(&flow, policies, &namespaces())
}

#[test]
fn the_documentations_examples() {
    let (web, api, other) = (pod("a", 1, "web"), pod("a", 2, "api"), pod("b", 3, "web"));
    // Nothing selects anything: open.
    assert!(ask(&[], &other, &web, 80));
    // Default deny of ingress; egress stays open.
    let deny = policy(json!({"podSelector":{},"policyTypes":["Ingress"]}));
    assert!(!ask(std::slice::from_ref(&deny), &api, &web, 80));
    assert!(!ask(std::slice::from_ref(&deny), &other, &web, 80));
    assert!(ask(std::slice::from_ref(&deny), &web, &other, 80), "another namespace");
    assert!(ask(std::slice::from_ref(&deny), &web, &web, 80), "a Pod always reaches itself");
    // Allow all.
    let all = policy(json!({"podSelector":{},"ingress":[{}]}));
    assert!(ask(&[deny.clone(), all], &other, &web, 80), "policies only add");
    // By Pod, in the policy's own namespace.
    let from_web = policy(json!({"podSelector":{"matchLabels":{"app":"api"}},
        "ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"web"}}}],"ports":[{"port":80}]}]}));
    assert!(ask(&[deny.clone(), from_web.clone()], &web, &api, 80));
    assert!(!ask(&[deny.clone(), from_web.clone()], &web, &api, 81));
    assert!(!ask(&[deny.clone(), from_web], &other, &api, 80), "same label, other namespace");
    // By namespace; and both in one peer mean both.
    let from_b = policy(json!({"podSelector":{},
        "ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"team":"b"}}}]}]}));
    assert!(ask(std::slice::from_ref(&from_b), &other, &web, 80));
    assert!(!ask(&[from_b], &api, &web, 80));
    let both = policy(json!({"podSelector":{},"ingress":[{"from":[{
        "namespaceSelector":{"matchLabels":{"team":"b"}},"podSelector":{"matchLabels":{"app":"db"}}}]}]}));
    assert!(!ask(&[both], &other, &web, 80));
}

#[test]
fn egress_named_ports_and_blocks() {
    let (a, b) = (pod("a", 1, "web"), pod("b", 2, "db"));
    let out = policy(json!({"podSelector":{},"policyTypes":["Egress"],"egress":[
        {"to":[{"namespaceSelector":{}}],"ports":[{"port":"http"}]},
        {"to":[{"ipBlock":{"cidr":"192.0.2.0/24","except":["192.0.2.7/32"]}}],"ports":[{"port":5000,"endPort":5010}]}]}));
    // b calls 80 http, a calls 81 so.
    assert!(ask(std::slice::from_ref(&out), &a, &b, 80));
    assert!(!ask(std::slice::from_ref(&out), &a, &b, 81));
    let outside = |ip: [u8; 4], port| {
        let flow = Flow {
            source: End::Pod(&a, a.addresses[0]),
            destination: End::Other(ip.into()),
            protocol: Protocol::Tcp,
            port,
        };
        decide(&flow, std::slice::from_ref(&out), &namespaces())
    };
    assert!(outside([192, 0, 2, 1], 5005));
    assert!(!outside([192, 0, 2, 7], 5005));
    assert!(!outside([192, 0, 2, 1], 5011));
    assert!(!outside([198, 51, 100, 1], 5005));
}

#[test]
fn compiled_ports_are_merged_and_sorted() {
    let p = policy(json!({"podSelector":{},"ingress":[{"ports":[
        {"port":443},{"port":81},{"port":"http"},{"port":82,"endPort":90},{"port":53,"protocol":"UDP"}]}]}));
    let web = pod("a", 2, "web");
    let got = compile(&web, &[p], [&web], &namespaces());
    assert!(got.ingress.isolated && !got.egress.isolated);
    let r = |protocol, first, last| PortRange { protocol, first, last };
    assert_eq!(
        got.ingress.allow,
        [Allow {
            peers: Peers::Any,
            ports: vec![r(Protocol::Tcp, 80, 90), r(Protocol::Tcp, 443, 443), r(Protocol::Udp, 53, 53)]
        }]
    );
}

#[test]
fn a_finished_pod_has_no_address() {
    let v = json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[]},
        "status":{"phase":"Succeeded","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}});
    let mut pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(v).unwrap();
    assert!(PodView::from_pod(&pod).addresses.is_empty());
    pod.status.as_mut().unwrap().phase = Some("Running".into());
    assert_eq!(PodView::from_pod(&pod).addresses, [IpAddr::from([10, 0, 0, 1])]);
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        "[xy]".prop_map(|l| json!({"podSelector":{"matchLabels":{"app":l}}})),
        "[ab]".prop_map(|t| json!({"namespaceSelector":{"matchLabels":{"team":t}}})),
        ("[ab]", "[xy]").prop_map(|(t, l)| json!({"namespaceSelector":{"matchLabels":{"team":t}},
            "podSelector":{"matchExpressions":[{"key":"app","operator":"NotIn","values":[l]}]}})),
        (1..4_u8).prop_map(|n| json!({"ipBlock":{"cidr":"10.244.0.0/16","except":[format!("10.244.97.{n}/32")]}})),
    ]
}
fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"port":80})),
        Just(json!({"port":"http"})),
        Just(json!({"port":79,"endPort":80})),
        Just(json!({"protocol":"UDP"})),
    ]
}
fn any_policy() -> impl Strategy<Value = Policy> {
    let rules =
        || prop::collection::vec((prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3)), 0..3);
    ("[xy]", any::<bool>(), "[ab]", 0..3_u8, rules(), rules()).prop_map(
        |(label, everyone, ns, types, ingress, egress)| {
            let selector = if everyone { json!({}) } else { json!({"matchLabels":{"app":label}}) };
            let types =
                [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])][usize::from(types)].clone();
            let i: Vec<Value> = ingress.into_iter().map(|(p, q)| json!({"from":p,"ports":q})).collect();
            let e: Vec<Value> = egress.into_iter().map(|(p, q)| json!({"to":p,"ports":q})).collect();
            let mut p = policy(json!({"podSelector":selector,"policyTypes":types,"ingress":i,"egress":e}));
            p.namespace = ns;
            p
        },
    )
}

proptest! {
    #[test]
    fn what_is_compiled_is_what_is_decided(
        policies in prop::collection::vec(any_policy(), 0..4),
        labels in prop::collection::vec("[xyz]", 4),
        from in 0_usize..5, to in 0_usize..5,
        port in 79_u16..83, udp in any::<bool>(),
    ) {
        let pods: Vec<PodView> = labels
            .iter()
            .enumerate()
            .map(|(i, l)| pod(if i % 2 == 0 { "a" } else { "b" }, u8::try_from(i).unwrap(), l))
            .collect();
        let outside = End::Other(IpAddr::from([192, 0, 2, 1]));
        let end = |i: usize| pods.get(i).map_or(outside, |p| End::Pod(p, p.addresses[0]));
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let flow = Flow { source: end(from), destination: end(to), protocol, port };
        let ns = namespaces();
        let of = |e: End<'_>| e.pod().map(|p| compile(p, &policies, &pods, &ns)).unwrap_or_default();
        let compiled = of(flow.destination).ingress.allows(flow.source.address(), protocol, port)
            && of(flow.source).egress.allows(flow.destination.address(), protocol, port);
        // netd lets a Pod reach itself outside of its rules.
        if from != to || from >= pods.len() {
            prop_assert_eq!(decide(&flow, &policies, &ns), compiled);
        }
    }
}

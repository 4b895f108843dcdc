//! Network policy: each refusal beside the same packet allowed.

use serde_json::{Value, json};
use trellis_lab::{wait, workload::web};

use crate::{
    cluster::{Cluster, LIMIT, Pod},
    harness::Outcome,
};

fn client(name: &str, role: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"role": role}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": web::IMAGE, "command": ["sleep", "100000"]}]}})
    .to_string()
}

fn policy(name: &str, ingress: Value) -> String {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": ingress}})
    .to_string()
}

/// Waits until asking from the Pod ends as expected for every target.
#[track_caller]
fn expect(cluster: &Cluster, from: &str, targets: &[Pod], admitted: bool, why: &str) {
    for target in targets {
        let url = format!("http://{}:{}/", target.address, web::PORT);
        let waited = wait::until(why, LIMIT, || {
            let ran = cluster.ask_from_pod("default", from, &url);
            if (ran.code == 0) == admitted { Ok(()) } else { Err(format!("{from} to {}: {ran:?}", target.name)) }
        });
        waited.unwrap_or_else(|e| panic!("{e}"));
    }
}

pub fn ingress(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 3).to_string());
    cluster.apply("friend.json", &client("friend", "friend"));
    cluster.apply("stranger.json", &client("stranger", "stranger"));
    let targets = cluster.wait_ready("default", "app=web", 3);
    cluster.wait_ready("default", "role=friend", 1);
    cluster.wait_ready("default", "role=stranger", 1);
    for from in ["friend", "stranger"] {
        expect(cluster, from, &targets, true, "everybody is admitted without a policy");
    }
    cluster.apply("deny.json", &policy("deny", json!([])));
    for from in ["friend", "stranger"] {
        expect(cluster, from, &targets, false, "nobody is admitted by an empty policy");
    }
    let rule = json!([{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}],
        "ports": [{"protocol": "TCP", "port": "http"}]}]);
    cluster.apply("allow.json", &policy("allow", rule));
    expect(cluster, "friend", &targets, true, "the friend is admitted by its label");
    expect(cluster, "stranger", &targets, false, "the stranger is not");
    // The stranger itself is well: it is the policy that keeps it out.
    cluster.trellis(&["label", "pod", "stranger", "role=friend", "--overwrite"]).ok();
    expect(cluster, "stranger", &targets, true, "with the friend's label it is admitted");
    cluster.trellis(&["delete", "networkpolicy", "allow", "deny"]).ok();
    cluster.trellis(&["label", "pod", "stranger", "role=stranger", "--overwrite"]).ok();
    expect(cluster, "stranger", &targets, true, "without policies everybody is admitted again");
    Outcome::Passed
}

/// A Pod that asks once, as soon as its process runs, and says how it went.
fn asks_once(name: &str, target: &Pod) -> Value {
    let ask = format!(
        "timeout 2 wget -q -O - http://{}:{}/ >/dev/null && echo reached || echo refused",
        target.address,
        web::PORT
    );
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"asks": name}},
        "spec": {"restartPolicy": "Never", "containers": [
            {"name": "c", "image": web::IMAGE, "command": ["sh", "-c", ask]}]}})
}

/// The shell may add what became of its child.
#[track_caller]
fn its_word(cluster: &Cluster, pod: &str) -> String {
    let said = wait::until(&format!("the word of {pod}"), LIMIT, || {
        let ran = cluster.trellis(&["logs", pod]);
        let word = ran.stdout.lines().find(|line| ["reached", "refused"].contains(line));
        word.map(str::to_owned).ok_or_else(|| format!("{ran:?}"))
    });
    said.unwrap_or_else(|e| panic!("{e}"))
}

/// Policy and Pod come in one file, the policy first: no packet of the Pod passes, ever.
pub fn from_the_first_packet(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 1).to_string());
    let target = cluster.wait_ready("default", "app=web", 1).remove(0);
    for round in 0..4 {
        let (held, free) = (format!("held-{round}"), format!("free-{round}"));
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": held},
            "spec": {"podSelector": {"matchLabels": {"asks": held}}, "policyTypes": ["Egress"]}});
        let objects = [policy, asks_once(&held, &target), asks_once(&free, &target)];
        cluster.apply("first.yaml", &objects.map(|o| o.to_string()).join("\n---\n"));
        assert_eq!(its_word(cluster, &held), "refused", "round {round}");
        assert_eq!(its_word(cluster, &free), "reached", "round {round}: the control, without a policy");
    }
    Outcome::Passed
}

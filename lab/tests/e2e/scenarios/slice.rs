//! apply → Raft → bind → sandbox and container → address, route → kill → rebound.

use std::{collections::BTreeSet, time::Instant};

use trellis_lab::{backend::Backend, remains, wait, workload::web};
use trellis_proto::client::{ContextError, Contexts};

use crate::{
    cluster::{Cluster, LIMIT, Pod},
    harness::Outcome,
};

fn deploy(cluster: &Cluster, replicas: u32) -> Vec<Pod> {
    cluster.import_web_image();
    let manifest = web::deployment("web", replicas).to_string();
    let said = cluster.apply("web.json", &manifest);
    assert!(said.contains("deployment.apps/web"), "{said}");
    cluster.wait_ready("default", "app=web", replicas as usize)
}

pub fn spreads_and_answers(cluster: &mut Cluster) -> Outcome {
    let pods = deploy(cluster, 5);
    let nodes: BTreeSet<_> = pods.iter().map(|p| &p.node).collect();
    assert_eq!(nodes.len(), 5, "one a node: {pods:?}");
    let addresses: BTreeSet<_> = pods.iter().map(|p| &p.address).collect();
    assert_eq!(addresses.len(), 5, "an address each: {pods:?}");
    for pod in &pods {
        // Asked by its own node, by another one, and by a Pod on another one.
        let from_node = cluster.other_node(&[&pod.node]);
        for from in [&pod.node, &from_node] {
            let answer = cluster.ask(from, &pod.address, web::PORT).unwrap();
            assert!(answer.body.contains(&pod.name), "{from} asked {}: {}", pod.name, answer.body);
        }
        let other = pods.iter().find(|p| p.node != pod.node).unwrap();
        let url = format!("http://{}:{}/", pod.address, web::PORT);
        let body = cluster.ask_from_pod("default", &other.name, &url).ok();
        assert!(body.contains(&pod.name) && body.contains(&pod.node), "{} asked {}: {body}", other.name, pod.name);
    }
    Outcome::Passed
}

pub fn survives_the_first_member(cluster: &mut Cluster) -> Outcome {
    let before = deploy(cluster, 5);
    power_cut(cluster, "n1", &before)
}

pub fn survives_a_power_cut(cluster: &mut Cluster) -> Outcome {
    let before = deploy(cluster, 3);
    let victim = before[0].node.clone();
    power_cut(cluster, &victim, &before)
}

fn power_cut(cluster: &Cluster, victim: &str, before: &[Pod]) -> Outcome {
    let count = before.len();
    let begin = Instant::now();
    cluster.lab.kill(victim).unwrap();
    let pods = wait::until("all Pods elsewhere", LIMIT, || {
        let living: Vec<Pod> =
            cluster.ready_pods("default", "app=web").into_iter().filter(|p| p.node != victim).collect();
        if living.len() == count { Ok(living) } else { Err(cluster.describe("default", "app=web")) }
    });
    let pods = pods.unwrap_or_else(|e| panic!("{e}"));
    eprintln!("  replaced {:.2} s after the power cut", begin.elapsed().as_secs_f64());
    let from = cluster.other_node(&[]);
    for pod in &pods {
        wait::until(&format!("an answer of {}", pod.name), LIMIT, || cluster.ask(&from, &pod.address, web::PORT))
            .unwrap_or_else(|e| panic!("{e}"));
    }
    cluster.start(victim);
    cluster.wait_all_nodes_ready();
    // What ran on it before is gone, and nothing is doubled.
    let after = cluster.wait_ready("default", "app=web", count);
    assert!(after.iter().all(|p| !before.iter().any(|b| b.node == victim && b.uid == p.uid)), "{after:?}");
    Outcome::Passed
}

/// The last scenario: takes the shared lab down while everything runs on it.
pub fn down_leaves_nothing(cluster: &mut Cluster) -> Outcome {
    deploy(cluster, 5);
    let addresses = || std::fs::read_to_string("/proc/net/fib_trie").unwrap();
    assert!(
        !addresses().contains("172.30.0.") && !addresses().contains("10.244."),
        "nothing of the lab is on the machine"
    );
    let links = || std::fs::read_dir("/sys/class/net").unwrap().count();
    let before = links();
    assert!(!remains::of(&cluster.name).unwrap().is_empty(), "the positive control");
    let file = cluster.folder().join("contexts.json");
    let contexts = || Contexts::load(&file).unwrap();
    let context = format!("lab-{}", cluster.name);
    assert_eq!(contexts().current, context, "the lab's context is the current one");
    assert!(contexts().contexts.contains_key(&context), "{:?}", contexts().contexts.keys());
    // Another lab's was current meanwhile.
    let forget = |all: &mut Contexts| -> Result<(), ContextError> {
        all.current = "lab-another".to_owned();
        Ok(())
    };
    Contexts::change(&file, forget).unwrap();
    let said = cluster.lab_command(&["up", "--if-missing"]).ok();
    assert!(said.contains("is there") && said.contains(&format!("context {context} is current")), "{said}");
    assert_eq!(contexts().current, context);
    let said = cluster.lab_command(&["down"]).ok();
    cluster.gone = true;
    assert!(said.contains("is gone"), "{said}");
    assert_eq!(remains::of(&cluster.name).unwrap(), Vec::<String>::new());
    assert_eq!(links(), before);
    assert!(contexts().contexts.is_empty() && contexts().current.is_empty(), "the context is gone too");
    Outcome::Passed
}

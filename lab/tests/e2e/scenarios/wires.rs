//! Lossy and one-way wires, and that nobody is taken for dead who is not.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use trellis_lab::{
    Error,
    backend::{Backend, Power},
    netns, wait,
    workload::web,
};

use crate::{
    cluster::{Cluster, LIMIT, Pod},
    harness::Outcome,
};

/// A node that stops is declared dead within two seconds: this is plenty to be wrong in.
const WATCHED: Duration = Duration::from_secs(8);
/// On each node's wire: a packet from one to another passes two, and 9.75 % are lost.
const LOSS_PERCENT: &str = "5";

/// What netds say of others from now on.
pub struct Verdicts<'a> {
    cluster: &'a Cluster,
    begins: Vec<(String, usize)>,
}

impl<'a> Verdicts<'a> {
    pub fn from_now(cluster: &'a Cluster) -> Self {
        let begins = cluster.lab.topology().nodes.iter().map(|n| (n.name.clone(), log(cluster, &n.name).len()));
        Self { begins: begins.collect(), cluster }
    }

    /// (who says it, of whom), a pair for each time that somebody was declared dead.
    pub fn dead(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (observer, begin) in &self.begins {
            let text = log(self.cluster, observer);
            for line in text.get(*begin..).unwrap_or_default().lines().filter(|l| l.contains("liveness=Dead")) {
                let of = self.cluster.lab.topology().nodes.iter().find(|n| line.contains(&format!("{:?}", n.name)));
                found.push((observer.clone(), of.map_or_else(|| line.to_owned(), |n| n.name.clone())));
            }
        }
        found
    }
}

fn log(cluster: &Cluster, node: &str) -> String {
    std::fs::read_to_string(cluster.lab.log(node, "netd")).unwrap_or_default()
}

/// How many of so many packets from a node to another arrive.
fn arrive(cluster: &Cluster, from: &str, to: &str, count: usize) -> usize {
    let socket = |node: &str| {
        let address = cluster.lab.topology().node(node).unwrap().address;
        let pid = cluster.lab.init_of(node).unwrap().pid;
        netns::inside(pid, move || UdpSocket::bind((address, 0)).map_err(Error::io("a socket of the test"))).unwrap()
    };
    let (from, to) = (socket(from), socket(to));
    to.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    for _ in 0..count {
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
    }
    (0..count).take_while(|_| to.recv(&mut [0; 8]).is_ok()).count()
}

fn deploy(cluster: &Cluster) -> Vec<Pod> {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 5).to_string());
    cluster.wait_ready("default", "app=web", 5)
}

fn uids(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(|p| p.uid.clone()).collect()
}

pub fn loss_kills_nobody(cluster: &mut Cluster) -> Outcome {
    let before = deploy(cluster);
    let verdicts = Verdicts::from_now(cluster);
    let names: Vec<String> = cluster.lab.topology().nodes.iter().map(|n| n.name.clone()).collect();
    for node in &names {
        cluster.lab_command(&["loss", node, LOSS_PERCENT]).ok();
    }
    let arrived = arrive(cluster, "n4", "n5", 200);
    assert!((140..199).contains(&arrived), "the positive control: {arrived} of 200 packets arrived");
    thread::sleep(WATCHED);
    assert_eq!(verdicts.dead(), [], "somebody alive was declared dead");
    assert_eq!(uids(&cluster.wait_ready("default", "app=web", 5)), uids(&before), "nobody was replaced");
    // The positive control of the silence above: a death is noticed on such wires too.
    cluster.lab.kill("n5").unwrap();
    let noticed = || verdicts.dead().iter().filter(|(by, of)| by != "n5" && of == "n5").count() >= 4;
    wait::until_true("all others know of n5's death", LIMIT, noticed).unwrap();
    assert_eq!(cluster.lab.power("n5").unwrap(), Power::Off);
    cluster.lab.heal().unwrap();
    cluster.start("n5");
    cluster.wait_all_nodes_ready();
    Outcome::Passed
}

/// More than the time in which a node that answers nothing is declared dead.
const STOOD_STILL: Duration = Duration::from_secs(5);

pub fn stood_still(cluster: &mut Cluster) -> Outcome {
    let before = deploy(cluster);
    let verdicts = Verdicts::from_now(cluster);
    cluster.lab_command(&["pause", "n5"]).ok();
    thread::sleep(STOOD_STILL);
    assert_eq!(cluster.lab.power("n5").unwrap(), Power::Paused);
    cluster.lab_command(&["resume", "n5"]).ok();
    // To itself no time has passed, and none of its probes was answered: that says nothing of the others.
    thread::sleep(WATCHED);
    let dead = verdicts.dead();
    assert!(dead.iter().filter(|(by, of)| by != "n5" && of == "n5").count() >= 4, "the positive control: {dead:?}");
    let wrong: Vec<_> = dead.iter().filter(|(_, of)| of != "n5").collect();
    assert!(wrong.is_empty(), "who stood still took others for dead: {wrong:?}");
    cluster.wait_all_nodes_ready();
    let after = uids(&cluster.wait_ready("default", "app=web", 5));
    let replaced: Vec<_> = before.iter().filter(|p| p.node != "n5" && !after.contains(&p.uid)).collect();
    assert!(replaced.is_empty(), "only what ran on n5 may have been replaced: {replaced:?}");
    Outcome::Passed
}

/// How often the Node's Ready condition changed while it was watched.
fn changes(cluster: &Cluster, node: &str, length: Duration) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < length {
        let object = cluster.api.get("Node", "", node).ok().flatten().unwrap_or_default();
        let status = trellis_lab::cluster::api::condition(&object, "Ready").map(str::to_owned);
        if let Some(status) = status
            && seen.last() != Some(&status)
        {
            seen.push(status);
        }
        thread::sleep(Duration::from_millis(100));
    }
    seen
}

pub fn one_way(cluster: &mut Cluster) -> Outcome {
    let before = deploy(cluster);
    // To one of its peers only: the others vouch for it.
    let verdicts = Verdicts::from_now(cluster);
    cluster.lab_command(&["partition", "--one-way", "n5", "/", "n4"]).ok();
    assert_eq!((arrive(cluster, "n5", "n4", 5), arrive(cluster, "n4", "n5", 5)), (0, 5), "the positive control");
    assert_eq!(changes(cluster, "n5", WATCHED / 2), ["True"]);
    assert_eq!(verdicts.dead(), [], "one broken wire is no death");
    cluster.lab.heal().unwrap();
    // To all of them, and from all of them: it is lost, once, and stays so.
    for (from, to) in [("n5", "n1,n2,n3,n4"), ("n1,n2,n3,n4", "n5")] {
        cluster.lab_command(&["partition", "--one-way", from, "/", to]).ok();
        let seen = changes(cluster, "n5", WATCHED);
        assert!(
            seen.last().is_some_and(|s| s != "True") && seen.iter().filter(|s| *s == "True").count() <= 1,
            "{from} to {to}: Ready was {seen:?}"
        );
        cluster.lab.heal().unwrap();
        cluster.wait_all_nodes_ready();
        assert_eq!(changes(cluster, "n5", Duration::from_secs(2)), ["True"], "back, and for good");
    }
    let after = cluster.wait_ready("default", "app=web", 5);
    let gone = before.iter().filter(|p| p.node != "n5" && !after.iter().any(|a| a.uid == p.uid)).count();
    assert_eq!(gone, 0, "only what ran on n5 was replaced: {before:?}, {after:?}");
    Outcome::Passed
}

//! `trellis-lab demo`: what the project is for, before one's eyes. A web application whose image
//! is built here runs three times, each Pod is asked from another node, a node loses its power,
//! and the time until everything answers again is told from the cluster's own events.

mod timeline;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use trellis_proto::{node_config::Role, patience::stretched};

use self::timeline::{Event, Watchers};
use crate::{
    Error, Result,
    backend::{Backend, Power},
    cluster::{Api, api::condition, up},
    layout::Layout,
    progress::Progress,
    topology::{Node, Topology},
    wait,
    workload::web,
};

/// The Deployment's name.
const NAME: &str = "web";
const REPLICAS: usize = 3;
/// The aim is five seconds; after this the demonstration has failed.
const LIMIT: Duration = Duration::from_secs(60);
/// A Pod on a live node answers within milliseconds.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// One of the application's Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    name: String,
    uid: String,
    node: String,
    address: String,
}

/// Everything the demonstration needs at hand.
struct Stage<'a> {
    backend: &'a dyn Backend,
    layout: &'a Layout,
    bin_dir: &'a Path,
    api: Api,
}

/// Runs it; the cluster stays up. With `kill` false all nodes stay alive.
pub fn run(backend: &dyn Backend, layout: &Layout, bin_dir: &Path, kill: bool) -> Result<()> {
    if kill {
        spare_nodes(backend.topology())?;
    }
    let stage = Stage { backend, layout, bin_dir, api: Api::open(&layout.contexts())? };
    stage.make_whole()?;
    stage.deploy()?;
    let pods = stage.wait_for_pods()?;
    stage.ask_each(&pods)?;
    let victim = if kill { Some(stage.kill_one(&pods)?) } else { None };
    stage.say_what_to_try(victim.as_deref());
    Ok(())
}

impl Stage<'_> {
    /// A demonstration may be repeated: the node that the last one killed comes back first.
    fn make_whole(&self) -> Result<()> {
        for node in &self.backend.topology().nodes {
            match self.backend.power(&node.name)? {
                Power::On => continue,
                Power::Off => up::restart(self.backend, self.layout, &node.name)?,
                Power::Paused => self.backend.resume(&node.name)?,
            }
            println!("0. {} is back\n", node.name);
        }
        up::wait_ready(&self.api, self.backend.topology(), &Progress::quiet())
    }

    fn deploy(&self) -> Result<()> {
        println!("1. An image, built here: no registry, no internet");
        let archive = web::write_archive(&self.layout.root)?;
        self.trellis(&["image", "import", &archive.display().to_string(), "--all-nodes"])?;
        println!("\n2. A Deployment of {REPLICAS} replicas");
        let manifest = self.layout.root.join("demo-web.json");
        let text = serde_json::to_vec_pretty(&web::deployment(NAME, 3))
            .map_err(|e| Error::Format { what: "the Deployment".to_owned(), why: e.to_string() })?;
        std::fs::write(&manifest, text).map_err(Error::io(manifest.display().to_string()))?;
        self.trellis(&["apply", "-f", &manifest.display().to_string()])
    }

    /// Runs the command line as a person would, showing what is typed.
    fn trellis(&self, args: &[&str]) -> Result<()> {
        println!("$ trellis {}", args.join(" "));
        let status = Command::new(self.bin_dir.join("trellis"))
            .args(args)
            .env("TRELLIS_CONFIG", self.layout.contexts())
            .stdin(Stdio::null())
            .status()
            .map_err(Error::io("run trellis"))?;
        if status.success() {
            return Ok(());
        }
        let what = format!("trellis {}", args.join(" "));
        Err(Error::Command { what, status: status.to_string(), output: String::new() })
    }

    fn pods(&self) -> Result<Vec<Pod>> {
        let pods = self.api.list("Pod", "default", &format!("app={NAME}"))?;
        Ok(pods.iter().filter(|p| is_serving(p)).filter_map(Pod::of).collect())
    }

    fn wait_for_pods(&self) -> Result<Vec<Pod>> {
        let begin = Instant::now();
        let pods = wait::until("three Ready Pods on nodes that are on", stretched(LIMIT), || {
            let pods = self.pods().map_err(|e| e.to_string())?;
            if pods.len() == REPLICAS { Ok(pods) } else { Err(format!("{} of {REPLICAS} are Ready", pods.len())) }
        })?;
        println!("   Ready after {:.2} s:", begin.elapsed().as_secs_f64());
        for pod in &pods {
            println!("   {:<28} {:<14} on {}", pod.name, pod.address, pod.node);
        }
        Ok(pods)
    }

    fn alive(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for node in &self.backend.topology().nodes {
            if self.backend.power(&node.name)? == Power::On {
                names.push(node.name.clone());
            }
        }
        Ok(names)
    }

    fn ask(&self, pod: &Pod, from: &str) -> Result<String> {
        let address: std::net::IpAddr = pod
            .address
            .parse()
            .map_err(|_| Error::Format { what: format!("the address of {}", pod.name), why: pod.address.clone() })?;
        let answer = self.backend.http_get(from, SocketAddr::new(address, web::PORT), "/", stretched(ASK_LIMIT))?;
        Ok(answer.body.trim().to_owned())
    }

    fn ask_each(&self, pods: &[Pod]) -> Result<()> {
        println!("\n3. Each Pod, asked from another node by its own address");
        let alive = self.alive()?;
        for pod in pods {
            let from = alive.iter().find(|n| **n != pod.node).unwrap_or(&pod.node);
            let answer = wait::until(&format!("an answer of {}", pod.name), stretched(LIMIT), || {
                self.ask(pod, from).map_err(|e| e.to_string())
            })?;
            println!("   {from} asks {:<14} -> {answer}", pod.address);
        }
        Ok(())
    }

    /// A node that carries a Pod and can be lost.
    fn choose_victim(&self, pods: &[Pod]) -> Result<String> {
        let spare = spare_nodes(self.backend.topology())?;
        let carries = |node: &&&Node| pods.iter().any(|p| p.node == node.name);
        spare.iter().find(carries).map(|n| n.name.clone()).ok_or_else(|| Error::Lacking {
            what: "no Pod of the demonstration runs on a node that the cluster can lose".to_owned(),
            how: "`demo --no-kill` leaves all nodes alive; a lab with more --workers can lose one".to_owned(),
        })
    }

    fn kill_one(&self, before: &[Pod]) -> Result<String> {
        let victim = self.choose_victim(before)?;
        let lost = before.iter().filter(|p| p.node == victim).count();
        println!("\n4. {victim} loses its power, and {lost} of the Pods with it");
        println!("$ trellis-lab kill {victim}");
        let observers: Vec<String> = self.alive()?.into_iter().filter(|n| *n != victim).collect();
        let sockets = observers.iter().filter_map(|n| self.backend.membership_socket(n)).collect();
        let known: BTreeSet<String> = before.iter().map(|p| p.uid.clone()).collect();
        let mut watchers = Watchers::start(&self.api, sockets, &victim, NAME, known)?;

        let begin = Instant::now();
        self.backend.kill(&victim)?;
        let events = watchers.until_recovered(self.api.runtime(), begin, stretched(LIMIT), lost)?;
        for event in &events {
            println!("   {:>6.2} s  {}", event.after.as_secs_f64(), event.what);
        }
        let pods = self.wait_for_replacements(&victim)?;
        let from = &observers[0];
        for pod in pods.iter().filter(|p| !before.contains(p)) {
            let answer = wait::until(&format!("an answer of {}", pod.name), stretched(LIMIT), || {
                self.ask(pod, from).map_err(|e| e.to_string())
            })?;
            let event = Event { after: begin.elapsed(), what: format!("answering: {answer}") };
            println!("   {:>6.2} s  {}", event.after.as_secs_f64(), event.what);
        }
        Ok(victim)
    }

    fn wait_for_replacements(&self, victim: &str) -> Result<Vec<Pod>> {
        wait::until("three Ready Pods elsewhere", stretched(LIMIT), || {
            let pods: Vec<Pod> = self.pods().map_err(|e| e.to_string())?;
            let living: Vec<Pod> = pods.into_iter().filter(|p| p.node != victim).collect();
            if living.len() >= REPLICAS { Ok(living) } else { Err(format!("{} Ready", living.len())) }
        })
    }

    fn say_what_to_try(&self, victim: Option<&str>) {
        let name = &self.backend.topology().name;
        let command = self.backend.command();
        println!("\nThe cluster stays up (context {}). Try:", self.backend.context());
        let found =
            std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|d| d.join("trellis").exists()));
        if !found {
            println!("  export PATH={}:$PATH", self.bin_dir.display());
        }
        println!("  trellis get pods -o wide");
        println!("  trellis get nodes");
        println!("  trellis scale deployment {NAME} --replicas=6");
        println!("  trellis logs deployment/{NAME}");
        if let Some(victim) = victim {
            println!("  {command} start {victim}");
        }
        println!("  {command} partition n1,n2 / n3   (and: heal)");
        let or = if name == "lab" { "                   (or: make lab-down)" } else { "" };
        println!("  {command} down{or}");
    }
}

/// The nodes of which the cluster can lose one: another is left to run Pods, and a majority of the members. Workers first,
/// so that the first lesson is about Pods and not about Raft.
fn spare_nodes(topology: &Topology) -> Result<Vec<&Node>> {
    let members = topology.control_planes().count();
    let can_lose_a_member = members > members / 2 + 1;
    let workers = topology.nodes.iter().filter(|n| !n.is_control_plane());
    let others = |n: &&Node| topology.nodes.iter().any(|o| o.name != n.name && o.roles.contains(&Role::Worker));
    let members_too = topology.control_planes().filter(|_| can_lose_a_member);
    let spare: Vec<&Node> = workers.chain(members_too).filter(others).collect();
    if spare.is_empty() {
        return Err(Error::Lacking {
            what: format!(
                "lab {} can lose none of its {} nodes: a majority of its {members} control-plane nodes must stay, \
                 and a node for Pods",
                topology.name,
                topology.nodes.len()
            ),
            how: "`demo --no-kill` leaves all nodes alive; `up --workers 2` makes nodes to lose".to_owned(),
        });
    }
    Ok(spare)
}

impl Pod {
    fn of(object: &Value) -> Option<Self> {
        Some(Self {
            name: object["metadata"]["name"].as_str()?.to_owned(),
            uid: object["metadata"]["uid"].as_str()?.to_owned(),
            node: object["spec"]["nodeName"].as_str()?.to_owned(),
            address: object["status"]["podIP"].as_str()?.to_owned(),
        })
    }
}

/// Ready, and not on its way out.
fn is_serving(pod: &Value) -> bool {
    condition(pod, "Ready") == Some("True") && pod["metadata"]["deletionTimestamp"].is_null()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_the_cluster_can_lose_is_killed() {
        for (control_planes, workers, want) in [
            (1, 0, None),
            (1, 2, Some(vec!["n2", "n3"])),
            (3, 0, Some(vec!["n1", "n2", "n3"])),
            (3, 1, Some(vec!["n4", "n1", "n2", "n3"])),
        ] {
            let topology = Topology::simple("t", control_planes, workers).unwrap();
            let spare = spare_nodes(&topology).ok();
            let names = spare.map(|nodes| nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>());
            assert_eq!(names, want, "{control_planes} and {workers}");
        }
        let told = spare_nodes(&Topology::simple("t", 1, 0).unwrap()).unwrap_err().to_string();
        assert!(told.contains("--no-kill"), "{told}");
    }
}

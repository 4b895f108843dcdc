//! What a lab consists of: nodes, their roles and addresses. One topology serves every backend.
//!
//! ```toml
//! name = "edge"
//! subnet = "172.30.0.0/24"
//! [[nodes]]
//! name = "n1"
//! roles = ["control-plane", "worker"]
//! labels = { zone = "a" }
//! ```
//! Without `nodes`, `control_planes` and `workers` count them. The same file may be YAML. `memory` (MiB), `cpus` and
//! `box`, of all nodes or of one, and `provider` are the Vagrantfile's: namespaces share this machine's.

use std::{collections::BTreeMap, collections::BTreeSet, net::Ipv4Addr, path::Path};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use trellis_proto::node_config::Role;

use crate::{Error, Result};

/// The address of node n1 is this far into the subnet; below it there is room for routers.
const FIRST_HOST: u32 = 11;
/// Bound of what one machine can carry; also what /24 has room for.
const MAX_NODES: usize = 200;
/// Those that the Vagrantfile knows.
const PROVIDERS: [&str; 2] = ["libvirt", "virtualbox"];

/// The file as it is written by a person.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: Option<String>,
    subnet: Option<Ipv4Network>,
    control_planes: Option<usize>,
    workers: Option<usize>,
    pod_cidr: Option<Ipv4Network>,
    certificate_lifetime: Option<String>,
    insecure_registries: Vec<String>,
    memory: Option<u32>,
    cpus: Option<u32>,
    #[serde(rename = "box")]
    vm_box: Option<String>,
    provider: Option<String>,
    nodes: Vec<FileNode>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    name: String,
    #[serde(default)]
    roles: Option<Vec<Role>>,
    #[serde(default)]
    address: Option<Ipv4Addr>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    memory: Option<u32>,
    #[serde(default)]
    cpus: Option<u32>,
    #[serde(default, rename = "box")]
    vm_box: Option<String>,
}

/// A checked topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The lab's name.
    pub name: String,
    /// The underlay.
    pub subnet: Ipv4Network,
    /// Where Pods get their addresses from; the cluster's own default when absent.
    pub pod_cidr: Option<Ipv4Network>,
    /// How long certificates live, as `trellis cluster init` takes it; its default when absent.
    #[serde(default)]
    pub certificate_lifetime: Option<String>,
    /// Registries that nodes speak plain HTTP to.
    #[serde(default)]
    pub insecure_registries: Vec<String>,
    /// At least one, the first of which carries the control plane.
    pub nodes: Vec<Node>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its host name and Node name.
    pub name: String,
    /// What runs on it.
    pub roles: Vec<Role>,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Labels of its Node.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Node {
    /// Does it carry a member of the control plane?
    #[must_use]
    pub fn is_control_plane(&self) -> bool {
        self.roles.contains(&Role::ControlPlane)
    }
}

/// What the command line says beside the file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--name`
    pub name: Option<String>,
    /// `--control-planes`
    pub control_planes: Option<usize>,
    /// `--workers`
    pub workers: Option<usize>,
    /// The underlay, where the file names none.
    pub subnet: Option<String>,
    /// Members of the control plane, where neither `control_planes` nor the file says; 3 when absent.
    pub usual_control_planes: Option<usize>,
    /// Workers, where neither `workers` nor the file says; 2 when absent.
    pub usual_workers: Option<usize>,
}

impl Topology {
    /// `control_planes` + `workers` nodes n1, n2, … in 172.30.0.0/24; control-plane nodes run
    /// Pods too.
    pub fn simple(name: &str, control_planes: usize, workers: usize) -> Result<Self> {
        let file = File { control_planes: Some(control_planes), workers: Some(workers), ..File::default() };
        Self::build(file, &Options { name: Some(name.to_owned()), ..Options::default() })
    }

    /// Reads `-f` (TOML when it ends in .toml, YAML otherwise), overridden by the options.
    pub fn load(path: Option<&Path>, options: &Options) -> Result<Self> {
        let Some(path) = path else { return Self::build(File::default(), options) };
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(Error::io(shown.clone()))?;
        Self::parse(&text, path.extension().is_some_and(|e| e == "toml"), &shown, options)
    }

    fn parse(text: &str, is_toml: bool, what: &str, options: &Options) -> Result<Self> {
        let bad = |why: String| Error::Format { what: what.to_owned(), why };
        let file: File = if is_toml {
            toml::from_str(text).map_err(|e| bad(e.to_string()))?
        } else {
            serde_saphyr::from_str(text).map_err(|e| bad(e.to_string()))?
        };
        Self::build(file, options)
    }

    fn build(file: File, options: &Options) -> Result<Self> {
        let name = options.name.clone().or(file.name).unwrap_or_else(|| "lab".to_owned());
        check_name("lab name", &name)?;
        check_vm("every node", file.memory, file.cpus, file.vm_box.as_deref())?;
        if let Some(provider) = file.provider.filter(|p| !PROVIDERS.contains(&p.as_str())) {
            return Err(Error::Topology(format!("provider {provider:?}: one of {}", PROVIDERS.join(", "))));
        }
        // Infallible by construction, yet spelled as an error rather than an unwrap.
        let default_subnet = Ipv4Network::new(Ipv4Addr::new(172, 30, 0, 0), 24);
        let subnet = match (file.subnet, &options.subnet) {
            (Some(subnet), _) => subnet,
            (None, Some(text)) => text.parse().map_err(|e| Error::Topology(format!("subnet {text}: {e}")))?,
            (None, None) => default_subnet.map_err(|e| Error::Topology(e.to_string()))?,
        };
        let listed = if file.nodes.is_empty() {
            counted(
                options.control_planes.or(file.control_planes).or(options.usual_control_planes).unwrap_or(3),
                options.workers.or(file.workers).or(options.usual_workers).unwrap_or(2),
            )
        } else {
            file.nodes
        };
        if listed.len() > MAX_NODES {
            return Err(Error::Topology(format!("{} nodes; one machine carries at most {MAX_NODES}", listed.len())));
        }
        let mut nodes = Vec::with_capacity(listed.len());
        for (i, node) in listed.into_iter().enumerate() {
            check_name("node name", &node.name)?;
            check_vm(&node.name, node.memory, node.cpus, node.vm_box.as_deref())?;
            let offset = FIRST_HOST + u32::try_from(i).unwrap_or(u32::MAX);
            let address = node.address.or_else(|| subnet.nth(offset)).filter(|a| subnet.contains(*a));
            let Some(address) = address else {
                return Err(Error::Topology(format!("node {}: no address for it in {subnet}", node.name)));
            };
            let roles = node.roles.unwrap_or_else(|| vec![Role::Worker]);
            nodes.push(Node { name: node.name, roles, address, labels: node.labels });
        }
        let topology = Self {
            name,
            subnet,
            pod_cidr: file.pod_cidr,
            certificate_lifetime: file.certificate_lifetime,
            insecure_registries: file.insecure_registries,
            nodes,
        };
        topology.check()?;
        Ok(topology)
    }

    fn check(&self) -> Result<()> {
        let members = self.control_planes().count();
        if ![1, 3, 5].contains(&members) {
            return Err(Error::Topology(format!("{members} control-plane nodes; 1, 3 or 5 make sense for Raft")));
        }
        if !self.nodes.first().is_some_and(Node::is_control_plane) {
            return Err(Error::Topology("the first node must have the role control-plane".to_owned()));
        }
        let names: BTreeSet<_> = self.nodes.iter().map(|n| &n.name).collect();
        let addresses: BTreeSet<_> = self.nodes.iter().map(|n| n.address).collect();
        if names.len() < self.nodes.len() || addresses.len() < self.nodes.len() {
            return Err(Error::Topology("two nodes share a name or an address".to_owned()));
        }
        Ok(())
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|n| n.name == name).ok_or_else(|| Error::NoNode {
            lab: self.name.clone(),
            node: name.to_owned(),
            known: self.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Its place in the list, which names its port on the underlay.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.node(name)?;
        Ok(self.nodes.iter().position(|n| n.name == name).unwrap_or_default())
    }

    /// The nodes that carry the control plane.
    pub fn control_planes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.is_control_plane())
    }
}

fn counted(control_planes: usize, workers: usize) -> Vec<FileNode> {
    (0..control_planes + workers)
        .map(|i| FileNode {
            name: format!("n{}", i + 1),
            roles: Some(if i < control_planes { vec![Role::ControlPlane, Role::Worker] } else { vec![Role::Worker] }),
            address: None,
            labels: BTreeMap::new(),
            memory: None,
            cpus: None,
            vm_box: None,
        })
        .collect()
}

/// What the Vagrantfile makes VMs of; looked at here so that one file serves both, and a mistake shows in either.
fn check_vm(whose: &str, memory: Option<u32>, cpus: Option<u32>, vm_box: Option<&str>) -> Result<()> {
    let fine = [("memory", memory != Some(0), "0: MiB from 1 on"), ("cpus", cpus != Some(0), "0: a number from 1 on")];
    let named = ("box", vm_box != Some(""), "\"\": a box's name, or leave it out");
    match fine.into_iter().chain([named]).find(|(_, fine, _)| !fine) {
        Some((field, _, why)) => Err(Error::Topology(format!("{whose}: {field} is {why}"))),
        None => Ok(()),
    }
}

/// Names become host names, folder names and cgroup names.
fn check_name(what: &str, name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && name.len() <= 40
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fine {
        return Ok(());
    }
    Err(Error::Topology(format!("{what} {name:?}: lower-case letters, digits and dashes inside, at most 40")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_are_three_and_two() {
        let t = Topology::load(None, &Options::default()).unwrap();
        assert_eq!(t.nodes.len(), 5);
        assert_eq!(t.control_planes().count(), 3);
        assert_eq!(t.nodes[0].address, Ipv4Addr::new(172, 30, 0, 11));
        assert_eq!(t.name, "lab");
    }

    #[test]
    fn toml_and_yaml_mean_the_same() {
        let toml =
            "name='edge'\n[[nodes]]\nname='a'\nroles=['control-plane']\n[[nodes]]\nname='b'\nlabels={zone='x'}\n";
        let yaml = "name: edge\nnodes:\n- name: a\n  roles: [control-plane]\n- name: b\n  labels: {zone: x}\n";
        let options = Options::default();
        let a = Topology::parse(toml, true, "t", &options).unwrap();
        assert_eq!(a, Topology::parse(yaml, false, "t", &options).unwrap());
        assert_eq!(a.nodes[1].roles, vec![Role::Worker]);
        assert_eq!(a.nodes[1].labels["zone"], "x");
    }

    #[test]
    fn what_only_vms_have_is_accepted_and_changes_nothing_here() {
        let plain = "nodes:\n- name: a\n  roles: [control-plane]\n";
        let vms = format!(
            "memory: 768\ncpus: 2\nbox: debian/bookworm64\nprovider: libvirt\n{plain}  memory: 640\n  cpus: 1\n  box: b\n"
        );
        let parse = |text: &str| Topology::parse(text, false, "t", &Options::default()).unwrap();
        assert_eq!(parse(&vms), parse(plain));
    }

    #[test]
    fn what_cannot_be_built_is_refused_by_name() {
        for (text, says) in [
            ("control_planes = 2", "2 control-plane nodes"),
            ("name = 'A'", "lab name \"A\""),
            ("[[nodes]]\nname='a'", "0 control-plane nodes"),
            ("nodez = 3", "nodez"),
            ("memory = '1 GB'", "memory"),
            ("cpus = 0", "every node: cpus is 0"),
            ("box = ''", "every node: box is \"\""),
            ("provider = 'xen'", "libvirt, virtualbox"),
            ("[[nodes]]\nname='a'\nroles=['control-plane']\nmemory=0", "a: memory is 0"),
            ("subnet='10.0.0.0/30'", "no address"),
            ("[[nodes]]\nname='a'\nroles=['control-plane']\n[[nodes]]\nname='a'", "share"),
        ] {
            let error = Topology::parse(text, true, "t", &Options::default()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}

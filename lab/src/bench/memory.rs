//! Memory of the daemons, as the kernel shares it out (PSS): `/proc/PID/smaps_rollup`.

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::json;

use super::{
    Bench, pods,
    report::{Aim, Figure},
};
use crate::{Result, wait, workload};

const PODS: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn idle(bench: &mut Bench<'_>) -> Result<()> {
    measure(bench, "idle");
    Ok(())
}

pub(super) fn with_pods(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    for i in 0..PODS {
        bench.api.apply(&pods::pod(&format!("mem{i}"), &json!({})))?;
    }
    wait::until("100 Pods run", LIMIT, || {
        let pods = bench.api.list("Pod", "default", "app=bench").map_err(|e| e.to_string())?;
        let running = pods.iter().filter(|p| p["status"]["phase"] == "Running").count();
        if running == PODS { Ok(()) } else { Err(format!("{running} of {PODS}")) }
    })?;
    measure(bench, "100 Pods");
    pods::remove_all(bench.api)
}

fn measure(bench: &mut Bench<'_>, when: &str) {
    let all = pss_megabytes(&bench.lab.layout().root.to_string_lossy());
    let mut add = |name: &str, values: Vec<f64>, aim| {
        bench.report.add(Figure::limit(format!("PSS of {name}, {when}"), "MB", values, Aim::AtMost(aim)));
    };
    add("a control plane", all.of("trellis-control"), 50.0);
    add("agent and netd", all.together("trellis-node-ag", "trellis-netd"), 30.0);
    add("a shim", all.of("trellis-shim"), 3.0);
}

/// Megabytes of each process, by the kernel's name of it (15 bytes) and the node that it runs on.
#[derive(Debug, Default)]
struct Found(BTreeMap<(String, String), Vec<f64>>);

impl Found {
    /// Of each process of that name.
    fn of(&self, name: &str) -> Vec<f64> {
        self.0.iter().filter(|((n, _), _)| n == name).flat_map(|(_, values)| values.iter().copied()).collect()
    }

    /// Of both daemons together, on each node that has both.
    fn together(&self, one: &str, other: &str) -> Vec<f64> {
        let on = |name: &str, node: &str| {
            let values = self.0.get(&(name.to_owned(), node.to_owned()))?;
            Some(values.iter().sum::<f64>())
        };
        let nodes = self.0.keys().filter(|(n, _)| n == one).map(|(_, node)| node.as_str());
        nodes.filter_map(|node| Some(on(one, node)? + on(other, node)?)).collect()
    }
}

/// Only of processes whose root lies in the lab.
fn pss_megabytes(lab: &str) -> Found {
    let mut all = Found::default();
    let Ok(entries) = fs::read_dir("/proc") else { return all };
    for entry in entries.filter_map(std::result::Result::ok) {
        let path = entry.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let name = name.trim().to_owned();
        if !name.starts_with("trellis-") {
            continue;
        }
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        let Some(node) = node_of(&mounts, lab) else { continue };
        let Ok(rollup) = fs::read_to_string(path.join("smaps_rollup")) else { continue };
        let kilobytes = rollup
            .lines()
            .find_map(|l| l.strip_prefix("Pss:"))
            .and_then(|v| v.trim().trim_end_matches(" kB").trim().parse::<f64>().ok());
        if let Some(kilobytes) = kilobytes {
            all.0.entry((name, node.to_owned())).or_default().push(kilobytes / 1024.0);
        }
    }
    all
}

/// The node of this lab that a process with these mounts runs on: it sees that node's folder, and no other's. The
/// kernel tells paths from the file system's root on, so the lab's may be shorter there.
fn node_of<'m>(mountinfo: &'m str, lab: &str) -> Option<&'m str> {
    let folder = format!("{}/nodes/", lab.trim_start_matches("/var/lib"));
    let (_, rest) = mountinfo.split_once(&folder)?;
    rest.split(['/', ' ']).next().filter(|node| !node.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_told_together_with_those_of_their_own_node() {
        let lab = "/var/lib/trellis-lab/bench";
        let mounts = |node: &str| {
            format!(
                "30 1 8:1 /lib/x /a rw - ext4 d rw\n31 1 8:1 /var/lib/trellis-lab/bench/nodes/{node}/data /b rw - ext4 d rw\n"
            )
        };
        assert_eq!(node_of(&mounts("n1"), lab), Some("n1"));
        assert_eq!(node_of(&mounts("n1"), "/var/lib/trellis-lab/other"), None);
        let mut found = Found::default();
        for (name, node, value) in [("a", "n1", 1.0), ("a", "n2", 2.0), ("b", "n2", 10.0), ("b", "n3", 20.0)] {
            found.0.entry((name.to_owned(), node.to_owned())).or_default().push(value);
        }
        assert_eq!(found.together("a", "b"), [12.0], "n1 and n3 have one of them only");
        assert_eq!(found.of("a"), [1.0, 2.0]);
    }
}

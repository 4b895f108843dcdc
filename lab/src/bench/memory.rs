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
    let of = |name: &str| all.get(name).cloned().unwrap_or_default();
    let mut add = |name: &str, values: Vec<f64>, aim| {
        bench.report.add(Figure::limit(format!("PSS of {name}, {when}"), "MB", values, Aim::AtMost(aim)));
    };
    add("a control plane", of("trellis-control"), 50.0);
    let both: Vec<f64> = of("trellis-node-ag").iter().zip(of("trellis-netd")).map(|(a, n)| a + n).collect();
    add("agent and netd", both, 30.0);
    add("a shim", of("trellis-shim"), 3.0);
}

/// By the kernel's name of the process (15 bytes); only processes whose root lies in the lab.
fn pss_megabytes(lab: &str) -> BTreeMap<String, Vec<f64>> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return all };
    for entry in entries.filter_map(std::result::Result::ok) {
        let path = entry.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let name = name.trim().to_owned();
        if !name.starts_with("trellis-") || !belongs(&path, lab) {
            continue;
        }
        let Ok(rollup) = fs::read_to_string(path.join("smaps_rollup")) else { continue };
        let kilobytes = rollup
            .lines()
            .find_map(|l| l.strip_prefix("Pss:"))
            .and_then(|v| v.trim().trim_end_matches(" kB").trim().parse::<f64>().ok());
        if let Some(kilobytes) = kilobytes {
            all.entry(name).or_default().push(kilobytes / 1024.0);
        }
    }
    all
}

/// Is the process one of this lab's? Its mounts say so.
fn belongs(proc: &std::path::Path, lab: &str) -> bool {
    fs::read_to_string(proc.join("mountinfo")).is_ok_and(|m| m.contains(lab.trim_start_matches("/var/lib")))
}

//! Figures, printed and not asserted: how long a sandbox and a container take, what a shim weighs.
#![allow(clippy::unwrap_used, missing_docs)]
mod common;

use std::fs;
use std::time::Instant;

use common::{Pod, pod, until};

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// (PSS, private) in kB.
fn weight(pod: &Pod) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.shim_pid)).unwrap_or_default();
    let field = |name: &str| -> u64 {
        text.lines()
            .filter(|l| l.starts_with(name))
            .filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    };
    (field("Pss:"), field("Private_Dirty:") + field("Private_Clean:"))
}

#[test]
fn figures() {
    const PODS: usize = 10;
    let (mut pods, mut times) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for _ in 0..PODS {
        let begin = Instant::now();
        let Some(pod) = pod("figures") else { return };
        let launched = Instant::now();
        let mut client = pod.client();
        client.create(pod.request("a", "echo up; sleep 1000")).unwrap();
        let created = Instant::now();
        client.start("a").unwrap();
        until("it is up", || !pod.lines("a", "stdout").is_empty());
        for (list, (from, to)) in
            times.iter_mut().zip([(begin, launched), (launched, created), (created, Instant::now())])
        {
            list.push(to.duration_since(from).as_secs_f64() * 1000.0);
        }
        pods.push(pod);
    }
    let [launch, create, up] = times.map(median);
    eprintln!(
        "FIGURE: sandbox {launch:.1} ms (test root made too), create {create:.1} ms, start to first log line {up:.1} ms"
    );
    let weights: Vec<(u64, u64)> = pods.iter().map(weight).collect();
    let pss = median(weights.iter().map(|w| w.0 as f64).collect());
    let private = median(weights.iter().map(|w| w.1 as f64).collect());
    eprintln!("FIGURE: {PODS} shims, each PSS {pss:.0} kB, private {private:.0} kB");
}

//! The pod network: throughput and round trip between Pods of two nodes, against a routed veth
//! path of as many hops with nothing in its way (see [`super::netpath`]). What the difference is
//! made of: docs/decisions/0014.

use std::{net::IpAddr, time::Duration};

use serde_json::{Value, json};

use super::{
    Bench,
    netpath::Reference,
    podns, pods,
    report::{Aim, Figure},
    traffic::Ends,
};
use crate::{Error, Result, backend::Backend, wait, workload};

/// Odd, so that the median is a round's.
const ROUNDS: usize = 9;
/// Each of ours and of the peer's, every round.
const LENGTH: Duration = Duration::from_secs(1);
/// Connections at once: one, and more than the machine has cores.
const STREAMS: [usize; 2] = [1, 4];
const LIMIT: Duration = Duration::from_secs(60);
/// Nine tenths and a half of what the plain path carries; for a round trip the other way round.
const SHARE: f64 = 0.95;
const PEER: &str = "routed veth, no rules";

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    let nodes = &bench.lab.topology().nodes;
    let [.., one, other] = nodes.as_slice() else {
        return Err(Error::Topology("two nodes are needed".to_owned()));
    };
    let (one, other) = (one.name.clone(), other.name.clone());
    let (client, _) = start(bench, "net-a", &one)?;
    let (server, address) = start(bench, "net-b", &other)?;
    let IpAddr::V4(address) = address else {
        return Err(Error::Topology(format!("{address} is not IPv4")));
    };
    let ours = Ends { client, server, address };
    let reference = Reference::build(bench.lab.underlay()?, bench.lab.topology().subnet)?;
    let theirs = reference.ends();
    for streams in STREAMS {
        let what = format!("throughput, {streams} TCP {}", if streams == 1 { "stream" } else { "streams" });
        let (a, b) = in_turn(bench, &what, ours, theirs, |ends| ends.throughput(streams, LENGTH))?;
        let aim = Aim::RatioAtLeast(SHARE);
        bench.report.add(Figure::beside(format!("Pod to Pod across nodes, {what}"), "Gbit/s", a, PEER, b, aim));
    }
    let (a, b) = in_turn(bench, "round trip", ours, theirs, |ends| ends.round_trip(LENGTH))?;
    let aim = Aim::RatioAtMost(1.0 / SHARE);
    bench.report.add(Figure::beside("Pod to Pod across nodes, round trip", "µs", a, PEER, b, aim));
    drop(reference);
    pods::remove_all(bench.api)
}

/// Who goes first changes every round: the first finds caches as the other left them.
fn in_turn(
    bench: &Bench<'_>,
    what: &str,
    ours: Ends,
    theirs: Ends,
    measure: impl Fn(Ends) -> Result<f64>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bench.progress.now(&format!("{what}, round {} of {ROUNDS}", round + 1));
        if round % 2 == 0 {
            a.push(measure(ours)?);
            b.push(measure(theirs)?);
        } else {
            b.push(measure(theirs)?);
            a.push(measure(ours)?);
        }
    }
    Ok((a, b))
}

/// A Pod on that node: a process in its namespace, and its address.
fn start(bench: &Bench<'_>, name: &str, node: &str) -> Result<(i32, IpAddr)> {
    let mut pod: Value = pods::pod(name, &json!({}));
    pod["spec"]["nodeName"] = json!(node);
    bench.api.apply(&pod)?;
    let address = wait::until(&format!("Pod {name} runs"), LIMIT, || {
        let pod = bench.api.get("Pod", "default", name).map_err(|e| e.to_string())?.unwrap_or_default();
        let running = pod["status"]["phase"] == "Running";
        let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
        ip.filter(|_| running).ok_or_else(|| format!("phase {}", pod["status"]["phase"]))
    })?;
    Ok((podns::process_of(bench.lab.init_of(node)?.pid, address)?, address))
}

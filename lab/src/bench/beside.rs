//! Pod starts beside `podman run` in a podman pod: one at a time, and thirty at once, in turn.
//!
//! Both serve the same page from the same image on a network of their own; what is timed is from
//! the request to the first answer over HTTP. Ours takes the way through API, scheduler and agent
//! and is asked from another node; podman's is one command on the machine itself.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Bench,
    podman::Podman,
    pods,
    report::{Aim, Figure},
};
use crate::{Error, Result, backend::Backend, workload};

const ROUNDS: usize = 15;
const AT_ONCE: usize = 30;
const AT_ONCE_ROUNDS: usize = 3;
/// Ours and theirs before what is timed: layers are read from disk once.
const UNTIMED: usize = 2;
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const PEER: &str = "podman run in a pod";

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    let mut podman = Podman::start(bench.lab, bench.exe.to_path_buf())?;
    let from = bench.lab.topology().nodes[0].name.clone();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..UNTIMED + ROUNDS {
        bench.progress.now(&format!("a Pod and a podman pod, round {} of {}", round + 1, UNTIMED + ROUNDS));
        let (a, b) = (one(bench, &from, &format!("beside{round}"))?, podman.one()?);
        if round >= UNTIMED {
            ours.push(a);
            theirs.push(b);
        }
    }
    let aim = Aim::RatioAtMost(1.0);
    bench.report.add(Figure::beside("Pod create to first answer, beside podman", "ms", ours, PEER, theirs, aim));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..AT_ONCE_ROUNDS {
        bench.progress.now(&format!("{AT_ONCE} at once, round {} of {AT_ONCE_ROUNDS}", round + 1));
        ours.push(many(bench, &format!("beside{round}-"))?);
        theirs.push(podman.many(AT_ONCE)?);
    }
    let name = format!("{AT_ONCE} Pods at once, all Running, beside podman");
    bench.report.add(Figure::beside(name, "s", ours, PEER, theirs, aim));
    Ok(())
}

/// Milliseconds to the first answer, asked from another machine.
fn one(bench: &Bench<'_>, from: &str, name: &str) -> Result<f64> {
    let begin = Instant::now();
    bench.api.apply(&pods::pod(name, &json!({})))?;
    let late = |what: &str| Error::Format { what: format!("Pod {name}"), why: format!("{what} within {LIMIT:?}") };
    let running = || -> Result<Option<IpAddr>> {
        let pod = bench.api.get("Pod", "default", name)?.unwrap_or_default();
        let address = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
        Ok(address.filter(|_| pod["status"]["phase"] == "Running"))
    };
    let address = loop {
        match running()? {
            Some(address) => break address,
            None if begin.elapsed() > LIMIT => return Err(late("it did not run")),
            None => thread::sleep(LOOK_AGAIN),
        }
    };
    let address = SocketAddr::new(address, workload::web::PORT);
    while bench.lab.http_get(from, address, "/", Duration::from_secs(1)).is_err() {
        if begin.elapsed() > LIMIT {
            return Err(late("it did not answer"));
        }
        thread::sleep(LOOK_AGAIN);
    }
    let millis = begin.elapsed().as_secs_f64() * 1e3;
    pods::remove_all(bench.api)?;
    Ok(millis)
}

/// Seconds until all run.
fn many(bench: &Bench<'_>, prefix: &str) -> Result<f64> {
    let begin = Instant::now();
    for i in 0..AT_ONCE {
        bench.api.apply(&pods::pod(&format!("{prefix}{i}"), &json!({})))?;
    }
    loop {
        let pods = bench.api.list("Pod", "default", "app=bench")?;
        let running = pods.iter().filter(|p| p["status"]["phase"] == "Running").count();
        if running == AT_ONCE {
            break;
        }
        if begin.elapsed() > LIMIT {
            let why = format!("{running} of {AT_ONCE} ran within {LIMIT:?}");
            return Err(Error::Format { what: "Pods at once".to_owned(), why });
        }
        thread::sleep(LOOK_AGAIN * 5);
    }
    let seconds = begin.elapsed().as_secs_f64();
    pods::remove_all(bench.api)?;
    Ok(seconds)
}

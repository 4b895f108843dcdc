//! Pod starts beside `podman run` in a podman pod: one at a time, and thirty at once, in turn.
//!
//! Both serve the same page from the same image on a network of their own; what is timed is from
//! the request to the first answer over HTTP. Ours takes the way through API, scheduler and agent
//! and is asked from another node; podman's is one command on the machine itself. Neither side is
//! polled for what it can tell by itself: a watch says when ours run, podman returns then; and where
//! thirty are started at once, all thirty are asked for at once on both sides.

use super::{
    Bench,
    podman::Podman,
    pods,
    report::{Aim, Figure},
    starts::Client,
};
use crate::{Result, backend::Backend, workload};

const ROUNDS: usize = 15;
const AT_ONCE: usize = 30;
const AT_ONCE_ROUNDS: usize = 3;
/// Ours and theirs before what is timed: layers are read from disk once.
const UNTIMED: usize = 2;
const PEER: &str = "podman run in a pod";

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    let mut podman = Podman::start(bench.lab, bench.exe.to_path_buf())?;
    let mut client = Client::open(bench)?;
    let from = bench.lab.topology().nodes[0].name.clone();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..UNTIMED + ROUNDS {
        bench.progress.now(&format!("a Pod and a podman pod, round {} of {}", round + 1, UNTIMED + ROUNDS));
        let a = client.one(bench, &from, &format!("beside{round}"))?.answered;
        pods::remove_all(bench.api)?;
        let b = podman.one()?;
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
        ours.push(client.many(&format!("beside{round}-"))?);
        pods::remove_all(bench.api)?;
        theirs.push(podman.many(AT_ONCE)?);
    }
    let name = format!("{AT_ONCE} Pods at once, all Running, beside podman");
    bench.report.add(Figure::beside(name, "s", ours, PEER, theirs, aim));
    Ok(())
}

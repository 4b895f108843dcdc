//! Measurements, each beside a peer or a limit in the same run: `trellis-lab bench`.
//!
//! A figure alone says what the machine did that minute. So ours and the peer's are taken in
//! turn, each several times, and what is reported is medians, their spread, and the ratio.
//! Nothing here passes or fails: the table says which aims were met.

mod beside;
mod etcd;
mod failover;
mod load;
mod memory;
mod netpath;
mod network;
mod podman;
mod podns;
mod pods;
mod report;
mod starts;
mod traffic;
mod writes;

use std::path::{Path, PathBuf};

use crate::{
    Error, Result,
    backend::{Backend, Namespaces},
    cluster::{Api, up},
    layout::Layout,
    programs::Programs,
    progress::Progress,
    topology::{Options, Topology},
};

pub use report::{Aim, Figure, Report};

/// What `bench` is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The lab's name.
    pub name: String,
    /// Only groups whose name holds one of these; empty for all.
    pub only: Vec<String>,
    /// Where the JSON goes.
    pub output: PathBuf,
    /// How often a failure is repeated.
    pub failovers: usize,
}

/// What a group of measurements works on.
struct Bench<'a> {
    lab: &'a Namespaces,
    api: &'a Api,
    progress: &'a Progress,
    report: &'a mut Report,
    failovers: usize,
    /// The `trellis-lab` program.
    exe: &'a Path,
}

/// A group: its name and what it does.
type Group = (&'static str, fn(&mut Bench<'_>) -> Result<()>);

/// In the order in which they disturb the cluster least.
const GROUPS: &[Group] = &[
    ("memory", memory::idle),
    // Before the loads, whose objects stay.
    ("memory-with-pods", memory::with_pods),
    ("api-writes", writes::run),
    ("pod-creates", pods::creates),
    ("pod-start", starts::run),
    ("pod-start-beside-podman", beside::run),
    ("pod-network", network::run),
    ("leader-failover", failover::leader),
    ("node-failover", failover::node),
];

/// Makes a lab of its own, measures, prints, writes the JSON, takes the lab down.
pub fn run(exe: PathBuf, programs: &Programs, request: &Request) -> Result<()> {
    let given =
        Options { name: Some(request.name.clone()), control_planes: Some(3), workers: Some(2), ..Options::default() };
    let bin_dir = programs.bin_dir(&Layout::of(&request.name));
    let lab = Namespaces::new(Topology::load(None, &given)?, bin_dir, exe.clone())?;
    let progress = Progress::new();
    lab.create()?;
    programs.gather(lab.bin_dir())?;
    let mut report = Report::default();
    let measured = up::bring_up(&lab, lab.layout(), &progress).and_then(|()| {
        report.add(Figure::limit(
            "lab up, 5 nodes Ready",
            "s",
            vec![progress.elapsed().as_secs_f64()],
            Aim::AtMost(10.0),
        ));
        measure(&lab, &exe, &progress, &mut report, request)
    });
    progress.finish();
    let removed = lab.destroy();
    let context = crate::cluster::contexts::remove(&crate::cluster::contexts::users_file(), &request.name);
    print!("{}", report.table());
    write(&request.output, &report)?;
    println!("written to {}", request.output.display());
    measured.and(removed).and(context)
}

fn measure(lab: &Namespaces, exe: &Path, progress: &Progress, report: &mut Report, request: &Request) -> Result<()> {
    let api = Api::open(&lab.layout().contexts())?;
    let wanted = |name: &str| request.only.is_empty() || request.only.iter().any(|o| name.contains(o.as_str()));
    for (name, group) in GROUPS.iter().filter(|(name, _)| wanted(name)) {
        progress.done(&format!("measuring {name}"));
        let mut bench = Bench { lab, api: &api, progress, report, failovers: request.failovers, exe };
        // One group's failure leaves the others' figures standing.
        if let Err(error) = group(&mut bench) {
            report.missing(name, &error.to_string());
            progress.done(&format!("{name} could not be measured: {error}"));
        }
    }
    Ok(())
}

fn write(path: &Path, report: &Report) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder.display().to_string()))?;
    }
    std::fs::write(path, report.json()?).map_err(Error::io(path.display().to_string()))
}

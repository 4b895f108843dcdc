//! One function a verb.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use trellis_lab::{
    Error, Result,
    backend::{Backend, Namespaces},
    bench, cgroup,
    cluster::{contexts, up},
    demo,
    fault::state::{parse_delay, parse_percent},
    layout::{Layout, Made},
    node::{enter, init, spawn},
    peer,
    programs::Programs,
    progress::Progress,
    remains, status,
    topology::{Options, Topology},
};

use crate::args::{Args, Command, Up};
use crate::vms;

const DEFAULT_NAME: &str = "lab";
/// The bench's own lab.
const BENCH_NAME: &str = "bench";
/// Between two looks at a growing log.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

pub fn dispatch(args: Args) -> Result<ExitCode> {
    if args.vagrant {
        return vms::dispatch(&args);
    }
    let name = args.name.as_deref().unwrap_or(DEFAULT_NAME);
    let done = match &args.command {
        // First, while this process has one thread only.
        Command::NodeSpawn { spec } => spawn::node_main(spec),
        Command::UnderlaySpawn { spec } => spawn::underlay_main(spec),
        Command::UnderlayHold { .. } => spawn::hold_main(),
        Command::NodeInit { spec } => init::main(spec),
        Command::Peer { spec, command } => peer::main(spec, command),
        Command::Exec { node, env, command } => return exec(name, node, env, command),
        Command::Shell { node } => return shell(name, node),
        Command::Up(options) => up(args.name.clone(), options),
        Command::Down { all } => down(name, *all),
        Command::Status { output } => show_status(name, output),
        Command::Kill { node } => open(name)?.kill(node),
        Command::Start { node } => {
            let lab = open(name)?;
            up::restart(&lab, lab.layout(), node)
        }
        Command::Pause { node } => open(name)?.pause(node),
        Command::Resume { node } => open(name)?.resume(node),
        Command::Wipe { node } => open(name)?.wipe(node),
        Command::Partition { groups, one_way } => partition(&open(name)?, groups, *one_way),
        Command::Loss { node, percent } => open(name)?.lose(node, parse_percent(percent)?),
        Command::Delay { node, by } => open(name)?.delay(node, parse_delay(by)?),
        Command::Heal => open(name)?.heal(),
        Command::Logs { node, daemon, follow } => logs(&open(name)?, node, daemon, *follow),
        Command::Demo { no_kill } => {
            let lab = open(name)?;
            demo::run(&lab, lab.layout(), lab.bin_dir(), !no_kill)
        }
        Command::Bench { only, output, failovers } => {
            let name = args.name.as_deref().unwrap_or(BENCH_NAME).to_owned();
            let request = bench::Request { name, only: only.clone(), output: output.clone(), failovers: *failovers };
            let exe = own_exe()?;
            let programs = Programs::of(&exe)?;
            bench::run(exe, &programs, &request)
        }
        Command::Daemon { action, node, daemon } => control_daemon(&open(name)?, action, node, daemon),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn open(name: &str) -> Result<Namespaces> {
    Namespaces::open(name, own_exe()?)
}

fn own_exe() -> Result<PathBuf> {
    std::env::current_exe().map_err(Error::io("find this program"))
}

fn up(name: Option<String>, options: &Up) -> Result<()> {
    let given =
        Options { name, control_planes: options.control_planes, workers: options.workers, ..Options::default() };
    let topology = Topology::load(options.file.as_deref(), &given)?;
    let exe = own_exe()?;
    let layout = Layout::of(&topology.name);
    if options.if_missing && !is_missing(&layout, &exe)? {
        return is_there(&layout);
    }
    let (bin_dir, programs) = bin_dir(options, &exe, &layout)?;
    let progress = Progress::new();
    let lab = Namespaces::new(topology, bin_dir, exe)?;
    layout.begin()?;
    lab.create()?;
    if let Some(programs) = programs {
        programs.gather(lab.bin_dir())?;
    }
    let done = if options.bare { up::power_on(&lab, &progress) } else { up::bring_up(&lab, lab.layout(), &progress) };
    progress.finish();
    let name = &lab.topology().name;
    done.inspect_err(|_| {
        eprintln!("the lab is left as it is: `trellis-lab -n {name} status` and `logs` show it, `down` removes it");
    })?;
    layout.finished()?;
    println!("lab {name} is up after {:.1} s", progress.elapsed().as_secs_f64());
    if !options.bare {
        println!("context {} is current: try `trellis get nodes`", contexts::name_of(name));
    }
    Ok(())
}

/// The lab is there: whoever asked for it means it from now on.
fn is_there(layout: &Layout) -> Result<()> {
    println!("lab {} is there", layout.name);
    // A lab of bare nodes has none.
    if layout.contexts().exists() {
        let context = contexts::name_of(&layout.name);
        contexts::add(&contexts::users_file(), &context, contexts::read(&layout.contexts())?)?;
        println!("context {context} is current");
    }
    Ok(())
}

/// Whether the lab is to be made. What is left of one whose making did not come to its end is removed.
fn is_missing(layout: &Layout, exe: &Path) -> Result<bool> {
    match layout.made()? {
        Made::Not => Ok(true),
        Made::Whole => Ok(false),
        Made::Half => {
            println!("lab {} was not finished: it is made anew", layout.name);
            Namespaces::open(&layout.name, exe.to_path_buf())?.destroy()?;
            Ok(true)
        }
    }
}

/// The folder of programs that nodes see, and what is to be put into it; bare nodes may do without.
fn bin_dir(options: &Up, exe: &Path, layout: &Layout) -> Result<(PathBuf, Option<Programs>)> {
    let found = match &options.bin_dir {
        Some(given) => Programs::within(given),
        None => Programs::of(exe),
    };
    match found {
        Ok(programs) => Ok((programs.bin_dir(layout), Some(programs))),
        Err(_) if options.bare => {
            let beside = exe.parent().unwrap_or(Path::new("/"));
            let folder = options.bin_dir.as_deref().unwrap_or(beside);
            Ok((folder.canonicalize().map_err(Error::io(folder.display().to_string()))?, None))
        }
        Err(e) => Err(e),
    }
}

fn down(name: &str, all: bool) -> Result<()> {
    let names = if all { Layout::all()? } else { vec![name.to_owned()] };
    for name in names {
        let layout = Layout::of(&name);
        let was_there = match open(&name) {
            Ok(lab) => {
                lab.destroy()?;
                contexts::remove(&contexts::users_file(), &name)?;
                true
            }
            Err(Error::NoLab { .. }) => layout.sweep()?,
            Err(e) => return Err(e),
        };
        if !was_there {
            // `down` twice is `down`.
            println!("there is no lab {name} in {}", layout.root.display());
            continue;
        }
        let left = remains::of(&name)?;
        if !left.is_empty() {
            return Err(Error::Remains { name, left: left.join("; ") });
        }
        println!("lab {name} is gone");
    }
    Ok(())
}

fn show_status(name: &str, output: &str) -> Result<()> {
    let lab = open(name)?;
    let status = status::collect(&lab, lab.layout())?;
    if output == "json" {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|e| Error::Format { what: "the status".to_owned(), why: e.to_string() })?;
        println!("{text}");
    } else {
        print!("{}", status::table(&status));
    }
    Ok(())
}

/// Cuts nodes off, each way or one way.
pub fn partition(lab: &impl Backend, words: &[String], one_way: bool) -> Result<()> {
    let groups = parse_groups(words)?;
    if !one_way {
        return lab.partition(&groups);
    }
    match groups.as_slice() {
        [from, to] => lab.cut_one_way(from, to),
        _ => Err(Error::Format {
            what: format!("partition --one-way {:?}", words.join(" ")),
            why: format!("two groups are wanted, as in `partition --one-way n1 / n2,n3`; these are {}", groups.len()),
        }),
    }
}

/// `a,b / c` as separate words, as one, or without blanks.
pub(crate) fn parse_groups(words: &[String]) -> Result<Vec<Vec<String>>> {
    let names = |group: &str| group.split([',', ' ']).filter(|n| !n.is_empty()).map(str::to_owned).collect();
    let groups: Vec<Vec<String>> = words.join(" ").split('/').map(names).collect();
    if groups.iter().any(Vec::is_empty) {
        return Err(Error::Format {
            what: format!("partition {:?}", words.join(" ")),
            why: "a group is empty; write it as in `partition n1,n2 / n3`".to_owned(),
        });
    }
    let mut all: Vec<&String> = groups.iter().flatten().collect();
    all.sort();
    if let Some(twice) = all.windows(2).find(|w| w[0] == w[1]) {
        return Err(Error::Format {
            what: format!("partition {:?}", words.join(" ")),
            why: format!("{} is in it twice", twice[0]),
        });
    }
    Ok(groups)
}

fn exec(name: &str, node: &str, env: &[String], command: &[String]) -> Result<ExitCode> {
    let lab = open(name)?;
    let init = lab.init_of(node)?;
    let env: Vec<(String, String)> =
        env.iter().filter_map(|e| e.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let cgroups: Vec<cgroup::CgroupDir> = lab.cgroups_of(node)?;
    let status = enter::run(init.pid, &cgroups, command, &env)?;
    Ok(ExitCode::from(enter::exit_code(status)))
}

fn shell(name: &str, node: &str) -> Result<ExitCode> {
    let prompt = ("PS1".to_owned(), format!("[{name}] root@{node}:\\w# "));
    let lab = open(name)?;
    let init = lab.init_of(node)?;
    let argv = if Path::new("/bin/bash").exists() {
        vec!["/bin/bash".to_owned(), "--norc".to_owned(), "-i".to_owned()]
    } else {
        vec!["/bin/sh".to_owned(), "-i".to_owned()]
    };
    let status = enter::run(init.pid, &lab.cgroups_of(node)?, &argv, &[prompt])?;
    Ok(ExitCode::from(enter::exit_code(status)))
}

fn logs(lab: &Namespaces, node: &str, daemon: &str, follow: bool) -> Result<()> {
    lab.topology().node(node)?;
    let path = lab.log(node, daemon);
    let io = || Error::io(path.display().to_string());
    let mut file = File::open(&path).map_err(io())?;
    let mut out = std::io::stdout().lock();
    let mut at = 0;
    loop {
        let mut chunk = Vec::new();
        // A log that was emptied is read from its begin again.
        if file.metadata().map_err(io())?.len() < at {
            at = 0;
        }
        file.seek(SeekFrom::Start(at)).map_err(io())?;
        at += file.read_to_end(&mut chunk).map_err(io())? as u64;
        if out.write_all(&chunk).and_then(|()| out.flush()).is_err() || !follow {
            // The reader has gone, or has it all.
            return Ok(());
        }
        thread::sleep(FOLLOW_PERIOD);
    }
}

pub(crate) fn control_daemon(lab: &dyn Backend, action: &str, node: &str, daemon: &str) -> Result<()> {
    let start = || -> Result<()> {
        let all = up::daemons_of(lab.topology().node(node)?);
        let spec = all.into_iter().find(|d| d.name == daemon).ok_or_else(|| Error::Format {
            what: format!("daemon {daemon:?}"),
            why: format!("node {node} has none of that name"),
        })?;
        lab.start_daemon(node, spec)
    };
    match action {
        "stop" => lab.stop_daemon(node, daemon),
        "start" => start(),
        "crash" => lab.signal_daemon(node, daemon, nix::sys::signal::Signal::SIGKILL as i32),
        _ => {
            lab.stop_daemon(node, daemon)?;
            start()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn groups_are_read_however_they_are_spaced() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for text in ["n1,n2 / n3", "n1,n2/n3", "n1 n2 / n3"] {
            assert_eq!(parse_groups(&words(text)).unwrap(), [vec!["n1", "n2"], vec!["n3"]], "{text}");
        }
        assert!(parse_groups(&words("n1 /")).is_err());
        assert!(parse_groups(&words("n1 / n1")).unwrap_err().to_string().contains("n1 is in it twice"));
    }
}

//! The verbs that make sense on the VMs of the Vagrantfile; Vagrant itself makes and removes them.

use std::{collections::BTreeMap, io::Write, path::Path, process::ExitCode};

use trellis_lab::{
    Error, Result,
    backend::{Backend, Power, Vagrant},
    demo, status,
};

use crate::args::{Args, Command};
use crate::commands::{control_daemon, partition};

/// Does what was asked.
pub fn dispatch(args: &Args) -> Result<ExitCode> {
    let folder = args.vagrant_dir.canonicalize().map_err(Error::io(args.vagrant_dir.display().to_string()))?;
    let lab = Vagrant::open(&folder)?;
    let done = match &args.command {
        Command::Up(_) => lab.create().and_then(|()| lab.fetch_context()),
        Command::Down { .. } => lab.destroy(),
        Command::Status { output } => show_status(&lab, output),
        Command::Kill { node } => lab.kill(node),
        Command::Start { node } => lab.start(node),
        Command::Pause { node } => lab.pause(node),
        Command::Resume { node } => lab.resume(node),
        Command::Wipe { node } => lab.wipe(node),
        Command::Partition { groups, one_way } => partition(&lab, groups, *one_way),
        Command::Heal => lab.heal(),
        Command::Exec { node, env, command } => return exec(&lab, node, env, command),
        Command::Daemon { action, node, daemon } => control_daemon(&lab, action, node, daemon),
        Command::Demo { no_kill } => {
            lab.fetch_context()?;
            let exe = std::env::current_exe().map_err(Error::io("find this program"))?;
            demo::run(&lab, lab.layout(), exe.parent().unwrap_or(Path::new("/")), !no_kill)
        }
        _ => Err(Error::Lacking {
            what: "this verb is for labs of namespaces".to_owned(),
            how: "leave --vagrant out, or use Vagrant's own (vagrant ssh NODE, journalctl there)".to_owned(),
        }),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn show_status(lab: &Vagrant, output: &str) -> Result<()> {
    if lab.topology().control_planes().any(|n| lab.power(&n.name).is_ok_and(|p| p == Power::On)) {
        // Without a context the status has the power of the nodes, and no more.
        let _ = lab.fetch_context();
    }
    let found = status::collect(lab, lab.layout())?;
    if output == "json" {
        let text = serde_json::to_string_pretty(&found)
            .map_err(|e| Error::Format { what: "the status".to_owned(), why: e.to_string() })?;
        println!("{text}");
    } else {
        print!("{}", status::table(&found));
    }
    Ok(())
}

fn exec(lab: &Vagrant, node: &str, env: &[String], command: &[String]) -> Result<ExitCode> {
    let env: BTreeMap<String, String> =
        env.iter().filter_map(|e| e.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let output = lab.run(node, &argv, &env)?;
    // A reader that has gone has what it wanted.
    let _ = std::io::stdout().write_all(output.stdout.as_bytes());
    let _ = std::io::stderr().write_all(output.stderr.as_bytes());
    Ok(ExitCode::from(u8::try_from(output.code).unwrap_or(1)))
}

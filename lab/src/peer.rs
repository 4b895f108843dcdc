//! Programs of this machine that a lab is measured beside. They run in cgroups of the lab, so that `down` ends
//! them too, whoever started them and whether or not that one still lives.

use std::{fs, os::unix::process::CommandExt, path::Path, process::Command};

use crate::{
    Error, Result,
    backend::Namespaces,
    cgroup::{self, CgroupDir},
};

/// A program to be started in the lab's cgroup `name`; and the cgroup, to be removed when it has ended. `lab_exe`
/// is this program: who moves a child of its own there can be killed before it does.
pub(crate) fn command(
    lab: &Namespaces,
    lab_exe: &Path,
    name: &str,
    program: &str,
) -> Result<(Command, Vec<CgroupDir>)> {
    let cgroups = lab.cgroups_beside(name);
    cgroup::create(&cgroups)?;
    let path = lab.layout().root.join(format!("{name}.json"));
    let bytes = serde_json::to_vec(&cgroups)
        .map_err(|e| Error::Format { what: path.display().to_string(), why: e.to_string() })?;
    fs::write(&path, bytes).map_err(Error::io(path.display().to_string()))?;
    let mut command = Command::new(lab_exe);
    command.arg("peer").arg(path).arg("--").arg(program);
    Ok((command, cgroups))
}

/// The body of `peer`: enters the cgroups and becomes the program.
pub fn main(path: &Path, argv: &[String]) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io(path.display().to_string()))?;
    let cgroups: Vec<CgroupDir> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::Format { what: path.display().to_string(), why: e.to_string() })?;
    let Some((program, args)) = argv.split_first() else {
        return Err(Error::Format { what: "the command".to_owned(), why: "it is empty".to_owned() });
    };
    cgroup::enter(&cgroups)?;
    Err(Error::io(format!("run {program}"))(Command::new(program).args(args).exec()))
}

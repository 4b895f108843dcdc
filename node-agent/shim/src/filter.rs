//! The container's seccomp filter, compiled once for all containers of a node.
//!
//! libseccomp takes 5 ms of CPU to compile the default filter, and libcontainer would compile it
//! anew for each container: a quarter of all that a container's start costs. So the first
//! container with a set of rules leaves the compiled filter in a folder of the node, root's alone,
//! and those after it load it from there. A file is used only if it begins with the very rules that
//! are wanted and the library that compiled them; anything else is compiled.
//!
//! libcontainer offers no place where a filter could be handed in, and loads its own before
//! capabilities are dropped, since that needs CAP_SYS_ADMIN. So where the filter is ours, both
//! steps are taken out of its spec, and [`Confined`] does them, in the same order, at the end of
//! the container's first process, right before it waits for its start.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::{
    Arch, LinuxCapabilities, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, Spec,
};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, ScmpVersion};
use rustix::fs::{MemfdFlags, memfd_create};
use trellis_sandbox::seccomp;

/// The rules differ by a dozen capabilities; more files than this are no use to anybody.
const MAX_FILES: usize = 64;

/// Why a filter could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The library refused a rule.
    #[error("cannot compile the seccomp filter: {0}")]
    Library(#[from] SeccompError),
    /// What it compiled could not be taken over.
    #[error("cannot take over the compiled seccomp filter: {0}")]
    Io(#[from] io::Error),
}

/// The compiled filter for these rules, from the folder or new; `None` for rules that only
/// libcontainer understands.
///
/// # Errors
/// What libseccomp says. A folder that cannot be used only costs time.
pub fn compiled(folder: &Path, rules: &LinuxSeccomp) -> Result<Option<Vec<u8>>, FilterError> {
    let Some(head) = head(rules) else { return Ok(None) };
    let mut hasher = DefaultHasher::new();
    head.hash(&mut hasher);
    let path = folder.join(format!("{:016x}.filter", hasher.finish()));
    if let Ok(bytes) = fs::read(&path)
        && let Some(program) = bytes.strip_prefix(head.as_slice())
        && !program.is_empty()
    {
        return Ok(Some(program.to_vec()));
    }
    let Some(program) = compile(rules)? else { return Ok(None) };
    // The next container compiles it again, then.
    let _ = keep(folder, &path, &head, &program);
    Ok(Some(program))
}

/// What a file must begin with: rules and library, and how long both are.
fn head(rules: &LinuxSeccomp) -> Option<Vec<u8>> {
    let library = ScmpVersion::current().ok()?;
    let rules = serde_json::to_string(rules).ok()?;
    let text = format!("1 libseccomp {library} {} {rules}", std::env::consts::ARCH);
    Some(format!("{} {text}\n", text.len()).into_bytes())
}

fn keep(folder: &Path, path: &Path, head: &[u8], program: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if fs::read_dir(folder)?.count() >= MAX_FILES {
        return Ok(());
    }
    // Shims of several Pods do this at once, and process ids repeat in their PID namespaces.
    let unique = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let beside = path.with_extension(unique.trim());
    let mut file = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    let written = file.write_all(head).and_then(|()| file.write_all(program)).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// As libcontainer does it, so that the filter is the same whoever compiles it.
fn compile(rules: &LinuxSeccomp) -> Result<Option<Vec<u8>>, FilterError> {
    let notifies = |a: LinuxSeccompAction| a == LinuxSeccompAction::ScmpActNotify;
    let syscalls = rules.syscalls().iter().flatten();
    if rules.flags().as_ref().is_some_and(|f| !f.is_empty())
        || notifies(rules.default_action())
        || syscalls.clone().any(|s| notifies(s.action()))
    {
        return Ok(None);
    }
    let Some(default) = action(rules.default_action(), rules.default_errno_ret()) else { return Ok(None) };
    let mut filter = ScmpFilterContext::new(default)?;
    for arch in rules.architectures().iter().flatten() {
        let Some(arch) = architecture(*arch) else { return Ok(None) };
        filter.add_arch(arch)?;
    }
    for rule in syscalls {
        let Some(action) = action(rule.action(), rule.errno_ret()) else { return Ok(None) };
        if action == default {
            continue;
        }
        let Some(conditions) = conditions(rule.args().as_deref().unwrap_or_default()) else { return Ok(None) };
        // Names that this machine's library does not know are no system calls of its kernel.
        for call in rule.names().iter().filter_map(|name| ScmpSyscall::from_name(name).ok()) {
            match conditions.as_slice() {
                [] => filter.add_rule(action, call)?,
                all => filter.add_rule_conditional(action, call, all)?,
            };
        }
    }
    // Into memory: that of the library itself needs 2.6, which is newer than most machines'.
    let mut file = fs::File::from(memfd_create("filter", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    filter.export_bpf(&file)?;
    let mut program = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut program)?;
    Ok(Some(program))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Option<ScmpAction> {
    let errno = errno.map_or(Some(rustix::io::Errno::PERM.raw_os_error()), |e| i32::try_from(e).ok())?;
    Some(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActTrace | LinuxSeccompAction::ScmpActNotify => return None,
    })
}

fn architecture(arch: Arch) -> Option<ScmpArch> {
    Some(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        _ => return None,
    })
}

/// `None` where an argument is compared twice: libcontainer splits such rules.
fn conditions(args: &[LinuxSeccompArg]) -> Option<Vec<ScmpArgCompare>> {
    let mut seen = std::collections::BTreeSet::new();
    args.iter()
        .map(|arg| {
            let op = match arg.op() {
                LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
                LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
                LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
                LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
                LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
                LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
                LinuxSeccompOperator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value_two().unwrap_or(0)),
            };
            let index = u32::try_from(arg.index()).ok()?;
            seen.insert(index).then(|| ScmpArgCompare::new(index, op, arg.value()))
        })
        .collect()
}

/// The last steps of a container's first process, taken over from libcontainer, and then its
/// own executor.
#[derive(Clone, Debug)]
pub struct Confined {
    program: Vec<u8>,
    capabilities: Option<LinuxCapabilities>,
    no_new_privileges: bool,
}

impl Confined {
    /// Takes filter and capabilities out of the spec, so that libcontainer leaves both alone.
    pub fn take(spec: &mut Spec, program: Vec<u8>) -> Option<Self> {
        let process = spec.process_mut().as_mut()?;
        let (no_new_privileges, capabilities) = (process.no_new_privileges().is_some(), process.capabilities().clone());
        process.set_capabilities(None);
        // The filter belongs to this section, so it is there.
        spec.linux_mut().as_mut()?.set_seccomp(None);
        Some(Self { program, capabilities, no_new_privileges })
    }

    /// Loads the filter and drops the capabilities of the calling process.
    ///
    /// # Errors
    /// A text that says which of them failed; the process must not go on then.
    pub fn apply(&self) -> Result<(), String> {
        confine(&self.program, self.capabilities.as_ref(), self.no_new_privileges)
    }
}

/// Without no_new_privs the filter needs CAP_SYS_ADMIN and so comes first; with it, it comes as
/// late as can be.
pub fn confine(program: &[u8], sets: Option<&LinuxCapabilities>, no_new_privileges: bool) -> Result<(), String> {
    let load = || seccomp::load(program).map_err(|e| format!("cannot load the seccomp filter: {e}"));
    if !no_new_privileges {
        load()?;
    }
    if let Some(sets) = sets {
        let syscall = create_syscall();
        capabilities::drop_privileges(sets, syscall.as_ref()).map_err(|e| format!("cannot drop capabilities: {e}"))?;
    }
    if no_new_privileges {
        load()?;
    }
    Ok(())
}

impl Executor for Confined {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.apply().map_err(ExecutorValidationError::ArgValidationError)?;
        DefaultExecutor {}.validate(spec)
    }

    fn setup_envs(&self, envs: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        DefaultExecutor {}.setup_envs(envs)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        DefaultExecutor {}.exec(spec)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use trellis_shim_protocol::defaults;

    #[test]
    fn a_filter_is_compiled_once_and_kept_for_its_rules_only() {
        let folder = tempfile::tempdir().unwrap();
        let usual = defaults::seccomp(&defaults::capabilities());
        let first = compiled(folder.path(), &usual).unwrap().unwrap();
        assert!(first.len() > 1000 && first.len().is_multiple_of(8), "{}", first.len());
        let file = || fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        // The file is what is used: other bytes behind the right head come back.
        let head = head(&usual).unwrap();
        fs::write(file(), [head.as_slice(), b"marked!!"].concat()).unwrap();
        assert_eq!(compiled(folder.path(), &usual).unwrap().unwrap(), b"marked!!");
        // Another head, and a head without a program, are not.
        for wrong in [b"9 1 other\n12345678".as_slice(), &head] {
            fs::write(file(), wrong).unwrap();
            assert_eq!(compiled(folder.path(), &usual).unwrap().unwrap(), first);
        }
        let all = defaults::seccomp(&defaults::all_capabilities());
        assert_ne!(compiled(folder.path(), &all).unwrap().unwrap(), first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn rules_that_only_libcontainer_understands_are_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut rules = defaults::seccomp(&defaults::capabilities());
        rules.set_default_action(LinuxSeccompAction::ScmpActTrace);
        assert_eq!(compiled(folder.path(), &rules).unwrap(), None);
    }
}

//! Which devices a cgroup v2 may use: a small BPF program attached to it.
//!
//! cgroup v1 has a devices controller, which libcontainer sets; on v2 only a program of type
//! CGROUP_DEVICE can refuse. Without it a container with CAP_MKNOD (a default one) could make a
//! node for the machine's disk and read it. The program is a chain of comparisons, the last rule
//! first; it lives as long as the cgroup. What it does is also plain Rust ([`decide`]) for tests.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::SandboxError;

/// Kinds of device nodes, as the kernel numbers them here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Block.
    Block = 1,
    /// Character.
    Char = 2,
}

/// Kinds of access: `mknod`, read, write (BPF_DEVCG_ACC_…).
pub const MKNOD: u32 = 1;
/// See [`MKNOD`].
pub const READ: u32 = 2;
/// See [`MKNOD`].
pub const WRITE: u32 = 4;

/// One rule; of those that match, the last decides, and none means no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Yes or no.
    pub allow: bool,
    /// `None`: both kinds.
    pub kind: Option<Kind>,
    /// `None`: any.
    pub major: Option<u32>,
    /// `None`: any.
    pub minor: Option<u32>,
    /// [`MKNOD`] | [`READ`] | [`WRITE`]: allowed only if all that is asked for is in it; denied if any is.
    pub access: u32,
}

/// What the program answers.
#[must_use]
pub fn decide(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u32) -> bool {
    let matches = |rule: &&Rule| {
        rule.kind.is_none_or(|k| k == kind)
            && rule.major.is_none_or(|m| m == major)
            && rule.minor.is_none_or(|m| m == minor)
            && if rule.allow { access & !rule.access == 0 } else { access & rule.access != 0 }
    };
    rules.iter().rev().find(matches).is_some_and(|r| r.allow)
}

/// One BPF instruction (linux/bpf.h, struct bpf_insn).
#[derive(Clone, Copy)]
#[repr(C)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_W | BPF_MEM
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const SET: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP_EQUAL: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// r1 holds the context: access_type (access << 16 | kind), major, minor.
fn program(rules: &[Rule]) -> Vec<Insn> {
    let insn = |code, dst: u8, src: u8, offset, immediate| Insn { code, registers: src << 4 | dst, offset, immediate };
    let mut out = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(AND, 2, 0, 0, 0xffff),
        insn(LOAD_WORD, 3, 1, 0, 0),
        insn(SHIFT_RIGHT, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        for (register, value) in [(2, rule.kind.map(|k| k as u32)), (4, rule.major), (5, rule.minor)] {
            if let Some(value) = value {
                block.push(insn(JUMP_NOT_EQUAL, register, 0, 0, value.cast_signed()));
            }
        }
        let mask = if rule.allow { !rule.access & (MKNOD | READ | WRITE) } else { rule.access };
        block.push(insn(MOVE, 6, 3, 0, 0));
        block.push(insn(AND, 6, 0, 0, mask.cast_signed()));
        block.push(insn(if rule.allow { JUMP_NOT_EQUAL } else { JUMP_EQUAL }, 6, 0, 0, 0));
        block.push(insn(SET, 0, 0, 0, i32::from(rule.allow)));
        block.push(insn(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (at, insn) in block.iter_mut().enumerate() {
            if matches!(insn.code, JUMP_NOT_EQUAL | JUMP_EQUAL) {
                // To the next rule; a block has at most eight instructions.
                insn.offset = (length - at - 1) as i16;
            }
        }
        out.extend(block);
    }
    out.extend([insn(SET, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    out
}

/// The kernel's `union bpf_attr`, of which the first 128 bytes are enough for both commands.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new(words: &[(usize, u32)], pointers: &[(usize, u64)]) -> Self {
        let mut attr = Self([0; 128]);
        for (at, word) in words {
            attr.0[*at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        for (at, pointer) in pointers {
            attr.0[*at..at + 8].copy_from_slice(&pointer.to_ne_bytes());
        }
        attr
    }

    /// # Safety
    /// Pointers inside must be valid for what `command` does with them.
    unsafe fn call(&self, command: libc::c_int) -> io::Result<i32> {
        // SAFETY: the attribute block lives across the call; its pointers are the caller's promise.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const self.0, size_of::<Self>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// Attaches the rules to a cgroup v2 folder; they hold for all below it, and for as long as it exists.
///
/// # Errors
/// When the kernel has no BPF for cgroups, or this process may not load it (CAP_BPF or root).
pub fn attach(dir: &Path, rules: &[Rule]) -> Result<(), SandboxError> {
    let error = |e: io::Error| SandboxError::new("limit the devices of cgroup", dir.display(), e);
    let group = File::open(dir).map_err(error)?;
    let program = program(rules);
    let count = u32::try_from(program.len()).map_err(|_| error(io::ErrorKind::InvalidInput.into()))?;
    let licence = c"Apache-2.0";
    let load = Attr::new(
        &[(0, PROG_TYPE_CGROUP_DEVICE), (4, count)],
        &[(8, program.as_ptr() as u64), (16, licence.as_ptr() as u64)],
    );
    // SAFETY: program and licence live across the call; the descriptor it gives is ours.
    let program = unsafe { load.call(PROG_LOAD).map(|fd| OwnedFd::from_raw_fd(fd)) }.map_err(error)?;
    let words = [
        (0, group.as_raw_fd().cast_unsigned()),
        (4, program.as_raw_fd().cast_unsigned()),
        (8, ATTACH_CGROUP_DEVICE),
        (12, ALLOW_MULTI),
    ];
    // SAFETY: no pointers.
    unsafe { Attr::new(&words, &[]).call(PROG_ATTACH) }.map_err(error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cgroup::{CgroupRoot, Cgroups, Version};
    use crate::spawn::{Namespaces, NsCommand};
    use std::io::Read;

    const RULES: [Rule; 4] = [
        Rule { allow: false, kind: None, major: None, minor: None, access: 7 },
        Rule { allow: true, kind: Some(Kind::Char), major: None, minor: None, access: MKNOD },
        Rule { allow: true, kind: Some(Kind::Char), major: Some(1), minor: Some(3), access: 7 },
        Rule { allow: true, kind: Some(Kind::Char), major: Some(1), minor: Some(5), access: READ },
    ];

    #[test]
    fn the_last_matching_rule_decides() {
        let ask = |kind, major, minor, access| decide(&RULES, kind, major, minor, access);
        assert!(ask(Kind::Char, 1, 3, READ | WRITE));
        assert!(ask(Kind::Char, 1, 5, READ) && !ask(Kind::Char, 1, 5, READ | WRITE));
        assert!(ask(Kind::Char, 8, 8, MKNOD) && !ask(Kind::Char, 8, 8, MKNOD | READ));
        assert!(!ask(Kind::Block, 8, 0, READ) && !ask(Kind::Block, 1, 3, READ) && !ask(Kind::Block, 8, 0, MKNOD));
        assert!(!decide(&[], Kind::Char, 1, 3, READ));
    }

    #[test]
    fn the_kernel_decides_as_we_do() {
        let name = "the_kernel_decides_as_we_do";
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {name}: not root");
            return;
        }
        let cgroups = Cgroups::detect(&CgroupRoot::Own).unwrap();
        let Some(v2) = cgroups.hierarchies().iter().find(|h| h.version == Version::V2) else {
            eprintln!("SKIPPED: {name}: no cgroup v2 hierarchy is mounted");
            return;
        };
        let dir = v2.base.join(format!("trellis-test-devices-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let result = attach(&dir, &RULES).map(|()| {
            let procs = File::options().write(true).open(dir.join("cgroup.procs")).unwrap();
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let script = "for d in null zero full random; do (: < /dev/$d) 2>/dev/null && echo r-$d; \
                          (: > /dev/$d) 2>/dev/null && echo w-$d; done";
            let child = NsCommand::new("/bin/sh", Namespaces::default())
                .arg("-c")
                .arg(script)
                .cgroup_procs(vec![procs])
                .stdio(1, write)
                .spawn()
                .unwrap();
            let mut text = String::new();
            File::from(read).read_to_string(&mut text).unwrap();
            crate::spawn::kill_and_wait(&child).unwrap();
            text
        });
        let removed = std::fs::remove_dir(&dir);
        match result {
            Ok(text) => assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["r-null", "w-null", "r-zero"]),
            Err(e) => eprintln!("SKIPPED: {name}: {e}"),
        }
        removed.unwrap();
    }
}

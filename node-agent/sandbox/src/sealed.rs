//! A program in memory that nobody can change, whatever they reach it by.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::SandboxError;

/// A copy of the program at `path` that can be read and executed (as `/proc/self/fd/<number>`), and
/// neither written nor resized by anybody, root included. It is gone with its last user.
///
/// # Errors
/// When the program cannot be read, or this machine lets nobody execute such copies.
pub fn copy(path: &Path) -> Result<OwnedFd, SandboxError> {
    let error = |e: io::Error| SandboxError::new("make a sealed copy of", path.display(), e);
    let mut program = File::open(path).map_err(error)?;
    let name = path.file_name().unwrap_or_default();
    let mut copy = File::from(executable(name).map_err(|e| error(e.into()))?);
    io::copy(&mut program, &mut copy).map_err(error)?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, all).map_err(|e| error(e.into()))?;
    Ok(copy.into())
}

fn executable(name: &std::ffi::OsStr) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 every one was executable, and the flag unknown.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_copy_runs_and_cannot_be_written() {
        let copy = copy(Path::new("/bin/sh")).unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let output = std::process::Command::new(&path).args(["-c", "readlink /proc/$$/exe"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("/memfd:"), "{output:?}");
        let mut again = File::options().write(true).open(&path).unwrap();
        assert_eq!(again.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(again.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}

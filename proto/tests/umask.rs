//! A test program of its own: the mask belongs to the whole process.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::PermissionsExt as _;

use trellis_proto::file;

/// A service's mask takes from everything it makes; what others must read, they can read all the same.
#[test]
fn what_everybody_reads_is_readable_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    let content = serde_json::json!({ "version": 1 });
    file::write_public(&dir.path().join("public"), &content).unwrap();
    rustix::process::umask(rustix::fs::Mode::empty());
    file::write(&dir.path().join("private"), &content).unwrap();
    rustix::process::umask(before);
    assert_eq!((mode("public"), mode("private")), (0o644, 0o600));
}

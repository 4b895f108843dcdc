//! Namespaces on the real kernel; skipped where this is not root.
#![allow(clippy::unwrap_used, missing_docs)]
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use trellis_sandbox::spawn::{Namespaces, NsCommand, kill_and_wait, namespace};
use trellis_sandbox::{mounts, netns};

fn root(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {name}: not root");
    }
    root
}

fn output(command: NsCommand) -> (String, trellis_sandbox::spawn::NsChild) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let child = command.stdio(1, write).spawn().unwrap();
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    (text, child)
}

#[test]
fn a_child_is_first_in_namespaces_of_its_own() {
    if !root("a_child_is_first_in_namespaces_of_its_own") {
        return;
    }
    let script = "echo $$ $TOKEN; cat /proc/net/dev | wc -l; kill -STOP $$; sleep 100";
    let command = NsCommand::new("/bin/sh", Namespaces::ALL).arg("-c").arg("echo $$ $TOKEN").env("TOKEN", "t1");
    let (text, child) = output(command);
    assert_eq!(text, "1 t1\n");
    kill_and_wait(&child).unwrap();

    let sleeper = NsCommand::new("/bin/sh", Namespaces::ALL).arg("-c").arg(script.replace("kill -STOP $$;", ""));
    let child = sleeper.spawn().unwrap();
    let inside = namespace(&child, "net").unwrap();
    let count = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count();
    netns::inside(inside.as_fd(), || {
        // Two header lines and lo.
        assert_eq!(count(), 3);
        netns::loopback_up().unwrap();
        netns::rtnetlink_socket().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:1").unwrap();
        assert!(std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok());
    })
    .unwrap();
    // This thread never left its own namespace.
    let here: OwnedFd = netns::current().unwrap();
    assert_ne!(rustix::fs::fstat(&here).unwrap().st_ino, rustix::fs::fstat(&inside).unwrap().st_ino);
    kill_and_wait(&child).unwrap();
}

#[test]
fn a_program_that_is_not_there_is_an_error_with_its_name() {
    if !root("a_program_that_is_not_there_is_an_error_with_its_name") {
        return;
    }
    let error = NsCommand::new("/no/such/program", Namespaces::default()).spawn().unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert_eq!(error.errno(), Some(2));
}

#[test]
fn an_overlay_unites_layers_and_is_detached() {
    if !root("an_overlay_unites_layers_and_is_detached") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    // A colon and a comma need escaping in an option string.
    let (a, b, upper, work, at) = (path("a:1"), path("b,2"), path("up"), path("work"), path("at"));
    std::fs::write(a.join("file"), "top").unwrap();
    std::fs::write(b.join("file"), "bottom").unwrap();
    std::fs::write(b.join("other"), "other").unwrap();
    let overlay = mounts::Overlay { lower: &[a, b], upper: &upper, work: &work };
    if let Err(e) = mounts::overlay(overlay, &at) {
        eprintln!("SKIPPED: an_overlay_unites_layers_and_is_detached: {e}");
        return;
    }
    assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "top");
    assert_eq!(std::fs::read_to_string(at.join("other")).unwrap(), "other");
    std::fs::write(at.join("new"), "new").unwrap();
    assert!(upper.join("new").exists());
    assert_eq!(mounts::detach_below(dir.path()).unwrap(), 1);
    assert_eq!(mounts::detach_below(dir.path()).unwrap(), 0);
    assert!(!at.join("new").exists());
}

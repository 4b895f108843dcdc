//! An exec of what cannot be executed ends as in a shell; a working directory that is missing is made.
#![allow(clippy::unwrap_used, missing_docs)]
mod common;

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;

use common::{Pod, WITHIN, pod};
use trellis_shim_protocol::{ErrorCode, Exec};

fn exec(pod: &Pod, argv: &[&str]) -> (i32, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let null = fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let exec = Exec { id: "a".to_owned(), argv: argv.iter().map(|s| (*s).to_owned()).collect(), ..Exec::default() };
    let id = pod.client().exec(exec, [null.as_fd(), null.as_fd(), writer.as_fd()]).unwrap();
    drop(writer);
    let mut text = String::new();
    fs::File::from(std::os::fd::OwnedFd::from(reader)).read_to_string(&mut text).unwrap();
    (pod.client().wait_exec(id, Some(WITHIN)).unwrap().code, text)
}

#[test]
fn a_missing_program_gives_127_and_an_unfit_one_126() {
    let Some(pod) = pod("a_missing_program_gives_127_and_an_unfit_one_126") else { return };
    pod.run("a", "sleep 1000");
    // Often: the end must never overtake the start.
    for _ in 0..20 {
        let missing = (127, "exec: \"nothing\": executable file not found in $PATH\n".to_owned());
        assert_eq!(exec(&pod, &["nothing", "at", "all"]), missing);
    }
    assert_eq!(exec(&pod, &["/no/such"]), (127, "exec: \"/no/such\": no such file or directory\n".to_owned()));
    let (code, text) = exec(&pod, &["/etc/passwd"]);
    assert_eq!(code, 126, "{text}");
    assert!(text.contains("/etc/passwd") && text.contains("denied"), "{text}");
    // The control: what can be executed is.
    assert_eq!(exec(&pod, &["sh", "-c", "echo fine >&2; exit 5"]), (5, "fine\n".to_owned()));
    // On a terminal it is read there.
    let request = Exec { id: "a".to_owned(), argv: vec!["nothing".to_owned()], ..Exec::default() };
    let (id, master) = pod.client().exec_tty(request).unwrap();
    let mut text = Vec::new();
    let _ = fs::File::from(master).read_to_end(&mut text); // ends with EIO
    assert!(String::from_utf8_lossy(&text).contains("\"nothing\""), "{text:?}");
    assert_eq!(pod.client().wait_exec(id, Some(WITHIN)).unwrap().code, 127);
    // A container that has ended is another matter.
    pod.run("b", "exit 0");
    pod.client().wait("b", Some(WITHIN)).unwrap();
    let request = Exec { id: "b".to_owned(), argv: vec!["true".to_owned()], ..Exec::default() };
    assert_eq!(pod.client().exec_tty(request).unwrap_err().code(), Some(ErrorCode::WrongPhase));
}

#[test]
fn a_missing_working_directory_is_made_inside() {
    let Some(pod) = pod("a_missing_working_directory_is_made_inside") else { return };
    std::os::unix::fs::symlink("/tmp", pod.data.path().join("layer/link")).unwrap();
    let mut request = pod.request("a", "pwd");
    request.spec["process"]["cwd"] = "/link/deep/er".into();
    pod.run_request(request);
    assert_eq!(pod.client().wait("a", Some(WITHIN)).unwrap().code, 0);
    assert_eq!(pod.lines("a", "stdout"), ["/tmp/deep/er"]);
    assert!(pod.data.path().join("rw/a/upper/tmp/deep/er").is_dir());
    assert!(!std::path::Path::new("/tmp/deep/er").exists());
}

//! A container's sub path stays in its volume, whoever exchanges links meanwhile.
#![allow(clippy::unwrap_used, missing_docs)]
mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::{Pod, WITHIN, pod};
use rustix::fs::{CWD, RenameFlags};
use trellis_shim_protocol::SubPath;

/// Two names in a volume that change places all the time: an honest folder, and a link out of it.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(volume: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, a, b) = (Arc::clone(&stop), volume.join("part"), volume.join("other"));
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                std::thread::yield_now();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What a container reads through its mount of `part`; `None` when it could not be made.
fn seen(pod: &Pod, volume: &Path, number: u32, by_descriptor: bool) -> Option<String> {
    let id = format!("c{number}");
    let mut request = pod.request(&id, "cat /mnt/file");
    let mount = serde_json::json!({"destination": "/mnt", "type": "bind", "source": volume.join("part"), "options": ["rbind", "ro"]});
    request.spec["mounts"].as_array_mut().unwrap().push(mount);
    if by_descriptor {
        let (destination, path) = ("/mnt".into(), "part".into());
        request.sub_paths = vec![SubPath { destination, volume: volume.to_owned(), path }];
    }
    let mut client = pod.client();
    if let Err(e) = client.create(request) {
        assert!(!by_descriptor || e.to_string().contains("part of"), "{e}");
        return None;
    }
    client.start(&id).unwrap();
    client.wait(&id, Some(WITHIN)).unwrap();
    let lines = pod.lines(&id, "stdout");
    client.delete(&id, true).unwrap();
    Some(lines.join(""))
}

#[test]
fn a_link_exchanged_at_any_moment_leads_nowhere() {
    let Some(pod) = pod("a_link_exchanged_at_any_moment_leads_nowhere") else { return };
    let (volume, outside) = (pod.data.path().join("volume"), pod.data.path().join("outside"));
    for (folder, text) in [(volume.join("part"), "inside"), (outside.clone(), "outside")] {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("file"), text).unwrap();
    }
    std::os::unix::fs::symlink(&outside, volume.join("other")).unwrap();
    let _swapper = Swapper::start(&volume);
    // The control: by its name the mount does lead out.
    let deadline = Instant::now() + WITHIN;
    let mut number = 0;
    while seen(&pod, &volume, number, false).as_deref() != Some("outside") {
        assert!(Instant::now() < deadline, "the link was never followed: the swapper does not work");
        number += 1;
    }
    let (mut inside, mut refused) = (0, 0);
    for n in 0..24 {
        match seen(&pod, &volume, 1000 + n, true).as_deref() {
            Some("inside") => inside += 1,
            None => refused += 1,
            Some(text) => panic!("read {text:?} through a sub path"),
        }
    }
    eprintln!("{inside} saw the folder, {refused} were refused");
    assert!(inside > 0);
}

#[test]
fn files_and_folders_are_mounted_and_a_missing_one_is_named() {
    let Some(pod) = pod("files_and_folders_are_mounted_and_a_missing_one_is_named") else { return };
    let volume = pod.data.path().join("volume");
    fs::create_dir_all(volume.join("folder/deep")).unwrap();
    fs::write(volume.join("folder/deep/file"), "deep").unwrap();
    fs::write(volume.join("single"), "single").unwrap();
    std::os::unix::fs::symlink("/folder/deep", volume.join("link")).unwrap();
    let run = |id: &str, path: &str, script: &str| {
        let mut request = pod.request(id, script);
        let mount =
            serde_json::json!({"destination": "/mnt", "type": "bind", "source": "/none", "options": ["rbind", "rw"]});
        request.spec["mounts"].as_array_mut().unwrap().push(mount);
        let (destination, path) = ("/mnt".into(), path.into());
        request.sub_paths = vec![SubPath { destination, volume: volume.clone(), path }];
        pod.client().create(request).map_err(|e| e.to_string())?;
        pod.client().start(id).unwrap();
        pod.client().wait(id, Some(WITHIN)).unwrap();
        Ok::<_, String>(pod.lines(id, "stdout").join(""))
    };
    assert_eq!(run("a", "folder", "cat /mnt/deep/file; echo new > /mnt/written").unwrap(), "deep");
    assert_eq!(fs::read_to_string(volume.join("folder/written")).unwrap(), "new\n");
    assert_eq!(run("b", "single", "cat /mnt").unwrap(), "single");
    // An absolute link means the volume's root.
    assert_eq!(run("c", "link", "cat /mnt/file").unwrap(), "deep");
    let error = run("d", "nothing", "true").unwrap_err();
    assert!(error.contains("nothing") && error.contains("volume"), "{error}");
    for id in ["a", "b", "c"] {
        pod.client().delete(id, true).unwrap();
    }
    pod.client().shutdown().unwrap();
    pod.cleanup();
    assert_eq!(pod.leftovers(), Vec::<String>::new());
}

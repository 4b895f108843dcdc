//! A real shim, real namespaces, real containers of busybox. Root only; says what it skips.
#![allow(clippy::unwrap_used, missing_docs)]
mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use common::{Pod, WITHIN, pod, pod_with, until};
use trellis_shim_protocol::{ErrorCode, Exec, Exit, Happening, LogConfig, Phase};

fn wait(pod: &Pod, id: &str) -> Exit {
    pod.client().wait(id, Some(WITHIN)).unwrap()
}

fn exec(pod: &Pod, exec: Exec, input: &str) -> (Exit, String, String) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((in_r, in_w), (out_r, out_w), (err_r, err_w)) = (pipe(), pipe(), pipe());
    let id = pod.client().exec(exec, [in_r.as_fd(), out_w.as_fd(), err_w.as_fd()]).unwrap();
    drop((in_r, out_w, err_w));
    fs::File::from(in_w).write_all(input.as_bytes()).unwrap();
    let read = |fd| {
        let mut text = String::new();
        fs::File::from(fd).read_to_string(&mut text).unwrap();
        text
    };
    let (out, err) = (read(out_r), read(err_r));
    (pod.client().wait_exec(id, Some(WITHIN)).unwrap(), out, err)
}

fn sh(id: &str, script: &str) -> Exec {
    Exec { id: id.to_owned(), argv: ["sh", "-c", script].map(str::to_owned).to_vec(), ..Exec::default() }
}

#[test]
fn output_and_exit_code_are_kept() {
    let Some(pod) = pod("output_and_exit_code_are_kept") else { return };
    pod.run("a", "echo out; echo err >&2; printf tail; exit 3");
    let exit = wait(&pod, "a");
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false));
    assert_eq!(pod.lines("a", "stdout"), ["out", "tail"]);
    assert_eq!(pod.lines("a", "stderr"), ["err"]);
    let state = pod.client().state().unwrap();
    let a = &state.containers[0];
    assert_eq!(a.phase, Phase::Exited);
    assert!(a.host_pid > 0 && a.started_at.unwrap().wall_nanos >= a.created_at.wall_nanos);
    assert!(a.exit.as_ref().unwrap().at.boot_nanos >= a.started_at.unwrap().boot_nanos);
    let persisted = fs::read(pod.config.dir.join("state.json")).unwrap();
    assert_eq!(serde_json::from_slice::<trellis_shim_protocol::SandboxState>(&persisted).unwrap(), state);
    pod.client().delete("a", true).unwrap();
    pod.client().delete("a", true).unwrap();
    assert!(pod.client().state().unwrap().containers.is_empty());
    assert!(!pod.data.path().join("rw/a/upper").exists());
}

#[test]
fn the_defaults_confine_a_container() {
    let Some(pod) = pod("the_defaults_confine_a_container") else { return };
    pod.run(
        "a",
        "hostname; echo pid $$; grep -E 'CapEff|CapBnd|Seccomp:|NoNewPrivs' /proc/self/status; \
         (sleep 0; echo forked) & wait; \
         unshare -n true 2>/dev/null && echo unshared; mount -t tmpfs x /tmp 2>/dev/null && echo mounted; \
         echo x 2>/dev/null > /proc/sys/kernel/hostname && echo wrote; head -c1 /proc/kcore | wc -c; \
         ls /dev/null /dev/shm /dev/pts/ptmx >/dev/null && echo devices; ip link | grep -c LOOPBACK,UP; \
         mknod /dev/sda b 8 0 2>/dev/null; head -c1 /dev/sda 2>/dev/null && echo disk; ls -d /sys/fs/cgroup/* | wc -l",
    );
    assert_eq!(wait(&pod, "a").code, 0, "{:?}", pod.lines("a", "stderr"));
    let lines = pod.lines("a", "stdout");
    eprintln!("{lines:#?}");
    assert_eq!(lines[..2], ["web-0", "pid 1"]);
    assert!(lines.contains(&"CapEff:\t00000000a80425fb".to_owned()), "Docker's set");
    assert!(lines.contains(&"Seccomp:\t2".to_owned()) && lines.contains(&"NoNewPrivs:\t0".to_owned()));
    assert!(lines.contains(&"forked".to_owned()) && lines.contains(&"devices".to_owned()));
    for forbidden in ["unshared", "mounted", "wrote", "disk"] {
        assert!(!lines.contains(&forbidden.to_owned()), "{forbidden}");
    }
}

#[test]
fn signals_reach_one_or_all() {
    let Some(pod) = pod("signals_reach_one_or_all") else { return };
    pod.run("a", "trap 'echo got; exit 7' TERM; echo up; while :; do sleep 0.05; done");
    until("it is up", || pod.lines("a", "stdout").contains(&"up".to_owned()));
    pod.client().signal("a", 15, false).unwrap();
    assert_eq!(wait(&pod, "a").code, 7);
    // As every init, one without a handler ignores SIGTERM, but not SIGKILL.
    pod.run("b", "echo up; sleep 1000");
    until("it is up", || pod.lines("b", "stdout").contains(&"up".to_owned()));
    pod.client().signal("b", 9, false).unwrap();
    let exit = wait(&pod, "b");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    pod.client().signal("b", 9, true).unwrap();
}

#[test]
fn an_oom_kill_is_told_as_such() {
    let Some(pod) = pod("an_oom_kill_is_told_as_such") else { return };
    let mut request = pod.request("a", "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    request.spec["linux"]["resources"]["memory"] = serde_json::json!({"limit": 16 << 20, "swap": 16 << 20});
    pod.run_request(request);
    let exit = wait(&pod, "a");
    assert_eq!((exit.signal, exit.oom_killed), (Some(9), true));
    // The control: a kill that is none.
    pod.run("b", "sleep 1000");
    pod.client().signal("b", 9, false).unwrap();
    assert!(!wait(&pod, "b").oom_killed);
}

#[test]
fn containers_of_a_pod_share_net_ipc_uts_and_shm_but_not_pid_and_mounts() {
    let Some(pod) = pod("containers_of_a_pod_share_net_ipc_uts_and_shm_but_not_pid_and_mounts") else { return };
    let script = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; sleep 1000";
    pod.run("a", &format!("echo hello > /dev/shm/x; echo mine > /tmp/x; {script}"));
    until("a has written", || pod.lines("a", "stdout").len() == 5);
    pod.run("b", &format!("{script} & cat /dev/shm/x; ls /tmp; wait"));
    until("b has written", || pod.lines("b", "stdout").len() >= 6);
    let (a, b) = (pod.lines("a", "stdout"), pod.lines("b", "stdout"));
    let shared = |kind: &str| a.iter().any(|l| l.starts_with(kind) && b.contains(l));
    assert!(shared("net") && shared("ipc") && shared("uts"), "{a:?} {b:?}");
    assert!(!shared("pid") && !shared("mnt"));
    assert!(b.contains(&"hello".to_owned()) && !b.contains(&"x".to_owned()));
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert!(!a.contains(&own));
    // The descriptors handed to netd are of the same namespace.
    let (ns, rtnetlink) = pod.client().netns().unwrap();
    let inode = rustix::fs::fstat(&ns).unwrap().st_ino;
    assert!(a.contains(&format!("net:[{inode}]")));
    assert_eq!(rustix::net::sockopt::socket_domain(&rtnetlink).unwrap(), rustix::net::AddressFamily::NETLINK);
}

#[test]
fn exec_runs_beside_with_the_containers_confinement() {
    let Some(pod) = pod("exec_runs_beside_with_the_containers_confinement") else { return };
    pod.run("a", "export; sleep 1000");
    let script = "cat; echo err >&2; id -u; hostname; ls /proc | grep -c '^1$'; echo $X; \
                  grep -E 'Seccomp:|CapEff' /proc/self/status; cat /proc/1/cgroup /proc/self/cgroup | grep memory; exit 9";
    let (exit, out, err) = exec(&pod, Exec { env: vec!["X=y".to_owned()], ..sh("a", script) }, "input\n");
    assert_eq!((exit.code, err.as_str()), (9, "err\n"));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..5], ["input", "0", "web-0", "1", "y"], "{out}");
    assert!(lines.contains(&"Seccomp:\t2") && lines.contains(&"CapEff:\t00000000a80425fb"), "{out}");
    assert_eq!(lines[lines.len() - 1], lines[lines.len() - 2], "in the same cgroup: {out}");
    let (exit, out, _) = exec(
        &pod,
        Exec {
            uid: Some(1000),
            gid: Some(1000),
            cwd: Some("/tmp".to_owned()),
            ..sh("a", "id -u; pwd; mount -t tmpfs x /tmp")
        },
        "",
    );
    assert!(exit.code != 0 && out == "1000\n/tmp\n", "{out}");
    assert_eq!(pod.client().exec_tty(sh("x", "")).unwrap_err().code(), Some(ErrorCode::NotFound));
}

#[test]
fn exec_with_a_terminal_and_kill_on_disconnect() {
    let Some(pod) = pod("exec_with_a_terminal_and_kill_on_disconnect") else { return };
    pod.run("a", "sleep 1000");
    let request = Exec { size: Some((33, 77)), ..sh("a", "tty; stty size; read x; echo got-$x; exit 4") };
    let (id, master) = pod.client().exec_tty(request).unwrap();
    let mut terminal = fs::File::from(master);
    terminal.write_all(b"typed\n").unwrap();
    let mut text = Vec::new();
    let _ = terminal.read_to_end(&mut text); // ends with EIO
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("/dev/pts/") && text.contains("33 77") && text.contains("got-typed"), "{text}");
    assert_eq!(pod.client().wait_exec(id, Some(WITHIN)).unwrap().code, 4);

    let mut client = pod.client();
    let request = Exec { kill_on_disconnect: true, ..sh("a", "sleep 1000") };
    let (id, _master) = client.exec_tty(request).unwrap();
    drop(client);
    assert_eq!(pod.client().wait_exec(id, Some(WITHIN)).unwrap().signal, Some(9));
}

#[test]
fn a_container_with_a_terminal_logs_it() {
    let Some(pod) = pod("a_container_with_a_terminal_logs_it") else { return };
    let mut request = pod.request("a", "tty; test -t 0 && echo terminal; exit 2");
    request.spec["process"]["terminal"] = true.into();
    pod.run_request(request);
    assert_eq!(wait(&pod, "a").code, 2);
    let lines = pod.lines("a", "stdout");
    assert!(lines.iter().any(|l| l.starts_with("/dev/pts/") || l.starts_with("/dev/console")), "{lines:?}");
    assert!(lines.iter().any(|l| l.trim_end() == "terminal"), "{lines:?}");
}

#[test]
fn a_new_client_adopts_everything_and_misses_nothing() {
    let Some(pod) = pod("a_new_client_adopts_everything_and_misses_nothing") else { return };
    pod.run("runs", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done");
    pod.run("ends", "sleep 0.3; echo late; exit 42");
    // No client is connected while it ends.
    until("it has ended", || pod.lines("ends", "stdout").contains(&"late".to_owned()));
    until("the exit is there", || {
        let state = pod.client().state().unwrap();
        state.containers.iter().any(|c| c.exit.as_ref().is_some_and(|e| e.code == 42))
    });
    let state = pod.client().state().unwrap();
    assert!(state.containers.iter().any(|c| c.id == "runs" && c.phase == Phase::Running));
    let mut events = pod.client().events(0).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.push(events.next(Some(WITHIN)).unwrap().unwrap());
    }
    assert_eq!(seen.iter().map(|e| e.sequence).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(matches!(&seen[4].what, Happening::Exited(e) if e.code == 42) && seen[4].id == "ends");
    // A subscriber that has seen four gets the fifth, and then what is new.
    let mut events = pod.client().events(4).unwrap();
    assert_eq!(events.next(Some(WITHIN)).unwrap().unwrap().sequence, 5);
    pod.client().signal("runs", 9, true).unwrap();
    assert_eq!(events.next(Some(WITHIN)).unwrap().unwrap().id, "runs");
    let lines = pod.lines("runs", "stdout");
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line, &format!("line {i}"));
    }
}

#[test]
fn a_killed_shim_takes_everything_along_and_cleanup_leaves_nothing() {
    let Some(pod) = pod("a_killed_shim_takes_everything_along_and_cleanup_leaves_nothing") else { return };
    pod.run("a", "(sleep 1000 &); (sleep 1001 &); sleep 1002");
    pod.run("b", "exit 5");
    wait(&pod, "b");
    let state = pod.client().state().unwrap();
    let a = state.containers.iter().find(|c| c.id == "a").unwrap().host_pid;
    assert!(fs::metadata(format!("/proc/{a}")).is_ok() && !pod.leftovers().is_empty());
    assert_eq!(state.shim_pid, pod.shim_pid);
    trellis_sandbox::process::kill(pod.shim_pid, 9).unwrap();
    // The kernel ends the PID namespace: before anybody cleans up, no process is left.
    until("all processes are gone", || !pod.leftovers().iter().any(|l| l.starts_with("process")));
    let persisted: trellis_shim_protocol::SandboxState =
        serde_json::from_slice(&fs::read(pod.config.dir.join("state.json")).unwrap()).unwrap();
    assert_eq!(persisted.containers.iter().find(|c| c.id == "b").unwrap().exit.as_ref().unwrap().code, 5);
    pod.cleanup();
    assert_eq!(pod.leftovers(), Vec::<String>::new());
    assert_eq!(pod.cleanup(), Default::default(), "cleaning up again finds nothing");
}

#[test]
fn a_frozen_pod_whose_shim_was_killed_is_cleaned_up() {
    let Some(pod) = pod("a_frozen_pod_whose_shim_was_killed_is_cleaned_up") else { return };
    pod.run("a", "sleep 1000");
    let cgroups = trellis_sandbox::cgroup::Cgroups::detect(&trellis_sandbox::cgroup::CgroupRoot::Own).unwrap();
    let frozen = cgroups.group(&pod.config.cgroup_path).child("a");
    for dir in frozen.dirs() {
        for (file, text) in [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")] {
            if dir.join(file).exists() {
                fs::write(dir.join(file), text).unwrap();
            }
        }
    }
    trellis_sandbox::process::kill(pod.shim_pid, 9).unwrap();
    pod.cleanup();
    assert_eq!(pod.leftovers(), Vec::<String>::new());
}

#[test]
fn shutdown_ends_everything() {
    let Some(pod) = pod("shutdown_ends_everything") else { return };
    pod.run("a", "sleep 1000");
    pod.run("b", "sleep 1000");
    let mut events = pod.client().events(0).unwrap();
    pod.client().shutdown().unwrap();
    let gone = loop {
        match events.next(Some(WITHIN)) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the shim still runs"),
            Err(e) => break e.is_gone(),
        }
    };
    assert!(gone);
    pod.cleanup();
    assert_eq!(pod.leftovers(), Vec::<String>::new());
}

#[test]
fn logs_rotate_and_stay_bounded() {
    let Some(pod) = pod("logs_rotate_and_stay_bounded") else { return };
    let mut request = pod.request("a", "seq 1 20000");
    request.log = LogConfig { path: Some(pod.log("a")), max_bytes: 200_000, max_files: 3 };
    pod.run_request(request);
    assert_eq!(wait(&pod, "a").code, 0);
    let logs: Vec<_> = fs::read_dir(pod.data.path().join("logs")).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(logs.len(), 3);
    assert!(logs.iter().all(|l| l.metadata().unwrap().len() <= 200_000));
    assert_eq!(pod.lines("a", "stdout").last().unwrap(), "20000");
}

#[test]
fn what_cannot_be_run_is_an_error_in_words() {
    let Some(pod) = pod("what_cannot_be_run_is_an_error_in_words") else { return };
    let mut request = pod.request("a", "");
    request.spec["process"]["args"] = serde_json::json!(["/no/such/program"]);
    let error = pod.client().create(request).unwrap_err();
    assert_eq!(error.to_string(), "exec: \"/no/such/program\": stat /no/such/program: no such file or directory");
    let mut request = pod.request("a", "");
    let mount =
        serde_json::json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["rbind"]});
    request.spec["mounts"].as_array_mut().unwrap().push(mount);
    let error = pod.client().create(request).unwrap_err().to_string();
    assert!(error.contains("/no/such/source") && error.matches("rootfs").count() == 1 && error.len() < 200, "{error}");
    let mut request = pod.request("../x", "");
    request.id = "../x".to_owned();
    assert_eq!(pod.client().create(request).unwrap_err().code(), Some(ErrorCode::Invalid));
    assert_eq!(pod.client().start("a").unwrap_err().code(), Some(ErrorCode::NotFound));
    // The same id can be used after the failure.
    pod.run("a", "exit 0");
    assert_eq!(wait(&pod, "a").code, 0);
    assert_eq!(pod.client().create(pod.request("a", "")).unwrap_err().code(), Some(ErrorCode::AlreadyExists));
}

#[test]
fn a_long_id_works_with_and_without_terminal() {
    let Some(pod) = pod("a_long_id_works_with_and_without_terminal") else { return };
    let (plain, terminal) = ("p".repeat(64), "t".repeat(64));
    pod.run(&plain, "exit 6");
    assert_eq!(wait(&pod, &plain).code, 6);
    let mut request = pod.request(&terminal, "exit 7");
    request.spec["process"]["terminal"] = true.into();
    pod.run_request(request);
    assert_eq!(wait(&pod, &terminal).code, 7);
}

#[test]
fn shutdown_does_not_wait_for_a_create() {
    let Some(pod) = pod("shutdown_does_not_wait_for_a_create") else { return };
    let request = pod.request("a", "sleep 1000");
    let socket = pod.config.socket();
    let creator = std::thread::spawn(move || {
        let mut client = trellis_shim_protocol::Client::connect(&socket).unwrap();
        client.create(request).map(|_| ())
    });
    std::thread::sleep(Duration::from_millis(5));
    // Whatever the create has come to: made, refused, or cut off.
    pod.client().shutdown().unwrap();
    let _ = creator.join().unwrap();
    pod.cleanup();
    assert_eq!(pod.leftovers(), Vec::<String>::new());
}

#[test]
fn an_unrenewed_deadline_stops_the_pod() {
    let Some(pod) = pod("an_unrenewed_deadline_stops_the_pod") else { return };
    pod.run("a", "sleep 1000");
    pod.client().set_stop_deadline(Some(200)).unwrap();
    assert_eq!(wait(&pod, "a").signal, Some(9));
}

#[test]
fn a_foreign_sysctl_is_refused_and_a_namespaced_one_set() {
    let name = "a_foreign_sysctl_is_refused_and_a_namespaced_one_set";
    let sysctl = "net.ipv4.ip_unprivileged_port_start";
    let Some(pod) = pod_with(name, |c| {
        c.sysctls.insert(sysctl.to_owned(), "80".to_owned());
    }) else {
        return;
    };
    pod.run("a", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    assert_eq!(wait(&pod, "a").code, 0);
    assert_eq!(pod.lines("a", "stdout"), ["80"]);
    let mut config = pod.config.clone();
    config.dir = pod.data.path().join("other");
    config.cgroup_path += "-other";
    config.sysctls = [("kernel.panic".to_owned(), "1".to_owned())].into();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_trellis-shim"));
    let error = trellis_shim_protocol::launch::launch(program, &config).unwrap_err();
    assert!(error.to_string().contains("kernel.panic"), "{error}");
    let other = Pod { config, data: tempfile::tempdir().unwrap(), shim_pid: 0 };
    other.cleanup();
}

#[test]
fn a_shared_pid_namespace_is_seen_and_ends_with_its_container() {
    let name = "a_shared_pid_namespace_is_seen_and_ends_with_its_container";
    let Some(pod) = pod_with(name, |c| c.share_pid = true) else { return };
    pod.run("a", "exec sleep 1234");
    pod.run("b", "(sleep 4321 &); sleep 0.2; ps | grep -c '[s]leep 1234'");
    assert_eq!(wait(&pod, "b").code, 0);
    assert_eq!(pod.lines("b", "stdout"), ["1"]);
    let (exit, out, _) = exec(&pod, sh("a", "ps | grep -c '[s]leep 1234'"), "");
    assert_eq!((exit.code, out.as_str()), (0, "1\n"), "an exec sees the same processes");
    let cgroups = trellis_sandbox::cgroup::Cgroups::detect(&trellis_sandbox::cgroup::CgroupRoot::Own).unwrap();
    let group = cgroups.group(&pod.config.cgroup_path).child("b");
    until("what b started is gone", || group.processes().is_empty());
}

#[test]
fn a_shared_pid_namespace_shows_nothing_of_the_node_not_even_to_tracers() {
    let name = "a_shared_pid_namespace_shows_nothing_of_the_node_not_even_to_tracers";
    let Some(pod) = pod_with(name, |c| c.share_pid = true) else { return };
    let mut request = pod.request(
        "a",
        "(sleep 0 &); grep -E '^(Name|Uid|CapPrm|CapEff|NoNewPrivs)' /proc/1/status; \
         echo root $(ls -A /proc/1/root | wc -l) fds $(ls -A /proc/1/fd | wc -l); readlink /proc/1/exe; \
         echo x 2>/dev/null > /proc/1/root/x && echo wrote; \
         for s in /proc/[0-9]*/status; do grep -h '^State' $s; done | grep -c Z; grep -h '^Name' /proc/[0-9]*/status",
    );
    for set in ["bounding", "effective", "permitted"] {
        let all = request.spec["process"]["capabilities"][set].as_array_mut().unwrap();
        all.extend(["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"].map(Into::into));
    }
    pod.run_request(request);
    assert_eq!(wait(&pod, "a").code, 0, "{:?}", pod.lines("a", "stderr"));
    let lines = pod.lines("a", "stdout");
    let has = |want: &str| lines.iter().any(|l| l == want);
    assert!(has("root 0 fds 0"), "{lines:#?}");
    assert!(has("Uid:\t65534\t65534\t65534\t65534") && has("CapPrm:\t0000000000000000"), "{lines:#?}");
    assert!(has("NoNewPrivs:\t1") && !has("wrote"), "{lines:#?}");
    assert!(lines.iter().any(|l| l.starts_with("/memfd:")), "not a file of the node: {lines:#?}");
    // It reaps: the orphan is no zombie. And the shim is not there.
    assert!(has("0"), "{lines:#?}");
    assert!(has("Name:\ttrellis-pause") && !has("Name:\ttrellis-shim"), "{lines:#?}");
}

#[test]
fn no_file_of_the_node_is_behind_the_shim_or_a_container_that_is_not_started_yet() {
    let name = "no_file_of_the_node_is_behind_the_shim_or_a_container_that_is_not_started_yet";
    let Some(pod) = pod(name) else { return };
    let made = pod.client().create(pod.request("a", "sleep 1000")).unwrap();
    for pid in [pod.shim_pid, made.host_pid] {
        let exe = format!("/proc/{pid}/exe");
        assert!(fs::read_link(&exe).unwrap().to_string_lossy().starts_with("/memfd:"), "process {pid}");
        let seals = rustix::fs::fcntl_get_seals(fs::File::open(&exe).unwrap()).unwrap();
        assert!(seals.contains(rustix::fs::SealFlags::WRITE), "process {pid}: {seals:?}");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", pod.shim_pid)).unwrap(), "trellis-shim\n");
}

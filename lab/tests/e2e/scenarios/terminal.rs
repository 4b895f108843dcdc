//! A person at a terminal: a shell in a Pod, a shell on a node.

use std::process::Command;

use trellis_lab::workload::web;

use crate::{
    cluster::{Cluster, EXE},
    harness::Outcome,
    pty::Pty,
};

pub fn exec(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 1).to_string());
    let pod = cluster.wait_ready("default", "app=web", 1).remove(0).name;
    let mut pty = Pty::spawn(&cluster.trellis_command(&["exec", "-i", "-t", &pod, "--", "sh"]), 40, 120);
    pty.expect("$ ");
    // Split, so that what is typed and echoed is not what is awaited.
    pty.type_in("echo ho''st=$(hostname) te''rm=$TERM $(busybox tty)\r");
    pty.expect(&format!("host={pod} term=xterm /dev/pts/"));
    pty.type_in("busybox stty size\r");
    pty.expect("40 120");
    pty.resize(50, 90);
    // The new size arrives a moment later: the far shell waits for it.
    pty.type_in("until busybox stty size | busybox grep -q '50 90'; do :; done; echo re''sized\r");
    pty.expect("resized");
    pty.type_in("echo be''gun; sleep 1000\r");
    pty.expect("begun");
    pty.type_in("\x03");
    pty.type_in("echo co''de=$?\r");
    pty.expect("code=130");
    // Line editing and end of input are the far terminal's.
    pty.type_in("echo le''ftoverX\x7f\r");
    pty.expect("leftover\r\n");
    pty.type_in("exit 7\r");
    assert_eq!(pty.end(), 7);
    let mut pty = Pty::spawn(
        &cluster.trellis_command(&["exec", "-i", "-t", &pod, "--", "sh", "-c", "echo ready; exec cat"]),
        24,
        80,
    );
    // Once it speaks, its terminal and ours are set: echoed by the one, said again by cat.
    pty.expect("ready\r\n");
    pty.type_in("word\r");
    pty.expect("word\r\nword\r\n");
    pty.type_in("\x04");
    assert_eq!(pty.end(), 0);
    let pty = Pty::spawn(&cluster.trellis_command(&["exec", "-i", "-t", &pod, "--", "nothing"]), 24, 80);
    pty.expect("exec: \"nothing\": executable file not found in $PATH");
    assert_eq!(pty.end(), 127);
    Outcome::Passed
}

pub fn lab_shell(cluster: &mut Cluster) -> Outcome {
    let mut command = Command::new(EXE);
    command.args(["--name", &cluster.name, "shell", "n4"]);
    let mut pty = Pty::spawn(&command, 30, 100);
    pty.expect("root@n4");
    pty.type_in("echo ho''st=$(hostname)\r");
    pty.expect("host=n4");
    pty.type_in("stty size\r");
    pty.expect("30 100");
    pty.resize(31, 101);
    pty.type_in("until stty size | grep -q '31 101'; do :; done; echo re''sized\r");
    pty.expect("resized");
    pty.type_in("echo be''gun; sleep 1000\r");
    pty.expect("begun");
    pty.type_in("\x03");
    pty.type_in("echo co''de=$?\r");
    pty.expect("code=130");
    pty.type_in("exit 9\r");
    assert_eq!(pty.end(), 9);
    Outcome::Passed
}

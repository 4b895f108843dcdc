//! Logs, exec and port-forward: two hops, whichever member takes the call.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use trellis_lab::{backend::Backend, wait, workload::web};
use trellis_proto::client::Contexts;

use crate::{
    cluster::{Cluster, LIMIT, run},
    harness::Outcome,
};

/// A command that is ended with the scenario.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The address after "Forwarding from 127.0.0.1:PORT", as kubectl says it.
pub fn port_forward(cluster: &Cluster, target: &str, port: u16) -> (Running, u16) {
    let mut command = cluster.trellis_command(&["port-forward", target, &format!(":{port}")]);
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let lines = lines_of(child.0.stdout.take().unwrap());
    let line = lines.recv_timeout(LIMIT).unwrap();
    let local =
        line.split("127.0.0.1:").nth(1).and_then(|r| r.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    (child, local.unwrap_or_else(|| panic!("no local port in {line:?}")))
}

/// Lines as they come; the channel ends with the stream.
pub fn lines_of(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::sync_channel(10_000);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

pub fn http_through(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

pub fn through_any_member(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 2).to_string());
    let pods = cluster.wait_ready("default", "app=web", 2);
    let pod = &pods[0].name;
    let all = Contexts::load(&cluster.lab.layout().contexts()).unwrap();
    let members: Vec<String> = cluster.lab.topology().control_planes().map(|n| n.name.clone()).collect();
    for member in members {
        // A context that knows this member only.
        let mut only = all.clone();
        for context in only.contexts.values_mut() {
            context.endpoints = vec![cluster.lab.api_endpoint(&member)];
        }
        let file = cluster.folder().join(format!("only-{member}.json"));
        only.store(&file).unwrap();
        let trellis = |args: &[&str]| {
            let mut command = Command::new(cluster.program("trellis"));
            run(command.args(args).env("TRELLIS_CONFIG", &file).stdin(Stdio::null()), LIMIT)
        };
        let logs = trellis(&["logs", pod]).ok();
        assert!(logs.contains(&format!("serving as {pod}")), "{member}: {logs}");
        let said = trellis(&["exec", pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((said.code, said.stdout.as_str()), (7, "out\n"), "{member}: {said:?}");
        assert!(said.stderr.contains("err\n"), "{member}: {said:?}");
    }
    let mut piped = cluster.trellis_command(&["exec", "-i", pod, "--", "cat"]);
    let mut child = Running(piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let long = "a line of input\n".repeat(20_000);
    let mut stdin = child.0.stdin.take().unwrap();
    let sent = long.clone();
    let writer = thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let mut back = String::new();
    child.0.stdout.take().unwrap().read_to_string(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(back == long, "{} bytes of {} came back", back.len(), long.len());

    let (mut forward, port) = port_forward(cluster, &format!("pod/{pod}"), web::PORT);
    for _ in 0..3 {
        let answer = http_through(port);
        assert!(answer.contains(&format!("pod {pod}")), "{answer}");
    }
    // With its Pod gone it ends, and says why.
    assert!(forward.0.try_wait().unwrap().is_none(), "port-forward has ended before its Pod");
    cluster.trellis(&["delete", "pod", pod, "--grace-period=1"]).ok();
    let mut ended = None;
    wait::until_true("the end of port-forward", LIMIT, || {
        ended = forward.0.try_wait().unwrap();
        ended.is_some()
    })
    .unwrap();
    let mut said = String::new();
    forward.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains(&format!("lost connection to pod default/{pod}: it ")), "{said}");
    assert_eq!(ended.and_then(|s| s.code()), Some(1), "{said}");
    Outcome::Passed
}

const COUNTER: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"counter","labels":{"app":"counter"}},
"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"trellis.local/demo/web:1",
"command":["sh","-c","i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; done; test -e /tmp/x; sleep 1; exit 3"]}]}}"#;

pub fn logs_options(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("counter.json", COUNTER);
    let mut follow = cluster.trellis_command(&["logs", "-f", "counter"]);
    wait::until_true("the first lines", LIMIT, || cluster.trellis(&["logs", "counter"]).stdout.contains("line 20"))
        .unwrap();
    let mut following = Running(follow.stdout(Stdio::piped()).spawn().unwrap());
    let lines = lines_of(following.0.stdout.take().unwrap());
    assert_eq!(lines.recv_timeout(LIMIT).unwrap(), "line 1");
    let tail = cluster.trellis(&["logs", "counter", "--tail", "2"]).ok();
    assert_eq!(tail, "line 19\nline 20\n");
    let stamped = cluster.trellis(&["logs", "counter", "--tail", "1", "--timestamps"]).ok();
    assert!(stamped.starts_with("20") && stamped.contains("Z line 20"), "{stamped}");
    // It ends with code 3 and is started again: its lines are "previous" then.
    let restarted = || {
        let pod = cluster.api.get("Pod", "default", "counter").unwrap().unwrap();
        let status = &pod["status"]["containerStatuses"][0];
        let last = &status["lastState"]["terminated"];
        if status["restartCount"].as_u64() >= Some(1) && last["exitCode"] == 3 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    };
    wait::until("a restart with exit code 3", LIMIT, restarted).unwrap();
    let previous = cluster.trellis(&["logs", "counter", "--previous"]).ok();
    assert_eq!(previous.lines().count(), 20, "{previous}");
    fs::remove_file(cluster.folder().join("counter.json")).unwrap();
    Outcome::Passed
}

/// Command lines of what runs in a container.
fn running(cluster: &Cluster, pod: &str) -> String {
    cluster.trellis(&["exec", pod, "--", "ps"]).ok()
}

/// A command line that is killed leaves nothing behind in the container, and what it had sent so far
/// is not taken for all.
pub fn caller_dies(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 1).to_string());
    let pod = cluster.wait_ready("default", "app=web", 1).remove(0).name;
    let take = "cat > /tmp/part; echo all > /tmp/all; sleep 4241";
    for (args, shown) in [
        (&["exec", &pod, "--", "sleep", "4242"][..], "4242"),
        (&["exec", "-i", &pod, "--", "sleep", "4243"], "4243"),
        (&["exec", "-i", &pod, "--", "sh", "-c", take], "/tmp/part"),
    ] {
        let mut command = cluster.trellis_command(args);
        let mut child = Running(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let mut stdin = child.0.stdin.take().unwrap();
        wait::until("the process", LIMIT, || {
            stdin.write_all(b"part").map_err(|e| e.to_string())?;
            let now = running(cluster, &pod);
            if now.contains(shown) { Ok(()) } else { Err(now) }
        })
        .unwrap_or_else(|e| panic!("{e}"));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        wait::until("its end", LIMIT, || {
            let now = running(cluster, &pod);
            if now.contains(shown) { Err(now) } else { Ok(()) }
        })
        .unwrap_or_else(|e| panic!("{e}"));
    }
    assert_ne!(cluster.trellis(&["exec", &pod, "--", "cat", "/tmp/all"]).code, 0, "a part was taken for all");
    let sent = cluster.trellis(&["exec", &pod, "--", "cat", "/tmp/part"]).ok();
    assert!(sent.starts_with("part"), "the positive control: {sent:?}");
    Outcome::Passed
}

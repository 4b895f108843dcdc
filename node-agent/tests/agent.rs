//! The agent on a node of its own, with real shims and containers.
#![allow(clippy::unwrap_used, missing_docs)]
mod common;

use common::{IMAGE, Node, container, control_plane::key, gone, kill, running};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use trellis_proto::{
    api::{
        ExecInput, ExecStart, ImportRequest, ListImagesRequest, LogsRequest, PortForwardData, exec_input::Input,
        exec_output::Output, images_client::ImagesClient, pods_client::PodsClient,
    },
    identity::Identity,
    pki::{CertificateAuthority, KeyAnd},
};

async fn logs(node: &Node, pod: &str, change: impl Fn(&mut LogsRequest)) -> String {
    let mut request = LogsRequest { namespace: "default".into(), pod: pod.into(), ..LogsRequest::default() };
    change(&mut request);
    let mut stream = PodsClient::new(node.channel().await).logs(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        all.extend_from_slice(&part.data);
    }
    String::from_utf8(all).unwrap()
}

async fn exec(node: &Node, pod: &str, command: &[&str], stdin: Option<&str>, tty: bool) -> (i32, String) {
    let start = ExecStart {
        namespace: "default".into(),
        pod: pod.into(),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        stdin: stdin.is_some(),
        tty,
        ..ExecStart::default()
    };
    let mut inputs = vec![ExecInput { input: Some(Input::Start(start)) }];
    if let Some(text) = stdin {
        inputs.push(ExecInput { input: Some(Input::Stdin(text.as_bytes().to_vec().into())) });
        inputs.push(ExecInput { input: Some(Input::StdinEof(true)) });
    }
    let input = tokio_stream::StreamExt::chain(tokio_stream::iter(inputs), tokio_stream::pending());
    let mut stream = PodsClient::new(node.channel().await).exec(input).await.unwrap().into_inner();
    let (mut code, mut text) = (-1, Vec::new());
    while let Some(part) = stream.message().await.unwrap() {
        match part.output.unwrap() {
            Output::Stdout(data) | Output::Stderr(data) => text.extend_from_slice(&data),
            Output::ExitCode(c) => code = c,
        }
    }
    (code, String::from_utf8(text).unwrap())
}

/// The process whose command line holds this is there.
fn runs(marker: &str) -> bool {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().map(|e| std::fs::read(e.path().join("cmdline")));
    lines.flatten().any(|line| String::from_utf8_lossy(&line).contains(marker))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_talks_and_goes_without_a_trace() {
    let Some(node) = Node::start("talks").await else { return };
    node.import_busybox().await;
    let mut c = container(
        "a",
        "echo out; echo err >&2; id -u; hostname; cat /etc/hosts; env; trap 'exit 0' TERM; while :; do sleep 0.1; done",
    );
    c["env"] = json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    c["securityContext"] = json!({"runAsUser": 33});
    let began = Instant::now();
    let uid = node.api.bind("talks", json!({"containers": [c]}));
    let pod = node.api.until("talks", "running", running).await;
    eprintln!("bound to Ready in {:?}", began.elapsed());
    let status = &pod["status"];
    assert_eq!(status["podIP"], "10.244.1.7");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("trellis://a.0."));
    assert!(status["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "PodScheduled"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let text = loop {
        let text = logs(&node, "talks", |_| ()).await;
        if text.contains("IP=10.244.1.7") || Instant::now() > deadline {
            break text;
        }
    };
    for want in ["out\n", "err\n", "33\n", "talks\n", "10.244.1.7\ttalks\n", "IP=10.244.1.7\n"] {
        assert!(text.contains(want), "{want:?} not in {text}");
    }
    assert_eq!(logs(&node, "talks", |r| r.tail_lines = Some(0)).await, "");
    assert!(logs(&node, "talks", |r| r.timestamps = true).await.starts_with("20"));
    assert_eq!(exec(&node, "talks", &["sh", "-c", "echo hi; exit 7"], None, false).await, (7, "hi\n".into()));
    assert_eq!(exec(&node, "talks", &["cat"], Some("through"), false).await, (0, "through".into()));
    let (code, text) = exec(&node, "talks", &["sh", "-c", "test -t 0 && echo terminal"], None, true).await;
    assert_eq!((code, text.trim()), (0, "terminal"));
    node.api.terminate("talks", 10);
    gone(&node, "talks", &uid).await;
    let told = |want: &str| node.api.reasons("talks").iter().any(|r| r == want);
    let all = |_: &Value| ["Pulled", "Created", "Started", "Killing"].into_iter().all(told);
    node.api.until("talks", "told of in Events", all).await;
}

/// More output than the pipe, the stream's queue and the connection's windows hold: when the process
/// ends, the last of it lies in the pipe, and there it stays while its reader does something else.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_of_exec_gets_all_before_the_exit_code() {
    const BYTES: usize = 8 << 20;
    const PAUSE: Duration = Duration::from_secs(2);
    let Some(node) = Node::start("slow").await else { return };
    node.import_busybox().await;
    let uid = node.api.bind("slow", json!({"containers": [container("a", "exec sleep 600")]}));
    node.api.until("slow", "running", running).await;
    let marker = format!("slow-reader-{}", std::process::id());
    let script = format!("dd if=/dev/zero bs=65536 count=128 2>/dev/null; exit 5 # {marker}");
    let start = ExecStart {
        namespace: "default".into(),
        pod: "slow".into(),
        command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        ..ExecStart::default()
    };
    let first = ExecInput { input: Some(Input::Start(start)) };
    let input = tokio_stream::StreamExt::chain(tokio_stream::iter([first]), tokio_stream::pending());
    let mut stream = PodsClient::new(node.channel().await).exec(input).await.unwrap().into_inner();
    let (mut bytes, mut at_its_end) = (0, None);
    let code = loop {
        let next = tokio::time::timeout(Duration::from_secs(30), stream.message()).await.unwrap().unwrap();
        match next.unwrap().output.unwrap() {
            Output::Stdout(data) | Output::Stderr(data) => bytes += data.len(),
            Output::ExitCode(code) => break code,
        }
        if at_its_end.is_none() && !runs(&marker) {
            at_its_end = Some(bytes);
            tokio::time::sleep(PAUSE).await;
        }
    };
    assert_eq!((code, bytes), (5, BYTES), "it ended when {at_its_end:?} bytes had come");
    assert!(at_its_end.unwrap() < BYTES, "it ended too late to tell anything");
    node.api.terminate("slow", 0);
    gone(&node, "slow", &uid).await;
}

/// Below the node's /sys, which such a container sees, lie mounts of their own: its cgroups above all.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_on_the_nodes_network_cannot_write_its_cgroups() {
    let Some(node) = Node::start("host").await else { return };
    node.import_busybox().await;
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let name = format!("trellis-probe-{}", std::process::id());
    let below = |group: &str| std::path::Path::new(group).join(&name);
    // The control: they can be written by root that is in no container.
    let writable =
        |group: &&str| std::fs::create_dir(below(group)).and_then(|()| std::fs::remove_dir(below(group))).is_ok();
    let groups: Vec<&str> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|m| m[1].starts_with("/sys/") && ["tmpfs", "cgroup", "cgroup2"].contains(&m[2]))
        .map(|m| m[1])
        .filter(writable)
        .collect();
    assert!(!groups.is_empty(), "nothing to be tried: {mounts}");
    let list = groups.join(" ");
    let script = format!("for g in {list}; do busybox mkdir $g/{name} && echo made; done; echo over");
    let spec = json!({"hostNetwork": true, "restartPolicy": "Never", "containers": [container("a", &script)]});
    let uid = node.api.bind("host", spec);
    node.api.until("host", "over", |p| p["status"]["phase"] == "Succeeded").await;
    let said = logs(&node, "host", |_| ()).await;
    let made = groups.iter().filter(|g| std::fs::remove_dir(below(g)).is_ok()).count();
    assert_eq!((made, said.matches("Read-only file system").count()), (0, groups.len()), "{said}");
    assert!(said.contains("over"), "{said}");
    node.api.terminate("host", 0);
    gone(&node, "host", &uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_volumes_and_an_end() {
    let Some(node) = Node::start("volumes").await else { return };
    node.import_busybox().await;
    let uid = node.api.bind(
        "vols",
        json!({"restartPolicy": "Never",
            "initContainers": [{"name": "i", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "echo from-init > /data/x"], "volumeMounts": [{"name": "d", "mountPath": "/data"}]}],
            "containers": [{"name": "a", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "cat /data/x /cfg/color /one; echo $SECRET; echo last words > /dev/termination-log; sleep 2; cat /cfg/color; exit 3"],
                "env": [{"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "volumeMounts": [{"name": "d", "mountPath": "/data"}, {"name": "c", "mountPath": "/cfg"},
                    {"name": "c", "mountPath": "/one", "subPath": "size"}]}],
            "volumes": [{"name": "d", "emptyDir": {"medium": "Memory"}}, {"name": "c", "configMap": {"name": "cm"}}]}),
    );
    node.api
        .until("vols", "waiting for its ConfigMap", |_| node.api.reasons("vols").contains(&"FailedMount".into()))
        .await;
    let cm = key("ConfigMap", "cm");
    let config = |color: &str| json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"color": format!("{color}\n"), "size": "xl\n"}});
    node.api.put(&cm, config("red"));
    node.api
        .until("vols", "in CreateContainerConfigError", |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    node.api.put(
        &key("Secret", "s"),
        json!({"metadata": {"name": "s", "namespace": "default"}, "data": {"k": "czNjcmV0"}}),
    );
    node.api.until("vols", "running", running).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !logs(&node, "vols", |_| ()).await.contains("s3cret") {
        assert!(Instant::now() < deadline, "it never read its files");
    }
    node.api.put(&cm, config("blue"));
    let pod = node.api.until("vols", "failed", |p| p["status"]["phase"] == "Failed").await;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"], &ended["message"]),
        (&json!(3), &json!("Error"), &json!("last words\n"))
    );
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(logs(&node, "vols", |_| ()).await, "from-init\nred\nxl\ns3cret\nblue\n");
    node.api.terminate("vols", 0);
    gone(&node, "vols", &uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_waited_for_its_configuration_can_be_stopped() {
    let Some(node) = Node::start("late").await else { return };
    node.import_busybox().await;
    let mut waits = container("a", "exec sleep 600");
    waits["envFrom"] = json!([{"configMapRef": {"name": "late"}}]);
    let uid = node.api.bind("late", json!({"containers": [waits]}));
    // Tried more than once under the same number, so that there are runs to be mixed up with.
    let tries = || node.agent_log().matches("configmap \"late\" not found").count();
    node.api.until("late", "tried three times", |_| tries() >= 3).await;
    let cm = json!({"metadata": {"name": "late", "namespace": "default"}, "data": {"K": "v"}});
    node.api.put(&key("ConfigMap", "late"), cm);
    node.api.until("late", "running", running).await;
    node.api.terminate("late", 1);
    gone(&node, "late", &uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_probes_and_memory_are_told_in_kubernetes_words() {
    let Some(node) = Node::start("crash").await else { return };
    node.import_busybox().await;
    let mut tries = container("a", "echo >> /runs/all; echo try $(wc -l < /runs/all); exit 1");
    tries["volumeMounts"] = json!([{"name": "runs", "mountPath": "/runs"}]);
    let tries = json!({"containers": [tries], "volumes": [{"name": "runs", "emptyDir": {}}]});
    let loop_uid = node.api.bind("loop", tries);
    let mut sick = container("a", "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    sick["livenessProbe"] = json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1});
    let sick_uid = node.api.bind("sick", json!({"containers": [sick], "terminationGracePeriodSeconds": 5}));
    let mut fat = container("a", "exec tail /dev/zero");
    fat["resources"] = json!({"limits": {"memory": "16Mi"}});
    let fat_uid = node.api.bind("fat", json!({"restartPolicy": "Never", "containers": [fat]}));
    let none_uid = node.api.bind(
        "none",
        json!({"containers": [{"name": "a", "image": "docker.io/library/none:1", "imagePullPolicy": "Never"}]}),
    );
    let missing = json!({"name": "a", "image": IMAGE, "imagePullPolicy": "Never", "command": ["/no/such/program"]});
    let bad_uid = node.api.bind("bad", json!({"restartPolicy": "Never", "containers": [missing]}));
    let first = |p: &Value| p["status"]["containerStatuses"][0].clone();
    let pod = node
        .api
        .until("loop", "in CrashLoopBackOff", |p| first(p)["state"]["waiting"]["reason"] == "CrashLoopBackOff")
        .await;
    assert_eq!(first(&pod)["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(first(&pod)["restartCount"], 1);
    // It waits: its last run is the previous one already.
    assert_eq!(logs(&node, "loop", |r| r.previous = true).await, "try 2\n");
    assert_eq!(logs(&node, "loop", |_| ()).await, "try 2\n");
    node.api.until("sick", "restarted", |p| first(p)["restartCount"].as_i64() >= Some(1)).await;
    node.api
        .until("sick", "told that it is unhealthy", |_| node.api.reasons("sick").contains(&"Unhealthy".into()))
        .await;
    let pod = node.api.until("fat", "failed", |p| p["status"]["phase"] == "Failed").await;
    assert_eq!(first(&pod)["state"]["terminated"]["reason"], "OOMKilled", "{pod:#}");
    node.api
        .until("none", "in ErrImageNeverPull", |p| first(p)["state"]["waiting"]["reason"] == "ErrImageNeverPull")
        .await;
    let pod = node.api.until("bad", "failed", |p| p["status"]["phase"] == "Failed").await;
    eprintln!("{:#}", first(&pod)["state"]);
    for (name, uid) in [("loop", loop_uid), ("sick", sick_uid), ("fat", fat_uid), ("none", none_uid), ("bad", bad_uid)]
    {
        node.api.terminate(name, 1);
        gone(&node, name, &uid).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_is_registered_and_a_lost_shim_is_replaced() {
    let Some(node) = Node::start("node").await else { return };
    node.import_busybox().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let ready = |n: &Value| {
        n["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    while !node.api.get(&key("Node", "n1")).is_some_and(|n| ready(&n)) {
        assert!(Instant::now() < deadline, "{:#?}", node.api.get(&key("Node", "n1")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let uid = node.api.bind("phoenix", json!({"containers": [container("a", "sleep 1000")]}));
    node.api.until("phoenix", "running", running).await;
    kill(node.shim_pid(&uid));
    let pod = node
        .api
        .until("phoenix", "restarted", |p| p["status"]["containerStatuses"][0]["restartCount"] == 1 && running(p))
        .await;
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    // netd restarts: it knows the Pod, but has no hold on its namespace.
    node.netd.pods.lock().unwrap().get_mut(&uid).unwrap().0 = false;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !node.netd.pods.lock().unwrap()[&uid].0 {
        assert!(Instant::now() < deadline, "not handed over again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.api.terminate("phoenix", 0);
    gone(&node, "phoenix", &uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hooks_readiness_on_the_way_out_and_host_paths() {
    let Some(node) = Node::start("figures").await else { return };
    node.import_busybox().await;
    let host = node.dir.path().join("host");
    let script = "trap 'echo term >> /host/said; : > /host/draining; while [ ! -e /host/go ]; do sleep 0.05; done; exit 0' TERM; \
        cat /host/given > /host/taken; while :; do sleep 0.05; done";
    let mut c = container("a", script);
    c["resources"] = json!({"limits": {"cpu": "250m", "memory": "64Mi"}});
    c["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
    let say = |word: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {word} >> /host/said")]}});
    c["lifecycle"] = json!({"postStart": say("post"), "preStop": say("pre")});
    c["readinessProbe"] = json!({"exec": {"command": ["test", "!", "-e", "/host/draining"]},
        "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10});
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("given"), "from the host").unwrap();
    let secret = json!({"metadata": {"name": "s", "namespace": "default"}, "data": {"k": "czNjcmV0"}});
    node.api.put(&key("Secret", "s"), secret);
    let volumes = json!([{"name": "host", "hostPath": {"path": host, "type": "Directory"}},
        {"name": "s", "secret": {"secretName": "s"}}]);
    let uid = node.api.bind("figures", json!({"containers": [c], "volumes": volumes}));
    node.api.until("figures", "running", running).await;
    // What is looked for when a Pod is gone is found while it is there.
    let traces = node.traces(&uid);
    for what in ["/shims/", "/data/pods/", "/agent/volumes/", "/sys/fs/cgroup/", "process ", "netd's"] {
        assert!(traces.iter().any(|t| t.contains(what)), "{what} is not in {traces:#?}");
    }
    let read = |name: &str| std::fs::read_to_string(host.join(name)).unwrap_or_default();
    node.api.until("figures", "done with its hook", |_| read("said") == "post\n" && !read("taken").is_empty()).await;
    assert_eq!(read("taken"), "from the host");
    let figures = |names: &[&str]| node.cgroup_figures(&uid, "a", names);
    assert_eq!(figures(&["pids.max"]), "16384");
    assert_eq!(figures(&["cpu.max", "cpu.cfs_quota_us"]).split(' ').next(), Some("25000"));
    assert_eq!(figures(&["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    node.api.terminate("figures", 600);
    node.api
        .until("figures", "not ready while it goes", |p| !running(p) && p["metadata"]["deletionTimestamp"].is_string())
        .await;
    assert_eq!(read("said"), "post\npre\nterm\n", "each hook once, before the signal");
    std::fs::write(host.join("go"), "").unwrap();
    gone(&node, "figures", &uid).await;
    assert_eq!((read("said"), read("given")), ("post\npre\nterm\n".to_owned(), "from the host".to_owned()));
}

/// What each call on port 10250 answers to whoever has this certificate, or none.
async fn answers(node: &Node, pod: &str, certificate: Option<&KeyAnd>) -> Vec<(&'static str, Result<(), Status>)> {
    let channel = async || node.channel_as(certificate).await.map_err(|e| Status::from_error(Box::new(e)));
    let namespace = || "default".to_owned();
    let logs = async {
        let request = LogsRequest { namespace: namespace(), pod: pod.into(), ..LogsRequest::default() };
        PodsClient::new(channel().await?).logs(request).await.map(drop)
    };
    let exec = async {
        let (pod, command) = (pod.into(), vec!["true".to_owned()]);
        let start = ExecStart { namespace: namespace(), pod, command, ..ExecStart::default() };
        let input = tokio_stream::once(ExecInput { input: Some(Input::Start(start)) });
        PodsClient::new(channel().await?).exec(input).await.map(drop)
    };
    let forward = async {
        PodsClient::new(channel().await?).port_forward(tokio_stream::once(PortForwardData::default())).await.map(drop)
    };
    let import = async {
        let part = ImportRequest { node: "n1".into(), ..ImportRequest::default() };
        ImagesClient::new(channel().await?).import(tokio_stream::once(part)).await.map(drop)
    };
    let list = async { ImagesClient::new(channel().await?).list(ListImagesRequest::default()).await.map(drop) };
    vec![
        ("logs", logs.await),
        ("exec", exec.await),
        ("port-forward", forward.await),
        ("import", import.await),
        ("list", list.await),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn port_10250_serves_members_and_nobody_else() {
    let Some(node) = Node::start("door").await else { return };
    node.import_busybox().await;
    let uid = node.api.bind("door", json!({"containers": [container("a", "echo private; exec sleep 600")]}));
    node.api.until("door", "running", running).await;
    // Every role but a member's, from the same CA.
    let others =
        [Identity::Agent("n1".into()), Identity::Agent("n2".into()), Identity::Netd("n1".into()), Identity::admin()];
    for identity in others {
        for (call, answer) in answers(&node, "door", Some(&node.issue(&identity))).await {
            assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied, "{identity}: {call}");
        }
        let who = format!("refused on port 10250 who=\"{} {}\"", identity.organization(), identity.name());
        assert_eq!(node.agent_log().matches(&who).count(), 5, "{who}");
    }
    // Nobody, and a member of another cluster: they come no further than the handshake.
    let stranger = CertificateAuthority::create("test").unwrap().issue(&Identity::Member("m1".into())).unwrap();
    for (who, certificate) in [("nobody", None), ("a member of another cluster", Some(&stranger))] {
        let handshakes = || node.agent_log().matches("refused a connection: TLS handshake failed").count();
        let before = handshakes();
        for (call, answer) in answers(&node, "door", certificate).await {
            // What the client itself says of a connection that ended under it; which, is a matter of time.
            let code = answer.unwrap_err().code();
            let ended = matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
            assert!(ended, "{who}: {call}: {code:?}");
        }
        // It is written when the client may have been told already.
        let deadline = Instant::now() + Duration::from_secs(10);
        while handshakes() < before + 5 {
            assert!(Instant::now() < deadline, "{who}: not each is logged");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // The positive control: another member, with the same calls.
    let member = node.issue(&Identity::Member("m2".into()));
    for (call, answer) in answers(&node, "door", Some(&member)).await {
        match call {
            // Understood, and found wanting.
            "port-forward" | "import" => assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument, "{call}"),
            _ => assert!(answer.is_ok(), "{call}: {answer:?}"),
        }
    }
    assert_eq!(logs(&node, "door", |_| ()).await, "private\n");
    assert_eq!(exec(&node, "door", &["echo", "hi"], None, false).await, (0, "hi\n".into()));
    node.api.terminate("door", 0);
    gone(&node, "door", &uid).await;
}

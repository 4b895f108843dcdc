//! Software nobody here wrote, in images other tools made, pulled from a real registry.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use trellis_lab::{backend::Backend, node::control::DaemonSpec, wait};

use super::streams;
use crate::{
    cluster::{Cluster, LIMIT, REGISTRY, run},
    harness::Outcome,
};

/// Where the registry is; its data and the images lie in that node's data folder.
pub const HOME: &str = "n1";
const TOOLS: &[&str] = &[
    "/usr/bin/docker-registry",
    "/usr/bin/skopeo",
    "/usr/bin/umoci",
    "/usr/sbin/nginx",
    "/usr/bin/redis-server",
    "/usr/bin/redis-cli",
    "/bin/busybox",
];
const NGINX_CONF: &str = "daemon off; pid /tmp/nginx.pid; error_log /dev/stderr; user nobody nogroup;
events {}
http { access_log /dev/stdout; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
 uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
 server { listen 80; location / { default_type text/plain; return 200 \"nginx of Debian on $hostname\\n\"; } } }
";

struct Recipe {
    name: &'static str,
    programs: &'static [&'static str],
    entrypoint: &'static [&'static str],
    /// What a Pod's args replace.
    cmd: &'static [&'static str],
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "nginx",
        programs: &["/usr/sbin/nginx"],
        entrypoint: &["/usr/sbin/nginx", "-c", "/etc/nginx.conf"],
        cmd: &[],
    },
    Recipe {
        name: "redis",
        programs: &["/usr/bin/redis-server", "/usr/bin/redis-cli"],
        entrypoint: &["/usr/bin/redis-server", "--protected-mode", "no", "--save", ""],
        cmd: &[],
    },
    // As everybody's busybox: no entry point.
    Recipe { name: "busybox", programs: &["/bin/busybox"], entrypoint: &[], cmd: &["/bin/busybox", "sleep", "100000"] },
];

/// Copies a program and what its dynamic loader needs.
fn copy_program(program: &str, root: &Path) {
    let mut files = BTreeSet::from([PathBuf::from(program)]);
    let linked = Command::new("ldd").arg(program).output().unwrap();
    for word in String::from_utf8_lossy(&linked.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        files.insert(PathBuf::from(word));
    }
    for file in files {
        let target = root.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
}

pub fn umoci(args: &[&str]) {
    run(Command::new("umoci").args(args), LIMIT).ok();
}

/// An OCI layout with one image a recipe, made by umoci.
fn make_images(folder: &Path) {
    let layout = folder.join("layout");
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    for recipe in RECIPES {
        let root = folder.join(recipe.name);
        for dir in ["etc", "tmp", "proc", "sys", "dev", "bin"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for program in recipe.programs {
            copy_program(program, &root);
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
        fs::write(root.join("etc/nginx.conf"), NGINX_CONF).unwrap();
        if recipe.name == "busybox" {
            for applet in ["sh", "cat", "echo", "rm", "sleep", "timeout", "touch", "wget"] {
                std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
            }
        }
        let image = format!("{}:{}", layout.display(), recipe.name);
        umoci(&["new", "--image", &image]);
        umoci(&["insert", "--image", &image, root.to_str().unwrap(), "/"]);
        let mut config = vec!["config", "--image", &image];
        for word in recipe.entrypoint {
            config.extend(["--config.entrypoint", word]);
        }
        for word in recipe.cmd {
            config.extend(["--config.cmd", word]);
        }
        umoci(&config);
    }
}

/// The folder of images, made by the first who needs it; an OCI layout is in it.
pub fn images(cluster: &Cluster) -> PathBuf {
    let folder = cluster.lab.layout().node(HOME).path("data").join("images");
    if !folder.exists() {
        fs::create_dir_all(&folder).unwrap();
        make_images(&folder);
    }
    folder
}

/// Debian's docker-registry as a daemon of the node, over the storage that all of them share.
pub fn start(cluster: &Cluster, name: &str, address: &str, more: &str) {
    images(cluster);
    let data = cluster.lab.layout().node(HOME).path("data");
    let config = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: /var/lib/trellis/registry}}}}\nhttp: {{addr: '{address}'}}\n{more}"
    );
    fs::write(data.join(format!("{name}.yml")), config).unwrap();
    let argv = vec!["docker-registry".to_owned(), "serve".to_owned(), format!("/var/lib/trellis/{name}.yml")];
    cluster
        .lab
        .start_daemon(HOME, DaemonSpec { name: name.to_owned(), argv, env: BTreeMap::new(), user: None })
        .unwrap();
}

/// Pushes an image of the layout into the open registry, by skopeo, as tag 1.
pub fn push(cluster: &Cluster, image: &str, repository: &str) {
    let source = format!("oci:/var/lib/trellis/images/layout:{image}");
    let target = format!("docker://{REGISTRY}/{repository}:1");
    let argv = ["skopeo", "copy", "--all", "--insecure-policy", "--dest-tls-verify=false", &source, &target];
    wait::until(&format!("pushing {image}"), LIMIT, || {
        let output = cluster.lab.run(HOME, &argv, &BTreeMap::new()).map_err(|e| e.to_string())?;
        if output.code == 0 { Ok(()) } else { Err(output.stderr) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

/// Why registries cannot be tested here, if so.
pub fn missing_tool() -> Option<String> {
    let missing = TOOLS.iter().find(|t| !Path::new(t).exists())?;
    Some(format!("{missing} is not installed (make test installs it where it may)"))
}

/// The Deployment of Kubernetes' documentation, as it is; only the image is another.
const DOCUMENTED: &str = "apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx-deployment
  labels:
    app: nginx
spec:
  replicas: 3
  selector:
    matchLabels:
      app: nginx
  template:
    metadata:
      labels:
        app: nginx
    spec:
      containers:
      - name: nginx
        image: 172.30.0.11:5000/library/nginx:1
        ports:
        - containerPort: 80
";

/// Pods as that documentation teaches them: a plain one, one that is looked after by a command, one with a command and
/// arguments of its own. Only the images are others.
const DOCUMENTED_PODS: &str = "apiVersion: v1
kind: Pod
metadata:
  name: nginx
spec:
  containers:
  - name: nginx
    image: 172.30.0.11:5000/library/nginx:1
    ports:
    - containerPort: 80
---
apiVersion: v1
kind: Pod
metadata:
  labels:
    test: liveness
  name: liveness-exec
spec:
  containers:
  - name: liveness
    image: 172.30.0.11:5000/library/busybox:1
    args:
    - /bin/sh
    - -c
    - touch /tmp/healthy; sleep 30; rm -f /tmp/healthy; sleep 600
    livenessProbe:
      exec:
        command:
        - cat
        - /tmp/healthy
      initialDelaySeconds: 5
      periodSeconds: 5
---
apiVersion: v1
kind: Pod
metadata:
  name: command-demo
  labels:
    purpose: demonstrate-command
spec:
  containers:
  - name: command-demo-container
    image: 172.30.0.11:5000/library/busybox:1
    env:
    - name: MESSAGE
      value: \"hello world\"
    command: [\"/bin/sh\"]
    args: [\"-c\", \"echo $(MESSAGE) from $HOSTNAME\"]
  restartPolicy: OnFailure
";

/// The Pods run as the documentation says that they do.
fn documented_pods(cluster: &Cluster) {
    let said = cluster.apply("pods.yaml", DOCUMENTED_PODS);
    assert_eq!(said.matches(" created").count(), 3, "{said}");
    cluster.trellis(&["wait", "--for=condition=Ready", "pod/nginx", "pod/liveness-exec", "--timeout=60s"]).ok();
    let phase = "--for=jsonpath={.status.phase}=Succeeded";
    cluster.trellis(&["wait", phase, "pod/command-demo", "--timeout=60s"]).ok();
    assert_eq!(cluster.trellis(&["logs", "command-demo"]).ok(), "hello world from command-demo\n");
    let address = cluster.api.get("Pod", "default", "nginx").unwrap().unwrap()["status"]["podIP"].clone();
    let answer = wait::until("nginx' answer", LIMIT, || cluster.ask("n2", address.as_str().unwrap(), 80));
    assert_eq!(answer.unwrap_or_else(|e| panic!("{e}")).body.trim(), "nginx of Debian on nginx");
}

/// Half a minute after its start it is no longer healthy, and three looks later that counts.
fn liveness_fails(cluster: &Cluster) {
    let why = wait::until("the end of liveness-exec's health", LIMIT * 2, || {
        let events = cluster.trellis(&["events", "--for=pod/liveness-exec"]).stdout;
        let told = ["Unhealthy", "Liveness probe failed", "Killing"].iter().all(|w| events.contains(w));
        if told { Ok(()) } else { Err(events) }
    });
    why.unwrap_or_else(|e| panic!("{e}"));
}

pub fn real_software(cluster: &mut Cluster) -> Outcome {
    if let Some(missing) = missing_tool() {
        return Outcome::Skipped(missing);
    }
    start(cluster, "registry", REGISTRY, "");
    for recipe in RECIPES {
        push(cluster, recipe.name, &format!("library/{}", recipe.name));
    }
    documented_pods(cluster);
    cluster.apply("nginx.yaml", DOCUMENTED);
    let web = cluster.wait_ready("default", "app=nginx", 3);
    let (_forward, port) = streams::port_forward(cluster, "deployment/nginx-deployment", 80);
    let url = format!("http://127.0.0.1:{port}/");
    let said = run(Command::new("curl").args(["-sS", "--max-time", "10", &url]), LIMIT).ok();
    assert!(said.starts_with("nginx of Debian on nginx-deployment-"), "{said}");

    let pod = |name: &str, image: &str, node: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 1, "nodeName": node,
                "containers": [{"name": "c", "image": format!("{REGISTRY}/library/{image}:1")}]}})
    };
    let mut client = pod("client", "redis", "n5");
    client["spec"]["containers"][0]["command"] = json!(["/usr/bin/redis-server", "--port", "6380"]);
    cluster.apply("redis.json", &pod("redis", "redis", "n4").to_string());
    cluster.apply("client.json", &client.to_string());
    cluster.apply("box.json", &pod("box", "busybox", "n2").to_string());
    let redis = cluster.wait_ready("default", "app=redis", 1).remove(0);
    cluster.wait_ready("default", "app=client", 1);
    cluster.wait_ready("default", "app=box", 1);
    let ask = |args: &[&str]| {
        let base = ["exec", "client", "--", "redis-cli", "-h", &redis.address];
        cluster.trellis(&[&base[..], args].concat()).ok()
    };
    assert_eq!(ask(&["set", "answer", "42"]).trim(), "OK");
    assert_eq!(ask(&["get", "answer"]).trim(), "42");
    let fetched = cluster.ask_from_pod("default", "box", &format!("http://{}/", web[0].address)).ok();
    assert!(fetched.contains(&web[0].name), "{fetched}");
    liveness_fails(cluster);
    cluster.lab.stop_daemon(HOME, "registry").unwrap();
    Outcome::Passed
}

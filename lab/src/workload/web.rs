//! The demonstration's web application: a page that says which Pod answers, on which node.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::image::{Entry, Image};
use crate::{Error, Result};

/// The image's name; no registry has it.
pub const IMAGE: &str = "trellis.local/demo/web:1";
/// The port it serves.
pub const PORT: u16 = 8080;
/// The unprivileged user it runs as.
const USER: u64 = 1000;
/// A shell and a web server in one program that needs no library.
const BUSYBOX: &[&str] = &["/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox-static"];

/// What of it is called by name.
const APPLETS: &[&str] = &[
    "cat", "echo", "env", "grep", "hostname", "httpd", "id", "ip", "kill", "ls", "nc", "ping", "ps", "sh", "sleep",
    "timeout", "touch", "wget",
];

/// PID 1 of the container: the shell, because PID 1 gets no signal it has no handler for, and
/// httpd has none.
const START: &str = "#!/bin/sh
trap 'kill $server; exit 0' TERM INT
echo \"pod $(hostname) on node $NODE_NAME at $POD_IP\" > /www/index.html
echo \"serving as $(hostname) on $NODE_NAME\"
httpd -f -p 8080 -h /www &
server=$!
wait $server
";

/// The image.
pub fn image() -> Result<Image> {
    let busybox = busybox()?;
    let mut programs = vec![Entry::folder("bin", 0), Entry::program("bin/busybox", &busybox)];
    for name in APPLETS {
        programs.push(Entry::link(&format!("bin/{name}"), "busybox"));
    }
    for folder in ["etc", "proc", "sys", "dev"] {
        programs.push(Entry::folder(folder, 0));
    }
    programs.push(Entry { mode: 0o1777, ..Entry::folder("tmp", 0) });
    programs.push(Entry::text("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n"));
    programs.push(Entry::text("etc/group", 0o644, "root:x:0:\nweb:x:1000:\n"));
    let application = vec![Entry::folder("app", 0), Entry::text("app/start", 0o755, START), Entry::folder("www", USER)];
    Ok(Image {
        name: IMAGE.to_owned(),
        layers: vec![programs, application],
        entrypoint: vec!["/app/start".to_owned()],
        user: format!("{USER}:{USER}"),
        env: vec!["PATH=/bin".to_owned()],
    })
}

/// A static busybox of this machine.
pub fn busybox() -> Result<PathBuf> {
    let is_static = |path: &&&str| std::fs::read(path).is_ok_and(|bytes| !has_interpreter(&bytes));
    BUSYBOX.iter().find(is_static).map(PathBuf::from).ok_or_else(|| Error::Lacking {
        what: "the demonstration's image needs a static busybox".to_owned(),
        how: "apt-get install busybox-static".to_owned(),
    })
}

/// Does a 64-bit ELF name a dynamic loader (program header PT_INTERP)? Anything else: no.
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let word = |at: usize| elf.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
    let long = |at: usize| elf.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (size, count) = (usize::from(word(54)), usize::from(word(56)));
    let offset = usize::try_from(long(32)).unwrap_or(usize::MAX);
    (0..count).any(|i| {
        let at = offset.saturating_add(i * size);
        let kind = elf.get(at..at.saturating_add(4)).and_then(|b| b.try_into().ok());
        kind.map(u32::from_le_bytes) == Some(PT_INTERP)
    })
}

/// A Deployment of it.
#[must_use]
pub fn deployment(name: &str, replicas: u32) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "containers": [{
                        "name": "web", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                        "ports": [{"name": "http", "containerPort": PORT}],
                        "env": [field("NODE_NAME", "spec.nodeName"), field("POD_IP", "status.podIP")],
                        "readinessProbe": {
                            "httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1
                        },
                        "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}},
                    }],
                },
            },
        },
    })
}

/// Writes the image's archive below the folder and answers its path.
pub fn write_archive(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("demo-web.tar");
    super::image::write(&image()?, &path)?;
    Ok(path)
}

//! The peer for Pod starts: `podman run` in a podman pod, on a machine of the same making.
//!
//! A lab of its own with one bare node, so that whatever podman makes (bridge, rules, mounts,
//! cgroups, state below /var/lib) is the node's and ends with it. The same image, a network with
//! an address, the answer asked over HTTP; the shell on the node reads the clock, so that the way
//! into the node counts for nothing.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::{
    Error, Result,
    backend::{Backend, Namespaces, Output},
    cluster::up,
    progress::Progress,
    topology::Topology,
    workload::web,
};

const NODE: &str = "n1";
/// As the node sees what lies in its lab folder.
const ARCHIVE: &str = "/run/lab/web.tar";

/// What podman needs beside itself; the first missing one is named.
const SETUP: &str = r#"
for program in podman runc conmon iptables; do
    command -v $program >/dev/null || { echo "no $program on this machine" >&2; exit 1; }
done
ls /usr/lib/cni/bridge /opt/cni/bin/bridge /usr/libexec/cni/bridge 2>/dev/null | grep -q . ||
    { echo "no CNI plugins on this machine" >&2; exit 1; }
set -e
mkdir -p /etc/containers /etc/cni/net.d
# crun refuses cgroup hierarchies of both versions side by side, runc takes them; the limits are
# those of this process, since raising them may be denied to it.
cat > /etc/containers/containers.conf <<END
[containers]
default_ulimits = ["nofile=$(ulimit -n):$(ulimit -n)", "nproc=$(ulimit -u | sed s/unlimited/4096/):$(ulimit -u | sed s/unlimited/4096/)"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "cni"
END
cat > /etc/containers/storage.conf <<END
[storage]
driver = "overlay"
graphroot = "/var/lib/trellis/podman"
runroot = "/run/podman"
END
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > /etc/containers/policy.json
ip link set lo up
podman load -q -i ARCHIVE
podman tag IMAGE localhost/bench/web:1 2>/dev/null || podman tag "$(podman images -q | head -1)" localhost/bench/web:1
"#;

/// Prints microseconds from the first command to the first answer.
const ONE: &str = r#"
set -e
begin=${EPOCHREALTIME/[.,]/}
podman pod create --name NAME --ip ADDRESS --infra-image localhost/bench/web:1 --infra-command 'sleep 100000' >/dev/null
podman run -d --pod NAME --name NAME-c localhost/bench/web:1 >/dev/null
ask() { exec 3<>/dev/tcp/ADDRESS/PORT && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r -t 1 line <&3; }
until (ask) 2>/dev/null; do
    [ $((${EPOCHREALTIME/[.,]/} - begin)) -lt 30000000 ] || { echo "it never answered" >&2; exit 1; }
done
echo $((${EPOCHREALTIME/[.,]/} - begin))
podman pod rm -f -t 0 NAME >/dev/null
"#;

/// Prints microseconds until all run.
const MANY: &str = r#"
begin=${EPOCHREALTIME/[.,]/}
for i in $(seq COUNT); do
    (podman pod create --name NAME$i --infra-image localhost/bench/web:1 --infra-command 'sleep 100000' >/dev/null &&
     podman run -d --pod NAME$i --name NAME$i-c localhost/bench/web:1 >/dev/null) &
done
wait
end=${EPOCHREALTIME/[.,]/}
running=$(podman ps -q --filter name=-c | wc -l)
podman pod rm -a -f -t 0 >/dev/null
[ "$running" = COUNT ] || { echo "$running of COUNT ran" >&2; exit 1; }
echo $((end - begin))
"#;

/// A machine with podman on it; gone when dropped.
pub(super) struct Podman {
    lab: Namespaces,
    started: u8,
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.lab.destroy() {
            eprintln!("taking down the machine for podman: {error}");
        }
    }
}

impl Podman {
    /// Makes the machine, with the image loaded.
    pub(super) fn start(beside: &Namespaces, exe: PathBuf) -> Result<Self> {
        let name = format!("{}-podman", beside.topology().name);
        let lab = Namespaces::new(Topology::simple(&name, 1, 0)?, beside.bin_dir().to_path_buf(), exe)?;
        lab.create()?;
        let podman = Self { lab, started: 0 };
        up::power_on(&podman.lab, &Progress::new())?;
        let folder = podman.lab.layout().node(NODE).path("lab");
        let archive = web::write_archive(&podman.lab.layout().root)?;
        let target = folder.join("web.tar");
        fs::rename(&archive, &target).map_err(Error::io(target.display().to_string()))?;
        podman.shell(&SETUP.replace("ARCHIVE", ARCHIVE).replace("IMAGE", web::IMAGE))?;
        Ok(podman)
    }

    /// Milliseconds from creating a pod with one container to its first answer over HTTP.
    pub(super) fn one(&mut self) -> Result<f64> {
        // An address known beforehand need not be asked for. The bridge has the first.
        self.started = if self.started >= 200 { 1 } else { self.started + 1 };
        let address = format!("10.88.1.{}", self.started);
        let script = ONE.replace("NAME", &format!("one{}", self.started)).replace("ADDRESS", &address);
        Ok(self.micros(&script.replace("PORT", &web::PORT.to_string()))? / 1e3)
    }

    /// Seconds until `count` pods that are started at once all run.
    pub(super) fn many(&mut self, count: usize) -> Result<f64> {
        let script = MANY.replace("NAME", "many").replace("COUNT", &count.to_string());
        Ok(self.micros(&script)? / 1e6)
    }

    fn micros(&self, script: &str) -> Result<f64> {
        let output = self.shell(script)?;
        let text = output.stdout.trim();
        text.parse().map_err(|_| Error::Format { what: "podman's time".to_owned(), why: format!("{text:?}") })
    }

    fn shell(&self, script: &str) -> Result<Output> {
        let output = self.lab.run(NODE, &["/bin/bash", "-c", script], &BTreeMap::new())?;
        if output.code == 0 {
            return Ok(output);
        }
        // The last line says most; the whole would not fit a table.
        let why = output.stderr.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
        Err(Error::Lacking {
            what: format!("podman does not run here: {why}"),
            how: "apt-get install podman runc conmon containernetworking-plugins iptables".to_owned(),
        })
    }
}

//! What a container finds in /etc besides its image's files: hosts, resolv.conf, hostname; made
//! once a Pod, bind-mounted into each of its containers.
use k8s_openapi::api::core::v1::Pod;
use std::{fs, io, path::Path};

/// resolv.conf's own limits (Kubernetes: three servers).
const NAMESERVERS_MAX: usize = 3;

/// The Pod's hostname: spec.hostname, else its name, cut to what the kernel takes.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let set = spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let name = set.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `/etc/hosts`; on the node's network it is the node's own with the aliases appended.
pub fn hosts(pod: &Pod, pod_ips: &[String], node_hosts: Option<&str>) -> String {
    let spec = pod.spec.as_ref();
    let mut out = match node_hosts {
        Some(text) => {
            format!("# The node's hosts file, copied by Trellis when the Pod started.\n{}\n", text.trim_end())
        }
        None => {
            let mut own = String::from(
                "# Written by Trellis when the Pod started.\n127.0.0.1\tlocalhost\n\
                 ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n\
                 fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let host = hostname(pod);
            let subdomain = spec.and_then(|s| s.subdomain.clone()).filter(|s| !s.is_empty());
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            for ip in pod_ips {
                match &subdomain {
                    Some(sub) => own += &format!("{ip}\t{host}.{sub}.{namespace}.svc.cluster.local\t{host}\n"),
                    None => own += &format!("{ip}\t{host}\n"),
                }
            }
            own
        }
    };
    for alias in spec.and_then(|s| s.host_aliases.as_ref()).into_iter().flatten() {
        out += &format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t"));
    }
    out
}

/// `/etc/resolv.conf`: dnsPolicy ClusterFirst cannot be had before the cluster has a DNS server,
/// so it is the node's file as long as `cluster_dns` is empty; dnsConfig is added in any case.
pub fn resolv_conf(pod: &Pod, node: &str, cluster_dns: &[String]) -> String {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let cluster = match policy {
        "ClusterFirst" => !host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    } && !cluster_dns.is_empty();
    let (mut servers, mut search, mut options): (Vec<String>, Vec<String>, Vec<String>) = match policy {
        "None" => Default::default(),
        _ if cluster => {
            let domains = ["cluster.local", "svc.cluster.local"].map(str::to_owned);
            let mut search = vec![format!("{namespace}.svc.cluster.local")];
            search.extend(domains.into_iter().rev());
            (cluster_dns.to_vec(), search, vec!["ndots:5".to_owned()])
        }
        _ => parse_resolv(node),
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        servers.extend(config.nameservers.iter().flatten().cloned());
        search.extend(config.searches.iter().flatten().cloned());
        for o in config.options.iter().flatten() {
            let name = o.name.clone().unwrap_or_default();
            options.retain(|old| old.split(':').next() != Some(&name));
            options.push(o.value.as_ref().map_or(name.clone(), |v| format!("{name}:{v}")));
        }
    }
    servers.truncate(NAMESERVERS_MAX);
    let mut out = String::new();
    if !search.is_empty() {
        out += &format!("search {}\n", search.join(" "));
    }
    for server in servers {
        out += &format!("nameserver {server}\n");
    }
    if !options.is_empty() {
        out += &format!("options {}\n", options.join(" "));
    }
    out
}

fn parse_resolv(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut servers, mut search, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => servers.extend(words.next()),
            Some("search" | "domain") => search = words.collect(),
            Some("options") => options = words.collect(),
            _ => {}
        }
    }
    (servers, search, options)
}

/// Writes the three files into `dir`. In place, not by rename: running containers have bound them.
pub fn write(dir: &Path, pod: &Pod, pod_ips: &[String], cluster_dns: &[String]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let node_hosts = host_network.then(|| fs::read_to_string("/etc/hosts").unwrap_or_default());
    let node_resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write_changed(&dir.join("hosts"), &hosts(pod, pod_ips, node_hosts.as_deref()))?;
    write_changed(&dir.join("resolv.conf"), &resolv_conf(pod, &node_resolv, cluster_dns))?;
    write_changed(&dir.join("hostname"), &format!("{}\n", hostname(pod)))
}

/// A file that is written in place is empty for a moment to those who read it: only one that says
/// something else is, so that agent and netd may be started anew under running containers.
fn write_changed(path: &Path, text: &str) -> io::Result<()> {
    match fs::read(path) {
        Ok(old) if old == text.as_bytes() => Ok(()),
        _ => fs::write(path, text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let p = pod(serde_json::json!({"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "10.1.1.1", "hostnames": ["a", "b"]}]}));
        let text = hosts(&p, &["10.244.1.7".into()], None);
        assert!(text.contains("10.244.1.7\th.s.shop.svc.cluster.local\th\n"));
        assert!(text.ends_with("10.1.1.1\ta\tb\n"));
        let plain = pod(serde_json::json!({"containers": []}));
        assert!(hosts(&plain, &["10.244.1.7".into()], None).contains("10.244.1.7\tweb-1\n"));
        assert!(hosts(&plain, &[], Some("1.2.3.4 node\n")).contains("1.2.3.4 node\n"));
    }

    #[test]
    fn resolv_conf_follows_dns_policy() {
        let node = "# c\nsearch corp.example\nnameserver 192.0.2.1\noptions timeout:1\n";
        let dns = ["10.96.0.10".to_owned()];
        let first = pod(serde_json::json!({"containers": []}));
        assert_eq!(
            resolv_conf(&first, node, &dns),
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&first, node, &[]), "search corp.example\nnameserver 192.0.2.1\noptions timeout:1\n");
        let none = pod(serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"], "searches": ["x"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}));
        let text = resolv_conf(&none, node, &dns);
        assert_eq!(
            text,
            "search x\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn a_file_that_says_the_same_is_left_alone() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let p = pod(serde_json::json!({"containers": []}));
        let write = |ip: &str| write(dir.path(), &p, &[ip.to_owned()], &[]).unwrap();
        write("10.244.1.7");
        let of = |name: &str| {
            let m = fs::metadata(dir.path().join(name)).unwrap();
            (m.ino(), m.mtime(), m.mtime_nsec())
        };
        // No write can be mistaken for one in the same tick of the clock.
        let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        let names = ["hosts", "resolv.conf", "hostname"];
        for name in names {
            fs::File::options().write(true).open(dir.path().join(name)).unwrap().set_times(old).unwrap();
        }
        let before = names.map(of);
        write("10.244.1.7");
        assert_eq!(names.map(of), before);
        write("10.244.1.8");
        assert!(fs::read_to_string(dir.path().join("hosts")).unwrap().contains("10.244.1.8"));
        assert_eq!(of("hosts").0, before[0].0, "running containers have bound this very file");
        assert_eq!(of("resolv.conf"), before[1]);
    }

    #[test]
    fn long_names_become_valid_hostnames() {
        let mut p = pod(serde_json::json!({"containers": []}));
        p.metadata.name = Some(format!("{}-tail", "a".repeat(62)));
        assert_eq!(hostname(&p), "a".repeat(62));
    }
}

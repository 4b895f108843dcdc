#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use clap::Parser;
use trellis_proto::client::Contexts;
use trellis_proto::pki::{CertificateAuthority, Key, from_base64};

#[derive(Parser)]
struct InitLine {
    #[command(flatten)]
    args: init::Args,
}

fn init_line(dir: &Path, more: &[&str]) -> init::Args {
    let (config, context) = (dir.join("etc"), dir.join("ctx.json"));
    let (config, context) = (config.to_str().unwrap(), context.to_str().unwrap());
    let mut line = vec![
        "init",
        "--name",
        "home",
        "--node-name",
        "n1",
        "--advertise-address",
        "172.30.0.11",
        "--config-dir",
        config,
        "--context-out",
        context,
    ];
    line.extend(more);
    InitLine::try_parse_from(line).unwrap().args
}

#[test]
fn init_makes_everything_once() {
    use std::os::unix::fs::PermissionsExt;
    trellis_proto::tls::install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let args = init_line(dir.path(), &["--api-unix-socket", "/run/x/api.sock", "--labels", "zone=a"]);
    init::run(&Global::default(), &args).unwrap();
    let etc = dir.path().join("etc");
    for file in [
        "node.json",
        "bootstrap.json",
        "pki/ca.crt",
        "pki/member.crt",
        "pki/member.key",
        "pki/agent.crt",
        "pki/agent.key",
        "pki/netd.crt",
        "pki/netd.key",
        "keys/kek",
        "keys/gossip",
    ] {
        let mode = std::fs::metadata(etc.join(file)).unwrap().permissions().mode();
        // Daemons of several users read it, and nothing in it is secret.
        let wanted = if file == "node.json" { 0o644 } else { 0o600 };
        assert_eq!(mode & 0o777, wanted, "{file}");
    }
    let node = NodeConfig::load(&etc).unwrap();
    assert_eq!(node.members[0].api_address, "172.30.0.11:6443");
    assert_eq!(node.roles, [Role::ControlPlane, Role::Worker]);
    assert_eq!(node.labels["zone"], "a");
    // The sealed CA key opens with the key that lies beside it.
    let text = |f: &str| std::fs::read_to_string(etc.join(f)).unwrap();
    let bootstrap: serde_json::Value = serde_json::from_str(&text("bootstrap.json")).unwrap();
    assert_eq!(bootstrap["pod_cidr"], "10.244.0.0/16");
    let sealed = from_base64(bootstrap["ca_key_sealed"].as_str().unwrap()).unwrap();
    let kek = Key::from_hex(&text("keys/kek")).unwrap();
    CertificateAuthority::open(&text("pki/ca.crt"), &sealed, &kek).unwrap();
    // The context works as far as it can be tried without a server.
    let path = dir.path().join("ctx.json");
    let contexts = Contexts::load(&path).unwrap();
    let (name, context) = contexts.pick(None, &path).unwrap();
    assert_eq!(name, "home");
    assert_eq!(context.endpoints, ["unix:///run/x/api.sock", "https://172.30.0.11:6443"]);
    context.connect(name).unwrap();
    // Again: nothing changes.
    let before = text("pki/ca.crt");
    init::run(&Global::default(), &args).unwrap();
    assert_eq!(before, text("pki/ca.crt"));
    let mut other = args;
    other.set_name("elsewhere");
    assert!(init::run(&Global::default(), &other).is_err());
}

#[test]
fn init_refuses_nonsense() {
    trellis_proto::tls::install_crypto();
    for bad in [
        &["--role", "worker"][..],
        &["--node-prefix", "8"],
        &["--node-prefix", "31"],
        &["--service-cidr", "10.244.5.0/24"],
        &["--labels", "a b=c"],
        &["--taints", "a:Sometimes"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let e = init::run(&Global::default(), &init_line(dir.path(), bad)).unwrap_err();
        assert_eq!(e.exit_code(), crate::error::USAGE, "{bad:?}: {e}");
        assert!(!dir.path().join("etc/node.json").exists());
    }
}

#[test]
fn a_join_with_a_wrong_clock_is_refused_and_says_how_wrong_it_is() {
    use std::time::{Duration, SystemTime};
    use trellis_proto::api::JoinReply;
    use trellis_proto::identity::Identity;
    let ca = CertificateAuthority::create("home").unwrap();
    let netd_certificate = ca.issue(&Identity::Netd("n2".into())).unwrap().pem;
    let reply = JoinReply { netd_certificate, ..JoinReply::default() };
    let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
    for right in [now, now - 20 * minute, now + 20 * minute] {
        join::clock_agrees(&reply, right).unwrap();
    }
    for (wrong, words) in [(now - 61 * minute, "minutes behind"), (now + 61 * minute, "minutes ahead of")] {
        let e = join::clock_agrees(&reply, wrong).unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("date -s"), "{e}");
    }
}

#[test]
fn tokens_and_servers() {
    let hash = "ab".repeat(32);
    assert_eq!(join::ca_hash(&format!("trellis.v1.id.secret.{hash}\n")).unwrap(), hash);
    for bad in ["", "trellis.v1.id.secret", "trellis.v2.a.b.c", "trellis.v1.id.secret.xyz"] {
        assert!(join::ca_hash(bad).is_err(), "{bad}");
    }
    for (server, want) in [
        ("10.0.0.1", "https://10.0.0.1:6443"),
        ("10.0.0.1:7000", "https://10.0.0.1:7000"),
        ("fd00::1", "https://[fd00::1]:6443"),
        ("unix:///run/a.sock", "unix:///run/a.sock"),
    ] {
        assert_eq!(join::endpoint(server), want);
    }
}

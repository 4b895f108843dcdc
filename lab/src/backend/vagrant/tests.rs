#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn the_environment_describes_the_same_vms_as_the_vagrantfile() {
    let made = topology(|_| None).unwrap();
    assert_eq!(made.nodes.len(), 6);
    assert_eq!(made.control_planes().count(), 3);
    assert_eq!(made.nodes[0].address.to_string(), "192.168.56.11");
    let small = topology(|name| match name {
        "CONTROL_PLANES" => Some("1".to_owned()),
        "WORKERS" => Some("0".to_owned()),
        "SUBNET" => Some("10.9.8.0/24".to_owned()),
        _ => None,
    });
    assert_eq!(small.unwrap().nodes[0].address.to_string(), "10.9.8.11");
    assert!(topology(|name| (name == "WORKERS").then(|| "many".to_owned())).is_err());
}

#[test]
fn a_topology_file_goes_before_the_environment_as_in_the_vagrantfile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.yaml");
    let of = |text: &str, environment: &[(&str, &str)]| {
        fs::write(&path, text).unwrap();
        let found = topology(|name| match name {
            "TOPOLOGY" => Some(path.display().to_string()),
            name => environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()),
        });
        let found = found.unwrap();
        (found.control_planes().count(), found.nodes.len(), found.nodes[0].address.to_string())
    };
    let environment = [("CONTROL_PLANES", "3"), ("WORKERS", "1"), ("SUBNET", "10.9.8.0/24")];
    let (ours, file) = ("192.168.56.11".to_owned(), "10.1.2.11".to_owned());
    assert_eq!(of("{}", &[]), (3, 6, ours.clone()), "the Vagrantfile's own numbers");
    assert_eq!(of("control_planes: 1", &[]), (1, 4, ours));
    assert_eq!(of("{}", &environment), (3, 4, "10.9.8.11".to_owned()));
    assert_eq!(of("{control_planes: 1, workers: 0, subnet: 10.1.2.0/24}", &environment), (1, 1, file));
}

#[test]
fn what_is_kept_of_the_vms_lies_with_what_vagrant_keeps_and_is_their_owners() {
    let state = Path::new("/home/me/trellis/.vagrant");
    let kept = layout("vagrant", state, false);
    assert_eq!(kept.root, state.join("trellis-lab/vagrant"));
    assert_eq!(layout("vagrant", state, true).root, Layout::of("vagrant").root);
    let topology = topology(|name| (name == "CONTEXT").then(|| "vms".to_owned())).unwrap();
    let lab = Vagrant { topology, folder: "/".into(), state: state.to_owned(), layout: kept };
    assert_eq!(lab.context(), "vms", "as the Vagrantfile names it");
}

#[test]
fn settings_of_ssh_are_learnt_again_for_a_vm_that_was_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let topology = topology(|_| None).unwrap();
    let layout = Layout::of("settings-of-ssh");
    let lab = Vagrant { topology, folder: dir.path().to_owned(), state: dir.path().to_owned(), layout };
    assert!(!lab.ssh_known("n1"), "nothing was made");
    let id = lab.id_file("n1", Provider::Libvirt);
    fs::create_dir_all(id.parent().unwrap()).unwrap();
    fs::write(&id, "1").unwrap();
    assert!(!lab.ssh_known("n1"), "nothing was learnt");
    let at = |path: &Path, seconds: u64| {
        let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    };
    fs::write(lab.ssh_config(), "Host n1\n  HostName 10.0.0.1\n").unwrap();
    at(&id, 1_000);
    at(&lab.ssh_config(), 2_000);
    assert!(lab.ssh_known("n1"));
    assert!(!lab.ssh_known("n2"), "another VM");
    at(&id, 3_000);
    assert!(!lab.ssh_known("n1"), "made anew since");
}

#[test]
fn what_providers_say_is_understood() {
    assert_eq!(Provider::Libvirt.power("running\n\n"), Power::On);
    assert_eq!(Provider::Libvirt.power("paused\n"), Power::Paused);
    assert_eq!(Provider::Libvirt.power("shut off\n"), Power::Off);
    assert_eq!(Provider::VirtualBox.power("name=\"n1\"\nVMState=\"paused\"\n"), Power::Paused);
    assert_eq!(Provider::VirtualBox.power("VMState=\"poweroff\"\n"), Power::Off);
}

#[test]
fn daemons_are_read_from_systemd() {
    let state =
        daemon_of("Result=success NRestarts=2 MainPID=812 ActiveState=active ConditionResult=yes netd").unwrap();
    assert_eq!((state.name.as_str(), state.pid, state.restarts, state.wanted), ("netd", Some(812), 2, true));
    let absent = "Result=success NRestarts=0 MainPID=0 ActiveState=inactive ConditionResult=no control-plane";
    assert!(daemon_of(absent).is_none());
}

#[test]
fn words_survive_the_shell() {
    assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
}

//! What runs the VMs, and how power is asked of it.

use super::super::Power;

/// Who runs the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    Libvirt,
    VirtualBox,
}

/// What is done to a VM's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    On,
    Cut,
    Pause,
    Resume,
    Ask,
}

impl Provider {
    pub(super) const ALL: [Self; 2] = [Self::Libvirt, Self::VirtualBox];

    /// The folder in `.vagrant/machines/NODE`.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::VirtualBox => "virtualbox",
        }
    }

    pub(super) fn command(self, act: Act, id: &str) -> Vec<String> {
        let words: &[&str] = match (self, act) {
            (Self::Libvirt, Act::On) => &["virsh", "-c", "qemu:///system", "start", id],
            (Self::Libvirt, Act::Cut) => &["virsh", "-c", "qemu:///system", "destroy", id],
            (Self::Libvirt, Act::Pause) => &["virsh", "-c", "qemu:///system", "suspend", id],
            (Self::Libvirt, Act::Resume) => &["virsh", "-c", "qemu:///system", "resume", id],
            (Self::Libvirt, Act::Ask) => &["virsh", "-c", "qemu:///system", "domstate", id],
            (Self::VirtualBox, Act::On) => &["VBoxManage", "startvm", id, "--type", "headless"],
            (Self::VirtualBox, Act::Cut) => &["VBoxManage", "controlvm", id, "poweroff"],
            (Self::VirtualBox, Act::Pause) => &["VBoxManage", "controlvm", id, "pause"],
            (Self::VirtualBox, Act::Resume) => &["VBoxManage", "controlvm", id, "resume"],
            (Self::VirtualBox, Act::Ask) => &["VBoxManage", "showvminfo", id, "--machinereadable"],
        };
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    /// What [`Act::Ask`] prints, read.
    pub(super) fn power(self, said: &str) -> Power {
        let word = match self {
            Self::Libvirt => said.trim(),
            Self::VirtualBox => {
                let line = said.lines().find_map(|l| l.strip_prefix("VMState="));
                line.unwrap_or_default().trim_matches('"')
            }
        };
        match word {
            "running" => Power::On,
            "paused" => Power::Paused,
            _ => Power::Off,
        }
    }
}

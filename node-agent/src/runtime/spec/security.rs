//! securityContext of container and Pod.
use super::SpecError;
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec};
use trellis_shim_protocol::defaults;

/// `securityContext.privileged`.
pub fn is_privileged(c: &Container) -> bool {
    c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false)
}

/// Privileged containers may write to /sys and see cgroups; one on the node's network cannot
/// mount a sysfs of its own, so it gets the node's, with all that is mounted below: cgroups, debugfs,
/// bpf. Plain `ro` would be about the topmost mount only.
pub fn adjust_mounts(mounts: &mut Vec<Mount>, privileged: bool, pod: &Pod) {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    for m in mounts.iter_mut() {
        let under_sys = m.destination().starts_with("/sys");
        if privileged && under_sys {
            let options = m.options().clone().unwrap_or_default();
            m.set_options(Some(options.into_iter().filter(|o| o != "ro").collect()));
        }
        if host_network && m.destination().as_os_str() == "/sys" {
            let mode = if privileged { "rw" } else { "rro" };
            *m = defaults::mount("/sys", "bind", "/sys", &["rbind", "rnosuid", "rnoexec", "rnodev", mode]);
        }
    }
    if host_network {
        // The node's /sys brings its cgroups along.
        mounts.retain(|m| m.destination().as_os_str() != "/sys/fs/cgroup");
    }
}

/// Capabilities, no_new_privs, read-only root, seccomp, masked paths.
pub fn apply(spec: &mut Spec, pod: &Pod, c: &Container) -> Result<(), SpecError> {
    let context = c.security_context.clone().unwrap_or_default();
    let privileged = is_privileged(c);
    let wanted = context.capabilities.unwrap_or_default();
    let set = if privileged {
        defaults::all_capabilities()
    } else {
        let (add, drop) = (wanted.add.unwrap_or_default(), wanted.drop.unwrap_or_default());
        let (set, unknown) = defaults::adjust_capabilities(&add, &drop);
        if !unknown.is_empty() {
            return Err(SpecError::Capability { container: c.name.clone(), names: unknown.join(", ") });
        }
        set
    };
    if let Some(process) = spec.process_mut() {
        process.set_capabilities(Some(defaults::capability_sets(&set)));
        if context.allow_privilege_escalation == Some(false) {
            process.set_no_new_privileges(Some(true));
        }
    }
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(context.read_only_root_filesystem.unwrap_or(false)));
    }
    let pod_profile = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.seccomp_profile.clone());
    let confined = seccomp(&c.name, context.seccomp_profile.or(pod_profile).as_ref())?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp((confined && !privileged).then(|| defaults::seccomp(&set)));
        if privileged {
            linux.set_masked_paths(None).set_readonly_paths(None);
            if let Some(resources) = linux.resources_mut() {
                resources.set_devices(Some(vec![everything()]));
            }
        }
        if context.proc_mount.as_deref() == Some("Unmasked") {
            linux.set_masked_paths(None).set_readonly_paths(None);
        }
    }
    Ok(())
}

fn everything() -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true).set_typ(Some(LinuxDeviceType::A)).set_access(Some("rwm".to_owned()));
    rule
}

/// Is the default filter loaded? Unlike in Kubernetes it is where nothing is said: the shared
/// kernel is worth more than the few programs that then need Unconfined.
fn seccomp(container: &str, profile: Option<&SeccompProfile>) -> Result<bool, SpecError> {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        None | Some(("RuntimeDefault", _)) => Ok(true),
        Some(("Unconfined", _)) => Ok(false),
        Some((kind, name)) => {
            Err(SpecError::Seccomp { container: container.to_owned(), profile: name.unwrap_or(kind).to_owned() })
        }
    }
}

//! Rules for the security contexts of Pods and containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};

use super::{one_of, volume};
use crate::field::{FieldError, Path};

/// Greatest id of a user or group (apimachinery's IsValidUserID).
const ID_MAX: i64 = i32::MAX as i64;
/// Longest name of a sysctl.
const SYSCTL_MAX: usize = 253;
/// Kubernetes' words for a sysctl's name.
const SYSCTL_NAME: &str = r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
/// Sysctls of the IPC namespace, by the beginning of their names.
const IPC: &[&str] = &["kernel.shm", "kernel.msg", "fs.mqueue."];

/// Whether it runs with the host's rights.
pub(super) fn privileged(c: &Container) -> bool {
    c.security_context.as_ref().and_then(|s| s.privileged) == Some(true)
}

pub(super) fn pod(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    let Some(c) = &s.security_context else { return };
    id(c.run_as_user, &path.child("runAsUser"), out);
    id(c.run_as_group, &path.child("runAsGroup"), out);
    id(c.fs_group, &path.child("fsGroup"), out);
    for (i, g) in c.supplemental_groups.iter().flatten().enumerate() {
        id(Some(*g), &path.child("supplementalGroups").index(i), out);
    }
    one_of(out, &path.child("fsGroupChangePolicy"), c.fs_group_change_policy.as_deref(), &["Always", "OnRootMismatch"]);
    seccomp(c.seccomp_profile.as_ref(), &path.child("seccompProfile"), out);
    sysctls(s, c, &path.child("sysctls"), out);
}

/// A user's or group's id.
fn id(value: Option<i64>, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(v) = value
        && !(0..=ID_MAX).contains(&v)
    {
        out.push(FieldError::invalid(path, v, "must be between 0 and 2147483647, inclusive"));
    }
}

pub(super) fn container(s: &SecurityContext, host_users: bool, path: &Path, out: &mut Vec<FieldError>) {
    id(s.run_as_user, &path.child("runAsUser"), out);
    id(s.run_as_group, &path.child("runAsGroup"), out);
    if s.allow_privilege_escalation == Some(false) {
        let p = path.child("allowPrivilegeEscalation");
        if s.privileged == Some(true) {
            let m = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            out.push(FieldError::invalid(&p, false, m));
        }
        let adds = s.capabilities.as_ref().and_then(|c| c.add.as_ref());
        if adds.is_some_and(|a| a.iter().any(|c| c == "CAP_SYS_ADMIN")) {
            let m = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            out.push(FieldError::invalid(&p, false, m));
        }
    }
    let p = path.child("procMount");
    one_of(out, &p, s.proc_mount.as_deref(), &["Default", "Unmasked"]);
    if host_users && s.proc_mount.as_deref() == Some("Unmasked") {
        out.push(FieldError::invalid(&p, "Unmasked", "`hostUsers` must be false to use `Unmasked`"));
    }
    seccomp(s.seccomp_profile.as_ref(), &path.child("seccompProfile"), out);
}

fn seccomp(profile: Option<&SeccompProfile>, path: &Path, out: &mut Vec<FieldError>) {
    let Some(profile) = profile else { return };
    let (of_type, local) = (path.child("type"), path.child("localhostProfile"));
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("", _) => out.push(FieldError::required(&of_type, "type is required when seccompProfile is set")),
        ("Localhost", None) => {
            out.push(FieldError::required(&local, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(name)) => volume::local_path(name, &local, out),
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            out.push(FieldError::invalid(&local, name, "can only be set when seccomp type is Localhost"));
        }
        (other, _) => {
            out.push(FieldError::not_supported(&of_type, other, &["Localhost", "RuntimeDefault", "Unconfined"]));
        }
    }
}

fn sysctls(s: &PodSpec, c: &PodSecurityContext, path: &Path, out: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in c.sysctls.iter().flatten().enumerate() {
        let (p, name) = (path.index(i).child("name"), sysctl.name.as_str());
        if name.is_empty() {
            out.push(FieldError::required(&p, ""));
        } else if !is_sysctl(name) {
            out.push(FieldError::invalid(&p, name, SYSCTL_NAME));
        } else if !seen.insert(name) {
            out.push(FieldError::duplicate(&p, name));
        }
        let dotted = dotted(name);
        if s.host_network == Some(true) && dotted.starts_with("net.") {
            out.push(FieldError::invalid(&p, name, "may not be specified when 'hostNetwork' is true"));
        }
        let of_ipc = dotted == "kernel.sem" || IPC.iter().any(|begin| dotted.starts_with(begin));
        if s.host_ipc == Some(true) && of_ipc {
            out.push(FieldError::invalid(&p, name, "may not be specified when 'hostIPC' is true"));
        }
    }
}

/// Segments of lower case letters, digits, and inside of them '-' and '_', with '.' or '/' between them.
fn is_sysctl(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let segment = |s: &str| {
        let bytes = s.as_bytes();
        bytes.first().is_some_and(|b| letter(*b))
            && bytes.last().is_some_and(|b| letter(*b))
            && bytes.iter().all(|b| letter(*b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_MAX && name.split(['.', '/']).all(segment)
}

/// With dots between the segments: where the first separator is a slash, the two change places.
fn dotted(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|i| name.as_bytes()[i] == b'.') {
        return name.to_owned();
    }
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

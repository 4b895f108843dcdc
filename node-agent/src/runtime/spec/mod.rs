//! From a Pod's container and its image to an OCI runtime spec. Pure, but for [`user`], which
//! reads the image's user database.
//!
//! The defaults (capabilities, seccomp filter, masked paths, devices, mounts) are the protocol
//! crate's; namespaces, root and cgroup path are the shim's.
pub mod env;
pub mod expand;
pub mod resources;
pub mod security;
#[cfg(test)]
mod tests;
pub mod user;

use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::{
    image::ImageConfiguration,
    runtime::{Mount, Spec},
};
use std::path::PathBuf;
use trellis_shim_protocol::defaults;

/// Why no spec can be made of a container: a fault of what the user wrote.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Neither image nor Pod say what to run.
    #[error("container {0}: no command specified: neither the image nor the Pod names one")]
    NoCommand(String),
    /// A ConfigMap or Secret that env refers to is not there.
    #[error("{kind} \"{name}\" not found")]
    MissingObject {
        /// configmap or secret.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It is there, without that key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    MissingKey {
        /// ConfigMap or Secret.
        kind: &'static str,
        /// The Pod's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A value that is not text.
    #[error("env {variable}: the value of key {key} in {kind} {name} is not UTF-8 text")]
    NotText {
        /// The variable.
        variable: String,
        /// ConfigMap or Secret.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field path that is not supported.
    #[error("env {variable}: field {path} cannot be had here")]
    Field {
        /// The variable.
        variable: String,
        /// The path.
        path: String,
    },
    /// The user is not in the image.
    #[error("unable to find user {user}: no matching entries in the image's /etc/passwd")]
    NoUser {
        /// As written.
        user: String,
    },
    /// The group is not in the image.
    #[error("unable to find group {group}: no matching entries in the image's /etc/group")]
    NoGroup {
        /// As written.
        group: String,
    },
    /// runAsNonRoot, and it would be root.
    #[error("container has runAsNonRoot and image will run as root (container: {0})")]
    Root(String),
    /// A capability no kernel has.
    #[error("container {container}: unknown capabilities: {names}")]
    Capability {
        /// The container.
        container: String,
        /// The names.
        names: String,
    },
    /// A seccomp profile that is not there.
    #[error("container {container}: seccomp profile {profile} is not available on this node")]
    Seccomp {
        /// The container.
        container: String,
        /// The profile.
        profile: String,
    },
}

/// Everything a spec is made of.
#[derive(Debug)]
pub struct Input<'a> {
    /// The Pod.
    pub pod: &'a Pod,
    /// The container in it.
    pub container: &'a Container,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// What the Pod's env resolved to, in order.
    pub env: Vec<(String, String)>,
    /// Who runs.
    pub user: user::Resolved,
    /// Volumes and files, in the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// The Pod's hostname.
    pub hostname: String,
    /// Bytes of memory of this node: for oom_score_adj.
    pub node_memory_bytes: u64,
}

/// The spec, without what the shim fills in.
pub fn build(input: Input<'_>) -> Result<Spec, SpecError> {
    let argv = argv(&input)?;
    let config = input.image.config().clone().unwrap_or_default();
    let env = environment(&input, config.env().as_deref().unwrap_or_default());
    let c = input.container;
    let cwd = c
        .working_dir
        .clone()
        .or_else(|| config.working_dir().clone())
        .filter(|d| !d.is_empty())
        .unwrap_or_else(|| "/".into());
    let mut spec = defaults::base_spec(argv);
    let privileged = security::is_privileged(c);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    security::adjust_mounts(&mut mounts, privileged, input.pod);
    // A volume on a default mount's place replaces it.
    mounts.retain(|m| !input.mounts.iter().any(|v| v.destination() == m.destination()));
    mounts.extend(input.mounts.iter().cloned());
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        process.set_env(Some(env)).set_cwd(PathBuf::from(cwd));
        process.set_user(input.user.to_oci());
        process.set_terminal(Some(false));
    }
    security::apply(&mut spec, input.pod, c)?;
    resources::apply(&mut spec, input.pod, c, input.node_memory_bytes);
    Ok(spec)
}

/// Kubernetes' table: command replaces the entrypoint and drops the image's arguments.
fn argv(input: &Input<'_>) -> Result<Vec<String>, SpecError> {
    let c = input.container;
    let config = input.image.config().clone().unwrap_or_default();
    let lookup = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand::expand(text, &input.env)).collect()
    };
    let (command, args) = (lookup(&c.command), lookup(&c.args));
    let image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut argv = if command.is_empty() { image(config.entrypoint()) } else { command.clone() };
    if !args.is_empty() {
        argv.extend(args);
    } else if command.is_empty() {
        argv.extend(image(config.cmd()));
    }
    if argv.is_empty() {
        return Err(SpecError::NoCommand(c.name.clone()));
    }
    Ok(argv)
}

/// The image's variables, overridden by the Pod's.
fn environment(input: &Input<'_>, image: &[String]) -> Vec<String> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match all.iter_mut().find(|(n, _)| n == name) {
        Some(entry) => value.clone_into(&mut entry.1),
        None => all.push((name.to_owned(), value.to_owned())),
    };
    if let Some((name, value)) = defaults::PATH.split_once('=') {
        set(name, value);
    }
    set("HOSTNAME", &input.hostname);
    for line in image {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        set(name, value);
    }
    for (name, value) in &input.env {
        set(name, value);
    }
    if !all.iter().any(|(n, _)| n == "HOME") {
        all.push(("HOME".into(), input.user.home.clone()));
    }
    all.into_iter().map(|(n, v)| format!("{n}={v}")).collect()
}

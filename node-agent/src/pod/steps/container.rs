//! Containers: image, start, stop, last words.
use super::{
    super::{
        event::{Event, StopKind},
        persist::PodDir,
        worker::Message,
    },
    Step, volumes,
};
use crate::{
    image,
    probe::run as probe,
    runtime::{
        etc, exec,
        shim::{self, Shim},
        spec::{self, env, user},
    },
    volume::mounts,
};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, Secret};
use oci_spec::runtime::Mount;
use std::{collections::BTreeSet, fs, io::Read, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};
use trellis_image::{Auth, Image, PullPolicy};
use trellis_shim_protocol::{ContainerState, CreateContainer, LogConfig, Rootfs, defaults};

/// Kubernetes' bounds on a termination message: from its file, and from the log.
const MESSAGE_MAX_BYTES: u64 = 4096;
const LOG_TAIL_MAX_BYTES: usize = 2048;
const LOG_TAIL_MAX_LINES: usize = 80;
/// The end of a log that is looked at for it.
const LOG_TAIL_READ_BYTES: u64 = 16 * 1024;
const TERMINATION_LOG: &str = "/dev/termination-log";
const SIGTERM: i32 = 15;

/// A name that no other run in this Pod has ever had.
pub fn new_id(container: &str, attempt: u32) -> String {
    let short: String = container.chars().take(36).collect();
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{short}.{attempt}.{}", &unique[..8])
}

/// Sees that the image is here.
pub async fn ensure_image(step: Step, c: Container) -> Message {
    let name = c.image.clone().unwrap_or_default();
    let policy = image::policy(&c);
    let failed = |reason: &str, message: String| {
        Message::Event(Event::ImageFailed { container: c.name.clone(), reason: reason.into(), message })
    };
    let present = match step.ctx.images.get(&name) {
        Ok(found) => found.is_some(),
        Err(error) => return failed(image::reason(&error), error.to_string()),
    };
    let pulls = policy == PullPolicy::Always || (policy == PullPolicy::IfNotPresent && !present);
    let auths = if pulls { pull_credentials(&step, &name).await } else { Vec::new() };
    if pulls {
        step.note(false, "Pulling", format!("Pulling image \"{name}\""), Some(&c.name));
    }
    let began = std::time::Instant::now();
    match image::ensure(step.ctx.images.clone(), name.clone(), policy, auths).await {
        Ok(image) => {
            let text = if pulls {
                let ms = began.elapsed().as_millis();
                format!("Successfully pulled image \"{name}\" in {ms}ms. Image size: {} bytes.", image.size_bytes)
            } else {
                format!("Container image \"{name}\" already present on machine")
            };
            step.note(false, "Pulled", text, Some(&c.name));
            Message::Image(c.name.clone(), name, image)
        }
        Err(error) => failed(image::reason(&error), image::failure(&name, &error)),
    }
}

async fn pull_credentials(step: &Step, name: &str) -> Vec<Auth> {
    let secrets = step.pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
    let wanted: BTreeSet<_> = secrets.map(|r| (env::RefKind::Secret, r.name.clone())).collect();
    let names: Vec<String> = wanted.iter().map(|(_, name)| name.clone()).collect();
    let mut held = step.ctx.refs.hold(step.namespace(), wanted);
    if held.is_empty() {
        return Vec::new();
    }
    let secrets: Vec<Arc<Secret>> = match held.get().await {
        Ok(refs) => {
            let missing: Vec<&str> =
                names.iter().filter(|n| !refs.secrets.contains_key(*n)).map(String::as_str).collect();
            if !missing.is_empty() {
                let text = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    missing.join(", ")
                );
                step.note(true, "FailedToRetrieveImagePullSecret", text, None);
            }
            refs.secrets.into_values().collect()
        }
        Err(error) => {
            step.note(true, "FailedToRetrieveImagePullSecret", error, None);
            return Vec::new();
        }
    };
    let full = trellis_image::normalize(name).unwrap_or_else(|_| name.to_owned());
    image::credentials(&full, &secrets)
}

/// Creates and starts a container.
pub async fn start(step: Step, c: &Container, image: &Arc<Image>, id: String, attempt: u32) -> Event {
    let container = c.name.clone();
    let create = match prepare(&step, c, image, &id, attempt).await {
        Ok(create) => create,
        Err(message) => {
            drop(fs::remove_dir_all(step.dir.containers().join(&id)));
            return Event::ConfigFailed { container, attempt, message };
        }
    };
    let Ok(_slot) = step.ctx.starts.acquire().await else {
        return Event::ConfigFailed { container, attempt, message: "the agent is ending".into() };
    };
    match step.shim.create_and_start(create).await {
        Ok(state) => {
            let at = state.started_at.map_or_else(jiff::Timestamp::now, shim::wall);
            post_start(&step, c, &id);
            Event::Started { container, attempt, id, at }
        }
        Err(error) => {
            drop(fs::remove_dir_all(step.dir.containers().join(&id)));
            Event::StartFailed { container, attempt, message: error.to_string() }
        }
    }
}

async fn prepare(
    step: &Step,
    c: &Container,
    image: &Arc<Image>,
    id: &str,
    attempt: u32,
) -> Result<CreateContainer, String> {
    let mut held = step.ctx.refs.hold(step.namespace(), env::references(c));
    let refs = if held.is_empty() { env::Refs::default() } else { held.get().await? };
    let facts = step.ctx.facts(&step.pod_ips());
    let env = env::resolve(&step.pod, c, &refs, &facts).map_err(|e| e.to_string())?;
    let (step, c, image, id) = (step.clone(), c.clone(), Arc::clone(image), id.to_owned());
    // Reads the image's user database and makes files.
    let made = tokio::task::spawn_blocking(move || build(&step, &c, &image, &id, attempt, env));
    made.await.map_err(|e| e.to_string())?
}

fn build(
    step: &Step,
    c: &Container,
    image: &Image,
    id: &str,
    attempt: u32,
    env: Vec<(String, String)>,
) -> Result<CreateContainer, String> {
    let lower = image.stack();
    let image_user = image.config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
    let db = user::UserDb::read(&lower);
    let user = user::resolve(&db, &image_user, &step.pod, c).map_err(|e| e.to_string())?;
    if let Err(error) = step.dir.prune_logs(&c.name, attempt) {
        tracing::warn!(pod = step.uid(), container = c.name, %error, "cannot remove logs of earlier runs");
    }
    let own = step.dir.containers().join(id);
    let mut all = files(step, c, &own).map_err(|e| format!("{}: {e}", own.display()))?;
    let volumes = mounts::of(&step.pod, c, &volumes::places(step), &env).map_err(|e| e.to_string())?;
    all.extend(volumes.mounts);
    // A volume on /etc/hosts or the like is what the Pod wants there.
    let mut unique: Vec<Mount> = Vec::new();
    for m in all {
        unique.retain(|old| old.destination() != m.destination());
        unique.push(m);
    }
    let input = spec::Input {
        pod: &step.pod,
        container: c,
        image: &image.config,
        env,
        user,
        mounts: unique,
        hostname: etc::hostname(&step.pod),
        node_memory_bytes: step.ctx.machine.memory_bytes,
    };
    let spec = spec::build(input).map_err(|e| e.to_string())?;
    let (upper, work) = (own.join("upper"), own.join("work"));
    image.lend(&upper).map_err(|e| e.to_string())?;
    Ok(CreateContainer {
        id: id.to_owned(),
        labels: shim::make_labels(&c.name, attempt),
        rootfs: Rootfs::Overlay { lower, upper, work },
        spec: serde_json::to_value(&spec).map_err(|e| e.to_string())?,
        cgroup_namespace: !spec::security::is_privileged(c),
        log: LogConfig::file(step.dir.log(&c.name, attempt)),
        stdin: c.stdin == Some(true),
        sub_paths: volumes.sub_paths,
    })
}

/// hosts, resolv.conf, hostname, and the file for last words.
fn files(step: &Step, c: &Container, own: &Path) -> std::io::Result<Vec<Mount>> {
    fs::create_dir_all(own)?;
    let message = own.join("termination-log");
    fs::write(&message, "")?;
    fs::set_permissions(&message, fs::Permissions::from_mode(0o666))?;
    let etc = step.dir.etc();
    let mut out: Vec<Mount> = ["hosts", "resolv.conf", "hostname"]
        .iter()
        .map(|name| defaults::bind(&etc.join(name).to_string_lossy(), &format!("/etc/{name}"), false))
        .collect();
    let place = c.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
    out.push(defaults::bind(&message.to_string_lossy(), place, false));
    Ok(out)
}

/// Runs the postStart hook beside the container; its failure kills the container.
fn post_start(step: &Step, c: &Container, id: &str) {
    let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else { return };
    let (step, c, id) = (step.clone(), c.clone(), id.to_owned());
    tokio::spawn(async move {
        if let Err(why) = run_hook(&step, &c, &id, &hook, HOOK_MAX).await {
            step.note(true, "FailedPostStartHook", format!("PostStartHook failed: {why}"), Some(&c.name));
            if let Err(error) = step.shim.signal(id, 9, true).await {
                tracing::warn!(%error, "cannot kill a container whose postStart hook failed");
            }
        }
    });
}

/// A postStart hook may take this long; Kubernetes sets no bound, and a Pod that hangs in one is lost.
const HOOK_MAX: Duration = Duration::from_secs(600);

async fn run_hook(
    step: &Step,
    c: &Container,
    id: &str,
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(limit)).await;
        return Ok(());
    }
    let as_probe = k8s_openapi::api::core::v1::Probe {
        exec: hook.exec.clone(),
        http_get: hook.http_get.clone(),
        tcp_socket: hook.tcp_socket.clone(),
        ..Default::default()
    };
    try_action(&step.shim, id, &probe::action(&as_probe, c)?, &step.pod_ips(), limit).await.map(drop)
}

/// One try of a probe's or hook's action; `Err` says why it failed.
pub async fn try_action(
    shim: &Shim,
    id: &str,
    action: &probe::Action,
    ips: &[String],
    limit: Duration,
) -> Result<probe::Healthy, String> {
    let probe::Action::Exec(argv) = action else {
        let ip = ips.first().map(String::as_str).unwrap_or("127.0.0.1");
        return probe::network(action, ip, limit).await;
    };
    match exec::run(shim, id, argv.clone(), limit).await {
        Ok(exec::Outcome::Exited(0, _)) => Ok(None),
        Ok(exec::Outcome::Exited(code, output)) => Err(format!("command exited with {code}: {output}")),
        Ok(exec::Outcome::TimedOut) => Err(format!("command timed out after {} s", limit.as_secs())),
        Err(error) => Err(error.to_string()),
    }
}

/// preStop hook, then the signal; `Err` says why that could not be sent.
pub async fn stop(step: &Step, c: &Container, id: String, signal: i32, kind: StopKind) -> Result<(), String> {
    let hook = c.lifecycle.as_ref().and_then(|l| l.pre_stop.clone());
    if let (StopKind::Ask { grace }, Some(hook)) = (kind, hook)
        && !grace.is_zero()
    {
        let run = run_hook(step, c, &id, &hook, grace);
        match tokio::time::timeout(grace, run).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => step.note(true, "FailedPreStopHook", format!("PreStopHook failed: {why}"), Some(&c.name)),
            Err(_) => step.note(true, "FailedPreStopHook", "PreStopHook did not end in time".into(), Some(&c.name)),
        }
    }
    let everybody = kind == StopKind::Kill;
    step.shim.signal(id, signal, everybody).await.map_err(|error| {
        tracing::warn!(pod = step.uid(), container = c.name, %error, "cannot signal");
        error.to_string()
    })
}

/// spec.lifecycle.stopSignal, the image's STOPSIGNAL, or SIGTERM.
pub fn stop_signal(c: &Container, image: Option<&str>) -> i32 {
    let spec = c.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    spec.or(image).and_then(parse_signal).unwrap_or(SIGTERM)
}

fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name).to_owned();
    // glibc's SIGRTMIN is 34: the first two belong to its threads.
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(34 + rest.trim_start_matches('+').parse::<i32>().unwrap_or(0));
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

/// The last words of a run that is described by a shim's state.
pub fn message_of(pod: &Pod, dir: &PodDir, state: &ContainerState, code: i32) -> String {
    match shim::labels(state) {
        Some((name, attempt)) => termination_message(pod, dir, &name, &state.id, attempt, code),
        None => read_message(&dir.containers().join(&state.id).join("termination-log")),
    }
}

/// The last words of a run: its file, or the end of its log where the spec says so.
pub fn termination_message(pod: &Pod, dir: &PodDir, container: &str, id: &str, attempt: u32, code: i32) -> String {
    let file = read_message(&dir.containers().join(id).join("termination-log"));
    let spec = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let policy = spec.into_iter().find(|c| c.name == container).and_then(|c| c.termination_message_policy.as_deref());
    if file.is_empty() && code != 0 && policy == Some("FallbackToLogsOnError") {
        return log_tail(&dir.log(container, attempt));
    }
    file
}

fn read_message(path: &Path) -> String {
    let mut bytes = Vec::new();
    // The agent's own file: the container can write into it, not replace it.
    let read = fs::File::open(path).and_then(|f| f.take(MESSAGE_MAX_BYTES).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn log_tail(path: &Path) -> String {
    use std::io::{Seek, SeekFrom};
    let Ok(mut file) = fs::File::open(path) else { return String::new() };
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    let mut bytes = Vec::new();
    let from = SeekFrom::Start(length.saturating_sub(LOG_TAIL_READ_BYTES));
    if file.seek(from).and_then(|_| file.take(LOG_TAIL_READ_BYTES).read_to_end(&mut bytes)).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_MAX_LINES)..].join("\n");
    let mut start = tail.len().saturating_sub(LOG_TAIL_MAX_BYTES);
    while !tail.is_char_boundary(start) {
        start += 1;
    }
    tail[start..].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stop_signals_go_by_name_or_number() {
        for (text, want) in [("SIGQUIT", Some(3)), ("quit", Some(3)), ("9", Some(9)), ("SIGRTMIN+3", Some(37))] {
            assert_eq!(parse_signal(text), want);
        }
        assert_eq!(parse_signal("nonsense"), None);
        assert_eq!(parse_signal("99"), None);
    }

    #[test]
    fn ids_fit_the_protocol_and_differ() {
        let id = new_id(&"x".repeat(63), u32::MAX);
        assert!(id.len() <= 64, "{id}");
        assert_ne!(id, new_id(&"x".repeat(63), u32::MAX));
    }

    #[test]
    fn last_words_follow_the_policy_also_of_a_run_that_ended_unwatched() {
        let data = tempfile::tempdir().unwrap();
        let dir = PodDir::new(data.path(), "u");
        fs::create_dir_all(dir.logs().join("a")).unwrap();
        fs::write(dir.log("a", 0), "2026-01-01T00:00:00Z stderr F it broke\n").unwrap();
        let moment = serde_json::json!({"wall_nanos": 0, "boot_nanos": 0});
        let state: ContainerState = serde_json::from_value(serde_json::json!({"id": "a.0.x", "phase": "exited",
            "labels": shim::make_labels("a", 0), "pid": 1, "created_at": moment, "log": {"path": null},
            "cgroup_path": "", "rootfs": ""}))
        .unwrap();
        for (policy, want) in [(None, ""), (Some("File"), ""), (Some("FallbackToLogsOnError"), "it broke")] {
            let c = serde_json::json!({"name": "a", "terminationMessagePolicy": policy});
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [c]}})).unwrap();
            assert_eq!(message_of(&pod, &dir, &state, 1), want, "{policy:?}");
            assert_eq!(message_of(&pod, &dir, &state, 0), "", "{policy:?}, of one that ended well");
        }
    }

    #[test]
    fn the_end_of_a_log_is_given_without_its_prefixes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, "2026-01-01T00:00:00Z stdout F hello world\n2026-01-01T00:00:01Z stderr F it broke\n")
            .unwrap();
        assert_eq!(log_tail(&path), "hello world\nit broke");
        assert_eq!(log_tail(&dir.path().join("none")), "");
    }
}

//! Which container of a Pod a call is about, as kubectl has it.

use serde_json::Value;

use crate::error::CliError;
use crate::session::identity;

/// Names the container of calls that name none.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The names of spec.`list`: `containers` or `initContainers`.
pub fn names(pod: &Value, list: &str) -> Vec<String> {
    let items = pod["spec"][list].as_array();
    items.into_iter().flatten().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
}

/// The container asked for, be it an init container or a sidecar; else the annotation's; else the first, and a
/// line on stderr when it is one of several.
pub fn meant(pod: &Value, asked: Option<&str>) -> Result<String, CliError> {
    let (own, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let name = identity(pod).1;
    let known = |c: &str| own.iter().chain(&init).any(|n| n == c);
    if let Some(asked) = asked {
        return match known(asked) {
            true => Ok(asked.to_owned()),
            false => Err(CliError::Usage(format!(
                "container {asked:?} is not in pod {name:?}, which has: {}",
                [init, own].concat().join(", ")
            ))),
        };
    }
    match pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str() {
        Some(default) if known(default) => return Ok(default.to_owned()),
        Some(default) => eprintln!("Default container name {default:?} not found in pod {name}"),
        None => {}
    }
    let first = own.first().cloned().unwrap_or_default();
    if own.len() > 1 {
        let init: String = init.iter().map(|i| format!(", {i} (init)")).collect();
        eprintln!("Defaulted container {first:?} out of: {}{init}", own.join(", "));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    #[test]
    fn asked_for_annotated_or_first() {
        let pod = |annotation: Option<&str>| {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": {
                "initContainers": [{"name": "proxy", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}, {"name": "b"}]}});
            if let Some(a) = annotation {
                pod["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: a});
            }
            pod
        };
        for (annotation, asked, want) in [
            (None, None, Some("a")),
            (None, Some("b"), Some("b")),
            (None, Some("proxy"), Some("proxy")),
            (None, Some("c"), None),
            (Some("b"), None, Some("b")),
            (Some("b"), Some("a"), Some("a")),
            (Some("proxy"), None, Some("proxy")),
            (Some("gone"), None, Some("a")),
        ] {
            let got = meant(&pod(annotation), asked);
            assert_eq!(got.as_ref().ok().map(String::as_str), want, "{annotation:?} {asked:?}: {got:?}");
        }
        let told = meant(&pod(None), Some("c")).unwrap_err().to_string();
        assert!(told.contains("which has: proxy, a, b"), "{told}");
    }
}

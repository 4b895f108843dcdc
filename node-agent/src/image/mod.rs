//! Between Pods and the node's image store: pull policy, pull secrets, what people are told.
//! (The store itself shares one pull between callers that ask for one name, and shows progress.)
pub mod gc;

use k8s_openapi::api::core::v1::{Container, Secret};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use trellis_image::{Auth, Image, ImageError, ImageStore, Progress, PullPolicy};

/// Between two log lines about one pull.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Docker Hub's name in docker's own configuration files.
const HUB_IN_CONFIG: &str = "index.docker.io";
/// Its name in full image names.
const HUB: &str = "docker.io";

/// imagePullPolicy, with Kubernetes' default by tag.
pub fn policy(c: &Container) -> PullPolicy {
    match c.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => {
            let image = c.image.as_deref().unwrap_or_default();
            let last = image.rsplit('/').next().unwrap_or(image);
            let latest = !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
            if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
}

/// The credentials that the pull secrets hold for the registry of `full_name`, most specific first.
pub fn credentials(full_name: &str, secrets: &[Arc<Secret>]) -> Vec<Auth> {
    let mut found: Vec<(usize, Auth)> = Vec::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let auths = if let Some(text) = data.and_then(|d| d.get(".dockerconfigjson")) {
            serde_json::from_slice::<DockerConfig>(&text.0).map(|c| c.auths)
        } else if let Some(text) = data.and_then(|d| d.get(".dockercfg")) {
            serde_json::from_slice(&text.0)
        } else {
            continue;
        };
        let auths = match auths {
            Ok(auths) => auths,
            Err(error) => {
                // The text itself is secret; the parser's words name only positions.
                tracing::warn!(secret = secret.metadata.name, %error, "pull secret is not a docker config");
                continue;
            }
        };
        for (registry, auth) in auths {
            let key = registry_key(&registry);
            let fits = full_name == key || full_name.starts_with(&format!("{key}/"));
            if let Some(auth) = fits.then(|| basic(auth)).flatten() {
                found.push((key.len(), auth));
            }
        }
    }
    found.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// `https://index.docker.io/v1/` is `docker.io`, `https://r.example:5000/team/` `r.example:5000/team`.
fn registry_key(text: &str) -> String {
    let text = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let text = text.trim_end_matches("/v1").trim_end_matches("/v2");
    match text.strip_prefix(HUB_IN_CONFIG) {
        Some(rest) => format!("{HUB}{rest}"),
        None => text.to_owned(),
    }
}

fn basic(auth: DockerAuth) -> Option<Auth> {
    if !auth.username.is_empty() {
        return Some(Auth::Basic { user: auth.username, password: auth.password });
    }
    let text = String::from_utf8(trellis_proto::pki::from_base64(auth.auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Auth::Basic { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// Which reason a failed pull has in status.
pub fn reason(error: &ImageError) -> &'static str {
    match error {
        ImageError::Name { .. } => "InvalidImageName",
        ImageError::NotPresent { .. } => "ErrImageNeverPull",
        _ => "ErrImagePull",
    }
}

/// `imageID` in status: the manifest's digest under the image's name where there is one.
pub fn status_id(image: &Image, full_name: &str) -> String {
    if image.manifest_digest.is_empty() {
        return image.id.clone();
    }
    let name = full_name.split('@').next().unwrap_or(full_name);
    let colon = name.rfind(':').filter(|c| name.rfind('/').is_none_or(|slash| *c > slash));
    let repository = colon.map_or(name, |c| &name[..c]);
    format!("{repository}@{}", image.manifest_digest)
}

/// What a Pod's owner reads about a failed pull.
pub fn failure(name: &str, error: &ImageError) -> String {
    match error {
        // These begin with the image's name themselves.
        ImageError::Registry { .. } | ImageError::Refused { .. } => format!("Failed to pull {error}"),
        _ => format!("Failed to pull image \"{name}\": {error}"),
    }
}

/// Fetches `name` if the policy asks for it, with each credential in turn, nobody's last.
pub async fn ensure(
    store: ImageStore,
    name: String,
    policy: PullPolicy,
    auths: Vec<Auth>,
) -> Result<Arc<Image>, ImageError> {
    let mut last = None;
    for auth in auths.into_iter().chain([Auth::Anonymous]) {
        match one(store.clone(), name.clone(), policy, auth).await {
            Ok(image) => return Ok(image),
            // The first credential's refusal says more than the anonymous one's. Another failure
            // would only be repeated.
            Err(error @ ImageError::Refused { .. }) => last = last.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(ImageError::NotPresent { name }))
}

type Pull = std::pin::Pin<Box<dyn Future<Output = Result<Arc<Image>, ImageError>> + Send>>;

fn one(store: ImageStore, name: String, policy: PullPolicy, auth: Auth) -> Pull {
    Box::pin(async move { store.ensure(&name, policy, &auth, progress(&name)).await })
}

fn progress(name: &str) -> impl Fn(Progress) + Send + Sync + 'static {
    let name = name.to_owned();
    let shown = Mutex::new(Instant::now());
    move |p: Progress| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.elapsed() < PROGRESS_EVERY {
            return;
        }
        *shown = Instant::now();
        tracing::info!(
            image = name,
            received_bytes = p.received_bytes,
            total_bytes = p.total_bytes,
            layers_done = p.layers_done,
            layers = p.layers,
            "pulling"
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_default_policy_goes_by_tag() {
        let of = |image: &str| policy(&Container { image: Some(image.into()), ..Default::default() });
        assert_eq!(of("nginx"), PullPolicy::Always);
        assert_eq!(of("nginx:latest"), PullPolicy::Always);
        assert_eq!(of("r:5000/nginx"), PullPolicy::Always);
        assert_eq!(of("nginx:1.27"), PullPolicy::IfNotPresent);
        assert_eq!(of("nginx@sha256:00"), PullPolicy::IfNotPresent);
    }

    #[test]
    fn secrets_give_credentials_for_their_registry_only() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "r.example:5000": {"username": "u", "password": "p"},
            "r.example:5000/team": {"username": "t", "password": "p"}}}"#;
        let secret: Secret = serde_json::from_value(serde_json::json!({
            "data": {".dockerconfigjson": trellis_proto::pki::base64(config.as_bytes())}
        }))
        .unwrap();
        let secrets = [Arc::new(secret)];
        let users = |name: &str| -> Vec<String> {
            credentials(name, &secrets)
                .into_iter()
                .map(|a| match a {
                    Auth::Basic { user, .. } => user,
                    Auth::Anonymous => String::new(),
                })
                .collect()
        };
        assert_eq!(users("docker.io/library/nginx:1"), ["hub"]);
        assert_eq!(users("r.example:5000/team/app:1"), ["t", "u"]);
        assert_eq!(users("r.example:5000/other:1"), ["u"]);
        assert!(users("quay.io/x:1").is_empty());
    }

    #[test]
    fn image_ids_carry_repository_and_digest() {
        let image = Image {
            id: "sha256:c".into(),
            manifest_digest: "sha256:m".into(),
            names: vec![],
            size_bytes: 0,
            layers: vec![],
            layer_bytes: vec![],
            imported: false,
            lent: vec![],
            config: Arc::default(),
        };
        assert_eq!(status_id(&image, "r:5000/a/b:1"), "r:5000/a/b@sha256:m");
        assert_eq!(status_id(&image, "r:5000/a/b@sha256:m"), "r:5000/a/b@sha256:m");
    }
}

//! What a registry's answer means to the person who wants the image: who was refused, what is not
//! there, and what to do next. Pure.

use oci_client::errors::{OciDistributionError, OciEnvelope, OciErrorCode};

use crate::{Auth, ImageError};

/// Of a registry's or token server's words this much is quoted: they may be a web page.
const QUOTE_MAX_CHARS: usize = 200;

enum Kind {
    Credentials,
    Missing,
    Platform,
    PlainHttp,
    Other,
}

/// The error of pulling `name` from `registry` as `auth`.
pub(crate) fn explain(name: &str, registry: &str, auth: &Auth, error: &OciDistributionError) -> ImageError {
    let (name, registry) = (name.to_owned(), registry.to_owned());
    let words = quote(error);
    match (kind(error), auth) {
        (Kind::Credentials, Auth::Basic { user, .. }) => {
            let reason = format!("it refused user {user:?} ({words}): correct the Secret that imagePullSecrets names");
            ImageError::Refused { name, registry, reason }
        }
        (Kind::Credentials, Auth::Anonymous) => {
            let reason = format!(
                "it asks for credentials ({words}): name a Secret of type kubernetes.io/dockerconfigjson for it in \
                 the Pod's imagePullSecrets, or correct the image's name"
            );
            ImageError::Refused { name, registry, reason }
        }
        (Kind::Missing, _) => {
            let reason = format!("it has no such image ({words}): correct its name or tag");
            ImageError::Registry { name, registry, reason }
        }
        (Kind::Platform, _) => {
            let reason = format!("its index has no image for linux on {}", std::env::consts::ARCH);
            ImageError::Registry { name, registry, reason }
        }
        (Kind::PlainHttp, _) => {
            let reason = format!(
                "it speaks plain HTTP, not TLS: if that is meant, name {registry} in insecure_registries \
                 of this node's node.json (--insecure-registries of init and join)"
            );
            ImageError::Registry { name, registry, reason }
        }
        (Kind::Other, _) => ImageError::Registry { name, registry, reason: words },
    }
}

fn kind(error: &OciDistributionError) -> Kind {
    use OciDistributionError as E;
    match error {
        E::AuthenticationFailure(_) | E::UnauthorizedError { .. } | E::ServerError { code: 401 | 403, .. } => {
            Kind::Credentials
        }
        E::RegistryError { envelope, .. } if has(envelope, is_credentials) => Kind::Credentials,
        E::RegistryError { envelope, .. } if has(envelope, is_missing) => Kind::Missing,
        E::ServerError { code: 404, .. } => Kind::Missing,
        E::ImageManifestNotFoundError(text) if text.contains("platform") => Kind::Platform,
        E::ImageManifestNotFoundError(_) => Kind::Missing,
        // What rustls says of bytes that are no TLS.
        other if chain(other).contains("InvalidContentType") => Kind::PlainHttp,
        _ => Kind::Other,
    }
}

fn has(envelope: &OciEnvelope, which: fn(&OciErrorCode) -> bool) -> bool {
    envelope.errors.iter().any(|e| which(&e.code))
}

fn is_credentials(code: &OciErrorCode) -> bool {
    matches!(code, OciErrorCode::Unauthorized | OciErrorCode::Denied)
}

fn is_missing(code: &OciErrorCode) -> bool {
    matches!(
        code,
        OciErrorCode::ManifestUnknown
            | OciErrorCode::NameUnknown
            | OciErrorCode::NotFound
            | OciErrorCode::BlobUnknown
            | OciErrorCode::ManifestBlobUnknown
    )
}

/// The registry's own words where it gave some; otherwise the error with its sources.
fn quote(error: &OciDistributionError) -> String {
    use OciDistributionError as E;
    let text = match error {
        E::UnauthorizedError { .. } => "HTTP 401".to_owned(),
        E::AuthenticationFailure(body) => token_server(body),
        E::ServerError { code, message, .. } if message.trim().is_empty() => format!("HTTP {code}"),
        E::ServerError { code, message, .. } => format!("HTTP {code}: {}", message.trim()),
        E::RegistryError { envelope, .. } => {
            let said = envelope.errors.iter().map(|e| match e.message.as_str() {
                "" => format!("{:?}", e.code),
                message => message.to_owned(),
            });
            said.collect::<Vec<_>>().join("; ")
        }
        other => chain(other),
    };
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(QUOTE_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// `{"details": "…"}` (Docker Hub), `{"errors": [{"message": "…"}]}` (the specification), or text.
fn token_server(body: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let said = [&json["details"], &json["errors"][0]["message"], &json["message"], &json["error"]];
    match said.iter().find_map(|v| v.as_str()) {
        Some(text) => format!("the token server says: {text}"),
        None if body.trim().is_empty() => "the token server gave no token".to_owned(),
        None => format!("the token server says: {body}"),
    }
}

/// reqwest says only "error sending request"; the reason is further down.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bob() -> Auth {
        Auth::Basic { user: "bob".to_owned(), password: "hush".to_owned() }
    }

    fn said(auth: &Auth, error: &OciDistributionError) -> ImageError {
        explain("r:5000/a:1", "r:5000", auth, error)
    }

    #[test]
    fn a_refusal_names_image_registry_user_and_never_the_password() {
        let error = OciDistributionError::UnauthorizedError { url: "http://r:5000/v2/a/manifests/1".to_owned() };
        let text = said(&bob(), &error).to_string();
        assert!(matches!(said(&bob(), &error), ImageError::Refused { .. }));
        for part in ["\"r:5000/a:1\"", "registry r:5000", "\"bob\"", "401", "imagePullSecrets"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        assert!(!text.contains("hush"));
        let text = said(&Auth::Anonymous, &error).to_string();
        assert!(text.contains("asks for credentials") && text.contains("dockerconfigjson"), "{text}");
    }

    #[test]
    fn token_servers_are_quoted_and_bounded() {
        for (body, want) in [
            (r#"{"details":"incorrect username or password"}"#, "says: incorrect username or password"),
            (r#"{"errors":[{"code":"X","message":"no"}]}"#, "says: no"),
            ("<html>\n teapot</html>", "says: <html> teapot</html>"),
            ("", "gave no token"),
        ] {
            let text = said(&bob(), &OciDistributionError::AuthenticationFailure(body.to_owned())).to_string();
            assert!(text.contains(want), "{text}");
        }
        let page = OciDistributionError::AuthenticationFailure("é".repeat(100_000));
        assert!(said(&bob(), &page).to_string().len() < 1000);
    }

    #[test]
    fn what_is_missing_is_told_from_what_is_forbidden() {
        let registry = |code: &str| {
            let envelope =
                serde_json::from_value(serde_json::json!({"errors": [{"code": code, "message": "words"}]})).unwrap();
            OciDistributionError::RegistryError { envelope, url: "u".to_owned() }
        };
        assert!(matches!(said(&bob(), &registry("DENIED")), ImageError::Refused { .. }));
        let missing = said(&bob(), &registry("MANIFEST_UNKNOWN"));
        assert!(matches!(missing, ImageError::Registry { .. }));
        assert!(missing.to_string().contains("no such image (words)"), "{missing}");
        let platform = OciDistributionError::ImageManifestNotFoundError("no entry matching platform".to_owned());
        assert!(said(&bob(), &platform).to_string().contains("index has no image"));
        assert!(said(&bob(), &registry("TOOMANYREQUESTS")).to_string().ends_with("words"));
    }
}

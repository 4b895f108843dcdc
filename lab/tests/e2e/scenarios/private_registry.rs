//! Registries that ask who is there, images for several platforms, and a registry that lies.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use trellis_lab::{backend::Backend, wait};

use super::registry;
use crate::{
    cluster::{Cluster, LIMIT, REGISTRY, REGISTRY_BASIC, REGISTRY_LYING, REGISTRY_TOKEN, TOKEN_SERVER, run},
    harness::Outcome,
    web_server::{Answer, Request, WebServer},
};

const USER: &str = "puller";
const PASSWORD: &str = "s3same-open";
/// bcrypt of the password, as `htpasswd -B` writes it.
const HTPASSWD: &str = "puller:$2y$05$abcdefghijklmnopqrstuuTO4QB1vKzy3Xc2wh5Ui7kVvIKB/GOKC\n";
const ISSUER: &str = "trellis test tokens";
const SERVICE: &str = "trellis test registry";

fn basic(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

/// A Secret as `kubectl create secret docker-registry` makes it.
fn pull_secret(name: &str, registry: &str, user: &str, password: &str) -> Value {
    let config = json!({"auths": {registry: {"username": user, "password": password, "auth": basic(user, password)}}});
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config.to_string()}})
}

fn pod(name: &str, image: &str, secret: Option<&str>) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "nodeName": "n5",
            "containers": [{"name": "c", "image": image, "imagePullPolicy": "Always"}]}});
    if let Some(secret) = secret {
        pod["spec"]["imagePullSecrets"] = json!([{"name": secret}]);
    }
    pod
}

/// Waits for the failure of a Pod's pull and answers its message.
#[track_caller]
fn refusal(cluster: &Cluster, name: &str) -> String {
    let found = wait::until(&format!("why {name} cannot be pulled"), LIMIT, || {
        let pod = cluster.api.get("Pod", "default", name).map_err(|e| e.to_string())?.unwrap_or_default();
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        match waiting["reason"].as_str() {
            Some("ErrImagePull" | "ImagePullBackOff") => Ok(waiting["message"].as_str().unwrap_or_default().to_owned()),
            _ => Err(pod["status"].to_string()),
        }
    });
    found.unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(!text.contains(PASSWORD) && !text.contains("wrong-password"), "a password is in {text:?}");
}

/// A token (RFC 7519, ES256) as the registry's documentation asks for it.
fn token(key: &KeyPair, certificate: &[u8], user: &str, scope: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut parts = scope.splitn(3, ':');
    let (kind, name, actions) = (parts.next(), parts.next(), parts.next());
    let actions: Vec<&str> = actions.unwrap_or_default().split(',').collect();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate)]});
    let claims = json!({"iss": ISSUER, "sub": user, "aud": SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now,
        "jti": format!("{now}"), "access": [{"type": kind, "name": name, "actions": actions}]});
    let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = fixed(&key.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// ECDSA signatures are two numbers: in DER here, side by side in a token.
fn fixed(der: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 2;
    for _ in 0..2 {
        let length = usize::from(der[at + 1]);
        let number = &der[at + 2..at + 2 + length];
        let digits = &number[number.len().saturating_sub(32)..];
        out.extend(std::iter::repeat_n(0, 32 - digits.len()));
        out.extend_from_slice(digits);
        at += 2 + length;
    }
    out
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap()
}

fn token_server(cluster: &Cluster, key: KeyPair, certificate: Vec<u8>) -> WebServer {
    WebServer::start(cluster, registry::HOME, TOKEN_SERVER, move |asked: &Request| {
        if asked.authorization != format!("Basic {}", basic(USER, PASSWORD)) {
            let said = json!({"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]});
            return Answer::new(401, "application/json", said.to_string());
        }
        let scope = asked.query.split('&').find_map(|p| p.strip_prefix("scope=")).map(percent_decoded);
        let token = token(&key, &certificate, USER, &scope.unwrap_or_default());
        Answer::new(200, "application/json", json!({"token": token, "expires_in": 300}).to_string())
    })
}

pub fn credentials(cluster: &mut Cluster) -> Outcome {
    if let Some(missing) = registry::missing_tool() {
        return Outcome::Skipped(missing);
    }
    registry::start(cluster, "registry", REGISTRY, "");
    registry::push(cluster, "busybox", "private/busybox");
    let data = cluster.lab.layout().node(registry::HOME).path("data");
    fs::write(data.join("htpasswd"), HTPASSWD).unwrap();
    let auth = "auth: {htpasswd: {realm: test, path: /var/lib/trellis/htpasswd}}\n";
    registry::start(cluster, "registry-basic", REGISTRY_BASIC, auth);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    fs::write(data.join("token.crt"), certificate.pem()).unwrap();
    let auth = format!(
        "auth: {{token: {{realm: 'http://{TOKEN_SERVER}/token', service: '{SERVICE}', issuer: '{ISSUER}', \
         rootcertbundle: /var/lib/trellis/token.crt}}}}\n"
    );
    registry::start(cluster, "registry-token", REGISTRY_TOKEN, &auth);
    let _tokens = token_server(cluster, key, certificate.der().to_vec());

    for (kind, place) in [("basic", REGISTRY_BASIC), ("token", REGISTRY_TOKEN)] {
        let image = format!("{place}/private/busybox:1");
        let (right, wrong) = (format!("{kind}-right"), format!("{kind}-wrong"));
        cluster.apply("right.json", &pull_secret(&right, place, USER, PASSWORD).to_string());
        cluster
            .apply("wrong.json", &pull_secret(&wrong, &format!("http://{place}"), USER, "wrong-password").to_string());
        for (name, secret) in
            [("nobody", None), ("wrong", Some(&wrong)), ("absent", Some(&"no-such-secret".to_owned()))]
        {
            let name = format!("{kind}-{name}");
            cluster.apply("pod.json", &pod(&name, &image, secret.map(String::as_str)).to_string());
        }
        // The image is not on the node yet, so nothing but the refusal can be seen.
        let said = refusal(cluster, &format!("{kind}-nobody"));
        names(&said, &[&image, &format!("registry {place}"), "asks for credentials", "imagePullSecrets"]);
        let said = refusal(cluster, &format!("{kind}-wrong"));
        names(&said, &[&image, &format!("registry {place}"), "refused user \"puller\"", "imagePullSecrets"]);
        names(&refusal(cluster, &format!("{kind}-absent")), &["asks for credentials"]);
        let told = || cluster.trellis(&["events"]).stdout.contains("no-such-secret");
        wait::until_true("an Event about the missing Secret", LIMIT, told).unwrap();
        cluster.apply("pod.json", &pod(&format!("{kind}-right"), &image, Some(&right)).to_string());
        cluster.wait_ready("default", &format!("app={kind}-right"), 1);
        let unknown = format!("{place}/private/unknown:1");
        cluster.apply("pod.json", &pod(&format!("{kind}-unknown"), &unknown, Some(&right)).to_string());
        names(&refusal(cluster, &format!("{kind}-unknown")), &[&unknown, "no such image", "correct its name or tag"]);
        cluster.trellis(&["delete", "secret", &right, &wrong]).ok();
    }
    for name in ["registry", "registry-basic", "registry-token"] {
        cluster.lab.stop_daemon(registry::HOME, name).unwrap();
    }
    Outcome::Passed
}

/// The layout that umoci made, and how it is read and added to.
struct Layout(PathBuf);

impl Layout {
    fn blob(&self, digest: &str) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    fn json(&self, digest: &str) -> Value {
        serde_json::from_slice(&fs::read(self.blob(digest)).unwrap()).unwrap()
    }

    fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.0.join("index.json")).unwrap()).unwrap()
    }

    fn descriptor(&self, tag: &str) -> Value {
        let index = self.index();
        let all = index["manifests"].as_array().unwrap();
        let found = all.iter().find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == tag);
        let mut found = found.unwrap_or_else(|| panic!("no {tag} in {index}")).clone();
        found.as_object_mut().unwrap().remove("annotations");
        found
    }

    /// An image index of these, under a tag of its own.
    fn add_index(&self, tag: &str, images: &[(&str, &str)]) {
        let manifests: Vec<Value> = images
            .iter()
            .map(|(image, architecture)| {
                let mut descriptor = self.descriptor(image);
                descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
                descriptor
            })
            .collect();
        let kind = "application/vnd.oci.image.index.v1+json";
        let bytes = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string().into_bytes();
        let digest = format!("sha256:{}", hex(&bytes));
        fs::write(self.blob(&digest), &bytes).unwrap();
        let mut index = self.index();
        index["manifests"].as_array_mut().unwrap().push(json!({"mediaType": kind, "digest": digest,
            "size": bytes.len(), "annotations": {"org.opencontainers.image.ref.name": tag}}));
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// This machine's name among images, and another's.
fn architectures() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        "x86_64" => ("amd64", "arm64"),
        other => (other, "amd64"),
    }
}

pub fn platforms(cluster: &mut Cluster) -> Outcome {
    if let Some(missing) = registry::missing_tool() {
        return Outcome::Skipped(missing);
    }
    let folder = registry::images(cluster);
    let layout = Layout(folder.join("layout"));
    let (native, foreign) = architectures();
    for architecture in [native, foreign] {
        let note = folder.join(architecture);
        fs::write(&note, architecture).unwrap();
        let image = format!("{}:{architecture}", layout.0.display());
        let base = format!("{}:busybox", layout.0.display());
        run(Command::new("umoci").args(["tag", "--image", &base, architecture]), LIMIT).ok();
        registry::umoci(&["insert", "--image", &image, note.to_str().unwrap(), "/platform"]);
        registry::umoci(&["config", "--image", &image, "--architecture", architecture]);
    }
    // The foreign one first: who takes the first is wrong.
    layout.add_index("both", &[(foreign, foreign), (native, native)]);
    layout.add_index("elsewhere", &[(foreign, foreign)]);
    registry::start(cluster, "registry", REGISTRY, "");
    for tag in ["both", "elsewhere"] {
        registry::push(cluster, tag, &format!("many/{tag}"));
    }
    cluster.apply("both.json", &pod("both", &format!("{REGISTRY}/many/both:1"), None).to_string());
    cluster.apply("elsewhere.json", &pod("elsewhere", &format!("{REGISTRY}/many/elsewhere:1"), None).to_string());
    cluster.wait_ready("default", "app=both", 1);
    let said = cluster.trellis(&["exec", "both", "--", "/bin/busybox", "cat", "/platform"]).ok();
    assert_eq!(said.trim(), native);
    names(&refusal(cluster, "elsewhere"), &["many/elsewhere:1", "no image for linux"]);
    cluster.lab.stop_daemon(registry::HOME, "registry").unwrap();
    Outcome::Passed
}

/// A registry's read side over a layout; what `lies` answers stands in for the truth.
fn lying_registry(layout: Layout, lies: impl Fn(&str, &str) -> Option<PathBuf>, path: &str) -> Answer {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    match parts.as_slice() {
        ["v2"] => Answer::new(200, "application/json", "{}"),
        ["v2", name, "manifests", _] => {
            let digest = layout.descriptor("told")["digest"].as_str().unwrap().to_owned();
            let mut answer = Answer::new(200, kind, fs::read(layout.blob(&digest)).unwrap());
            answer.headers.push(("Docker-Content-Digest", digest));
            if let Some(lie) = lies(name, "manifest") {
                answer.body = fs::read(lie).unwrap();
            }
            answer
        }
        ["v2", name, "blobs", digest] => {
            let file = lies(name, digest).unwrap_or_else(|| layout.blob(digest));
            Answer::new(200, "application/octet-stream", fs::read(file).unwrap())
        }
        _ => Answer::new(404, "application/json", "{}"),
    }
}

pub fn tampered(cluster: &mut Cluster) -> Outcome {
    if let Some(missing) = registry::missing_tool() {
        return Outcome::Skipped(missing);
    }
    let folder = registry::images(cluster);
    let layout = Layout(folder.join("layout"));
    // A layer that no node has: what is there already is not asked for again.
    let base = format!("{}:busybox", layout.0.display());
    run(Command::new("umoci").args(["tag", "--image", &base, "told"]), LIMIT).ok();
    let note = folder.join("told");
    fs::write(&note, "told").unwrap();
    registry::umoci(&["insert", "--image", &format!("{}:told", layout.0.display()), note.to_str().unwrap(), "/told"]);
    let digest_of = |v: &Value| v["digest"].as_str().unwrap().to_owned();
    let manifest_digest = digest_of(&layout.descriptor("told"));
    let manifest = layout.json(&manifest_digest);
    let layer = digest_of(manifest["layers"].as_array().unwrap().last().unwrap());
    let other = layout.json(&digest_of(&layout.descriptor("redis")));
    // A layer of another image is a layer in all but its digest.
    let swapped = layout.blob(&digest_of(&other["layers"][0]));
    let other_manifest = layout.blob(&digest_of(&layout.descriptor("redis")));
    let (root, wanted) = (layout.0.clone(), layer.clone());
    let (swapped, other_manifest) = (Arc::new(swapped), Arc::new(other_manifest));
    let _registry = WebServer::start(cluster, registry::HOME, REGISTRY_LYING, move |asked: &Request| {
        let lies = |name: &str, what: &str| match name {
            "swapped" if what == wanted => Some(swapped.to_path_buf()),
            "exchanged" if what == "manifest" => Some(other_manifest.to_path_buf()),
            _ => None,
        };
        lying_registry(Layout(root.clone()), lies, &asked.path)
    });
    let image = |name: &str| format!("{REGISTRY_LYING}/{name}:1");
    let pinned = format!("{REGISTRY_LYING}/exchanged@{manifest_digest}");
    cluster.apply("swapped.json", &pod("swapped", &image("swapped"), None).to_string());
    cluster.apply("exchanged.json", &pod("exchanged", &pinned, None).to_string());
    let said = refusal(cluster, "swapped");
    names(&said, &[&image("swapped"), "digest", &layer]);
    names(&refusal(cluster, "exchanged"), &[&pinned, "digest"]);
    let listed = cluster.trellis(&["image", "list"]).ok();
    assert!(!listed.contains("/swapped") && !listed.contains("/exchanged"), "{listed}");
    // The control: the same registry, where it tells the truth.
    cluster.apply("honest.json", &pod("honest", &image("honest"), None).to_string());
    cluster.wait_ready("default", "app=honest", 1);
    assert!(cluster.trellis(&["image", "list"]).ok().contains("/honest"));
    Outcome::Passed
}

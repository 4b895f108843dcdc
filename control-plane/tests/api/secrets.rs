//! A canary in a Secret is nowhere on the disk; the same one in a ConfigMap is.

use std::path::Path;

use serde_json::json;

use crate::bed::*;

/// Every file below a folder, whole.
fn files(dir: &Path, out: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
}

fn found(dir: &Path, needle: &str) -> Vec<String> {
    let mut all = Vec::new();
    files(dir, &mut all);
    assert!(!all.is_empty());
    let holds = |text: &[u8]| text.windows(needle.len()).any(|w| w == needle.as_bytes());
    all.into_iter().filter(|(_, bytes)| holds(bytes)).map(|(name, _)| name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_nowhere_on_the_disk() {
    let mut bed = Bed::start().await;
    let admin = bed.admin();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"k": "canary-of-the-secret"}});
    create(&admin, "Secret", &secret).await.unwrap();
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
        "data": {"k": "canary-of-the-config", "b": "Y2FuYXJ5LW9mLXRoZS1jb25maWc="}});
    create(&admin, "ConfigMap", &config).await.unwrap();
    // Applied, so that kubectl's annotation carries it a second time.
    let manifest = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "t"},
        "stringData": {"k": "canary-of-the-secret"}});
    let request = trellis_proto::api::ApplyRequest {
        key: key("", "Secret", "default", "t"),
        json: manifest.to_string().into(),
        ..Default::default()
    };
    admin.resources().apply(request).await.unwrap();
    let check = |dir: &Path| {
        // base64 of the canary, at each of the three alignments it can have in a larger text.
        for needle in [
            "canary-of-the-secret",
            "Y2FuYXJ5LW9mLXRoZS1zZWNyZX",
            "NhbmFyeS1vZi10aGUtc2VjcmV0",
            "jYW5hcnktb2YtdGhlLXNlY3JldA",
        ] {
            assert_eq!(found(dir, needle), Vec::<String>::new(), "{needle}");
        }
        for needle in ["canary-of-the-config", "Y2FuYXJ5LW9mLXRoZS1jb25maWc"] {
            assert!(!found(dir, needle).is_empty(), "{needle} shows that the search works");
        }
    };
    check(&bed.data());
    assert_eq!(get(&admin, "", "Secret", "default", "s").await.unwrap()["data"]["k"], "Y2FuYXJ5LW9mLXRoZS1zZWNyZXQ=");
    bed.stop().await;
    check(&bed.data());
    // Sealed with the key outside the data folder, it is read after a restart.
    bed.run().await;
    let again = get(&bed.admin(), "", "Secret", "default", "s").await.unwrap();
    assert_eq!(again["data"]["k"], "Y2FuYXJ5LW9mLXRoZS1zZWNyZXQ=");
}

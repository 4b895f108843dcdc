//! A canary in a Secret is nowhere on the disk; the same one in a ConfigMap is.

use std::path::Path;

use serde_json::json;

use crate::bed::*;

/// The canary, and its base64 at each of the three alignments it can have in a larger text.
const FORMS: [&str; 4] =
    ["canary-of-the-secret", "Y2FuYXJ5LW9mLXRoZS1zZWNyZX", "NhbmFyeS1vZi10aGUtc2VjcmV0", "jYW5hcnktb2YtdGhlLXNlY3JldA"];

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
        "data": {"k": "canary-of-the-config"}});
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
        for needle in FORMS {
            assert_eq!(found(dir, needle), Vec::<String>::new(), "{needle}");
        }
        assert!(!found(dir, "canary-of-the-config").is_empty(), "what was written beside it is there");
    };
    check(&bed.data());
    // In the snapshot too, and in what the state machine holds.
    let running = bed.running.as_ref().unwrap();
    running.consensus.snapshot().await.unwrap();
    let snapshots = bed.data().join("raft").join("snapshots");
    eventually("a snapshot holds the ConfigMap", || async {
        snapshots.is_dir()
            && std::fs::read_dir(&snapshots).unwrap().next().is_some()
            && !found(&snapshots, "canary-of-the-config").is_empty()
    })
    .await;
    check(&snapshots);
    let held = |kind: &str, name: &str| {
        let key = trellis_control_plane::store::Key::new("", kind, "default", name);
        String::from_utf8_lossy(&running.ops.store().get(&key).unwrap().object.json).into_owned()
    };
    assert!(held("ConfigMap", "c").contains("canary-of-the-config"));
    for name in ["s", "t"] {
        let text = held("Secret", name);
        assert!(!text.contains("canary") && !text.contains("Y2FuYXJ5"), "{text}");
    }
    assert_eq!(get(&admin, "", "Secret", "default", "s").await.unwrap()["data"]["k"], "Y2FuYXJ5LW9mLXRoZS1zZWNyZXQ=");
    bed.stop().await;
    check(&bed.data());
    // Sealed with the key outside the data folder, it is read after a restart.
    bed.run().await;
    let again = get(&bed.admin(), "", "Secret", "default", "s").await.unwrap();
    assert_eq!(again["data"]["k"], "Y2FuYXJ5LW9mLXRoZS1zZWNyZXQ=");
    // The control: the same text in a ConfigMap is found, in each form, in the log and in a snapshot.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "same"}, "data": {
        "plain": "canary-of-the-secret", "at-0": "Y2FuYXJ5LW9mLXRoZS1zZWNyZXQ=",
        "at-1": "eGNhbmFyeS1vZi10aGUtc2VjcmV0", "at-2": "eHhjYW5hcnktb2YtdGhlLXNlY3JldA=="}});
    create(&bed.admin(), "ConfigMap", &map).await.unwrap();
    for needle in FORMS {
        assert!(!found(&bed.data(), needle).is_empty(), "{needle} shows that the search works");
    }
    bed.running.as_ref().unwrap().consensus.snapshot().await.unwrap();
    eventually("a snapshot holds it in each form", || async {
        FORMS.iter().all(|needle| !found(&snapshots, needle).is_empty())
    })
    .await;
}

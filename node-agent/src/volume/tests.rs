//! Volumes on temporary folders.
#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use crate::runtime::spec::env::{Facts, Refs};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, sync::Arc};

fn refs(config: Value) -> Refs {
    Refs {
        config_maps: BTreeMap::from([("cfg".into(), Arc::new(serde_json::from_value(config).unwrap()))]),
        secrets: BTreeMap::from([(
            "sec".into(),
            Arc::new(serde_json::from_value(json!({"data": {"key": "czNjcmV0"}})).unwrap()),
        )]),
    }
}

fn content(volume: Value, refs: &Refs) -> Result<payload::Payload, VolumeError> {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"a": "b"}}})).unwrap();
    let volume = serde_json::from_value(volume).unwrap();
    payload::of(&volume, &pod, refs, &Facts::default()).map(Option::unwrap)
}

#[test]
fn payloads_follow_items_modes_and_optional() {
    let refs = refs(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}}));
    let all = content(json!({"name": "v", "configMap": {"name": "cfg"}}), &refs).unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((all["c"].data.as_slice(), all["a"].mode), ([0u8, 1].as_slice(), 0o644));
    let some = json!({"name": "v", "configMap": {"name": "cfg", "defaultMode": 0o600,
        "items": [{"key": "a", "path": "x/y"}, {"key": "b", "path": "z", "mode": 0o400}]}});
    let some = content(some, &refs).unwrap();
    assert_eq!((some["x/y"].mode, some["z"].mode), (0o600, 0o400));
    let missing = json!({"name": "v", "configMap": {"name": "cfg", "items": [{"key": "q", "path": "q"}]}});
    assert!(matches!(content(missing, &refs), Err(VolumeError::MissingKey { .. })));
    let gone = content(json!({"name": "v", "secret": {"secretName": "no"}}), &refs).unwrap_err();
    assert_eq!(gone.to_string(), "MountVolume.SetUp failed for volume \"v\": secret \"no\" not found");
    assert!(content(json!({"name": "v", "secret": {"secretName": "no", "optional": true}}), &refs).unwrap().is_empty());
    for path in ["../x", "/x", "a/../b", "..data", ""] {
        let evil = json!({"name": "v", "configMap": {"name": "cfg", "items": [{"key": "a", "path": path}]}});
        assert!(matches!(content(evil, &refs), Err(VolumeError::Path { .. })), "{path}");
    }
    let projected = json!({"name": "v", "projected": {"sources": [
        {"secret": {"name": "sec"}}, {"configMap": {"name": "cfg", "items": [{"key": "a", "path": "a"}]}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}});
    let projected = content(projected, &refs).unwrap();
    assert_eq!(projected["key"].data, b"s3cret");
    assert_eq!(projected["labels"].data, b"a=\"b\"");
}

#[test]
fn content_is_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("v");
    let make = |config: Value| {
        let items = json!({"name": "v", "configMap": {"name": "cfg"}});
        content(items, &refs(config)).unwrap()
    };
    let one = make(json!({"data": {"a": "1", "gone": "x"}}));
    assert!(atomic::write(&volume, &one, None).unwrap());
    assert!(!atomic::write(&volume, &one, None).unwrap(), "nothing changed");
    let first = fs::read_link(volume.join("..data")).unwrap();
    assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
    // A reader that has the old folder open keeps a consistent view by the link alone.
    assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
    assert!(atomic::write(&volume, &make(json!({"data": {"a": "2", "new": "y"}})), None).unwrap());
    assert_ne!(fs::read_link(volume.join("..data")).unwrap(), first);
    assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "2");
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "y");
    assert!(!volume.join("gone").exists() && fs::symlink_metadata(volume.join("gone")).is_err());
    assert!(!volume.join(first).exists(), "the old folder is removed");
}

#[test]
fn fs_group_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let items = json!({"name": "v", "secret": {"secretName": "sec", "defaultMode": 0o400}});
    let content = content(items, &refs(json!({}))).unwrap();
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: fs_group_may_read: needs root to change groups");
        return;
    }
    atomic::write(dir.path(), &content, Some(1234)).unwrap();
    let meta = fs::metadata(dir.path().join("key")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o440);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), 1234);
    assert!(!atomic::write(dir.path(), &content, Some(1234)).unwrap());
}

#[test]
fn sub_paths_never_leave_their_volume() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
    fs::create_dir_all(volume.join("in/side")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    let base = fs::canonicalize(&volume).unwrap();
    assert_eq!(subpath::resolve(&volume, "in/side").unwrap(), base.join("in/side"));
    assert_eq!(subpath::resolve(&volume, "made/now").unwrap(), base.join("made/now"));
    for bad in ["../outside", "/etc", "in/../../outside"] {
        assert!(subpath::resolve(&volume, bad).is_err(), "{bad}");
    }
    std::os::unix::fs::symlink(&outside, volume.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../outside", volume.join("climbing")).unwrap();
    std::os::unix::fs::symlink("in", volume.join("honest")).unwrap();
    for link in ["absolute", "climbing"] {
        match subpath::resolve(&volume, link) {
            Ok(found) => assert!(found.starts_with(&base), "{link} leads to {}", found.display()),
            Err(error) => eprintln!("{link}: {error}"),
        }
    }
    assert!(fs::read_dir(&outside).unwrap().next().is_none(), "something was made outside");
    assert_eq!(subpath::resolve(&volume, "honest/side").unwrap(), base.join("in/side"));
}

#[test]
fn host_paths_are_checked_by_type() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, kind: &str| {
        let path = dir.path().join(name).to_string_lossy().into_owned();
        local::host_path("v", &HostPathVolumeSource { path, type_: Some(kind.into()) })
    };
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(check("file", "File").is_ok() && check("file", "").is_ok());
    assert!(matches!(check("file", "Directory"), Err(VolumeError::HostPath { .. })));
    assert!(matches!(check("none", "Directory"), Err(VolumeError::HostPath { .. })));
    assert!(check("none", "").is_err());
    assert!(check("a/b", "DirectoryOrCreate").is_ok() && dir.path().join("a/b").is_dir());
    assert!(check("new", "FileOrCreate").is_ok() && dir.path().join("new").is_file());
    assert!(check("file", "Socket").is_err());
}

#[test]
fn empty_dirs_on_disk_and_in_memory_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = dir.path().join("volumes");
    local::empty_dir(&volumes.join("disk"), "disk", &EmptyDirVolumeSource::default(), None).unwrap();
    assert_eq!(fs::metadata(volumes.join("disk")).unwrap().permissions().mode() & 0o7777, 0o777);
    let memory = EmptyDirVolumeSource { medium: Some("Memory".into()), size_limit: None };
    match local::empty_dir(&volumes.join("mem"), "mem", &memory, None) {
        Ok(()) => {
            assert!(local::is_mount_point(&volumes.join("mem")).unwrap());
            fs::write(volumes.join("mem/x"), "x").unwrap();
            local::empty_dir(&volumes.join("mem"), "mem", &memory, None).unwrap();
            assert!(volumes.join("mem/x").exists(), "kept over the agent's restart");
        }
        Err(error) => eprintln!("SKIPPED: emptyDir in memory: {error}"),
    }
    // A link to somewhere else is removed, not followed.
    fs::create_dir(dir.path().join("precious")).unwrap();
    fs::write(dir.path().join("precious/file"), "").unwrap();
    std::os::unix::fs::symlink(dir.path().join("precious"), volumes.join("disk/link")).unwrap();
    local::remove(&volumes).unwrap();
    assert!(!volumes.exists() && dir.path().join("precious/file").exists());
    local::remove(&volumes).unwrap();
}

//! Archives of both formats go in, the same images come out, and a crash leaves nothing behind.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt as _;
use trellis_image::{Auth, ImageError, ImageStore, Options, PullPolicy, gc::Limits};

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(diff_ids: &[String]) -> Vec<u8> {
    let ids: Vec<String> = diff_ids.iter().map(|d| format!("\"sha256:{d}\"")).collect();
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/hello"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
    .into_bytes()
}

fn oci(name: &str, layers: &[Vec<u8>], corrupt: bool) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| sha(l)).collect();
    let config = config(&diff_ids);
    let mut blobs = vec![(format!("blobs/sha256/{}", sha(&config)), config.clone())];
    let mut descriptors = Vec::new();
    for layer in layers {
        let mut packed = gzip(layer);
        let digest = sha(&packed);
        descriptors.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{digest}","size":{}}}"#,
            packed.len()
        ));
        if corrupt {
            packed = gzip(&tar(&[("evil", b"evil")]));
        }
        blobs.push((format!("blobs/sha256/{digest}"), packed));
    }
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{}","size":{}}},"layers":[{}]}}"#,
        sha(&config),
        config.len(),
        descriptors.join(",")
    )
    .into_bytes();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}]}}"#,
        sha(&manifest),
        manifest.len()
    )
    .into_bytes();
    blobs.push((format!("blobs/sha256/{}", sha(&manifest)), manifest));
    blobs.push(("index.json".to_owned(), index));
    blobs.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    let files: Vec<(&str, &[u8])> = blobs.iter().map(|(p, b)| (p.as_str(), b.as_slice())).collect();
    tar(&files)
}

fn docker(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| sha(l)).collect();
    let config = config(&diff_ids);
    let paths: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": paths}]).to_string().into_bytes();
    let mut files: Vec<(&str, &[u8])> = vec![("config.json", &config), ("manifest.json", &manifest)];
    files.extend(paths.iter().zip(layers).map(|(p, l)| (p.as_str(), l.as_slice())));
    tar(&files)
}

fn layers() -> Vec<Vec<u8>> {
    vec![tar(&[("hello", b"hello")]), tar(&[("etc/motd", b"welcome")])]
}

fn write(dir: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join("archive.tar");
    fs::write(&path, bytes).unwrap();
    path
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

#[test]
fn both_formats_give_the_same_image_and_share_its_layers() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("s"), Options::default()).unwrap();
    let a = store.import(&write(dir.path(), &oci("web:1", &layers(), false))).unwrap();
    let b = store.import(&write(dir.path(), &gzip(&docker("other:2", &layers())))).unwrap();
    assert_eq!((a.len(), b.len()), (1, 1));
    assert_eq!(a[0].id, b[0].id);
    assert_eq!(entries(&dir.path().join("s/layers")), 2);
    assert_eq!(entries(&dir.path().join("s/ingest")), 0);
    let image = store.get("web:1").unwrap().unwrap();
    assert_eq!(image.names, ["docker.io/library/other:2", "docker.io/library/web:1"]);
    assert_eq!(fs::read_to_string(image.layers[0].join("hello")).unwrap(), "hello");
    assert_eq!(fs::read_to_string(image.layers[1].join("etc/motd")).unwrap(), "welcome");
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/hello".to_owned()]);
}

#[test]
fn the_store_survives_a_restart_and_sweeps_what_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("s");
    let store = ImageStore::open(&at, Options::default()).unwrap();
    store.import(&write(dir.path(), &oci("web:1", &layers(), false))).unwrap();
    drop(store);
    fs::create_dir(at.join("ingest/half")).unwrap();
    fs::create_dir(at.join("layers").join("0".repeat(64))).unwrap();
    fs::write(at.join("images/x.tmp"), "half").unwrap();
    let store = ImageStore::open(&at, Options::default()).unwrap();
    assert_eq!(entries(&at.join("ingest")), 0);
    assert_eq!(entries(&at.join("layers")), 2);
    assert_eq!(entries(&at.join("images")), 1);
    assert!(store.get("docker.io/library/web:1").unwrap().is_some());
    let id = store.get("web:1").unwrap().unwrap().id.clone();
    let before = Instant::now();
    store.take("web:1").unwrap();
    assert_eq!(store.remove(std::slice::from_ref(&id), before).unwrap(), Vec::<String>::new(), "it is used since");
    assert_eq!(store.remove(&[id.clone(), "sha256:none".into()], Instant::now()).unwrap(), [id]);
    assert!(store.get("web:1").unwrap().is_none());
    assert_eq!((entries(&at.join("images")), entries(&at.join("layers")), entries(&at.join("ingest"))), (0, 0, 0));
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("s"), Options::default()).unwrap();
    let e = store.import(&write(dir.path(), &oci("web:1", &layers(), true))).unwrap_err();
    assert!(matches!(e, ImageError::Digest { .. }), "{e}");
    for sub in ["images", "layers", "ingest"] {
        assert_eq!(entries(&dir.path().join("s").join(sub)), 0, "{sub}");
    }
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("s"), Options::default()).unwrap();
    for bytes in [b"hello".to_vec(), tar(&[("a", b"b")]), gzip(b"x")] {
        let e = store.import(&write(dir.path(), &bytes)).unwrap_err();
        assert!(e.to_string().contains("archive.tar"), "{e}");
    }
}

/// Its entry is never looked at: what comes before it is too large to be read.
#[test]
fn an_archive_with_a_large_extension_header_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("s"), Options::default()).unwrap();
    let with_comment = |bytes: usize| {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("comment", &vec![b'c'; bytes][..])]).unwrap();
        let mut all = builder.into_inner().unwrap();
        all.truncate(all.len() - 1024);
        all.extend(oci("web:1", &layers(), false));
        store.import(&write(dir.path(), &all))
    };
    let e = with_comment(2 << 20).unwrap_err();
    assert!(e.to_string().contains("bytes in an extension header"), "{e}");
    assert_eq!(with_comment(1 << 19).unwrap().len(), 1);
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("s"), Options::default()).unwrap();
    store.import(&write(dir.path(), &oci("web:1", &layers(), false))).unwrap();
    let newer = vec![tar(&[("hello", b"newer")])];
    let second = store.import(&write(dir.path(), &oci("web:1", &newer, false))).unwrap();
    assert_eq!(store.get("web:1").unwrap().unwrap().id, second[0].id);
    assert_eq!(store.list().unwrap().iter().filter(|i| i.names.is_empty()).count(), 1);
}

/// A registry without TLS that nobody named: what it says is no TLS, and the error says what to do.
#[tokio::test]
async fn plain_http_where_tls_is_due_is_told_as_such() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        loop {
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            // Until the client goes: closed with bytes unread, the answer might be lost.
            drop(tokio::io::copy(&mut peer, &mut tokio::io::sink()).await);
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("s"), Options::default()).unwrap();
    let name = format!("{registry}/web:1");
    let refused = store.ensure(&name, PullPolicy::Always, &Auth::Anonymous, |_| {}).await.unwrap_err().to_string();
    assert!(
        refused.contains(&format!("it speaks plain HTTP, not TLS: if that is meant, name {registry}")),
        "{refused}"
    );
    serving.abort();
}

#[tokio::test]
async fn pull_policy_never_uses_only_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("s"), Options::default()).unwrap();
    let e = store.ensure("web:1", PullPolicy::Never, &Auth::Anonymous, |_| {}).await.unwrap_err();
    assert!(matches!(e, ImageError::NotPresent { .. }), "{e}");
    store.import(&write(dir.path(), &oci("web:1", &layers(), false))).unwrap();
    store.ensure("web:1", PullPolicy::Never, &Auth::Anonymous, |_| {}).await.unwrap();
    store.ensure("web:1", PullPolicy::IfNotPresent, &Auth::Anonymous, |_| {}).await.unwrap();
}

/// Runs on a thread with mounts of its own.
fn with_small_disk(name: &'static str, megabytes: u32, test: impl FnOnce(&Path) + Send + 'static) {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {name}: mounting a small file system needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let on_thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let size = format!("size={megabytes}m");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        test(&path);
    });
    on_thread.join().unwrap();
}

/// Mounts an overlay of these folders, topmost first, on `disk/root`.
fn overlay(disk: &Path, lower: &[std::path::PathBuf]) -> nix::Result<std::path::PathBuf> {
    use nix::mount::{MsFlags, mount, umount};
    let [upper, work, root] = ["upper", "work", "root"].map(|name| disk.join(name));
    for folder in [&upper, &work, &root] {
        fs::create_dir_all(folder).unwrap();
    }
    // Not mounted the first time.
    let _ = umount(&root);
    let lower: Vec<String> = lower.iter().map(|l| l.display().to_string()).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str())).map(|()| root)
}

#[test]
fn an_image_may_name_a_layer_twice() {
    with_small_disk("an_image_may_name_a_layer_twice", 8, |disk| {
        let archives = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&disk.join("s"), Options::default()).unwrap();
        let (a, b) = (tar(&[("f", b"a"), ("only-a", b"")]), tar(&[("f", b"b"), ("only-b", b"")]));
        let image = store.import(&write(archives.path(), &oci("x:1", &[a.clone(), b, a], false))).unwrap().remove(0);
        assert_eq!(image.stack(), [image.layers[2].clone(), image.layers[1].clone()]);
        // That it must not be given twice is the kernel's word.
        let all: Vec<_> = image.layers.iter().rev().cloned().collect();
        assert_eq!(overlay(disk, &all).unwrap_err(), nix::errno::Errno::ELOOP);
        let root = overlay(disk, &image.stack()).unwrap();
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "a");
        assert!(root.join("only-a").exists() && root.join("only-b").exists());
    });
}

/// A layer with these folders (path, mode, owner) and files.
fn folders(folders: &[(&str, u32, u64)], files: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, owner) in folders {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mtime(1_000_000);
        builder.append_data(&mut header, path, &[][..]).unwrap();
    }
    for path in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, &[][..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_folder_that_a_layer_leaves_out_is_as_the_layer_below_says() {
    use std::os::unix::fs::MetadataExt;
    with_small_disk("a_folder_that_a_layer_leaves_out_is_as_the_layer_below_says", 8, |disk| {
        let archives = tempfile::tempdir().unwrap();
        let at = disk.join("s");
        let store = ImageStore::open(&at, Options::default()).unwrap();
        let base =
            [("tmp", 0o1777, 0), ("var", 0o711, 5), ("var/lib", 0o750, 6), ("gone", 0o700, 7), ("own", 0o700, 8)];
        let layers = [
            folders(&base, &["gone/old"]),
            folders(&[], &[".wh.gone"]),
            folders(&[("own", 0o770, 9)], &["tmp/x", "var/lib/y", "own/z", "new/n", "gone/new"]),
            folders(&[("var", 0o701, 10)], &["tmp/deep/w"]),
        ];
        store.import(&write(archives.path(), &oci("x:1", &layers, false))).unwrap();
        drop(store);
        let store = ImageStore::open(&at, Options::default()).unwrap();
        let image = store.get("x:1").unwrap().unwrap();
        let like = |root: &Path, path: &str| {
            let m = fs::metadata(root.join(path)).unwrap();
            (m.mode() & 0o7777, m.uid(), m.gid())
        };
        // Without it, the kernel shows the topmost folder.
        let root = overlay(disk, &image.stack()).unwrap();
        assert_eq!(like(&root, "tmp"), (0o755, 0, 0));
        nix::mount::umount(&root).unwrap();
        for folder in ["upper", "work"] {
            fs::remove_dir_all(disk.join(folder)).unwrap();
        }
        image.lend(&disk.join("upper")).unwrap();
        let root = overlay(disk, &image.stack()).unwrap();
        for (path, want) in [
            ("tmp", (0o1777, 0, 0)),
            ("var/lib", (0o750, 6, 6)),
            // What a layer says itself, the topmost such layer says.
            ("var", (0o701, 10, 10)),
            ("own", (0o770, 9, 9)),
            // Nobody says it, and what is gone says nothing any more.
            ("tmp/deep", (0o755, 0, 0)),
            ("new", (0o755, 0, 0)),
            ("gone", (0o755, 0, 0)),
        ] {
            assert_eq!(like(&root, path), want, "{path}");
        }
        assert_eq!(fs::metadata(root.join("tmp")).unwrap().mtime(), 1_000_000);
        for path in ["tmp/x", "tmp/deep/w", "var/lib/y", "own/z", "new/n", "gone/new"] {
            assert!(root.join(path).exists(), "{path}");
        }
        assert!(!root.join("gone/old").exists());
        // An image that needs nothing gets nothing.
        let plain = [folders(&base, &[]), folders(&[("tmp", 0o1777, 0)], &["tmp/x", "new/n"])];
        let plain = store.import(&write(archives.path(), &oci("y:1", &plain, false))).unwrap().remove(0);
        assert!(plain.lent.is_empty(), "{:?}", plain.lent);
    });
}

#[test]
fn a_full_disk_is_cleared_of_the_images_longest_unused() {
    with_small_disk("a_full_disk_is_cleared_of_the_images_longest_unused", 32, |disk| {
        let archives = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&disk.join("s"), Options::default()).unwrap();
        let base = tar(&[("base", &vec![7; 2 << 20])]);
        // All under one name: it moves on, and what had it before may go.
        let import = |letter: &str, megabytes: usize| {
            let own = tar(&[(letter, &vec![letter.as_bytes()[0]; megabytes << 20])]);
            store.import(&write(archives.path(), &oci("x:1", &[base.clone(), own], false))).unwrap()[0].id.clone()
        };
        let limits = Limits { min_age: Duration::ZERO, ..Limits::default() };
        let ids = || store.list().unwrap().into_iter().map(|i| i.id).collect::<BTreeSet<_>>();
        let set = |ids: &[&String]| ids.iter().map(|i| (*i).clone()).collect::<BTreeSet<String>>();
        let (a, b, c) = (import("a", 6), import("b", 6), import("c", 6));
        // 20 of 32 MiB: nothing to be done.
        let done = store.collect(&limits, BTreeSet::new).unwrap();
        assert_eq!(done.removed, Vec::<String>::new());
        let d = import("d", 8);
        store.take(&a).unwrap().unwrap();
        assert!(store.collect(&Limits::default(), BTreeSet::new).unwrap().removed.is_empty(), "all have just come");
        let done = store.collect(&limits, || set(&[&b])).unwrap();
        // b is in use, a was taken after c came: c is enough to get below 80 %.
        assert_eq!(ids(), set(&[&a, &b, &d]), "{done:?}");
        assert_eq!(done.removed, [c]);
        assert!(done.before.used_percent() >= 85 && done.after.used_percent() < 80, "{done:?}");
        assert_eq!(done.missing_bytes, 0);
        // What is left is whole.
        let image = store.get(&b).unwrap().unwrap();
        assert_eq!(fs::read(image.layers[0].join("base")).unwrap().len(), 2 << 20);
        assert_eq!(fs::read(image.layers[1].join("b")).unwrap().len(), 6 << 20);
        assert_eq!(entries(&disk.join("s/layers")), 4);
        assert_eq!(entries(&disk.join("s/ingest")), 0);
        // Where everything is used, it says what is missing.
        fs::write(disk.join("data"), vec![1; 6 << 20]).unwrap();
        let done = store.collect(&limits, ids).unwrap();
        assert!(done.removed.is_empty() && done.missing_bytes > 0, "{done:?}");
        // One that nobody has used for long goes without need, where that is wanted; one that was
        // imported and has its name stays.
        fs::remove_file(disk.join("data")).unwrap();
        let limits = Limits { max_age: Some(Duration::ZERO), ..limits };
        store.collect(&limits, || set(&[&b])).unwrap();
        assert_eq!(ids(), set(&[&b, &d]));
    });
}

#[test]
fn a_version_file_that_a_power_cut_left_empty_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(ImageStore::open(dir.path(), Options::default()).unwrap());
    let version = dir.path().join("version");
    let whole = fs::read(&version).unwrap();
    fs::write(&version, "").unwrap();
    drop(ImageStore::open(dir.path(), Options::default()).unwrap());
    assert_eq!(fs::read(&version).unwrap(), whole);
    fs::write(&version, "99\n").unwrap();
    assert!(matches!(ImageStore::open(dir.path(), Options::default()), Err(ImageError::TooNew { .. })));
}

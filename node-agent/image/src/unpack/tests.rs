//! Each attack an image may try, and each thing an honest one contains.
#![allow(clippy::unwrap_used)]

use std::{fs, io::Cursor, os::unix::fs::MetadataExt, path::Path};

use tar::{Builder, EntryType, Header};

use super::*;

type Tar = Builder<Vec<u8>>;

fn header(kind: EntryType, size: u64) -> Header {
    let mut h = Header::new_ustar();
    h.set_entry_type(kind);
    h.set_size(size);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(1_000_000);
    h
}

/// The builder refuses evil paths, so they are written into the header as they are.
fn raw(tar: &mut Tar, path: &str, kind: EntryType, link: Option<&str>, content: &[u8]) {
    let mut h = header(kind, content.len() as u64);
    h.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    if let Some(link) = link {
        h.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    h.set_cksum();
    tar.append(&h, content).unwrap();
}

fn file(tar: &mut Tar, path: &str, content: &str) {
    raw(tar, path, EntryType::Regular, None, content.as_bytes());
}

fn try_unpack(build: impl FnOnce(&mut Tar), limits: &Limits) -> (tempfile::TempDir, Result<(), UnpackError>) {
    let mut tar = Builder::new(Vec::new());
    build(&mut tar);
    let bytes = tar.into_inner().unwrap();
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(outer.path().join("victim"), "untouched").unwrap();
    let fd = fs::File::open(&root).unwrap().into();
    let result = unpack(Cursor::new(bytes), &fd, limits).map(drop);
    let victim = outer.path().join("victim");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(fs::symlink_metadata(&victim).unwrap().nlink(), 1, "it got a second name");
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2, "something was written beside the root");
    (outer, result)
}

fn good(build: impl FnOnce(&mut Tar)) -> tempfile::TempDir {
    let (dir, result) = try_unpack(build, &Limits::default());
    result.unwrap();
    dir
}

fn bad(build: impl FnOnce(&mut Tar)) -> UnpackError {
    try_unpack(build, &Limits::default()).1.unwrap_err()
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: image unpack: owners, devices and overlay attributes need root");
    }
    root
}

#[test]
fn files_folders_links_owners_modes_and_times() {
    if !root() {
        return;
    }
    let dir = good(|t| {
        let mut h = header(EntryType::Directory, 0);
        h.set_mode(0o1777);
        t.append_data(&mut h, "./tmp/", &[][..]).unwrap();
        let mut h = header(EntryType::Regular, 2);
        h.set_mode(0o4755);
        h.set_uid(33);
        h.set_gid(44);
        t.append_data(&mut h, "usr/bin/su", &b"hi"[..]).unwrap();
        raw(t, "bin", EntryType::Symlink, Some("usr/bin"), b"");
        raw(t, "etc/passwd", EntryType::Symlink, Some("/../../victim"), b"");
        raw(t, "usr/bin/again", EntryType::Link, Some("usr/bin/su"), b"");
        raw(t, "run/pipe", EntryType::Fifo, None, b"");
    });
    let at = |p: &str| fs::symlink_metadata(dir.path().join("root").join(p)).unwrap();
    assert_eq!(at("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(at("tmp").mtime(), 1_000_000);
    let su = at("usr/bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 33, 44, 1_000_000));
    assert_eq!(su.ino(), at("usr/bin/again").ino());
    assert_eq!(fs::read_link(dir.path().join("root/etc/passwd")).unwrap(), Path::new("/../../victim"));
    assert!(at("bin").file_type().is_symlink());
    assert_eq!(at("usr").mode() & 0o7777, 0o755, "a folder the archive left out");
}

#[test]
fn absolute_and_climbing_paths_are_refused() {
    for path in ["/etc/passwd", "../victim", "a/../../victim", "a/.."] {
        let e = bad(|t| file(t, path, "x"));
        assert!(matches!(e, UnpackError::Escapes { .. }), "{path}: {e}");
        assert!(e.to_string().contains(path), "{e}");
    }
}

#[test]
fn the_root_may_be_called_by_a_slash() {
    let dir = good(|t| {
        raw(t, "/", EntryType::Directory, None, b"");
        file(t, "a", "x");
    });
    assert_eq!(fs::read_to_string(dir.path().join("root/a")).unwrap(), "x");
    let e = bad(|t| file(t, "/", "x"));
    assert!(e.to_string().contains("the root is no folder"), "{e}");
}

#[test]
fn an_archive_may_end_with_its_last_byte() {
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "a", "first");
    file(&mut tar, "b", "last");
    let mut bytes = tar.into_inner().unwrap();
    // Two empty blocks, and the filling of the last file's one.
    bytes.truncate(bytes.len() - 1024 - (512 - "last".len()));
    let root = tempfile::tempdir().unwrap();
    let fd = fs::File::open(root.path()).unwrap().into();
    unpack(Cursor::new(&bytes), &fd, &Limits::default()).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("b")).unwrap(), "last");
    // Cut within a header it is refused.
    bytes.truncate(bytes.len() - 100);
    assert!(unpack(Cursor::new(&bytes), &fd, &Limits::default()).is_err());
}

#[test]
fn nothing_is_written_behind_a_symlink() {
    for target in ["/", "..", "/etc", "other"] {
        let e = bad(|t| {
            raw(t, "way", EntryType::Symlink, Some(target), b"");
            file(t, "way/victim", "x");
        });
        assert!(matches!(e, UnpackError::BehindSymlink { .. }), "{target}: {e}");
    }
    let e = bad(|t| {
        raw(t, "way", EntryType::Symlink, Some(".."), b"");
        file(t, "way/.wh.victim", "");
    });
    assert!(matches!(e, UnpackError::BehindSymlink { .. }), "{e}");
    let e = bad(|t| {
        raw(t, "way", EntryType::Symlink, Some(".."), b"");
        file(t, "way/.wh..wh..opq", "");
    });
    assert!(matches!(e, UnpackError::BehindSymlink { .. }), "{e}");
}

#[test]
fn a_file_over_a_symlink_replaces_the_link() {
    let dir = good(|t| {
        raw(t, "way", EntryType::Symlink, Some("../victim"), b"");
        file(t, "way", "mine");
    });
    assert_eq!(fs::read_to_string(dir.path().join("root/way")).unwrap(), "mine");
}

#[test]
fn hard_links_reach_only_files_of_the_layer() {
    for target in ["../victim", "absent", "way/victim", "sub", ""] {
        let e = bad(|t| {
            raw(t, "way", EntryType::Symlink, Some(".."), b"");
            file(t, "sub/file", "x");
            raw(t, "link", EntryType::Link, Some(target), b"");
        });
        assert!(matches!(e, UnpackError::HardLink { .. } | UnpackError::Conflict { .. }), "{target}: {e}");
    }
}

#[test]
fn device_nodes_are_refused() {
    for kind in [EntryType::Char, EntryType::Block] {
        let e = bad(|t| raw(t, "dev/sda", kind, None, b""));
        assert!(matches!(e, UnpackError::Device { .. }), "{e}");
        assert!(e.to_string().contains("dev/sda"), "{e}");
    }
}

#[test]
fn whiteouts_become_overlayfs_own() {
    if !root() {
        return;
    }
    let dir = good(|t| {
        file(t, "a/.wh.gone", "");
        file(t, "b/.wh..wh..opq", "");
        file(t, "b/new", "x");
        file(t, ".wh.folder", "");
        raw(t, "folder", EntryType::Directory, None, b"");
        file(t, "kept", "y");
        file(t, ".wh.kept", "");
    });
    let root = dir.path().join("root");
    let gone = fs::symlink_metadata(root.join("a/gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0));
    let opaque = |p: &str| {
        let mut value = [0_u8; 4];
        rustix::fs::getxattr(root.join(p), "trusted.overlay.opaque", &mut value[..]).map(|n| value[..n].to_vec())
    };
    assert_eq!(opaque("b").unwrap(), b"y");
    assert_eq!(opaque("folder").unwrap(), b"y", "a folder that replaces what its whiteout hid");
    assert!(opaque("a").is_err());
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "y");
}

fn pax(tar: &mut Tar, records: &[(&str, &[u8])]) {
    tar.append_pax_extensions(records.iter().copied()).unwrap();
}

#[test]
fn a_second_size_that_contradicts_the_first_is_refused() {
    let e = bad(|t| {
        pax(t, &[("size", b"7")]);
        file(t, "f", "three");
    });
    assert!(matches!(e, UnpackError::Conflict { .. }), "{e}");
}

#[test]
fn a_type_that_contradicts_an_earlier_entry_is_refused() {
    let e = bad(|t| {
        file(t, "d/f", "x");
        file(t, "d", "x");
    });
    assert!(matches!(e, UnpackError::Conflict { .. }), "{e}");
    let e = bad(|t| {
        file(t, "d", "x");
        file(t, "d/f", "x");
    });
    assert!(matches!(e, UnpackError::Conflict { .. }), "{e}");
}

#[test]
fn attributes_for_overlayfs_are_refused_and_capabilities_kept() {
    let e = bad(|t| {
        pax(t, &[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]);
        file(t, "f", "x");
    });
    assert!(matches!(e, UnpackError::Attribute { .. }), "{e}");
    if !root() {
        return;
    }
    // vfs_cap_data, version 2, effective, CAP_NET_BIND_SERVICE.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let dir = good(|t| {
        pax(t, &[("SCHILY.xattr.security.capability", &capability)]);
        file(t, "f", "x");
    });
    let mut value = [0_u8; 64];
    let n = rustix::fs::getxattr(dir.path().join("root/f"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..n], capability);
}

#[test]
fn limits_stop_a_layer() {
    let limits = Limits { entries: 3, ..Limits::default() };
    let (_dir, result) = try_unpack(|t| (0..4).for_each(|i| file(t, &format!("f{i}"), "")), &limits);
    assert!(matches!(result, Err(UnpackError::TooMany { what: "entries", .. })), "{result:?}");
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    use std::io::Write;
    let mut tar = Builder::new(Vec::new());
    let zeros = vec![0_u8; 8 << 20];
    raw(&mut tar, "zeros", EntryType::Regular, None, &zeros);
    let plain = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&plain[..], 3).unwrap();
    for (blob, limit_bytes) in [(&gzip, 1 << 20), (&zstd, 1 << 20)] {
        assert!(blob.len() < 100_000);
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("layer");
        let limits = Limits { layer_bytes: limit_bytes, ..Limits::default() };
        let e = crate::layer::unpack_into(&blob[..], &place, &limits).unwrap_err();
        assert!(matches!(e, UnpackError::TooLarge { .. }), "{e}");
        assert!(!place.exists());
        // The control: the same blob within its limit.
        let unpacked = crate::layer::unpack_into(&blob[..], &place, &Limits::default()).unwrap();
        assert_eq!(unpacked.bytes, plain.len() as u64);
    }
}

#[test]
fn a_truncated_layer_is_an_error_not_a_short_layer() {
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "f", &"x".repeat(5000));
    let bytes = tar.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let e = crate::layer::unpack_into(&bytes[..2000], &dir.path().join("l"), &Limits::default()).unwrap_err();
    assert!(matches!(e, UnpackError::Stream(_)), "{e}");
}

#[test]
fn sparse_files_are_refused_before_their_holes_are_made() {
    let holes = |extended: bool| {
        move |t: &mut Tar| {
            let mut h = Header::new_gnu();
            h.set_entry_type(EntryType::GNUSparse);
            h.set_size(0);
            h.set_mode(0o644);
            h.set_mtime(0);
            let gnu = h.as_gnu_mut().unwrap();
            gnu.name[..6].copy_from_slice(b"sparse");
            for field in [&mut gnu.realsize, &mut gnu.sparse[0].offset] {
                field.copy_from_slice(format!("{:011o}\0", 64 << 20).as_bytes());
            }
            gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
            gnu.isextended[0] = u8::from(extended);
            h.set_cksum();
            t.append(&h, &[][..]).unwrap();
        }
    };
    for extended in [false, true] {
        let e = bad(holes(extended));
        assert!(matches!(e, UnpackError::Sparse { .. }) && e.to_string().contains("sparse"), "{e}");
    }
    // The other two formats that GNU tar has for it.
    for key in ["GNU.sparse.major", "GNU.sparse.map"] {
        let e = bad(|t| {
            pax(t, &[(key, b"1")]);
            file(t, "f", "x");
        });
        assert!(matches!(e, UnpackError::Sparse { .. }), "{key}: {e}");
    }
}

#[test]
fn what_is_written_is_counted_whatever_the_stream_was() {
    let two = |t: &mut Tar| ["a", "b"].iter().for_each(|f| file(t, f, &"x".repeat(600)));
    let limits = |layer_bytes| Limits { layer_bytes, ..Limits::default() };
    try_unpack(two, &limits(1200)).1.unwrap();
    let e = try_unpack(two, &limits(1199)).1.unwrap_err();
    assert!(matches!(e, UnpackError::TooLarge { limit_bytes: 1199 }), "{e}");
}

/// Counts what was asked of it.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1 += n as u64;
        Ok(n)
    }
}

#[test]
fn a_large_extension_header_is_refused_before_it_is_read() {
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        let mut h = Header::new_gnu();
        h.set_entry_type(kind);
        h.set_size(4 << 30);
        h.set_cksum();
        let mut endless = Counted(Cursor::new(h.as_bytes().to_vec()).chain(io::repeat(0).take(4 << 30)), 0);
        let root = tempfile::tempdir().unwrap();
        let fd = fs::File::open(root.path()).unwrap().into();
        let e = unpack(&mut endless, &fd, &Limits::default()).unwrap_err();
        assert!(e.to_string().contains("1048576 bytes in an extension header"), "{e}");
        assert_eq!(endless.1, 512, "only its header was read");
    }
    // The control: what is not too large is taken, and holds for its entry.
    let dir = good(|t| {
        pax(t, &[("comment", &vec![b'c'; 1 << 19]), ("path", b"other")]);
        file(t, "f", "x");
    });
    assert!(dir.path().join("root/other").exists());
    let e = bad(|t| {
        t.append_data(&mut header(EntryType::Regular, 0), "long/".repeat(1000), &[][..]).unwrap();
    });
    assert!(matches!(e, UnpackError::TooMany { what: "bytes in a path", .. }), "{e}");
}

#[test]
fn a_value_may_hold_newlines() {
    if !root() {
        return;
    }
    let dir = good(|t| {
        pax(t, &[("SCHILY.xattr.user.x", b"\n\n1=\n")]);
        file(t, "f", "x");
    });
    let mut value = [0_u8; 64];
    match rustix::fs::getxattr(dir.path().join("root/f"), "user.x", &mut value[..]) {
        Ok(n) => assert_eq!(&value[..n], b"\n\n1=\n"),
        Err(e) => eprintln!("SKIPPED: a_value_may_hold_newlines: no user attributes here: {e}"),
    }
}

/// Names that meet: links, what could lie behind them, whiteouts of them. Some are there twice, so that
/// a link that leads out, and an entry behind it, come together a few times in each run of the test.
const NAMES: &[&str] =
    &["way", "way", "a", "way/victim", "way/victim", "a/victim", "way/.wh.victim", ".wh.way", "a/way/victim"];
/// Ways out, but not far: a test that finds a hole must not harm the machine.
const TARGETS: &[&str] = &["..", "..", "../victim", ".", "way/victim", "a"];
/// Parts that mean something to somebody: to the path's parser, to whiteouts.
const PARTS: &[&str] =
    &["a", "way", "victim", "b", "..", ".", "", ".wh.a", ".wh.", ".wh...", ".wh..wh..opq", "x\u{0}y"];
/// All types of POSIX and GNU, and one of nobody.
const TYPES: &[u8] = b"\x0001234567xgLKSDMVZ";

fn hostile_path(known: &'static [&'static str], absolute: f64) -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::{collection::vec, prelude::*, sample::select};
    let parts = (proptest::bool::weighted(absolute), vec(select(PARTS), 0..5));
    let made = parts.prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")));
    prop_oneof![4 => select(known).prop_map(str::to_owned), 1 => made]
}

#[derive(Clone, Debug)]
struct Hostile {
    kind: u8,
    path: String,
    link: String,
    content: Vec<u8>,
    /// The size it states, if that is not the content's.
    size: Option<u64>,
    /// Path, link and size of a PAX header before it.
    pax: Option<(String, String, u64)>,
}

impl Hostile {
    fn write(&self, tar: &mut Tar) {
        if let Some((path, link, size)) = &self.pax {
            let size = size.to_string();
            pax(tar, &[("path", path.as_bytes()), ("linkpath", link.as_bytes()), ("size", size.as_bytes())]);
        }
        let mut h = header(EntryType::new(self.kind), self.size.unwrap_or(self.content.len() as u64));
        h.as_old_mut().name[..self.path.len()].copy_from_slice(self.path.as_bytes());
        h.as_old_mut().linkname[..self.link.len()].copy_from_slice(self.link.as_bytes());
        h.set_cksum();
        tar.append(&h, &self.content[..]).unwrap();
    }
}

fn hostile() -> impl proptest::strategy::Strategy<Value = Hostile> {
    use proptest::{collection::vec, option::weighted, prelude::*, sample::select};
    // Most are files, folders and links, so that archives get far.
    let kind = prop_oneof![4 => select(&b"00122225"[..]), 1 => select(TYPES)];
    let pax = weighted(0.1, (hostile_path(NAMES, 0.1), hostile_path(TARGETS, 0.0), 0_u64..3));
    let size = weighted(0.05, any::<u64>().prop_map(|n| n >> 31));
    // What stands in an extension header is a path as often as not.
    let content = prop_oneof![
        4 => Just(Vec::new()),
        2 => hostile_path(NAMES, 0.1).prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..700),
    ];
    (kind, hostile_path(NAMES, 0.1), hostile_path(TARGETS, 0.0), content, size, pax)
        .prop_map(|(kind, path, link, content, size, pax)| Hostile { kind, path, link, content, size, pax })
}

proptest::proptest! {
    /// Whatever an archive says, nothing panics and nothing is written outside: not by names, not
    /// through links of an earlier entry.
    #[test]
    fn any_archive_stays_inside(entries in proptest::collection::vec(hostile(), 2..12)) {
        let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
        // Without the entries that are refused the others are reached.
        let mut taken: Vec<Hostile> = Vec::new();
        for entry in entries {
            let mut all = taken.clone();
            all.push(entry);
            let (_dir, result) = try_unpack(|t| all.iter().for_each(|e| e.write(t)), &limits);
            if result.is_ok() {
                taken = all;
            }
        }
    }

    #[test]
    fn any_bytes_stay_inside(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096)) {
        let (_dir, _result) = try_unpack(|t| { t.get_mut().extend_from_slice(&bytes); }, &Limits::default());
    }
}

#[test]
fn a_global_header_is_passed_over_and_counted() {
    let global = |tar: &mut Tar| {
        raw(tar, "pax_global_header", EntryType::XGlobalHeader, None, b"30 comment=0123456789abcdef01\n");
    };
    let dir = good(|tar| {
        global(tar);
        file(tar, "a", "content");
    });
    let names: Vec<_> = fs::read_dir(dir.path().join("root")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["a"]);
    let limits = Limits { entries: 3, ..Limits::default() };
    let error = try_unpack(|tar| (0..4).for_each(|_| global(tar)), &limits).1.unwrap_err();
    assert!(matches!(error, UnpackError::TooMany { limit: 3, .. }), "{error}");
}

//! Making entries below the layer's folder.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
        fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, openat2, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    Limits, UnpackError,
    entry::{Header, Kind},
    stream,
};

/// The kernel resolves below the root and follows no link.
pub(crate) const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Folders left out that are remembered: an honest archive has a handful.
const IMPLIED_MAX: usize = 1024;

pub(super) struct Tree<'a> {
    root: &'a OwnedFd,
    limits: &'a Limits,
    /// Bytes written into files.
    written: u64,
    /// Folders with entries but (so far) none of their own. Those whose name is no UTF-8 are not kept.
    implied: BTreeSet<String>,
    /// Times of folders, set last: making entries in them changes them.
    folders: Vec<(PathBuf, (i64, i64))>,
    /// The folder of the entry before: archives are sorted, so most entries share it.
    last: Option<(PathBuf, OwnedFd)>,
}

impl<'a> Tree<'a> {
    pub fn new(root: &'a OwnedFd, limits: &'a Limits) -> Result<Self, UnpackError> {
        Ok(Self { root, limits, written: 0, implied: BTreeSet::new(), folders: Vec::new(), last: None })
    }

    pub fn add(&mut self, header: &Header, content: &mut impl Read) -> Result<(), UnpackError> {
        let shown = header.shown();
        match &header.kind {
            Kind::Whiteout(name) => self.whiteout(&header.path, name, &shown),
            Kind::Opaque => self.opaque(&header.path, &shown),
            _ if header.path.as_os_str().is_empty() => self.root_itself(header, &shown),
            _ => {
                let (parent, name) = self.place(&header.path, &shown)?;
                match &header.kind {
                    Kind::File => self.file(&parent, &name, header, content, &shown),
                    Kind::Folder => self.folder(&parent, &name, header, &shown),
                    Kind::Symlink(target) => {
                        clear(parent.as_fd(), &name, &shown)?;
                        symlinkat(target, &parent, &*name).map_err(disk(&shown))?;
                        chown_link(parent.as_fd(), &name, header, &shown)
                    }
                    Kind::HardLink(target) => self.hard_link(&parent, &name, target, &shown),
                    Kind::Fifo => {
                        clear(parent.as_fd(), &name, &shown)?;
                        let mode = Mode::from_raw_mode(header.mode);
                        mknodat(&parent, &*name, FileType::Fifo, mode, 0).map_err(disk(&shown))?;
                        chown_link(parent.as_fd(), &name, header, &shown)
                    }
                    Kind::Whiteout(_) | Kind::Opaque => Ok(()),
                }
            }
        }
    }

    /// Sets the folders' times, deepest first; answers which folders were left out.
    pub fn finish(mut self) -> Result<Vec<String>, UnpackError> {
        self.folders.sort();
        self.folders.dedup_by(|later, earlier| later.0 == earlier.0);
        for (path, mtime) in self.folders.iter().rev() {
            let target: &Path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            let folder = match openat2(self.root, target, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), RESOLVE) {
                Ok(folder) => folder,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(e) => return Err(disk(&path.display().to_string())(e)),
            };
            rustix::fs::futimens(&folder, &times(*mtime)).map_err(disk(&path.display().to_string()))?;
        }
        if self.implied.len() >= IMPLIED_MAX {
            tracing::warn!(
                limit = IMPLIED_MAX,
                "a layer leaves out that many folders: any more will be root's, mode 0755"
            );
        }
        Ok(self.implied.into_iter().collect())
    }

    /// The folder an entry goes into, made if the archive left it out, and the entry's name.
    fn place(&mut self, path: &Path, shown: &str) -> Result<(OwnedFd, OsString), UnpackError> {
        let name = path.file_name().map(OsStr::to_owned).unwrap_or_default();
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        Ok((self.open_folder(parent, shown)?, name))
    }

    fn open_folder(&mut self, path: &Path, shown: &str) -> Result<OwnedFd, UnpackError> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return fd.try_clone().map_err(|e| UnpackError::disk(shown, e));
        }
        let mut at = self.root.try_clone().map_err(|e| UnpackError::disk(shown, e))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut so_far = PathBuf::new();
        for part in path {
            so_far.push(part);
            let open = |at: &OwnedFd| openat2(at, part, flags, Mode::empty(), RESOLVE);
            at = match open(&at) {
                Err(Errno::NOENT) => {
                    mkdirat(&at, part, Mode::from_raw_mode(0o755)).map_err(disk(shown))?;
                    if let Some(path) = so_far.to_str().filter(|_| self.implied.len() < IMPLIED_MAX) {
                        self.implied.insert(path.to_owned());
                    }
                    open(&at)
                }
                other => other,
            }
            .map_err(|e| match e {
                Errno::LOOP => UnpackError::BehindSymlink { entry: shown.to_owned() },
                // O_DIRECTORY on a link says ENOTDIR on some kernels.
                Errno::NOTDIR if is_symlink(at.as_fd(), part) => UnpackError::BehindSymlink { entry: shown.to_owned() },
                Errno::NOTDIR => UnpackError::Conflict {
                    entry: shown.to_owned(),
                    what: format!("{:?} above it is no folder in this layer", part.to_string_lossy()),
                },
                e => disk(shown)(e),
            })?;
        }
        let kept = at.try_clone().map_err(|e| UnpackError::disk(shown, e))?;
        self.last = Some((path.to_owned(), kept));
        Ok(at)
    }

    fn root_itself(&mut self, header: &Header, shown: &str) -> Result<(), UnpackError> {
        if header.kind != Kind::Folder {
            return Err(UnpackError::Conflict { entry: shown.to_owned(), what: "the root is no folder".to_owned() });
        }
        self.dress(self.root.as_fd(), header, "/")?;
        self.folders.push((PathBuf::new(), header.mtime));
        Ok(())
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        header: &Header,
        content: &mut impl Read,
        shown: &str,
    ) -> Result<(), UnpackError> {
        clear(parent.as_fd(), name, shown)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat2(parent, name, flags, Mode::from_raw_mode(0o600), RESOLVE).map_err(disk(shown))?;
        let mut file = File::from(fd);
        self.copy(content, &mut file, shown)?;
        self.dress(file.as_fd(), header, shown)?;
        rustix::fs::futimens(&file, &times(header.mtime)).map_err(disk(shown))
    }

    /// Writing fails with the disk's error, reading with the stream's. The layer's limit holds for
    /// what is written, too, whatever the stream made it of.
    fn copy(&mut self, from: &mut impl Read, to: &mut File, shown: &str) -> Result<(), UnpackError> {
        use std::io::Write;
        let limit_bytes = self.limits.layer_bytes;
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(stream(e)),
            };
            self.written += n as u64;
            if self.written > limit_bytes {
                return Err(UnpackError::TooLarge { limit_bytes });
            }
            to.write_all(&buffer[..n]).map_err(|e| UnpackError::disk(shown, e))?;
        }
    }

    fn folder(&mut self, parent: &OwnedFd, name: &OsStr, header: &Header, shown: &str) -> Result<(), UnpackError> {
        let mut hides = false;
        match kind_at(parent.as_fd(), name) {
            Some(FileType::Directory) => {}
            Some(other) => {
                // A whiteout of the same layer came first: what is below stays hidden.
                hides = other == FileType::CharacterDevice;
                unlinkat(parent, name, AtFlags::empty()).map_err(disk(shown))?;
                mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(disk(shown))?;
            }
            None => mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(disk(shown))?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat2(parent, name, flags, Mode::empty(), RESOLVE).map_err(disk(shown))?;
        if hides {
            set_opaque(fd.as_fd(), shown)?;
        }
        self.dress(fd.as_fd(), header, shown)?;
        self.folders.push((header.path.clone(), header.mtime));
        if let Some(path) = header.path.to_str() {
            self.implied.remove(path);
        }
        Ok(())
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsStr, target: &Path, shown: &str) -> Result<(), UnpackError> {
        let refused = || UnpackError::HardLink { entry: shown.to_owned(), target: target.display().to_string() };
        let folder = target.parent().unwrap_or_else(|| Path::new(""));
        let target_name = target.file_name().ok_or_else(refused)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = if folder.as_os_str().is_empty() {
            self.root.try_clone().map_err(|e| UnpackError::disk(shown, e))?
        } else {
            openat2(self.root, folder, flags, Mode::empty(), RESOLVE).map_err(|_| refused())?
        };
        match kind_at(at.as_fd(), target_name) {
            Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {}
            _ => return Err(refused()),
        }
        if folder == Path::new(shown).parent().unwrap_or_else(|| Path::new("")) && target_name == name {
            return Err(refused());
        }
        clear(parent.as_fd(), name, shown)?;
        // Without AT_SYMLINK_FOLLOW the link is made to the name itself.
        linkat(&at, target_name, parent, name, AtFlags::empty()).map_err(disk(shown))
    }

    fn whiteout(&mut self, folder: &Path, name: &OsStr, shown: &str) -> Result<(), UnpackError> {
        let parent = self.open_folder(folder, shown)?;
        match kind_at(parent.as_fd(), name) {
            // This layer's own entry stands, and hides what is below just as well; a folder must
            // be told to.
            Some(FileType::Directory) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat2(&parent, name, flags, Mode::empty(), RESOLVE).map_err(disk(shown))?;
                set_opaque(fd.as_fd(), shown)
            }
            Some(_) => Ok(()),
            None => {
                let mode = Mode::from_raw_mode(0o000);
                mknodat(&parent, name, FileType::CharacterDevice, mode, makedev(0, 0)).map_err(disk(shown))
            }
        }
    }

    fn opaque(&mut self, folder: &Path, shown: &str) -> Result<(), UnpackError> {
        let path = self.open_folder(folder, shown)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat2(&path, ".", flags, Mode::empty(), RESOLVE).map_err(disk(shown))?;
        set_opaque(fd.as_fd(), shown)
    }

    /// Owner, then mode (a change of owner clears set-uid), then attributes.
    fn dress(&self, fd: BorrowedFd<'_>, header: &Header, shown: &str) -> Result<(), UnpackError> {
        debug_assert!(header.xattrs.len() <= self.limits.xattr_bytes);
        fchown(fd, Some(Uid::from_raw(header.uid)), Some(Gid::from_raw(header.gid))).map_err(disk(shown))?;
        fchmod(fd, Mode::from_raw_mode(header.mode)).map_err(disk(shown))?;
        for (name, value) in &header.xattrs {
            match fsetxattr(fd, name, value, XattrFlags::empty()) {
                // The file system keeps no user attributes: the file works without.
                Err(Errno::OPNOTSUPP) if name.starts_with("user.") => {}
                other => other.map_err(disk(shown))?,
            }
        }
        Ok(())
    }
}

/// Makes room for an entry that replaces one of the same layer.
fn clear(parent: BorrowedFd<'_>, name: &OsStr, shown: &str) -> Result<(), UnpackError> {
    match kind_at(parent, name) {
        None => Ok(()),
        Some(FileType::Directory) => Err(UnpackError::Conflict {
            entry: shown.to_owned(),
            what: "the same layer has a folder of this name".to_owned(),
        }),
        Some(_) => unlinkat(parent, name, AtFlags::empty()).map_err(disk(shown)),
    }
}

fn kind_at(parent: BorrowedFd<'_>, name: &OsStr) -> Option<FileType> {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|s| FileType::from_raw_mode(s.st_mode))
}

fn is_symlink(parent: BorrowedFd<'_>, name: &OsStr) -> bool {
    kind_at(parent, name) == Some(FileType::Symlink)
}

fn set_opaque(fd: BorrowedFd<'_>, shown: &str) -> Result<(), UnpackError> {
    fsetxattr(fd, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(disk(shown))
}

fn chown_link(parent: BorrowedFd<'_>, name: &OsStr, header: &Header, shown: &str) -> Result<(), UnpackError> {
    let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(disk(shown))?;
    utimensat(parent, name, &times(header.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(disk(shown))
}

fn times((tv_sec, tv_nsec): (i64, i64)) -> Timestamps {
    let stamp = Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: stamp, last_modification: stamp }
}

fn disk(shown: &str) -> impl Fn(Errno) -> UnpackError + '_ {
    move |e| UnpackError::Disk { entry: shown.to_owned(), source: e.into() }
}

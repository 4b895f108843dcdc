//! A disk in memory for tests that forgets: at a power cut, whatever was not fsynced is lost,
//! kept, or torn, sector by sector, at random; names in folders likewise, in order.
//!
//! It can also break one kind of fsync ([`SimDisk::ignore`]): such a call answers "done" and
//! does nothing. A test of durability that does not fail then proves nothing. And it can be as slow
//! as disks are ([`SimDisk::slow`]).

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::disk::{Disk, DiskFile, SyncSite};

/// What real disks write as a whole.
const SECTOR: usize = 512;

type Inode = Arc<Mutex<Content>>;

#[derive(Debug, Clone)]
enum Write {
    Bytes { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Write>,
}

impl Content {
    fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(bytes);
    }

    fn cut_power(&mut self, rng: &mut StdRng) {
        for write in std::mem::take(&mut self.pending) {
            match write {
                Write::Bytes { offset, bytes } => {
                    // Three in ten writes vanish or arrive whole; the others tear.
                    let fate = rng.random_range(0..10);
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                        let arrives = fate < 3 || (fate > 5 && rng.random_bool(0.5));
                        if arrives {
                            Self::put(&mut self.durable, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
                Write::Length(length) if rng.random_bool(0.5) => self.durable.resize(length, 0),
                Write::Length(_) => {}
            }
        }
        self.current = self.durable.clone();
    }
}

#[derive(Debug, Clone)]
enum Naming {
    Link(PathBuf, Inode),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl Naming {
    fn folder(&self) -> Option<&Path> {
        let (Naming::Link(path, _) | Naming::Rename(path, _) | Naming::Unlink(path)) = self;
        path.parent()
    }

    fn run(self, names: &mut BTreeMap<PathBuf, Inode>) {
        match self {
            Naming::Link(path, inode) => {
                names.insert(path, inode);
            }
            Naming::Rename(from, to) => {
                if let Some(inode) = names.remove(&from) {
                    names.insert(to, inode);
                }
            }
            Naming::Unlink(path) => {
                names.remove(&path);
            }
        }
    }
}

#[derive(Debug)]
struct State {
    durable: BTreeMap<PathBuf, Inode>,
    current: BTreeMap<PathBuf, Inode>,
    pending: Vec<Naming>,
    ignored: Option<SyncSite>,
    rng: StdRng,
    /// Counts power cuts; handles of an earlier life fail.
    life: u64,
    syncs: BTreeMap<SyncSite, u64>,
    sync_takes: Duration,
}

/// See the module. Clones are the same disk; a clone made before a power cut is dead after it.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

impl SimDisk {
    /// An empty disk whose accidents follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            durable: BTreeMap::new(),
            current: BTreeMap::new(),
            pending: Vec::new(),
            ignored: None,
            rng: StdRng::seed_from_u64(seed),
            life: 0,
            syncs: BTreeMap::new(),
            sync_takes: Duration::ZERO,
        };
        Self { state: Arc::new(Mutex::new(state)), life: 0 }
    }

    /// From now on this kind of fsync does nothing.
    pub fn ignore(&self, site: SyncSite) {
        self.lock_state().ignored = Some(site);
    }

    /// From now on each fsync of a file takes so long.
    pub fn slow(&self, sync_takes: Duration) {
        self.lock_state().sync_takes = sync_takes;
    }

    /// How often each kind of fsync was asked for.
    pub fn syncs(&self, site: SyncSite) -> u64 {
        self.lock_state().syncs.get(&site).copied().unwrap_or(0)
    }

    /// Cuts the power: what was not fsynced suffers, open files are dead. Answers the disk as
    /// it is found afterwards.
    pub fn power_cut(&self) -> SimDisk {
        let mut state = self.lock_state();
        let state = &mut *state;
        state.life += 1;
        // Journalled names: a prefix of what was asked for arrives.
        let arrived = state.rng.random_range(0..=state.pending.len());
        for naming in state.pending.drain(..).take(arrived) {
            naming.run(&mut state.durable);
        }
        state.pending.clear();
        state.current = state.durable.clone();
        for inode in state.durable.values() {
            lock_content(inode).cut_power(&mut state.rng);
        }
        SimDisk { state: self.state.clone(), life: state.life }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock_state();
        if state.life != self.life {
            return Err(io::Error::other("the power is cut"));
        }
        Ok(state)
    }

    fn find(&self, path: &Path) -> io::Result<Inode> {
        let state = self.alive()?;
        state
            .current
            .get(path)
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display())))
    }

    fn name(&self, naming: Naming) -> io::Result<()> {
        let mut state = self.alive()?;
        naming.clone().run(&mut state.current);
        state.pending.push(naming);
        Ok(())
    }
}

fn lock_content(inode: &Inode) -> MutexGuard<'_, Content> {
    inode.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn asked(&mut self, site: SyncSite) -> bool {
        *self.syncs.entry(site).or_default() += 1;
        self.ignored != Some(site)
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.alive().map(drop)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.alive()?;
        let inside = state.current.keys().filter(|p| p.parent() == Some(dir));
        Ok(inside.filter_map(|p| Some(p.file_name()?.to_str()?.to_string())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = Inode::default();
        self.name(Naming::Link(path.to_path_buf(), inode.clone()))?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.find(path)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn reader(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let inode = self.find(path)?;
        let content = lock_content(&inode).current.clone();
        Ok(Box::new(Cursor::new(content)))
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let inode = self.find(path)?;
        let content = lock_content(&inode);
        let part = content.current.get(offset as usize..offset as usize + length);
        part.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.find(from)?;
        self.name(Naming::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.name(Naming::Unlink(path.to_path_buf()))
    }

    fn sync_dir(&self, dir: &Path, site: SyncSite) -> io::Result<()> {
        let mut state = self.alive()?;
        if !state.asked(site) {
            return Ok(());
        }
        let (here, elsewhere): (Vec<_>, Vec<_>) = state.pending.drain(..).partition(|n| n.folder() == Some(dir));
        state.pending = elsewhere;
        for naming in here {
            naming.run(&mut state.durable);
        }
        Ok(())
    }

    fn lock(&self, _dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        Ok(Box::new(()))
    }
}

struct SimFile {
    disk: SimDisk,
    inode: Inode,
}

impl DiskFile for SimFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _alive = self.disk.alive()?;
        let mut content = lock_content(&self.inode);
        Content::put(&mut content.current, offset as usize, bytes);
        content.pending.push(Write::Bytes { offset: offset as usize, bytes: bytes.to_vec() });
        Ok(())
    }

    fn preallocate(&mut self, length: u64) -> io::Result<()> {
        let _alive = self.disk.alive()?;
        let mut content = lock_content(&self.inode);
        if content.current.len() < length as usize {
            content.current.resize(length as usize, 0);
            content.pending.push(Write::Length(length as usize));
        }
        Ok(())
    }

    fn fill(&mut self, length: u64) -> io::Result<()> {
        // A hint that this disk does not take: less is durable so.
        self.preallocate(length)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        let _alive = self.disk.alive()?;
        let mut content = lock_content(&self.inode);
        content.current.resize(length as usize, 0);
        content.pending.push(Write::Length(length as usize));
        Ok(())
    }

    fn sync(&mut self, site: SyncSite) -> io::Result<()> {
        let takes = self.disk.alive()?.sync_takes;
        if !takes.is_zero() {
            std::thread::sleep(takes);
        }
        let mut state = self.disk.alive()?;
        if state.asked(site) {
            let mut content = lock_content(&self.inode);
            content.durable = content.current.clone();
            content.pending.clear();
        }
        Ok(())
    }
}

//! One power supply, and the log of everything that was done to the storage that hangs on it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::medium::{Medium, Piece, SECTOR};
use super::states::{CrashStates, Crashes, Frozen};

/// A power supply. All storage on it shares one clock and loses power at the same moment.
#[derive(Clone, Default)]
pub struct Power {
    journal: Arc<Mutex<Journal>>,
}

impl fmt::Debug for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Power at {:?}", self.now())
    }
}

/// A point on the clock of one [`Power`]. It advances whenever an operation begins or returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub(super) u64);

impl Power {
    /// A power supply with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the clock says.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment(self.journal().now)
    }

    /// Notes that something outside of the storage changes now: the power may fail between that
    /// and what comes next.
    #[must_use = "it tells since when the change holds"]
    pub fn mark(&self) -> Moment {
        let mut journal = self.journal();
        let now = journal.tick();
        journal.marks.push(now);
        Moment(now)
    }

    /// An orderly shutdown: everything is on the medium, and the log begins anew.
    pub fn settle(&self) {
        let mut journal = self.journal();
        for device in &mut journal.devices {
            device.base = device.current.clone();
        }
        journal.events.clear();
        journal.marks.clear();
        journal.began = journal.now;
    }

    /// What the media may hold if the power fails, at every moment since the last
    /// [`settle`](Self::settle). The iterator knows its length.
    ///
    /// Once an operation began it is on the medium, torn or not there at all, whatever became of
    /// the others, until a flush returned that was called after the operation had returned. Two
    /// operations that overlap take effect in their order, except while both were under way.
    #[must_use]
    pub fn crash_states(&self, crashes: &Crashes) -> CrashStates {
        let journal = self.journal();
        let bases = journal.devices.iter().map(|device| device.base.clone()).collect();
        let frozen = Frozen::new(bases, journal.events.clone());
        CrashStates::plan(frozen, journal.began, &journal.marks, crashes)
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn attach(&self, content: Content) -> usize {
        let mut journal = self.journal();
        journal.devices.push(Device { base: content.clone(), current: content });
        journal.devices.len() - 1
    }

    /// Begins an operation: a change is seen by reads from here on.
    pub(super) fn begin(&self, device: usize, what: What) -> usize {
        let mut journal = self.journal();
        let started = journal.tick();
        if let What::Change(change) = &what
            && let Some(device) = journal.devices.get_mut(device)
        {
            device.current.apply(change, None);
        }
        journal.events.push(Event { device, started, returned: None, what });
        journal.events.len() - 1
    }

    /// The operation returned successfully.
    pub(super) fn end(&self, event: usize) {
        let mut journal = self.journal();
        let now = journal.tick();
        if let Some(event) = journal.events.get_mut(event) {
            event.returned = Some(now);
        }
    }

    /// From the call to the return. Other threads may get in between.
    pub(super) fn act(&self, device: usize, what: What) {
        let event = self.begin(device, what);
        std::thread::yield_now();
        self.end(event);
    }

    pub(super) fn read<T>(&self, device: usize, look: impl FnOnce(&Content) -> T) -> Option<T> {
        self.journal().devices.get(device).map(|device| look(&device.current))
    }
}

#[derive(Default)]
pub(super) struct Journal {
    now: u64,
    began: u64,
    marks: Vec<u64>,
    devices: Vec<Device>,
    events: Vec<Event>,
}

impl Journal {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}

struct Device {
    /// What is on the medium when the log begins.
    base: Content,
    /// What reads see.
    current: Content,
}

/// Something that was done to a device.
#[derive(Clone)]
pub(super) struct Event {
    pub(super) device: usize,
    pub(super) started: u64,
    pub(super) returned: Option<u64>,
    pub(super) what: What,
}

#[derive(Clone)]
pub(super) enum What {
    Change(Change),
    Sync(Scope),
}

/// What a flush covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Disk,
    File(Inode),
    Names,
}

pub(super) type Inode = u64;

#[derive(Clone)]
pub(super) enum Change {
    /// Bytes of a disk.
    Put {
        offset: usize,
        len: usize,
        pieces: Arc<[Piece]>,
    },
    /// A new, empty file under a name.
    Create {
        name: String,
        inode: Inode,
    },
    /// The bytes of a file.
    Fill {
        inode: Inode,
        bytes: Arc<[u8]>,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
}

impl Change {
    /// Whether it changes names: a file system keeps those in order.
    pub(super) fn is_of_names(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Rename { .. } | Self::Remove { .. })
    }

    pub(super) fn is_covered_by(&self, scope: Scope) -> bool {
        match self {
            Self::Put { .. } => scope == Scope::Disk,
            Self::Fill { inode, .. } => scope == Scope::File(*inode),
            Self::Create { .. } | Self::Rename { .. } | Self::Remove { .. } => scope == Scope::Names,
        }
    }

    /// How many sectors it consists of, of which each may be there or not.
    pub(super) fn sectors(&self) -> usize {
        match self {
            Self::Put { offset, len, .. } => (offset % SECTOR + len).div_ceil(SECTOR),
            Self::Fill { bytes, .. } => bytes.len().div_ceil(SECTOR),
            Self::Create { .. } | Self::Rename { .. } | Self::Remove { .. } => 1,
        }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Put { offset, len, .. }, Self::Put { offset: at, len: other, .. }) => {
                offset < &(at + other) && at < &(offset + len)
            }
            (Self::Fill { inode, .. }, Self::Fill { inode: other, .. }) => inode == other,
            _ => false,
        }
    }
}

/// A set of the sectors of one change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sectors(pub(super) Vec<u64>);

impl Sectors {
    pub(super) fn has(&self, sector: usize) -> bool {
        self.0.get(sector / 64).is_some_and(|word| word >> (sector % 64) & 1 == 1)
    }
}

/// What a device holds.
#[derive(Clone)]
pub(super) enum Content {
    Disk(Medium),
    Directory(Tree),
}

/// A directory: its names, and the bytes behind them.
#[derive(Clone, Default)]
pub(super) struct Tree {
    pub(super) names: BTreeMap<String, Inode>,
    pub(super) bytes: BTreeMap<Inode, Arc<[u8]>>,
    pub(super) next: Inode,
}

impl Content {
    /// Takes a change in, or only those of its sectors that made it.
    pub(super) fn apply(&mut self, change: &Change, torn: Option<&Sectors>) {
        match (self, change) {
            (Self::Disk(medium), Change::Put { offset, pieces, .. }) => {
                let first = offset / SECTOR;
                for piece in pieces.iter() {
                    match torn {
                        None => medium.put(piece),
                        Some(kept) => medium.put_sectors(piece, |sector| kept.has(sector - first)),
                    }
                }
            }
            (Self::Directory(tree), change) => tree.apply(change, torn),
            (Self::Disk(_), _) => {}
        }
    }
}

impl Tree {
    fn apply(&mut self, change: &Change, torn: Option<&Sectors>) {
        match change {
            Change::Create { name, inode } => {
                self.next = self.next.max(inode + 1);
                self.names.insert(name.clone(), *inode);
                self.bytes.entry(*inode).or_default();
            }
            Change::Fill { inode, bytes } => {
                let kept = torn.map_or_else(|| Arc::clone(bytes), |torn| tear(bytes, torn));
                self.bytes.insert(*inode, kept);
            }
            Change::Rename { from, to } => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
            Change::Remove { name } => {
                self.names.remove(name);
            }
            Change::Put { .. } => {}
        }
    }
}

/// A file of which only some sectors were written: as long as up to the last of them, and zero
/// where the others are missing.
fn tear(bytes: &[u8], kept: &Sectors) -> Arc<[u8]> {
    let parts: Vec<_> =
        bytes.chunks(SECTOR).enumerate().map(|(sector, part)| (kept.has(sector), part)).collect();
    let written = parts.iter().rposition(|(kept, _)| *kept).map_or(0, |last| last + 1);
    parts
        .iter()
        .take(written)
        .flat_map(|(kept, part)| part.iter().map(|byte| if *kept { *byte } else { 0 }))
        .collect()
}

//! Small state that survives power cuts: two copies of a file, each with a revision and a CRC.
//!
//! A copy is the magic `MK8STWO1`, the revision (u64), the length (u32) and the CRC-32 (u32) of
//! revision, length and payload, all little-endian, then the payload. The older copy is replaced:
//! written beside it, flushed, renamed, and the directory flushed. So at every instant at least one
//! whole copy exists, and a full disk changes neither.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::FailureReason;
use crate::disk::{Directory, HostDirectory};
use crate::node_upgrade::Record;

const MAGIC: &[u8; 8] = b"MK8STWO1";
const HEADER: usize = 24;
/// The largest payload in bytes.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// Why state could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory is not there. It is not created: a data partition that is not mounted must
    /// not look like a fresh one.
    #[error("{} is not a directory: mount the data partition, or create it", dir.display())]
    NoDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// A copy cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The copy.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A copy cannot be written.
    #[error("cannot write {}: {}; what was kept before is intact", path.display(), advice(source))]
    Write {
        /// The copy.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There are copies, and none is whole.
    #[error("no copy of {name} in {} is whole: restore one from a backup, or remove both to begin anew without what they told", dir.display())]
    Corrupt {
        /// The directory.
        dir: PathBuf,
        /// The file's name, without the number of the copy.
        name: String,
    },
    /// More than fits.
    #[error("{} would be {length} bytes, more than the {MAX_PAYLOAD} that are read back", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The payload's length in bytes.
        length: usize,
    },
    /// Another process has the lock.
    #[error("the record in {} is in use by {holder}: wait until its upgrade or flash has ended, or end that process if it hangs", dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who has it, in its own words.
        holder: String,
    },
    /// A whole copy that does not hold what it should.
    #[error("{} is whole, but not what this release reads: it belongs to another program, or to a release that changed its meaning", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the file system is full, free some space"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only, look at the kernel log and remount it"
        }
        io::ErrorKind::PermissionDenied => "this process may not write there",
        _ => "the medium may be failing, look at the kernel log",
    }
}

impl StoreError {
    /// The reason that a status shows for it.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        FailureReason::RecordError
    }
}

/// A payload in two copies, `NAME.0` and `NAME.1` in one directory. One process writes it.
#[derive(Clone, Debug)]
pub struct TwoCopies {
    dir: Arc<dyn Directory>,
    name: String,
}

impl TwoCopies {
    /// The copies named `name` in `dir`. Nothing is read or created yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, name: &str) -> Self {
        Self::in_directory(Arc::new(HostDirectory::new(dir)), name)
    }

    /// The copies named `name` in a directory of the caller's making.
    #[must_use]
    pub fn in_directory(dir: Arc<dyn Directory>, name: &str) -> Self {
        Self { dir, name: name.to_owned() }
    }

    fn copy(&self, number: u8) -> String {
        format!("{}.{number}", self.name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The newest whole payload; `None` when there are no copies at all.
    pub fn load(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.newest()?.map(|found| found.payload))
    }

    /// Makes `payload` the newest. When this returns, it is on the medium.
    pub fn save(&self, payload: &[u8]) -> Result<(), StoreError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(StoreError::TooLarge { path: self.path(&self.name), length: payload.len() });
        }
        let (number, revision) = match self.newest()? {
            None => (0, 1),
            Some(found) => (1 - found.number, found.revision.saturating_add(1)),
        };
        let copy = self.copy(number);
        self.replace(&copy, &encode(revision, payload))
            .map_err(|source| StoreError::Write { path: self.path(&copy), source })
    }

    /// Removes both copies, whole or not.
    pub(super) fn remove(&self) -> Result<(), StoreError> {
        for copy in [self.copy(0), self.copy(1)] {
            match self.dir.remove(&copy) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Write { path: self.path(&copy), source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn replace(&self, copy: &str, bytes: &[u8]) -> io::Result<()> {
        let beside = format!("{copy}.new");
        if let Err(failed) = self.dir.write(&beside, bytes) {
            // Best effort: it is overwritten next time anyway.
            let _ = self.dir.remove(&beside);
            return Err(failed);
        }
        self.dir.rename(&beside, copy)?;
        self.dir.sync()
    }

    fn newest(&self) -> Result<Option<Found<Vec<u8>>>, StoreError> {
        if !self.dir.is_present() {
            return Err(StoreError::NoDirectory { dir: self.dir.path().to_owned() });
        }
        let copies = [self.read(0)?, self.read(1)?];
        match newest(copies.each_ref().map(Option::as_deref)) {
            None if copies.iter().any(Option::is_some) => {
                Err(StoreError::Corrupt { dir: self.dir.path().to_owned(), name: self.name.clone() })
            }
            found => Ok(found.map(Found::into_owned)),
        }
    }

    fn read(&self, number: u8) -> Result<Option<Vec<u8>>, StoreError> {
        let copy = self.copy(number);
        // One byte more than fits: a longer file then fails its length check.
        let read = self.dir.read(&copy, (HEADER + MAX_PAYLOAD) as u64 + 1);
        read.map_err(|source| StoreError::Read { path: self.path(&copy), source })
    }
}

/// The whole copy with the highest revision, of the two that there may be.
pub(crate) fn newest(copies: [Option<&[u8]>; 2]) -> Option<Found<&[u8]>> {
    let mut newest: Option<Found<&[u8]>> = None;
    for (number, bytes) in (0..).zip(copies) {
        if let Some((revision, payload)) = bytes.and_then(decode)
            && newest.as_ref().is_none_or(|other| revision > other.revision)
        {
            newest = Some(Found { number, revision, payload });
        }
    }
    newest
}

/// One whole copy.
pub(crate) struct Found<T> {
    pub(crate) number: u8,
    pub(crate) revision: u64,
    pub(crate) payload: T,
}

impl Found<&[u8]> {
    fn into_owned(self) -> Found<Vec<u8>> {
        Found { number: self.number, revision: self.revision, payload: self.payload.to_vec() }
    }
}

pub(crate) fn encode(revision: u64, payload: &[u8]) -> Vec<u8> {
    // The caller has checked the length against MAX_PAYLOAD.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&revision.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(revision, length, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (revision, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (crc, payload) = rest.split_first_chunk::<4>()?;
    let (revision, length) = (u64::from_le_bytes(*revision), u32::from_le_bytes(*length));
    let whole = usize::try_from(length) == Ok(payload.len())
        && payload.len() <= MAX_PAYLOAD
        && checksum(revision, length, payload) == u32::from_le_bytes(*crc);
    whole.then_some((revision, payload))
}

fn checksum(revision: u64, length: u32, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&revision.to_le_bytes());
    crc.update(&length.to_le_bytes());
    crc.update(payload);
    crc.finalize()
}

const LOCK: &str = "record.lock";
/// How much of what a lock's holder says is passed on.
const LOCK_NOTE: u64 = 200;

/// The lock of a [`RecordStore`]. It ends with this value, and with the process.
#[derive(Debug)]
#[must_use = "the lock ends with this value"]
pub struct RecordLock {
    _file: File,
}

/// The node's [`Record`] in a data directory, as JSON in two copies `record.0` and `record.1`.
///
/// ```no_run
/// use monok8s_sdk::boot::record_store::RecordStore;
///
/// let store = RecordStore::in_dir("/var/lib/monok8s");
/// let record = store.load()?;
/// println!("{} images failed on this node", record.failed.len());
/// # Ok::<(), monok8s_sdk::boot::record_store::StoreError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RecordStore {
    copies: TwoCopies,
}

impl RecordStore {
    /// The record in this directory. Nothing is read or created yet.
    #[must_use]
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self::in_directory(Arc::new(HostDirectory::new(dir)))
    }

    /// The record in a directory of the caller's making.
    #[must_use]
    pub fn in_directory(dir: Arc<dyn Directory>) -> Self {
        Self { copies: TwoCopies::in_directory(dir, "record") }
    }

    /// Takes the lock that whoever changes the record, the loader's state or a slot must hold from
    /// before it reads the record until it has written what follows. `holder` is what others are
    /// told meanwhile. Reading alone takes no lock.
    pub fn lock(&self, holder: &str) -> Result<RecordLock, StoreError> {
        let dir = self.copies.dir.path();
        if !dir.is_dir() {
            return Err(StoreError::NoDirectory { dir: dir.to_owned() });
        }
        let path = dir.join(LOCK);
        // An existing file is opened to be read: a file system that is full or read-only by now must
        // not keep a node from the rest of its work.
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::options().read(true).write(true).create(true).truncate(false).open(&path)
            }
            opened => opened,
        };
        let file = file.map_err(|source| StoreError::Write { path: path.clone(), source })?;
        let mut noted = String::new();
        match file.try_lock() {
            Ok(()) => {
                // Best effort, as it is only told; and not at all if it says so already.
                let known = (&file).take(LOCK_NOTE).read_to_string(&mut noted);
                if known.is_err() || noted != holder {
                    let _ = fs::write(&path, holder);
                }
                Ok(RecordLock { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let _ = (&file).take(LOCK_NOTE).read_to_string(&mut noted);
                let holder = if noted.is_empty() { "another process".to_owned() } else { noted };
                Err(StoreError::Held { dir: dir.to_owned(), holder })
            }
            Err(TryLockError::Error(source)) => Err(StoreError::Write { path, source }),
        }
    }

    /// The record; an empty one if none was ever saved here.
    pub fn load(&self) -> Result<Record, StoreError> {
        let Some(bytes) = self.copies.load()? else { return Ok(Record::default()) };
        serde_json::from_slice(&bytes).map_err(|source| self.malformed(source))
    }

    /// Keeps the record. When this returns, it is on the medium.
    pub fn save(&self, record: &Record) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).map_err(|source| self.malformed(source))?;
        self.copies.save(&bytes)
    }

    fn malformed(&self, source: serde_json::Error) -> StoreError {
        StoreError::Malformed { path: self.copies.path(&self.copies.name), source }
    }
}

#[cfg(test)]
#[path = "record_store_tests.rs"]
mod tests;

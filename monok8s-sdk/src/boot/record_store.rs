//! Small state that survives power cuts: two copies of a file, each with a revision and a CRC.
//!
//! A copy is the magic `MK8STWO1`, the revision (u64), the length (u32) and the CRC-32 (u32) of
//! revision, length and payload, all little-endian, then the payload. The older copy is replaced:
//! written beside it, flushed, renamed, and the directory flushed. So at every instant at least one
//! whole copy exists, and a full disk changes neither.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::api::FailureReason;
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
    dir: PathBuf,
    name: String,
}

impl TwoCopies {
    /// The copies named `name` in `dir`. Nothing is read or created yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, name: &str) -> Self {
        Self { dir: dir.into(), name: name.to_owned() }
    }

    fn path(&self, number: u8) -> PathBuf {
        self.dir.join(format!("{}.{number}", self.name))
    }

    /// The newest whole payload; `None` when there are no copies at all.
    pub fn load(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.newest()?.map(|found| found.payload))
    }

    /// Makes `payload` the newest. When this returns, it is on the medium.
    pub fn save(&self, payload: &[u8]) -> Result<(), StoreError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(StoreError::TooLarge { path: self.dir.join(&self.name), length: payload.len() });
        }
        let (number, revision) = match self.newest()? {
            None => (0, 1),
            Some(found) => (1 - found.number, found.revision.saturating_add(1)),
        };
        let path = self.path(number);
        self.replace(&path, &encode(revision, payload)).map_err(|source| StoreError::Write { path, source })
    }

    /// Removes both copies, whole or not.
    pub(super) fn remove(&self) -> Result<(), StoreError> {
        for path in [self.path(0), self.path(1)] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Write { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let beside = path.with_extension(match path.extension() {
            Some(copy) => format!("{}.new", copy.display()),
            None => "new".to_owned(),
        });
        let mut file = File::create(&beside)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(failed) = written {
            // Best effort: it is overwritten next time anyway.
            let _ = fs::remove_file(&beside);
            return Err(failed);
        }
        fs::rename(&beside, path)?;
        File::open(&self.dir)?.sync_all()
    }

    fn newest(&self) -> Result<Option<Found>, StoreError> {
        if !self.dir.is_dir() {
            return Err(StoreError::NoDirectory { dir: self.dir.clone() });
        }
        let mut present = false;
        let mut newest: Option<Found> = None;
        for number in [0, 1] {
            let path = self.path(number);
            let Some(bytes) = read_capped(&path).map_err(|source| StoreError::Read { path, source })? else {
                continue;
            };
            present = true;
            if let Some((revision, payload)) = decode(&bytes)
                && newest.as_ref().is_none_or(|other| revision > other.revision)
            {
                newest = Some(Found { number, revision, payload: payload.to_vec() });
            }
        }
        match newest {
            None if present => Err(StoreError::Corrupt { dir: self.dir.clone(), name: self.name.clone() }),
            found => Ok(found),
        }
    }
}

/// One whole copy.
struct Found {
    number: u8,
    revision: u64,
    payload: Vec<u8>,
}

fn read_capped(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    // One byte more than fits: a longer file then fails its length check.
    file.take((HEADER + MAX_PAYLOAD) as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn encode(revision: u64, payload: &[u8]) -> Vec<u8> {
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
        Self { copies: TwoCopies::new(dir, "record") }
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
        StoreError::Malformed { path: self.copies.dir.join(&self.copies.name), source }
    }
}

#[cfg(test)]
#[path = "record_store_tests.rs"]
mod tests;

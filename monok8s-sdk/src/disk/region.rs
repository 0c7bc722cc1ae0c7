//! A stretch of a file or a device that small state is kept in, written where it is.
//!
//! Boot loaders find their state by position: a file that was renamed over, or moved by its file
//! system, is not what they read. So it is never replaced, grown or truncated; only its bytes change.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long a lock is waited for. Whoever has it holds it for the length of a few writes.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes that are read and written in place: a file, a device, or a test's fake.
pub trait Region: fmt::Debug + Send + Sync {
    /// What messages call it.
    fn path(&self) -> &Path;

    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Reads `length` bytes from `offset`; an error if there are fewer. From the medium where the
    /// system can be told to, so that a write that was lost shows.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Overwrites bytes inside the region. When this returns, they are on the medium.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Keeps other processes that ask for it from changing the region until the lock is dropped.
    fn lock(&self) -> io::Result<RegionLock>;
}

/// A [`Region`]'s lock. It ends with its process, at the latest.
#[derive(Debug, Default)]
pub struct RegionLock(#[expect(dead_code, reason = "open for as long as the lock is held")] Option<File>);

impl RegionLock {
    /// The lock of something that nobody else can get at.
    #[must_use]
    pub fn of_nothing() -> Self {
        Self::default()
    }

    /// An advisory lock (`flock`) on an open file. On a whole disk this is the one that udev and
    /// partitioning tools respect.
    pub fn on(file: File) -> io::Result<Self> {
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(Some(file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if since.elapsed() > LOCK_PATIENCE => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        "another program has had it locked for too long",
                    ));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_INTERVAL),
            }
        }
    }
}

/// A plain file or a block device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRegion(PathBuf);

impl HostRegion {
    /// The file or device at this path. Nothing is opened or created.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    fn open(&self) -> io::Result<File> {
        File::open(&self.0)
    }
}

impl Region for HostRegion {
    fn path(&self) -> &Path {
        &self.0
    }

    fn size(&self) -> io::Result<u64> {
        // The end of a block device; its metadata says 0.
        io::Seek::seek(&mut self.open()?, io::SeekFrom::End(0))
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = self.open()?;
        let span = std::num::NonZeroU64::new(length as u64);
        // Only advice: what cannot be dropped from the cache is read from there.
        let _ = rustix::fs::fadvise(&file, offset, span, rustix::fs::Advice::DontNeed);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.0)?;
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| self.size().is_ok_and(|size| end > size)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "that would write beyond its end"));
        }
        file.write_all_at(bytes, offset)?;
        file.sync_all()
    }

    fn lock(&self) -> io::Result<RegionLock> {
        RegionLock::on(self.open()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_change_in_place_and_nothing_grows() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 1024]).unwrap();
        let region = HostRegion::new(file.path());
        region.write(512, b"state").unwrap();
        assert_eq!(region.read(510, 8).unwrap(), b"\x07\x07state\x07");
        assert_eq!(region.size().unwrap(), 1024);
        assert!(region.write(1020, b"longer").is_err());
        assert!(region.write(u64::MAX, b"x").is_err());
        assert!(region.read(1020, 5).is_err());
        assert_eq!(region.size().unwrap(), 1024);
    }

    #[test]
    fn nothing_is_created() {
        let dir = tempfile::tempdir().unwrap();
        let region = HostRegion::new(dir.path().join("absent"));
        assert!(region.write(0, b"x").is_err());
        assert!(region.lock().is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_lock_waits_for_the_first() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let region = HostRegion::new(file.path());
        let first = region.lock().unwrap();
        let other = region.clone();
        let second = thread::spawn(move || other.lock().map(|_| ()));
        thread::sleep(Duration::from_millis(60));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }
}

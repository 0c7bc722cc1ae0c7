//! Where files are kept, as the few operations that keeping them takes.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, IntoInnerError, Read};
use std::path::{Path, PathBuf};

use super::region::RegionLock;

/// Bytes that are written at once.
const FILL_STEP: usize = 256 << 10;

/// A directory of files: a real one, or a test's fake that loses power.
pub trait Directory: fmt::Debug + Send + Sync {
    /// What messages call it.
    fn path(&self) -> &Path;

    /// Whether it is there. Nothing but [`create`](Self::create) creates it.
    fn is_present(&self) -> bool;

    /// Creates it, and what it lies in, unless it is there.
    fn create(&self) -> io::Result<()>;

    /// How many bytes its file system has left.
    fn free(&self) -> io::Result<u64>;

    /// The first `most` bytes of a file; `None` when there is no such file.
    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>>;

    /// A file of any size, as the medium holds it: what is in memory only because it was written is
    /// read again.
    fn read_back(&self, name: &str) -> io::Result<Box<dyn Read>>;

    /// Creates a file, or empties it, and fills it. When this returns, its bytes are on the medium;
    /// its name is only after [`sync`](Self::sync).
    fn write(&self, name: &str, mut bytes: &[u8]) -> io::Result<()> {
        self.fill(name, &mut bytes)
    }

    /// The same with all that comes from `bytes`, which may be much.
    fn fill(&self, name: &str, bytes: &mut dyn Read) -> io::Result<()>;

    /// Renames a file over another one, in one step.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns once every change of names is on the medium.
    fn sync(&self) -> io::Result<()>;

    /// The names of its files, in no order. One that is not UTF-8 is left out.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Keeps other processes that ask for it from changing the directory until the lock is dropped.
    fn lock(&self) -> io::Result<RegionLock>;
}

/// A directory of the host.
#[derive(Clone, Debug)]
pub struct HostDirectory(PathBuf);

impl HostDirectory {
    /// The directory at this path. Nothing is read or created.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Directory for HostDirectory {
    fn path(&self) -> &Path {
        &self.0
    }

    fn is_present(&self) -> bool {
        self.0.is_dir()
    }

    fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)
    }

    fn free(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.0)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.0.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn read_back(&self, name: &str) -> io::Result<Box<dyn Read>> {
        let file = File::open(self.0.join(name))?;
        // A file system that does not take the advice reads what it has.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(Box::new(file))
    }

    fn fill(&self, name: &str, bytes: &mut dyn Read) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(FILL_STEP, File::create(self.0.join(name))?);
        io::copy(bytes, &mut file)?;
        file.into_inner().map_err(IntoInnerError::into_error)?.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn lock(&self) -> io::Result<RegionLock> {
        RegionLock::on(File::open(&self.0)?)
    }
}

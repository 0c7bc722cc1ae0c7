//! Where small files are kept, as the few operations that keeping them takes.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::region::RegionLock;

/// A directory of small files: a real one, or a test's fake that loses power.
pub trait Directory: fmt::Debug + Send + Sync {
    /// What messages call it.
    fn path(&self) -> &Path;

    /// Whether it is there. It is never created.
    fn is_present(&self) -> bool;

    /// The first `most` bytes of a file; `None` when there is no such file.
    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>>;

    /// Creates a file, or empties it, and fills it. When this returns, its bytes are on the medium;
    /// its name is only after [`sync`](Self::sync).
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

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

    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.0.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.0.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()
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

//! Temporary directories that are removed even when their process was killed.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

const PREFIX: &str = "monok8s-xtask-";
const LOCK: &str = ".in-use";
/// A directory this young may be between its creation and its lock.
const SETTLED: Duration = Duration::from_secs(60);

/// A private directory, removed on drop. Its owner holds a lock inside; the next [`Scratch::new`]
/// sweeps the directories whose lock nobody holds.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
    _lock: File,
}

impl Scratch {
    /// A new directory; `purpose` becomes part of its name.
    pub fn new(purpose: &str) -> Result<Self> {
        Self::new_in(&std::env::temp_dir(), purpose)
    }

    /// The same in a directory of the caller's choice, such as one on a certain file system.
    pub fn new_in(parent: &Path, purpose: &str) -> Result<Self> {
        sweep(parent);
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{purpose}-"))
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let lock = File::create(directory.path().join(LOCK))?;
        lock.lock()?;
        Ok(Self { directory, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes what killed processes left behind. Never fails: what cannot be removed is not ours.
fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let settled = entry
            .metadata()
            .and_then(|found| found.modified())
            .is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|age| age > SETTLED));
        if settled && is_abandoned(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_abandoned(directory: &Path) -> bool {
    File::open(directory.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_directory_is_kept_and_an_abandoned_one_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - Duration::from_secs(3600);
        let make = |name: &str| {
            let path = parent.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&path).unwrap();
            let lock = File::create(path.join(LOCK)).unwrap();
            lock.lock().unwrap();
            File::open(&path).unwrap().set_modified(old).unwrap();
            (path, lock)
        };
        let (held, _lock) = make("held");
        let (abandoned, lock) = make("abandoned");
        drop(lock);
        sweep(parent.path());
        assert!(held.exists());
        assert!(!abandoned.exists());
    }
}

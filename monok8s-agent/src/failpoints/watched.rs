//! What lasts, watched while it is changed.

use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use monok8s_sdk::disk::{BlockTarget, Directory, DiskError, HostDirectory, InactiveSlot, RegionLock};

use super::{LOADER, Next, Point, RECORD, reached};

/// Whose directory it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keeps {
    Record,
    Loader,
}

impl Keeps {
    fn next(self) -> &'static Next {
        match self {
            Self::Record => &RECORD,
            Self::Loader => &LOADER,
        }
    }
}

/// A directory of the host.
#[derive(Debug)]
struct WatchedDirectory {
    inner: HostDirectory,
    keeps: Keeps,
}

/// The directory at this path.
pub(crate) fn directory(path: &Path, keeps: Keeps) -> Arc<dyn Directory> {
    Arc::new(WatchedDirectory { inner: HostDirectory::new(path), keeps })
}

impl Directory for WatchedDirectory {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn is_present(&self) -> bool {
        self.inner.is_present()
    }

    fn create(&self) -> io::Result<()> {
        self.inner.create()
    }

    fn free(&self) -> io::Result<u64> {
        self.inner.free()
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        self.inner.read(name, most)
    }

    fn read_back(&self, name: &str) -> io::Result<Box<dyn Read>> {
        self.inner.read_back(name)
    }

    fn fill(&self, name: &str, bytes: &mut dyn Read) -> io::Result<()> {
        self.inner.fill(name, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let save = self.keeps.next().get();
        if let Some(save) = save {
            reached(save.beside);
        }
        self.inner.rename(from, to)?;
        if let Some(renamed) = save.and_then(|save| save.renamed) {
            reached(renamed);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()?;
        if let Some(save) = self.keeps.next().get() {
            reached(save.done);
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.inner.names()
    }

    fn lock(&self) -> io::Result<RegionLock> {
        self.inner.lock()
    }
}

/// A slot that is written.
struct WatchedSlot {
    inner: Arc<dyn BlockTarget>,
    /// Reached by the next flush.
    next: Mutex<Option<Point>>,
}

/// The same slot, watched.
pub(crate) fn slot(slot: &InactiveSlot) -> InactiveSlot {
    let watched = WatchedSlot { inner: Arc::clone(slot.target()), next: Mutex::new(None) };
    InactiveSlot::on_test_storage(slot.slot(), Arc::new(watched))
}

impl WatchedSlot {
    fn next(&self, point: Option<Point>) -> Option<Point> {
        std::mem::replace(&mut *self.next.lock().unwrap_or_else(PoisonError::into_inner), point)
    }
}

impl BlockTarget for WatchedSlot {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.inner.write_at(offset, bytes)?;
        // What begins the slot is written last, alone.
        if offset == 0 {
            reached(Point::HeadWritten);
            self.next(Some(Point::HeadFlushed));
        } else {
            reached(Point::BodyBytes);
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.inner.zero(offset, len)?;
        if offset == 0 {
            self.next(Some(Point::HeadZeroed));
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.inner.flush()?;
        if let Some(point) = self.next(None) {
            reached(point);
        }
        Ok(())
    }

    fn description(&self) -> &str {
        self.inner.description()
    }
}

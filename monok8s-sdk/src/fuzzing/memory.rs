//! A slot in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disk::{BlockTarget, DiskError};

/// A target that holds bytes and never fails within them.
pub(crate) struct MemoryTarget {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryTarget {
    pub(crate) fn holding(bytes: Vec<u8>) -> Self {
        Self { bytes: Mutex::new(bytes) }
    }

    pub(crate) fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `act` work on a part of the bytes, if it lies within them.
    fn within(&self, offset: u64, length: u64, act: impl FnOnce(&mut [u8])) -> Result<(), DiskError> {
        let mut bytes = self.bytes();
        let size = bytes.len() as u64;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        let Some(part) = bytes.get_mut(start..end) else {
            return Err(DiskError::OutOfBounds { target: "memory".to_owned(), offset, length, size });
        };
        act(part);
        Ok(())
    }
}

impl BlockTarget for MemoryTarget {
    fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.within(offset, buf.len() as u64, |part| buf.copy_from_slice(part))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.within(offset, bytes.len() as u64, |part| part.copy_from_slice(bytes))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.within(offset, len, |part| part.fill(0))
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn description(&self) -> &'static str {
        "memory"
    }
}

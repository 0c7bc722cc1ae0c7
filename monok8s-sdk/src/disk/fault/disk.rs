//! A disk in memory with a cache that power failures empty, and faults on demand.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::target::{Action, BlockTarget, DiskError};
use super::medium::{Medium, Piece};
use super::power::{Change, Content, Power, Scope, What};

/// What goes wrong with one write, zeroing or flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It fails, and nothing of it is done.
    Error,
    /// It fails because what backs the disk is full, and nothing of it is done.
    NoSpace,
    /// It fails after so many bytes were written or zeroed.
    Short(usize),
    /// It returns as if it had succeeded, and nothing of it is done.
    Dropped,
    /// It succeeds with this bit of it flipped. A flush has none.
    FlippedBit(u64),
}

/// What goes wrong with one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFault {
    /// It fails.
    Error,
    /// It succeeds with this bit of it flipped.
    FlippedBit(u64),
}

/// A disk in memory. Reads see what was written; a power failure keeps what was flushed, and any
/// part of the rest.
///
/// As [`DirectTarget`](super::super::DirectTarget) does, it refuses all further work after a
/// failed write, zeroing or flush.
#[derive(Debug)]
pub struct FaultDisk {
    power: Power,
    device: usize,
    name: String,
    size: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: Vec<(Action, u64, u64)>,
    faults: BTreeMap<usize, Fault>,
    reads: usize,
    read_faults: BTreeMap<usize, ReadFault>,
    failed: Option<Action>,
}

impl FaultDisk {
    /// A disk that holds this, all of it on the medium.
    #[must_use]
    pub fn new(power: &Power, name: &str, medium: Medium) -> Self {
        let (power, size) = (power.clone(), medium.size() as u64);
        let device = power.attach(Content::Disk(medium));
        Self { power, device, name: name.to_owned(), size, state: Mutex::default() }
    }

    /// What reads see.
    #[must_use]
    pub fn content(&self) -> Medium {
        let content = self.power.read(self.device, |content| match content {
            Content::Disk(medium) => Some(medium.clone()),
            Content::Directory(_) => None,
        });
        content.flatten().unwrap_or_else(|| Medium::filled(0, 0))
    }

    /// The writes, zeroings and flushes that were asked for and not refused, each with its offset
    /// and its length. One that failed is not among them.
    #[must_use]
    pub fn log(&self) -> Vec<(Action, u64, u64)> {
        self.state().log.clone()
    }

    /// How many reads were asked for and not refused.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.state().reads
    }

    /// Lets something go wrong with the write, zeroing or flush number `at`, counted from 0 over
    /// the disk's life.
    pub fn inject(&self, at: usize, fault: Fault) {
        self.state().faults.insert(at, fault);
    }

    /// Lets something go wrong with the read number `at`, counted from 0 over the disk's life.
    pub fn inject_read(&self, at: usize, fault: ReadFault) {
        self.state().read_faults.insert(at, fault);
    }

    pub(super) fn device(&self) -> usize {
        self.device
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, state: &State, offset: u64, length: u64) -> Result<(), DiskError> {
        if let Some(action) = state.failed {
            return Err(DiskError::Poisoned { target: self.name.clone(), action });
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let (target, size) = (self.name.clone(), self.size);
            return Err(DiskError::OutOfBounds { target, offset, length, size });
        }
        Ok(())
    }

    /// Lets an operation in: what goes wrong with it, if anything.
    fn admit(&self, action: Action, offset: u64, length: u64) -> Result<Option<Fault>, DiskError> {
        let mut state = self.state();
        self.check(&state, offset, length)?;
        let at = state.log.len();
        let fault = state.faults.remove(&at);
        match fault {
            Some(Fault::Error | Fault::NoSpace | Fault::Short(_)) => state.failed = Some(action),
            Some(Fault::Dropped | Fault::FlippedBit(_)) | None => state.log.push((action, offset, length)),
        }
        Ok(fault)
    }

    fn failure(&self, action: Action, offset: u64, fault: Fault) -> DiskError {
        let errno = if fault == Fault::NoSpace { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
        DiskError::from_io(action, &self.name, offset, io::Error::from(errno))
    }

    fn put(
        &self,
        action: Action,
        offset: u64,
        len: u64,
        cut: impl FnOnce(usize, usize, Option<u64>) -> Vec<Piece>,
    ) -> Result<(), DiskError> {
        let fault = self.admit(action, offset, len)?;
        // It lies within the disk, and that within memory.
        let (at, len) = (usize::try_from(offset).unwrap_or(usize::MAX), usize::try_from(len).unwrap_or(0));
        let change = |len, flip| Change::Put { offset: at, len, pieces: cut(at, len, flip).into() };
        match fault {
            None => self.power.act(self.device, What::Change(change(len, None))),
            Some(Fault::FlippedBit(bit)) => {
                self.power.act(self.device, What::Change(change(len, Some(bit))));
            }
            Some(Fault::Dropped) => {}
            Some(fault) => {
                if let Fault::Short(part) = fault {
                    self.power.begin(self.device, What::Change(change(part.min(len), None)));
                }
                return Err(self.failure(action, offset, fault));
            }
        }
        Ok(())
    }
}

/// `bytes` with a bit flipped, counted modulo their number.
fn flip(bytes: &mut [u8], bit: u64) {
    let at = usize::try_from(bit / 8).ok().and_then(|byte| byte.checked_rem(bytes.len()));
    if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1 << (bit % 8);
    }
}

impl BlockTarget for FaultDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let fault = {
            let mut state = self.state();
            self.check(&state, offset, buf.len() as u64)?;
            let at = state.reads;
            state.reads += 1;
            state.read_faults.remove(&at)
        };
        if fault == Some(ReadFault::Error) {
            return Err(self.failure(Action::Read, offset, Fault::Error));
        }
        self.content().read_at(usize::try_from(offset).unwrap_or(usize::MAX), buf);
        if let Some(ReadFault::FlippedBit(bit)) = fault {
            flip(buf, bit);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.put(Action::Write, offset, bytes.len() as u64, |at, len, flipped| {
            let mut bytes = bytes.get(..len).unwrap_or_default().to_vec();
            if let Some(bit) = flipped {
                flip(&mut bytes, bit);
            }
            Piece::cut(at, &bytes)
        })
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if len == 0 {
            return self.check(&self.state(), offset, len);
        }
        self.put(Action::Zero, offset, len, |at, len, flipped| match flipped {
            None => Piece::cut_zeroes(at, len),
            Some(bit) => {
                let mut bytes = vec![0; len];
                flip(&mut bytes, bit);
                Piece::cut(at, &bytes)
            }
        })
    }

    fn flush(&self) -> Result<(), DiskError> {
        match self.admit(Action::Flush, 0, 0)? {
            None | Some(Fault::FlippedBit(_)) => self.power.act(self.device, What::Sync(Scope::Disk)),
            Some(Fault::Dropped) => {}
            Some(fault) => return Err(self.failure(Action::Flush, 0, fault)),
        }
        Ok(())
    }

    fn description(&self) -> &str {
        &self.name
    }
}

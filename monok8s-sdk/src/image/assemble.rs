//! Frames put together from blocks, wherever those were seen.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::Digest as _;

use super::delta::Delta;
use super::index::{BLOCK, IndexedFrame};
use super::lookup::{Lookup, Place};
use super::slot_writer::Halt;
use crate::digest::Sha256Digest;

/// Threads that do so: what they read is scattered over a slot, and each waits for the disk.
const ASSEMBLERS: usize = 4;

impl Delta<'_> {
    /// Whether all blocks of a frame were seen somewhere.
    pub(super) fn is_here(&self, number: usize, lookup: &Lookup<'_>) -> bool {
        self.index.hash_numbers(number).flatten().all(|hash| lookup.place(hash).is_some())
    }

    /// Puts these frames together, on several threads.
    pub(super) fn assemble_all(
        &self,
        frames: &[usize],
        lookup: &Lookup<'_>,
        missing: &mut [bool],
    ) -> Result<(), Halt> {
        let next = AtomicUsize::new(0);
        let done = thread::scope(|scope| {
            let assembled = || scope.spawn(|| self.assembled_of(frames, &next, lookup));
            let threads = [(); ASSEMBLERS].map(|()| assembled());
            let ended = |thread: thread::ScopedJoinHandle<'_, Result<Vec<usize>, Halt>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(ended).collect::<Result<Vec<_>, Halt>>()
        })?;
        for number in done.into_iter().flatten() {
            if let Some(missing) = missing.get_mut(number) {
                *missing = false;
            }
        }
        Ok(())
    }

    /// One of the threads: the frames that came to what they should be.
    fn assembled_of(
        &self,
        frames: &[usize],
        next: &AtomicUsize,
        lookup: &Lookup<'_>,
    ) -> Result<Vec<usize>, Halt> {
        let mut done = Vec::new();
        while let Some(number) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            self.check_cancel()?;
            if self.assemble(*number, lookup)? {
                done.push(*number);
            }
        }
        Ok(done)
    }

    /// Puts a frame together from blocks whose places are known, if they all are. Returns whether
    /// it came to what it should be.
    pub(super) fn assemble(&self, number: usize, lookup: &Lookup<'_>) -> Result<bool, Halt> {
        let Some(frame) = self.index.frame(number) else { return Ok(false) };
        let Some(pieces) = self.pieces(number, lookup) else { return Ok(false) };
        let mut piece = self.pool.take();
        piece.truncate(frame.len());
        if !self.collect(&pieces, &mut piece) || !holds(&frame, &piece) {
            return Ok(false);
        }
        self.put(&frame, piece)?;
        Ok(true)
    }

    /// Where a frame's blocks are, neighbours joined; `None` if one of them was not seen.
    fn pieces(&self, number: usize, lookup: &Lookup<'_>) -> Option<Vec<(Option<Place>, usize)>> {
        let mut pieces: Vec<(Option<Place>, usize)> = Vec::new();
        for hash in self.index.hash_numbers(number) {
            let place = match hash {
                Some(hash) => Some(lookup.place(hash)?),
                None => None,
            };
            match pieces.last_mut() {
                Some((first, count)) if follows(*first, *count, place) => *count += 1,
                _ => pieces.push((place, 1)),
            }
        }
        Some(pieces)
    }

    /// Reads the pieces one after the other; `false` if one cannot be read.
    fn collect(&self, pieces: &[(Option<Place>, usize)], into: &mut [u8]) -> bool {
        let mut rest = into;
        for (place, count) in pieces {
            // The last block of an image may be short.
            let (part, behind) = rest.split_at_mut((count * BLOCK).min(rest.len()));
            let offset = |block: &u32| u64::from(*block) * BLOCK as u64;
            let is_read = match place {
                None => {
                    part.fill(0);
                    true
                }
                Some(Place::Source(source, block)) => self
                    .sources
                    .get(*source)
                    .is_some_and(|source| source.read_at(offset(block), part).is_ok()),
                Some(Place::Target(block)) => self.target.read_at(offset(block), part).is_ok(),
            };
            if !is_read {
                return false;
            }
            rest = behind;
        }
        true
    }
}

/// Whether `bytes` are what the frame expands to.
pub(super) fn holds(frame: &IndexedFrame, bytes: &[u8]) -> bool {
    Sha256Digest::from(<[u8; 32]>::from(sha2::Sha256::digest(bytes))) == frame.digest
}

/// Whether a block follows `count` blocks from `first` on.
fn follows(first: Option<Place>, count: usize, next: Option<Place>) -> bool {
    let Ok(count) = u32::try_from(count) else { return false };
    match (first, next) {
        (None, None) => true,
        (Some(Place::Source(of, first)), Some(Place::Source(also_of, next))) => {
            of == also_of && first.checked_add(count) == Some(next)
        }
        (Some(Place::Target(first)), Some(Place::Target(next))) => first.checked_add(count) == Some(next),
        _ => false,
    }
}

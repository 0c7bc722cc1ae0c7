//! An image put together from what the node has, and from the frames that it has not.
//!
//! Frame by frame, and each only once it has its sha256:
//! 1. what stands in the slot already, at its place, is only read; after a crash that is whatever
//!    the run before came to, and the reason why there is no other state;
//! 2. blocks are looked up by content in the slots that are given, wherever they are there: a
//!    rebuilt file system has the old blocks at new places;
//! 3. the rest is fetched;
//! 4. zeroes need no source.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::assemble::holds;
use super::head::HEAD;
use super::index::{BLOCK, Index, IndexedFrame, block_hash};
use super::kept::KeptIndexes;
use super::lookup::{Lookup, Place};
use super::pool::{Buffer, Pool};
use super::progress::{Cancel, Progress};
use super::slot_writer::{Halt, SlotWriter};
use super::write_error::WriteError;
use crate::disk::{AlignedBuf, BlockTarget, ReadOnlySlot, is_zero};
use crate::slot::Slot;

/// Threads that read and hash.
pub(super) const READERS: usize = 2;
/// How many places are looked at to see whether reading all of a slot pays.
const SAMPLES: u64 = 48;
/// Reading a slot pays if this part of the samples is of use.
const WORTH: (usize, usize) = (1, 12);
/// How much of the image is looked at, in bytes, before what is missing of it is asked for.
const BATCH: u64 = 32 << 20;

/// When frames are looked for where they would stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Before anything else: much of it is right. That many were looked at so far.
    InPlaceFirst { looked: usize },
    /// Before they would be fetched.
    InPlaceLast,
}

/// What goes into the slot and where it may come from.
pub(super) struct Delta<'a> {
    pub(super) index: &'a Index,
    pub(super) target: &'a dyn BlockTarget,
    /// Which slot the target is.
    pub(super) slot: Slot,
    pub(super) sources: &'a [ReadOnlySlot],
    pub(super) kept: Option<&'a KeptIndexes>,
    pub(super) writer: &'a SlotWriter<'a>,
    pub(super) pool: &'a Pool,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a Cancel,
}

impl Delta<'_> {
    /// Puts everything into the slot that the node has, and asks for the rest, batch by batch.
    pub(super) fn put_what_is_here(&self, mut ask: impl FnMut(Vec<usize>)) -> Result<(), Halt> {
        let mut missing: Vec<bool> =
            (0..self.index.frame_count()).map(|number| !self.index.is_zero_frame(number)).collect();
        let all = numbers(&missing);
        let lookup = Lookup::of_frames(self.index, all.iter().copied());
        self.put_head_that_stands(&mut missing)?;
        let unknown = self.note_known(&lookup);
        let sample: Vec<usize> =
            spread(all.len() as u64).filter_map(|at| all.get(usize::try_from(at).ok()?).copied()).collect();
        let in_place = self.keep_right(&sample, Some(&lookup), &mut missing)?;
        let order = if is_worth(in_place, sample.len()) {
            // What is in place already need not be found elsewhere.
            let looked = self.look_in_place(&all, &unknown, &lookup, &mut missing)?;
            Order::InPlaceFirst { looked }
        } else {
            self.read_sources(&unknown, &lookup, &mut missing)?;
            Order::InPlaceLast
        };
        self.settle(&all, order, &lookup, &mut missing, &mut ask)?;
        self.zeroes()
    }

    /// Keeps the frames that begin in the head if they are there, as after a write that came to its
    /// end. Before anything is put, because then the head is zeroed.
    fn put_head_that_stands(&self, missing: &mut [bool]) -> Result<(), Halt> {
        let begins_in_head =
            |number: &usize| self.index.frame(*number).is_some_and(|frame| frame.image.start < HEAD as u64);
        let in_head = (0..missing.len()).take_while(begins_in_head);
        let standing: Vec<(usize, IndexedFrame, Vec<u8>)> = left(&in_head.collect::<Vec<_>>(), missing)
            .into_iter()
            .filter_map(|number| {
                let frame = self.index.frame(number)?;
                let mut found = vec![0; frame.len()];
                self.target.read_at(frame.image.start, &mut found).ok()?;
                holds(&frame, &found).then_some((number, frame, found))
            })
            .collect();
        for (number, frame, found) in standing {
            let mut piece = self.pool.take();
            piece.truncate(found.len());
            piece.copy_from_slice(&found);
            self.put(&frame, piece)?;
            if let Some(missing) = missing.get_mut(number) {
                *missing = false;
            }
        }
        Ok(())
    }

    /// Looks at the first frames where they would stand, which shows what sources are good for, and
    /// reads those that are. Returns how many frames were looked at.
    fn look_in_place(
        &self,
        all: &[usize],
        unknown: &[usize],
        lookup: &Lookup<'_>,
        missing: &mut [bool],
    ) -> Result<usize, Halt> {
        let (first, rest) = all.split_at(all.len().div_ceil(4));
        self.keep_right(first, Some(lookup), missing)?;
        if !self.are_worth_reading(unknown, lookup)? {
            return Ok(first.len());
        }
        self.keep_right(rest, Some(lookup), missing)?;
        self.read_sources(unknown, lookup, missing)?;
        Ok(all.len())
    }

    /// Batch by batch: asks for what is nowhere, and puts together what is somewhere meanwhile.
    fn settle(
        &self,
        all: &[usize],
        order: Order,
        lookup: &Lookup<'_>,
        missing: &mut [bool],
        ask: &mut impl FnMut(Vec<usize>),
    ) -> Result<(), Halt> {
        let batch = self.batch();
        let mut wrong = Vec::new();
        for (start, numbers) in (0..).step_by(batch).zip(all.chunks(batch)) {
            if let Order::InPlaceFirst { looked } = order {
                let looked = looked.saturating_sub(start).min(numbers.len());
                self.keep_right(numbers.get(looked..).unwrap_or_default(), Some(lookup), missing)?;
            }
            let (here, nowhere): (Vec<_>, Vec<_>) =
                left(numbers, missing).into_iter().partition(|number| self.is_here(*number, lookup));
            if order == Order::InPlaceLast {
                // Whatever would be fetched may be there from a run that was cut off.
                self.keep_right(&nowhere, None, missing)?;
            }
            ask(left(&nowhere, missing));
            self.assemble_all(&here, lookup, missing)?;
            wrong.extend(left(&here, missing));
        }
        if order == Order::InPlaceLast {
            self.keep_right(&wrong, None, missing)?;
        }
        ask(left(&wrong, missing));
        Ok(())
    }

    /// How many frames make up a batch, on average.
    fn batch(&self) -> usize {
        let frames = self.index.frame_count() as u64;
        let batches = self.index.image_length().div_ceil(BATCH).max(1);
        usize::try_from(frames.div_ceil(batches)).unwrap_or(usize::MAX).max(1)
    }

    /// Reads frames in the slot, past the page cache, which proves those that are right; of the
    /// others it takes note, in `lookup`, which blocks are. Returns how many frames are right.
    fn keep_right(
        &self,
        frames: &[usize],
        lookup: Option<&Lookup<'_>>,
        missing: &mut [bool],
    ) -> Result<usize, Halt> {
        // What begins in the head is never right in its place: the head was zeroed, or will be.
        let is_behind_head =
            |number: &usize| self.index.frame(*number).is_some_and(|frame| frame.image.start >= HEAD as u64);
        let frames: Vec<usize> = left(frames, missing).into_iter().filter(is_behind_head).collect();
        let next = AtomicUsize::new(0);
        let right: Vec<usize> = thread::scope(|scope| {
            let read = || scope.spawn(|| self.right_of(&frames, &next, lookup));
            let readers = [(); READERS].map(|()| read());
            let right = |reader: thread::ScopedJoinHandle<'_, Vec<usize>>| {
                reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            readers.into_iter().flat_map(right).collect()
        });
        self.check_cancel()?;
        for number in &right {
            if let Some(missing) = missing.get_mut(*number) {
                *missing = false;
            }
            let length = self.index.frame(*number).map_or(0, |frame| frame.len() as u64);
            self.writer.keep(length);
            self.progress.add_reused(length);
            self.progress.add_verified(length);
        }
        Ok(right.len())
    }

    fn right_of(&self, frames: &[usize], next: &AtomicUsize, lookup: Option<&Lookup<'_>>) -> Vec<usize> {
        let mut scratch = AlignedBuf::zeroed(self.index.frame_size());
        let mut right = Vec::new();
        while let Some(number) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            if self.cancel.is_cancelled() {
                break;
            }
            let Some(frame) = self.index.frame(*number) else { continue };
            let Some(found) = scratch.get_mut(..frame.len()) else { continue };
            // What cannot be read is not right.
            if self.target.read_at(frame.image.start, found).is_err() {
                continue;
            }
            if self.starts_right(*number, found) && holds(&frame, found) {
                right.push(*number);
                if let Some(lookup) = lookup {
                    self.note_right_frame(*number, &frame, lookup);
                }
            } else if let Some(lookup) = lookup {
                self.note_right_blocks(*number, &frame, found, lookup);
            }
        }
        right
    }

    /// Whether the first block is right: mostly that is answer enough.
    fn starts_right(&self, number: usize, found: &[u8]) -> bool {
        let block = found.get(..BLOCK.min(found.len())).unwrap_or_default();
        match self.index.hash_numbers(number).next().flatten().and_then(|number| self.index.hash(number)) {
            Some(hash) => block_hash(block) == hash,
            None => is_zero(block),
        }
    }

    /// Takes note of the blocks of a frame that is right: no source need be read for them.
    fn note_right_frame(&self, number: usize, frame: &IndexedFrame, lookup: &Lookup<'_>) {
        for (block, hash) in (frame.image.start / BLOCK as u64..).zip(self.index.hash_numbers(number)) {
            let hash = hash.and_then(|number| self.index.hash(number));
            if let (Some(hash), Ok(block)) = (hash, u32::try_from(block)) {
                lookup.saw(hash, Place::Target(block));
            }
        }
    }

    /// Takes note of blocks that stand where they belong. They stay right until their frame is
    /// written, with the same bytes in these places.
    fn note_right_blocks(&self, number: usize, frame: &IndexedFrame, found: &[u8], lookup: &Lookup<'_>) {
        let first = frame.image.start / BLOCK as u64;
        for ((at, block), hash) in (first..).zip(found.chunks(BLOCK)).zip(self.index.hash_numbers(number)) {
            let hash = hash.and_then(|number| self.index.hash(number));
            if let (Some(hash), Ok(at)) = (hash, u32::try_from(at))
                && block_hash(block) == hash
            {
                lookup.saw(hash, Place::Target(at));
            }
        }
    }

    /// Zeroes whatever is all zero, in runs. Last, since it may take as long as everything else,
    /// while what was asked for is on its way.
    fn zeroes(&self) -> Result<(), Halt> {
        let mut run = 0..0;
        for number in (0..self.index.frame_count()).filter(|number| self.index.is_zero_frame(*number)) {
            let Some(frame) = self.index.frame(number) else { continue };
            if run.end != frame.image.start {
                self.put_zeroes(std::mem::replace(&mut run, frame.image.start..frame.image.start))?;
            }
            run.end = frame.image.end;
        }
        self.put_zeroes(run)
    }

    fn put_zeroes(&self, run: std::ops::Range<u64>) -> Result<(), Halt> {
        if run.is_empty() { Ok(()) } else { self.writer.put_zeroes(run.start, run.end - run.start) }
    }

    /// Puts a frame into the slot that is right.
    pub(super) fn put(&self, frame: &IndexedFrame, piece: Buffer) -> Result<(), Halt> {
        self.writer.put(frame.image.start, piece)
    }

    pub(super) fn check_cancel(&self) -> Result<(), Halt> {
        if self.cancel.is_cancelled() { Err(WriteError::Cancelled.into()) } else { Ok(()) }
    }
}

pub(super) fn is_worth(useful: usize, seen: usize) -> bool {
    let (part, of) = WORTH;
    useful * of >= seen * part
}

/// Those of `frames` that are missing.
fn left(frames: &[usize], missing: &[bool]) -> Vec<usize> {
    frames.iter().copied().filter(|number| missing.get(*number) == Some(&true)).collect()
}

pub(super) fn numbers(missing: &[bool]) -> Vec<usize> {
    (0..).zip(missing).filter(|(_, missing)| **missing).map(|(number, _)| number).collect()
}

/// Some of so many, evenly spread.
pub(super) fn spread(all: u64) -> impl Iterator<Item = u64> {
    let step = all.div_ceil(SAMPLES).max(1);
    (0..SAMPLES).map(move |sample| step / 2 + sample * step).take_while(move |at| *at < all)
}

//! An image put together from what the node has, and from the frames that it has not.
//!
//! In this order, frame by frame, and each frame only once it has its sha256:
//! 1. zeroes need no source;
//! 2. what stands in the slot already, at its place, is only read; after a crash that is whatever
//!    the run before came to, and the reason why there is no other state;
//! 3. blocks are looked up by content in the slots that are given, wherever they are there: a
//!    rebuilt file system has the old blocks at new places;
//! 4. the rest is fetched.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use sha2::Digest as _;

use super::index::{BLOCK, Index, IndexedFrame, block_hash};
use super::lookup::{Lookup, Place};
use super::pool::{Buffer, Pool};
use super::progress::{Cancel, Progress};
use super::slot_writer::{HEAD, Halt, SlotWriter};
use super::write_error::WriteError;
use crate::digest::Sha256Digest;
use crate::disk::{AlignedBuf, BlockTarget, ReadOnlySlot, is_zero};

/// How much of a source is read at a time, in bytes.
const STRIPE: usize = 1 << 20;
/// Threads that read and hash.
const READERS: usize = 2;
/// How many places are looked at to see whether reading all of a slot pays.
const SAMPLES: usize = 48;
/// Reading a slot pays if this part of the samples is of use.
const WORTH: (usize, usize) = (1, 12);
/// A frame is put together once the source was read this far beyond the frame's own place, in
/// bytes: files move when an image is rebuilt, but most of them not far.
const LAG: u64 = 32 << 20;
/// How much of the image is looked at, in bytes, before what is missing of it is asked for.
const BATCH: u64 = 32 << 20;

/// What goes into the slot and where it may come from.
pub(super) struct Delta<'a> {
    pub(super) index: &'a Index,
    pub(super) target: &'a dyn BlockTarget,
    pub(super) sources: &'a [ReadOnlySlot],
    pub(super) writer: &'a SlotWriter<'a>,
    pub(super) pool: &'a Pool,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a Cancel,
}

impl Delta<'_> {
    /// Puts everything into the slot that the node has, and asks for the rest, batch by batch.
    pub(super) fn put_what_is_here(&self, mut ask: impl FnMut(Vec<usize>)) -> Result<(), Halt> {
        let mut missing = vec![true; self.index.frame_count()];
        self.zeroes(&mut missing)?;
        let lookup = Lookup::of_frames(self.index, numbers(&missing).into_iter());
        let batch = self.batch();
        let sample = spread(&numbers(&missing));
        let pays = is_worth(self.keep_right(&sample, Some(&lookup), &mut missing)?, sample.len());
        if pays && !self.look_in_place(&lookup, &mut missing, batch, &mut ask)? {
            return Ok(());
        }
        for number in 0..self.sources.len() {
            self.read_source(number, &lookup, &mut missing)?;
        }
        for numbers in numbers(&missing).chunks(batch) {
            // Whatever would be fetched may be there from a run that was cut off.
            if !pays {
                self.keep_right(numbers, None, &mut missing)?;
            }
            ask(left(numbers, &missing));
        }
        Ok(())
    }

    /// How many frames make up a batch, on average.
    fn batch(&self) -> usize {
        let frames = self.index.frame_count() as u64;
        let batches = self.index.image_length().div_ceil(BATCH).max(1);
        usize::try_from(frames.div_ceil(batches)).unwrap_or(usize::MAX).max(1)
    }

    /// Looks at everything where it would stand. What is missing is asked for at once if the
    /// sources turn out to have none of it; returns whether they may have some.
    fn look_in_place(
        &self,
        lookup: &Lookup<'_>,
        missing: &mut [bool],
        batch: usize,
        ask: &mut impl FnMut(Vec<usize>),
    ) -> Result<bool, Halt> {
        let all = numbers(missing);
        let (mut held, mut decided) = (Vec::new(), false);
        for (done, numbers) in (1..).zip(all.chunks(batch)) {
            self.keep_right(numbers, Some(lookup), missing)?;
            held.extend(left(numbers, missing));
            if !decided && done * batch * 4 >= all.len() {
                for source in self.sources {
                    if self.is_worth_reading(source, lookup, &held)? {
                        // The rest is looked at first, so that it need not be read twice.
                        self.keep_right(all.get(done * batch..).unwrap_or_default(), Some(lookup), missing)?;
                        return Ok(true);
                    }
                }
                decided = true;
            }
            if decided {
                let asked = std::mem::take(&mut held);
                for number in &asked {
                    if let Some(missing) = missing.get_mut(*number) {
                        *missing = false;
                    }
                }
                ask(asked);
            }
        }
        ask(held);
        Ok(false)
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

    /// Zeroes whatever is all zero, in runs.
    fn zeroes(&self, missing: &mut [bool]) -> Result<(), Halt> {
        let mut run = 0..0;
        for (number, missing) in (0..).zip(missing) {
            let Some(frame) =
                self.index.frame(number).filter(|_| *missing && self.index.is_zero_frame(number))
            else {
                continue;
            };
            *missing = false;
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

    /// Reads a slot, and puts frames together as soon as their blocks were seen.
    fn read_source(&self, number: usize, lookup: &Lookup<'_>, missing: &mut [bool]) -> Result<(), Halt> {
        let Some(source) = self.sources.get(number) else { return Ok(()) };
        if !self.is_worth_reading(source, lookup, &numbers(missing))? {
            return Ok(());
        }
        let next = AtomicU64::new(0);
        let wanted = numbers(missing);
        let mut waiting = wanted.iter().copied().peekable();
        thread::scope(|scope| {
            let (report, read) = bounded(READERS * 4);
            for _ in 0..READERS {
                let (report, next) = (report.clone(), &next);
                scope.spawn(move || scan(number, source, lookup, next, &report));
            }
            drop(report);
            let mut done = 0;
            for length in read {
                self.check_cancel()?;
                done += length;
                let is_due = |number: &usize| {
                    self.index.frame(*number).is_some_and(|frame| frame.image.end + LAG <= done)
                };
                while let Some(number) = waiting.next_if(is_due) {
                    self.assemble(number, lookup, missing)?;
                }
            }
            Ok::<(), Halt>(())
        })?;
        // What came too early, or not at all while the source was read.
        for number in wanted {
            if missing.get(number) == Some(&true) {
                self.assemble(number, lookup, missing)?;
            }
        }
        Ok(())
    }

    /// Whether a sample of the source holds blocks that `missing` frames lack.
    fn is_worth_reading(
        &self,
        source: &ReadOnlySlot,
        lookup: &Lookup<'_>,
        missing: &[usize],
    ) -> Result<bool, Halt> {
        if missing.is_empty() {
            return Ok(false);
        }
        let stripe = (STRIPE / 4) as u64;
        let stripes: Vec<u64> = (0..source.size() / stripe).collect();
        let mut buf = vec![0; STRIPE / 4];
        let (mut useful, mut seen) = (0, 0);
        for number in spread(&stripes) {
            self.check_cancel()?;
            if source.read_at(number * stripe, &mut buf).is_err() {
                continue;
            }
            for block in buf.chunks_exact(BLOCK).filter(|block| !is_zero(block)) {
                seen += 1;
                useful += usize::from(lookup.lacks(block_hash(block)));
            }
        }
        Ok(useful > 0 && is_worth(useful, seen) || source.size() < stripe * 4)
    }

    /// Puts a frame together from blocks whose places are known, if they all are.
    fn assemble(&self, number: usize, lookup: &Lookup<'_>, missing: &mut [bool]) -> Result<(), Halt> {
        let Some(frame) = self.index.frame(number) else { return Ok(()) };
        let Some(pieces) = self.pieces(number, lookup) else { return Ok(()) };
        let mut piece = self.pool.take();
        piece.truncate(frame.len());
        if !self.collect(&pieces, &mut piece) || !holds(&frame, &piece) {
            return Ok(());
        }
        if let Some(missing) = missing.get_mut(number) {
            *missing = false;
        }
        self.put(&frame, piece)
    }

    /// Puts a frame into the slot that is right.
    pub(super) fn put(&self, frame: &IndexedFrame, piece: Buffer) -> Result<(), Halt> {
        self.writer.put(frame.image.start, piece)
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

    fn check_cancel(&self) -> Result<(), Halt> {
        if self.cancel.is_cancelled() { Err(WriteError::Cancelled.into()) } else { Ok(()) }
    }
}

fn is_worth(useful: usize, seen: usize) -> bool {
    let (part, of) = WORTH;
    useful * of >= seen * part
}

/// Those of `frames` that are missing.
fn left(frames: &[usize], missing: &[bool]) -> Vec<usize> {
    frames.iter().copied().filter(|number| missing.get(*number) == Some(&true)).collect()
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

fn numbers(missing: &[bool]) -> Vec<usize> {
    (0..).zip(missing).filter(|(_, missing)| **missing).map(|(number, _)| number).collect()
}

/// Some of all, evenly spread.
fn spread<T: Copy>(all: &[T]) -> Vec<T> {
    let step = all.len().div_ceil(SAMPLES).max(1);
    all.iter().skip(step / 2).step_by(step).copied().collect()
}

/// Hashes a source stripe by stripe; one of several threads. Reports each stripe's length.
fn scan(number: usize, source: &ReadOnlySlot, lookup: &Lookup<'_>, next: &AtomicU64, report: &Sender<u64>) {
    let mut buf = vec![0; STRIPE];
    loop {
        let start = next.fetch_add(STRIPE as u64, Ordering::Relaxed);
        if start >= source.size() {
            return;
        }
        let length = usize::try_from(source.size() - start).unwrap_or(STRIPE).min(STRIPE);
        let part = buf.get_mut(..length).unwrap_or_default();
        // A stripe that cannot be read has nothing to offer.
        if source.read_at(start, part).is_ok() {
            for (at, block) in (start / BLOCK as u64..).zip(part.chunks_exact(BLOCK)) {
                if let (false, Ok(at)) = (is_zero(block), u32::try_from(at)) {
                    lookup.saw(block_hash(block), Place::Source(number, at));
                }
            }
        }
        if report.send(length as u64).is_err() {
            // Whoever puts frames together stopped.
            return;
        }
    }
}

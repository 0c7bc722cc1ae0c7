//! What the slots that are given have to offer, block by block.
//!
//! A kept index says it without a look. A slot without one is read, all of it, if a sample of it
//! shows that this pays.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Sender, bounded};

use super::delta::{Delta, READERS, is_worth, numbers, spread};
use super::index::{BLOCK, block_hash};
use super::lookup::{Lookup, Place};
use super::slot_writer::Halt;
use crate::disk::{ReadOnlySlot, is_zero};

/// How much of a source is read at a time, in bytes.
const STRIPE: usize = 1 << 20;
/// A frame is put together once the source was read this far beyond the frame's own place, in
/// bytes: files move when an image is rebuilt, but most of them not far.
const LAG: u64 = 32 << 20;

impl Delta<'_> {
    /// Takes note of what the kept indexes say. Returns the sources that none of them describes.
    pub(super) fn note_known(&self, lookup: &Lookup<'_>) -> Vec<usize> {
        // What the slot that is written holds does not stay.
        let is_known = |(number, source): &(usize, &ReadOnlySlot)| {
            source.slot() != self.slot && self.kept.is_some_and(|kept| kept.note(*number, source, lookup))
        };
        let sources = self.sources.iter().enumerate();
        sources.filter(|source| !is_known(source)).map(|(number, _)| number).collect()
    }

    /// Whether one of the sources is worth reading.
    pub(super) fn are_worth_reading(&self, unknown: &[usize], lookup: &Lookup<'_>) -> Result<bool, Halt> {
        for source in unknown.iter().filter_map(|number| self.sources.get(*number)) {
            if self.is_worth_reading(source, lookup)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads those of the sources that are worth it.
    pub(super) fn read_sources(
        &self,
        unknown: &[usize],
        lookup: &Lookup<'_>,
        missing: &mut [bool],
    ) -> Result<(), Halt> {
        for number in unknown {
            let Some(source) = self.sources.get(*number) else { continue };
            if missing.contains(&true) && self.is_worth_reading(source, lookup)? {
                self.read_source(*number, lookup, missing)?;
            }
        }
        Ok(())
    }

    /// Whether a sample of the source holds blocks that are wanted and were seen nowhere yet.
    fn is_worth_reading(&self, source: &ReadOnlySlot, lookup: &Lookup<'_>) -> Result<bool, Halt> {
        let stripe = (STRIPE / 4) as u64;
        let mut buf = vec![0; STRIPE / 4];
        let (mut useful, mut seen) = (0, 0);
        for number in spread(source.size() / stripe) {
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

    /// Reads a slot, and puts frames together as soon as their blocks were seen.
    fn read_source(&self, number: usize, lookup: &Lookup<'_>, missing: &mut [bool]) -> Result<(), Halt> {
        let Some(source) = self.sources.get(number) else { return Ok(()) };
        let next = AtomicU64::new(0);
        let mut waiting = numbers(missing).into_iter().peekable();
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
                    if self.assemble(number, lookup)?
                        && let Some(missing) = missing.get_mut(number)
                    {
                        *missing = false;
                    }
                }
            }
            Ok(())
        })
    }
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

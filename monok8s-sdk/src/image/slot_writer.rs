//! The slot while it is written: several writes in flight, and the read-back right behind them.
//!
//! Pieces come in any order. Each is zeroed, compared or written, whichever is cheapest on this
//! medium ([`Economy`]), and then read back past the page cache after a flush. What a comparison
//! found to be right already was read from the medium, which is the same proof.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::economy::{Choice, Economy};
use super::head::{HEAD, Head};
use super::pool::Buffer;
use super::progress::{Cancel, Progress};
use super::run::{Run, UNIT, runs};
use super::write_error::WriteError;
use crate::disk::{AlignedBuf, BlockTarget, Comparison, DiskError, Written};

/// How much is read or compared at a time, in bytes.
const STEP: usize = 1 << 20;
/// The unit of comparison in bytes: file systems allocate in it.
const BLOCK: usize = 4096;
/// How much is written before it is flushed and read back, in bytes. The slot is then still being
/// written behind it, and a cache on the way is long overrun.
const EPOCH: u64 = 128 << 20;
/// The same as a number of pieces: whoever sends tiny ones must not fill the memory with notes of them.
const NOTES: usize = 4096;
/// How much is zeroed at a time, in bytes: between two steps a write can be cancelled.
const ZERO_STEP: u64 = 16 << 20;
/// Writes in flight.
const WRITERS: usize = 2;
/// Pieces that wait for a writer.
const WAITING: usize = 4;

/// Why filling a slot stopped.
pub(super) enum Halt {
    /// Another thread failed; its error says why.
    Stopped,
    /// This error.
    Because(WriteError),
}

impl Halt {
    /// This one, or the other if it says more.
    pub(super) fn or_better(self, other: Self) -> Self {
        if other.telling() > self.telling() { other } else { self }
    }

    /// How much it says: once something failed everything else is stopped, and ends with errors that
    /// only say so.
    fn telling(&self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Because(error) => telling(error),
        }
    }
}

fn telling(error: &WriteError) -> u8 {
    match error {
        WriteError::Cancelled => 1,
        WriteError::Source { .. } => 2,
        _ => 3,
    }
}

impl From<WriteError> for Halt {
    fn from(error: WriteError) -> Self {
        Self::Because(error)
    }
}

enum Job {
    Data(u64, Buffer),
    Zeroes(u64, u64),
}

/// Takes the pieces of an image, from one thread or several.
pub(super) struct SlotWriter<'a> {
    shared: &'a Shared<'a>,
    jobs: Sender<Job>,
}

/// Lets `fill` put an image into a slot, and returns once all of it but the head is on the medium
/// and was read back.
///
/// Nothing is touched before the first piece comes. Then the head is zeroed, durably, before
/// anything else changes: from there on nothing can boot the slot. `stop` is cancelled when the disk
/// fails, so that nobody waits for more of the image.
pub(super) fn write_slot<T>(
    target: &dyn BlockTarget,
    progress: &Progress,
    stop: &Cancel,
    fill: impl FnOnce(&SlotWriter<'_>) -> Result<T, Halt>,
) -> Result<(T, Head), WriteError> {
    let shared = Shared {
        target,
        progress,
        stop,
        begun: Mutex::new(false),
        head: Mutex::new(Head::default()),
        placed: AtomicU64::new(0),
        data: Mutex::default(),
        zeroes: Mutex::new(Economy::of_zeroes()),
        stopped: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let filled = thread::scope(|scope| {
        let (jobs, waiting) = bounded(WAITING);
        let (notes, written) = bounded(NOTES);
        let shared = &shared;
        for _ in 0..WRITERS {
            let (waiting, notes) = (waiting.clone(), notes.clone());
            scope.spawn(move || shared.write(&waiting, &notes));
        }
        drop((waiting, notes));
        scope.spawn(move || shared.read_back(&written));
        let writer = SlotWriter { shared, jobs };
        let filled = fill(&writer);
        // Before the writers are let go: there is no use in a last flush then.
        if filled.is_err() {
            shared.stopped.store(true, Ordering::Relaxed);
        }
        drop(writer);
        filled
    });
    let failure = shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut head = shared.head.into_inner().unwrap_or_else(PoisonError::into_inner);
    head.placed = shared.placed.into_inner();
    match (filled, failure) {
        (Ok(filled), None) => Ok((filled, head)),
        // A disk that failed is told before what followed from it.
        (Err(Halt::Because(error)), Some(failure)) if telling(&error) > telling(&failure) => Err(error),
        (_, Some(error)) | (Err(Halt::Because(error)), None) => Err(error),
        (Err(Halt::Stopped), None) => Err(WriteError::Cancelled),
    }
}

impl SlotWriter<'_> {
    /// Puts a piece at `offset`. Waits while too many are in flight.
    pub(super) fn put(&self, offset: u64, piece: Buffer) -> Result<(), Halt> {
        self.begin()?;
        self.jobs.send(Job::Data(offset, piece)).map_err(|_| Halt::Stopped)
    }

    /// The same for zeroes, of any length.
    pub(super) fn put_zeroes(&self, offset: u64, length: u64) -> Result<(), Halt> {
        self.begin()?;
        self.jobs.send(Job::Zeroes(offset, length)).map_err(|_| Halt::Stopped)
    }

    /// Takes note that so many bytes of the image were found in their places, and stay.
    pub(super) fn keep(&self, length: u64) {
        self.shared.placed.fetch_add(length, Ordering::Relaxed);
    }

    /// Nothing more of the image need come.
    pub(super) fn stop(&self) {
        self.shared.stop.cancel();
    }

    fn begin(&self) -> Result<(), Halt> {
        if self.shared.stop.is_cancelled() {
            return Err(WriteError::Cancelled.into());
        }
        if self.shared.is_stopped() {
            return Err(Halt::Stopped);
        }
        let mut begun = lock(&self.shared.begun);
        if !*begun {
            self.shared.invalidate().map_err(|source| {
                self.shared.disk_failed(source);
                Halt::Stopped
            })?;
            *begun = true;
        }
        Ok(())
    }
}

struct Shared<'a> {
    target: &'a dyn BlockTarget,
    progress: &'a Progress,
    /// Cancelled from above, and by whatever fails here.
    stop: &'a Cancel,
    begun: Mutex<bool>,
    head: Mutex<Head>,
    /// How much of the image is in its place, in bytes.
    placed: AtomicU64,
    data: Mutex<Economy>,
    zeroes: Mutex<Economy>,
    /// Nothing more is written or read.
    stopped: AtomicBool,
    /// The first error of a writer or of the read-back.
    failure: Mutex<Option<WriteError>>,
}

impl Shared<'_> {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Nothing more need be done.
    fn is_over(&self) -> bool {
        self.is_stopped() || self.stop.is_cancelled()
    }

    fn fail(&self, error: WriteError) {
        self.stopped.store(true, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(error);
        // After that, so that whoever is stopped by it finds the reason there.
        self.stop.cancel();
    }

    fn disk_failed(&self, source: DiskError) {
        self.fail(WriteError::Disk { written: self.progress.snapshot().bytes_written, source });
    }

    fn invalidate(&self) -> Result<(), DiskError> {
        let head = self.target.size().min(HEAD as u64);
        self.target.zero(0, head)?;
        self.target.flush()
    }

    /// One of the writers. After a failure it only gives the buffers back.
    fn write(&self, jobs: &Receiver<Job>, notes: &Sender<Written>) {
        let mut hand = Hand { shared: self, notes, scratch: AlignedBuf::zeroed(STEP) };
        for job in jobs {
            if self.is_stopped() {
                continue;
            }
            let (length, done) = match job {
                Job::Data(offset, piece) => (piece.len() as u64, hand.data(offset, &piece)),
                Job::Zeroes(offset, length) => (length, hand.zeroes(offset, length)),
            };
            match done {
                Ok(()) if !self.is_over() => _ = self.placed.fetch_add(length, Ordering::Relaxed),
                Ok(()) => {}
                Err(error) => self.disk_failed(error),
            }
        }
    }

    /// Reads back what the writers wrote, until they are gone.
    fn read_back(&self, notes: &Receiver<Written>) {
        let mut scratch = AlignedBuf::zeroed(STEP);
        let (mut pending, mut bytes, mut more) = (Vec::new(), 0, true);
        while more {
            match notes.recv() {
                Ok(note) => {
                    bytes += note.length;
                    pending.push(note);
                    if bytes < EPOCH && pending.len() < NOTES {
                        continue;
                    }
                }
                Err(_) => more = false,
            }
            if let Err(error) = self.prove(&mut pending, &mut scratch) {
                self.fail(error);
            }
            pending.clear();
            bytes = 0;
        }
    }

    /// Flushes what was written, and compares the medium with it.
    fn prove(&self, written: &mut [Written], scratch: &mut [u8]) -> Result<(), WriteError> {
        let failed = |source| WriteError::Disk { written: self.progress.snapshot().bytes_written, source };
        if self.is_stopped() {
            return Ok(());
        }
        if self.stop.is_cancelled() {
            return Err(WriteError::Cancelled);
        }
        self.target.flush().map_err(failed)?;
        written.sort_unstable_by_key(|note| note.offset);
        for note in written {
            if self.is_stopped() {
                return Ok(());
            }
            if self.stop.is_cancelled() {
                return Err(WriteError::Cancelled);
            }
            match note.compare(self.target, scratch).map_err(failed)? {
                Comparison::Same => self.progress.add_verified(note.length),
                Comparison::Differs => {
                    let device = self.target.description().to_owned();
                    return Err(WriteError::ReadBack { device, offset: note.offset, length: note.length });
                }
            }
        }
        Ok(())
    }
}

/// What a writer works with.
struct Hand<'a> {
    shared: &'a Shared<'a>,
    notes: &'a Sender<Written>,
    scratch: AlignedBuf,
}

impl Hand<'_> {
    fn data(&mut self, offset: u64, piece: &[u8]) -> Result<(), DiskError> {
        let kept = usize::try_from(offset).map_or(0, |offset| HEAD.saturating_sub(offset));
        let (head, body) = piece.split_at(kept.min(piece.len()));
        if !head.is_empty() {
            let at = usize::try_from(offset).unwrap_or(HEAD);
            lock(&self.shared.head).take(at, head);
            self.shared.progress.add_written(head.len() as u64);
        }
        let mut at = offset + head.len() as u64;
        for run in runs(body) {
            match run {
                Run::Zero(length) => self.zeroes(at, length as u64)?,
                Run::Data(bytes) => self.bytes(at, bytes)?,
            }
            at += run.len() as u64;
        }
        Ok(())
    }

    fn bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        for (step, part) in (offset..).step_by(STEP).zip(bytes.chunks(STEP)) {
            let choice = lock(&self.shared.data).choose();
            self.place(&self.shared.data, choice, step, Run::Data(part))?;
        }
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        // The head is zero already, and stays in memory as it began.
        let kept = (HEAD as u64).saturating_sub(offset).min(length);
        lock(&self.shared.head).take_zeroes(kept);
        self.shared.progress.add_written(kept);
        let (mut offset, mut left) = (offset + kept, length - kept);
        while left > 0 && !self.shared.is_over() {
            let choice = lock(&self.shared.zeroes).choose();
            let step = left.min(if choice == Choice::Write { ZERO_STEP } else { STEP as u64 });
            let run = Run::Zero(usize::try_from(step).unwrap_or(STEP));
            self.place(&self.shared.zeroes, choice, offset, run)?;
            offset += run.len() as u64;
            left -= run.len() as u64;
        }
        Ok(())
    }

    fn place(
        &mut self,
        economy: &Mutex<Economy>,
        choice: Choice,
        offset: u64,
        run: Run<'_>,
    ) -> Result<(), DiskError> {
        let probed = run.start(UNIT);
        let wrong = match choice {
            Choice::Compare => self.differences(economy, offset, run)?,
            Choice::Probe if self.differences(economy, offset, probed)?.is_empty() => {
                self.differences(economy, offset, run)?
            }
            Choice::Probe | Choice::Write | Choice::Try => std::iter::once(0..run.len()).collect(),
        };
        let mut written = 0;
        for range in wrong {
            written += range.len();
            self.put(economy, offset + range.start as u64, run.part(range))?;
        }
        if choice == Choice::Try {
            self.time_proof(economy, offset, run)?;
        }
        self.shared.progress.add_written(written as u64);
        let reused = (run.len() - written) as u64;
        self.shared.progress.add_reused(reused);
        // It was read from the medium, and was right.
        self.shared.progress.add_verified(reused);
        Ok(())
    }

    /// Where the medium differs from `run`, in whole blocks, neighbours joined.
    fn differences(
        &mut self,
        economy: &Mutex<Economy>,
        offset: u64,
        run: Run<'_>,
    ) -> Result<Vec<Range<usize>>, DiskError> {
        let began = Instant::now();
        let Some(found) = self.scratch.get_mut(..run.len()) else {
            return Ok(std::iter::once(0..run.len()).collect());
        };
        match self.shared.target.read_at(offset, found) {
            Ok(()) => {}
            // A sector that cannot be read is one that a write may mend.
            Err(DiskError::Io { .. }) => return Ok(std::iter::once(0..run.len()).collect()),
            Err(error) => return Err(error),
        }
        let took = began.elapsed();
        let mut wrong: Vec<Range<usize>> = Vec::new();
        let mut right = 0;
        for (start, block) in (0..).step_by(BLOCK).zip(found.chunks(BLOCK)) {
            let end = start + block.len();
            if run.holds(start, block) {
                right += block.len();
                continue;
            }
            match wrong.last_mut() {
                // Two small writes cost more than one that rewrites what lies between.
                Some(last) if start - last.end <= UNIT => last.end = end,
                _ => wrong.push(start..end),
            }
        }
        let mut economy = lock(economy);
        economy.was_read(run.len(), took);
        economy.was_seen(right, run.len());
        Ok(wrong)
    }

    /// Reads what was just written, only to see how long a read-back takes.
    fn time_proof(&mut self, economy: &Mutex<Economy>, offset: u64, run: Run<'_>) -> Result<(), DiskError> {
        let Some(found) = self.scratch.get_mut(..run.len()) else { return Ok(()) };
        let began = Instant::now();
        self.shared.target.read_at(offset, found)?;
        lock(economy).was_proven(run.len(), began.elapsed());
        Ok(())
    }

    fn put(&self, economy: &Mutex<Economy>, offset: u64, run: Run<'_>) -> Result<(), DiskError> {
        let began = Instant::now();
        let note = match run {
            Run::Zero(length) => {
                self.shared.target.zero(offset, length as u64)?;
                Written::zeroes(offset, length as u64)
            }
            Run::Data(bytes) => {
                self.shared.target.write_at(offset, bytes)?;
                Written::data(offset, bytes)
            }
        };
        lock(economy).was_written(run.len(), began.elapsed());
        // The read-back outlives the writers.
        let _ = self.notes.send(note);
        Ok(())
    }
}

/// A thread that panics takes the write with it; what it left behind a lock is not used.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "slot_writer_tests.rs"]
mod tests;

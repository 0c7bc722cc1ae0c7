//! A slot written by an index: from what the node has, and from what it fetches.

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::delta::Delta;
use super::error::ImageError;
use super::fetch::{Download, Outlet, Taken};
use super::fetch_error::FetchError;
use super::fetch_frames::{Fetched, NoFrames, Said, WAITING_FRAMES, fetch_frames};
use super::head::Head;
use super::index::{BLOCK, Index, IndexError, MAX_INDEX_BYTES};
use super::kept::KeptIndexes;
use super::pool::Pool;
use super::progress::{Cancel, Progress};
use super::slot_writer::write_slot;
use super::source::{blocking, stopping};
use super::take_frames::take_frames;
use super::transfer::Session;
use super::write::{BodyWritten, Expected};
use super::write_error::WriteError;
use crate::digest::Sha256Digest;
use crate::disk::{ALIGNMENT, InactiveSlot, ReadOnlySlot};

/// How many bytes of frames are in memory at a time.
const POOLED: usize = 8 << 20;

/// An artifact with a block index.
#[derive(Debug)]
#[non_exhaustive]
pub struct Indexed {
    /// The artifact.
    pub artifact: Download,
    /// Its index.
    pub index: Download,
    /// The sha256 of the index. Whoever vouches for it vouches for the image.
    pub checksum: Sha256Digest,
    /// Slots whose blocks are used again, the likeliest first: the booted one, and the one that is
    /// written. What is in them is trusted for nothing; every frame is checked.
    pub reuse: Vec<ReadOnlySlot>,
    /// Where indexes of what the slots hold are kept from one upgrade to the next, if anywhere.
    pub kept: Option<KeptIndexes>,
}

/// How an image came into a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// The whole artifact was read; it has no index, or none was given.
    Whole,
    /// The whole artifact was read although there is an index.
    WholeInstead {
        /// Why the index could not be used.
        reason: String,
    },
    /// By the index.
    Indexed,
}

/// Why an index was of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the index cannot be downloaded")]
    Download(#[from] FetchError),
    #[error("the index's checksum is {found}, but {expected} was ordered")]
    Checksum { expected: Sha256Digest, found: Sha256Digest },
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A body that is written, or what is left to try.
pub(super) enum Attempt {
    Written(BodyWritten),
    /// The artifact must be read whole, into the slot that is given back.
    Whole(InactiveSlot, String),
}

/// Collects a small file.
struct Collected<'a> {
    into: &'a mut Vec<u8>,
}

impl Outlet for Collected<'_> {
    async fn take(&mut self, bytes: Bytes) -> std::ops::ControlFlow<()> {
        if (self.into.len() + bytes.len()) as u64 > MAX_INDEX_BYTES {
            return std::ops::ControlFlow::Break(());
        }
        self.into.extend_from_slice(&bytes);
        std::ops::ControlFlow::Continue(())
    }
}

impl Indexed {
    /// An artifact and its index, with nothing to use again.
    #[must_use]
    pub fn new(artifact: Download, index: Download, checksum: Sha256Digest) -> Self {
        Self { artifact, index, checksum, reuse: Vec::new(), kept: None }
    }

    /// Takes blocks from these slots; see [`reuse`](Self::reuse).
    #[must_use]
    pub fn with_reuse(self, reuse: Vec<ReadOnlySlot>) -> Self {
        Self { reuse, ..self }
    }

    /// Keeps indexes there; see [`kept`](Self::kept).
    #[must_use]
    pub fn with_kept(self, kept: KeptIndexes) -> Self {
        Self { kept: Some(kept), ..self }
    }

    pub(super) async fn write(
        self,
        session: &Session,
        slot: InactiveSlot,
        expected: Expected,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Attempt, ImageError> {
        let index = match self.fetch_index(session, &expected, progress, cancel).await {
            Ok(index) => Arc::new(index),
            Err(Unusable::Download(FetchError::Cancelled)) => return Err(FetchError::Cancelled.into()),
            Err(error) => {
                progress.begin_whole();
                return Ok(Attempt::Whole(slot, crate::causes::chain(&error)));
            }
        };
        slot.require_room(index.image_length()).map_err(WriteError::TooLarge)?;
        progress.set_image(index.image_length());
        let (say, said) = mpsc::unbounded_channel();
        let (frames, fetched) = mpsc::channel(WAITING_FRAMES);
        // Whatever fails at one end stops the other at once, however long a server stays silent.
        let stop = cancel.below();
        // Also if nobody awaits this any more.
        let _stopped = StopOnDrop(stop.clone());
        let writer = {
            let (index, progress, stop) = (Arc::clone(&index), progress.clone(), stop.clone());
            let have = Have { sources: self.reuse, kept: self.kept };
            blocking(move || {
                let body = write_by_index(&index, &slot, &have, &say, fetched, &progress, &stop);
                if let (Ok(_), Some(kept)) = (&body, &have.kept) {
                    // A hint that is lost costs the next upgrade a look, and nothing now.
                    let _ = kept.keep(slot.slot(), &index);
                }
                (slot, body)
            })
        };
        let writer = stopping(&stop, writer, |(_, body)| body.is_err());
        let download = fetch_frames(session, &index, said, frames, progress, &stop);
        // Both are awaited whatever happens: when this returns, no thread holds the slot any more.
        let (fetched, (slot, written)) = tokio::join!(download, writer);
        match (fetched, written) {
            (_, Ok(head)) => {
                let (image, length) = (index.image(), index.image_length());
                Ok(Attempt::Written(BodyWritten::new(slot, head, image, length, Delivery::Indexed)))
            }
            // The writer only noticed that the download broke off.
            (Err(NoFrames::Fetch(error)), Err(WriteError::Source { .. })) => {
                if !matches!(error, FetchError::NoRanges { .. }) {
                    return Err(error.into());
                }
                progress.begin_again();
                Ok(Attempt::Whole(slot, error.to_string()))
            }
            (Err(NoFrames::Wrong(frame)), Err(WriteError::Source { .. })) => {
                let offset = index.frame(frame).map_or(0, |frame| frame.artifact.start);
                Err(WriteError::OtherFrame { frame, offset }.into())
            }
            (_, Err(error)) => Err(error.into()),
        }
    }

    async fn fetch_index(
        &self,
        session: &Session,
        expected: &Expected,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Index, Unusable> {
        let mut raw = Vec::new();
        let taken = session.index(Collected { into: &mut raw }, cancel).await?;
        if taken == Taken::Abandoned {
            return Err(IndexError::TooLarge { length: raw.len() as u64 + 1 }.into());
        }
        progress.add_total(raw.len() as u64);
        progress.add_done(raw.len() as u64);
        let (expected_digest, found) = (self.checksum, Sha256Digest::of(&raw));
        if found != expected_digest {
            return Err(Unusable::Checksum { expected: expected_digest, found });
        }
        let index = Index::parse(raw)?;
        index.require(expected)?;
        Ok(index)
    }
}

/// Cancels when it goes.
struct StopOnDrop(Cancel);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What the node has.
struct Have {
    sources: Vec<ReadOnlySlot>,
    kept: Option<KeptIndexes>,
}

fn write_by_index(
    index: &Index,
    slot: &InactiveSlot,
    have: &Have,
    say: &mpsc::UnboundedSender<Said>,
    fetched: mpsc::Receiver<Fetched>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Head, WriteError> {
    let (target, kept) = (&**slot.target(), have.kept.as_ref());
    // A small frame must not make for more buffers than memory.
    let frame_size = index.frame_size().max(BLOCK);
    let pool = Pool::new((POOLED / (frame_size + ALIGNMENT)).max(6), frame_size);
    let ((), head) = write_slot(target, progress, cancel, |writer| {
        let (sources, slot, pool) = (&have.sources, slot.slot(), &pool);
        let delta = Delta { index, target, slot, sources, kept, writer, pool, progress, cancel };
        thread::scope(|scope| {
            let other = scope.spawn(|| take_frames(&delta, fetched, say));
            // If nobody listens any more, the channel of frames is closed too.
            let put = delta.put_what_is_here(|frames| drop(say.send(Said::Missing(frames))));
            match &put {
                Ok(()) => drop(say.send(Said::Nothing)),
                Err(_) => cancel.cancel(),
            }
            let taken = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (put, taken) {
                (Err(put), Err(taken)) => Err(put.or_better(taken)),
                (put, taken) => put.and(taken),
            }
        })
    })?;
    Ok(head)
}

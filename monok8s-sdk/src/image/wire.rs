//! An artifact's bytes as they are served: counted, capped and hashed.

use std::io::{self, Read};

use sha2::Digest as _;

use super::progress::Progress;
use super::write_error::WriteError;
use crate::digest::Sha256Digest;

/// How much is read from the source at a time, in bytes.
const STEP: usize = 128 * 1024;

/// The artifact, read ahead by one buffer.
pub(super) struct Wire<R> {
    source: R,
    progress: Progress,
    hasher: sha2::Sha256,
    received: u64,
    limit: u64,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    ended: bool,
}

impl<R: Read> Wire<R> {
    /// An artifact of at most what an image for a slot of this size can take.
    pub(super) fn new(source: R, slot_size: u64, progress: Progress) -> Self {
        // zstd stores what it cannot compress with a few bytes more; 1/64 is far above that.
        let limit = slot_size.saturating_add(slot_size / 64).saturating_add(1 << 20);
        let hasher = sha2::Sha256::new();
        Self {
            source,
            progress,
            hasher,
            received: 0,
            limit,
            buf: vec![0; STEP],
            start: 0,
            end: 0,
            ended: false,
        }
    }

    /// How many bytes arrived.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The bytes at hand, at least `length` of them unless the artifact ends before.
    pub(super) fn peek(&mut self, length: usize) -> Result<&[u8], WriteError> {
        if self.end - self.start < length {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < length && !self.ended {
            self.fill()?;
        }
        Ok(self.buf.get(self.start..self.end).unwrap_or_default())
    }

    fn fill(&mut self) -> Result<(), WriteError> {
        let room = self.buf.get_mut(self.end..).unwrap_or_default();
        let read = match self.source.read(room) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(source) => return Err(WriteError::Source { received: self.received, source }),
        };
        self.ended = read == 0;
        self.received += read as u64;
        if self.received > self.limit {
            return Err(WriteError::ArtifactTooLong { limit: self.limit });
        }
        self.hasher.update(room.get(..read).unwrap_or_default());
        self.progress.add_done(read as u64);
        self.end += read;
        Ok(())
    }

    /// Steps over bytes that were peeked at.
    pub(super) fn consume(&mut self, length: usize) {
        self.start = self.end.min(self.start + length);
    }

    /// Appends exactly `length` bytes to `into`.
    pub(super) fn take(&mut self, mut length: usize, into: &mut Vec<u8>) -> Result<(), WriteError> {
        while length > 0 {
            let found = self.peek(1)?;
            let part = found.get(..length.min(found.len())).unwrap_or_default();
            if part.is_empty() {
                return Err(self.truncated());
            }
            into.extend_from_slice(part);
            let taken = part.len();
            length -= taken;
            self.consume(taken);
        }
        Ok(())
    }

    /// Steps over exactly `length` bytes.
    pub(super) fn skip(&mut self, mut length: u64) -> Result<(), WriteError> {
        while length > 0 {
            let found = self.peek(1)?.len();
            if found == 0 {
                return Err(self.truncated());
            }
            let step = usize::try_from(length).unwrap_or(found).min(found);
            self.consume(step);
            length -= step as u64;
        }
        Ok(())
    }

    pub(super) fn truncated(&self) -> WriteError {
        WriteError::Truncated { received: self.received }
    }

    pub(super) fn corrupt(&self, source: io::Error) -> WriteError {
        WriteError::Corrupt { received: self.received, source }
    }

    /// The artifact's length and digest.
    pub(super) fn finish(self) -> (u64, Sha256Digest) {
        (self.received, <[u8; 32]>::from(self.hasher.finalize()).into())
    }
}

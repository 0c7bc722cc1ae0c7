//! An artifact's bytes, counted, capped and hashed on their way into the zstd decoder.

use std::io::{self, BufRead as _, BufReader, Read};

use sha2::Digest as _;

use super::progress::Progress;
use super::write_error::WriteError;
use crate::digest::Sha256Digest;

/// The largest window of a zstd frame, as a power of two: 32 MiB. Enough for `zstd -20`; memory
/// stays under 64 MiB. What `--ultra -21` and `--long` above it make is refused.
pub(super) const WINDOW_LOG_MAX: u32 = 25;

/// The artifact as served: counted, capped and hashed.
struct Wire<R> {
    source: R,
    progress: Progress,
    hasher: sha2::Sha256,
    received: u64,
    limit: u64,
    /// The reason why reading failed; the decoder passes on only that it did.
    fault: Option<WriteError>,
}

impl<R: Read> Read for Wire<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match self.source.read(buf) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(source) => {
                self.fault = Some(WriteError::Source { received: self.received, source });
                return Err(io::ErrorKind::Other.into());
            }
        };
        self.received += read as u64;
        if self.received > self.limit {
            self.fault = Some(WriteError::ArtifactTooLong { limit: self.limit });
            return Err(io::ErrorKind::Other.into());
        }
        self.hasher.update(buf.get(..read).unwrap_or_default());
        self.progress.add_done(read as u64);
        Ok(read)
    }
}

type Wired<R> = io::Chain<io::Cursor<Vec<u8>>, BufReader<Wire<R>>>;

pub(super) struct Decoder<R> {
    start: Vec<u8>,
    wire: BufReader<Wire<R>>,
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(source: R, slot_size: u64, progress: Progress) -> Self {
        // zstd stores what it cannot compress with a few bytes more; 1/64 is far above that.
        let limit = slot_size.saturating_add(slot_size / 64).saturating_add(1 << 20);
        let hasher = sha2::Sha256::new();
        let wire = Wire { source, progress, hasher, received: 0, limit, fault: None };
        Self { start: Vec::new(), wire: BufReader::with_capacity(128 * 1024, wire) }
    }

    /// Reads the first four bytes: what is not zstd deserves a better answer than the decoder's.
    pub(super) fn check_magic(&mut self) -> Result<(), WriteError> {
        while self.start.len() < 4 {
            let taken = match self.wire.fill_buf() {
                Ok(buf) => buf.first().copied(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(explain(self.wire.get_mut(), error)),
            };
            let Some(byte) = taken else {
                return Err(WriteError::Truncated { received: self.start.len() as u64 });
            };
            self.wire.consume(1);
            self.start.push(byte);
        }
        match self.start.as_slice() {
            // RFC 8878: a frame, or a skippable frame.
            [0x28, 0xB5, 0x2F, 0xFD] | [0x50..=0x5F, 0x2A, 0x4D, 0x18] => Ok(()),
            _ => Err(WriteError::NotZstd { start: self.start.clone() }),
        }
    }

    pub(super) fn start(self) -> Result<Decoding<R>, WriteError> {
        let input = io::Cursor::new(self.start).chain(self.wire);
        let setup = |source| WriteError::Corrupt { received: 0, source };
        let mut zstd = zstd::stream::read::Decoder::with_buffer(input).map_err(setup)?;
        zstd.window_log_max(WINDOW_LOG_MAX).map_err(setup)?;
        Ok(Decoding { zstd })
    }
}

pub(super) struct Decoding<R: Read> {
    zstd: zstd::stream::read::Decoder<'static, Wired<R>>,
}

impl<R: Read> Decoding<R> {
    /// Fills `buf` with expanded bytes; less only at the end of the artifact.
    pub(super) fn fill(&mut self, buf: &mut [u8]) -> Result<usize, WriteError> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.zstd.read(rest) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(self.zstd.get_mut().get_mut().1.get_mut(), error)),
            }
        }
        Ok(filled)
    }

    /// The artifact's length and digest.
    pub(super) fn finish(self) -> (u64, Sha256Digest) {
        let wire = self.zstd.finish().into_inner().1.into_inner();
        (wire.received, <[u8; 32]>::from(wire.hasher.finalize()).into())
    }
}

/// What the decoder's error means.
fn explain<R>(wire: &mut Wire<R>, error: io::Error) -> WriteError {
    let received = wire.received;
    if let Some(fault) = wire.fault.take() {
        return fault;
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return WriteError::Truncated { received };
    }
    // The decoder's error codes reach us only as their fixed texts.
    if error.to_string().contains("too much memory") {
        return WriteError::WindowTooLarge;
    }
    WriteError::Corrupt { received, source: error }
}

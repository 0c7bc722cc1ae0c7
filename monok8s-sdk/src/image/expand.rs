//! From an artifact's frames to the image's pieces.
//!
//! A frame that says how much it holds and fits into one piece is expanded on a thread of its own
//! choosing, beside others. Any other frame, such as the only one of a stock `.zst`, is expanded
//! here, piece by piece. Every piece has a number, by which they are put into order again.

use std::io;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use zstd::bulk::Decompressor;
use zstd::stream::raw::{InBuffer, Operation as _, OutBuffer};

use super::frame::{self, BLOCK_HEADER, FrameHeader, LONGEST_HEADER, Start};
use super::pool::{Buffer, Pool};
use super::slot_writer::Halt;
use super::wire::Wire;
use super::write_error::WriteError;

/// The largest window of a zstd frame, as a power of two: 32 MiB. Enough for `zstd -20`; memory
/// stays under 64 MiB. What `--ultra -21` and `--long` above it make is refused.
pub(super) const WINDOW_LOG_MAX: u32 = 25;
/// The largest piece, in bytes.
pub(super) const PIECE: usize = 1 << 20;

/// A piece of the image, and its place among the others.
pub(super) type Numbered = (u64, Result<Buffer, WriteError>);

/// A frame to expand into a buffer that was set aside for it.
pub(super) struct Frame {
    number: u64,
    compressed: Vec<u8>,
    /// As long as the frame says that its content is.
    into: Buffer,
    received: u64,
}

/// Where [`feed`] sends what it finds.
pub(super) struct Outlets<'a> {
    pub(super) pool: &'a Pool,
    pub(super) frames: Sender<Frame>,
    pub(super) pieces: Sender<Numbered>,
    /// Vectors that frames were in, to be filled again.
    pub(super) spare: Receiver<Vec<u8>>,
    /// Nobody wants any more pieces.
    pub(super) stopped: &'a AtomicBool,
}

/// Goes through an artifact, frame by frame, until its end.
pub(super) fn feed<R: Read>(wire: &mut Wire<R>, outlets: &Outlets<'_>) -> Result<(), Halt> {
    let mut feeder = Feeder { wire, outlets, number: 0, decoder: None };
    let start = feeder.wire.peek(4)?;
    match frame::start(start.get(..LONGEST_HEADER.min(start.len())).unwrap_or_default()) {
        // What is not zstd at all deserves a better answer than a damaged frame.
        Start::Foreign => {
            let start = start.get(..4).unwrap_or_default().to_vec();
            return Err(WriteError::NotZstd { start }.into());
        }
        _ => while feeder.next()? {},
    }
    Ok(())
}

struct Feeder<'a, R> {
    wire: &'a mut Wire<R>,
    outlets: &'a Outlets<'a>,
    number: u64,
    decoder: Option<zstd::stream::raw::Decoder<'static>>,
}

impl<R: Read> Feeder<'_, R> {
    /// Takes in the next frame; `false` at the end of the artifact.
    fn next(&mut self) -> Result<bool, Halt> {
        let found = self.wire.peek(LONGEST_HEADER)?;
        if found.is_empty() {
            return Ok(false);
        }
        match frame::start(found.get(..LONGEST_HEADER.min(found.len())).unwrap_or_default()) {
            Start::Skippable(length) => self.wire.skip(length)?,
            Start::Frame(FrameHeader { dictionary: 1.., .. }) => return Err(WriteError::Dictionary.into()),
            Start::Frame(header) => match header.content.map(usize::try_from) {
                // A frame without content still has to be one, so it is expanded as well.
                Some(Ok(content)) if content <= PIECE => self.dispatch(header, content)?,
                _ => self.expand()?,
            },
            Start::Foreign => {
                return Err(self
                    .wire
                    .corrupt(invalid("a frame is followed by something that is none"))
                    .into());
            }
            Start::Short => return Err(self.wire.truncated().into()),
        }
        Ok(true)
    }

    /// Collects a small frame, and leaves it to the expanding threads.
    fn dispatch(&mut self, header: FrameHeader, content: usize) -> Result<(), Halt> {
        let mut compressed = self.outlets.spare.try_recv().unwrap_or_default();
        compressed.clear();
        let wire = &mut *self.wire;
        take_frame(wire, header, content, &mut compressed)?;
        let received = wire.received();
        let mut into = self.buffer()?;
        into.truncate(content);
        let frame = Frame { number: self.number, compressed, into, received };
        self.number += 1;
        self.outlets.frames.send(frame).map_err(|_| Halt::Stopped)
    }

    /// A buffer for the next piece, while pieces are wanted.
    fn buffer(&self) -> Result<Buffer, Halt> {
        if self.outlets.stopped.load(Ordering::Relaxed) {
            return Err(Halt::Stopped);
        }
        Ok(self.outlets.pool.take())
    }

    /// Expands one frame of any size, here.
    fn expand(&mut self) -> Result<(), Halt> {
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => decoder().map_err(|source| self.wire.corrupt(source))?,
        };
        loop {
            let mut piece = self.buffer()?;
            let (filled, ended) = self.fill(&mut decoder, &mut piece)?;
            piece.truncate(filled);
            if filled > 0 {
                let numbered = (self.number, Ok(piece));
                self.number += 1;
                self.outlets.pieces.send(numbered).map_err(|_| Halt::Stopped)?;
            }
            if ended {
                decoder.reinit().map_err(|source| self.wire.corrupt(source))?;
                self.decoder = Some(decoder);
                return Ok(());
            }
        }
    }

    /// Fills a piece; returns how far, and whether the frame ended.
    fn fill(
        &mut self,
        decoder: &mut zstd::stream::raw::Decoder<'static>,
        piece: &mut [u8],
    ) -> Result<(usize, bool), Halt> {
        let mut output = OutBuffer::around(piece);
        loop {
            let found = self.wire.peek(1)?;
            let at_end = found.is_empty();
            let mut input = InBuffer::around(found);
            let before = output.pos();
            let ran = decoder.run(&mut input, &mut output);
            let consumed = input.pos();
            let left = ran.map_err(|error| self.explain(error))?;
            self.wire.consume(consumed);
            if left == 0 {
                return Ok((output.pos(), true));
            }
            if output.pos() == output.capacity() {
                return Ok((output.pos(), false));
            }
            if at_end && output.pos() == before {
                return Err(self.wire.truncated().into());
            }
        }
    }

    fn explain(&self, error: io::Error) -> WriteError {
        // The decoder's error codes reach us only as their fixed texts.
        if error.to_string().contains("too much memory") {
            return WriteError::WindowTooLarge;
        }
        self.wire.corrupt(error)
    }
}

/// Appends a frame of at most `content` bytes to `into`, as it is in the artifact.
pub(super) fn take_frame<R: Read>(
    wire: &mut Wire<R>,
    header: FrameHeader,
    content: usize,
    into: &mut Vec<u8>,
) -> Result<(), WriteError> {
    wire.take(header.length, into)?;
    // What cannot be compressed is stored, with a few bytes a block more.
    let limit = header.length + content + content / 64 + 1024;
    loop {
        let block = next_block(wire)?;
        if into.len() + BLOCK_HEADER + block.length > limit {
            return Err(wire.corrupt(invalid("a frame is longer than its content can make it")));
        }
        wire.take(BLOCK_HEADER + block.length, into)?;
        if block.last {
            return wire.take(header.trailer, into);
        }
    }
}

/// The header of the next block, which is not stepped over.
pub(super) fn next_block<R: Read>(wire: &mut Wire<R>) -> Result<frame::Block, WriteError> {
    match wire.peek(BLOCK_HEADER)?.first_chunk().map(|header| frame::block(*header)) {
        Some(Some(block)) => Ok(block),
        Some(None) => Err(wire.corrupt(invalid("a block is of a kind that does not exist"))),
        None => Err(wire.truncated()),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn decoder() -> io::Result<zstd::stream::raw::Decoder<'static>> {
    let mut decoder = zstd::stream::raw::Decoder::new()?;
    decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
    Ok(decoder)
}

/// Expands frames until there are no more; one of several threads.
pub(super) fn expand_frames(frames: &Receiver<Frame>, pieces: &Sender<Numbered>, spare: &Sender<Vec<u8>>) {
    let mut decompressor = Decompressor::new();
    for Frame { number, compressed, mut into, received } in frames {
        let expanded = match &mut decompressor {
            Ok(decompressor) => decompressor.decompress_to_buffer(&compressed, &mut into[..]),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        let _ = spare.try_send(compressed);
        let piece = match expanded {
            Ok(length) if length == into.len() => Ok(into),
            Ok(_) => {
                Err(WriteError::Corrupt { received, source: invalid("a frame holds less than it says") })
            }
            Err(source) => Err(WriteError::Corrupt { received, source }),
        };
        if pieces.send((number, piece)).is_err() {
            // Whoever took the pieces stopped, and says why.
            return;
        }
    }
}

//! Making artifacts that nodes can fetch in part: independent frames, a seek table and an index.

use std::io::{self, Read, Write};
use std::thread;

use sha2::Digest as _;
use zstd::bulk::Compressor;

use super::index::{Index, IndexBuilder, IndexError, Whole};
use super::seek_table::{SeekEntry, encode};

/// How an artifact is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// The level of zstd, 1 to 22.
    pub level: i32,
    /// log2 of how much of the image a frame holds, 16 to 20. Small frames mean that less is
    /// fetched around a block that changed; below 18 they compress noticeably worse.
    pub frame_log: u8,
}

impl Default for BuildOptions {
    /// Level 3 in frames of 256 KiB.
    fn default() -> Self {
        Self { level: 3, frame_log: 18 }
    }
}

/// Why an artifact could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The image cannot be read.
    #[error("cannot read the image after {read} bytes")]
    Read {
        /// How many bytes were read before.
        read: u64,
        /// Why.
        source: io::Error,
    },
    /// The artifact cannot be written.
    #[error("cannot write the artifact")]
    Write {
        /// Why.
        source: io::Error,
    },
    /// The encoder refuses.
    #[error("cannot compress at level {level}")]
    Compress {
        /// The level.
        level: i32,
        /// Why.
        source: io::Error,
    },
    /// The frame size is none that nodes take.
    #[error("frames of 2^{frame_log} bytes are not possible: choose 16 to 20")]
    FrameSize {
        /// What was asked for.
        frame_log: u8,
    },
    /// The image has no byte, or more than an index can list.
    #[error("no index can be made for this image")]
    Index(#[from] IndexError),
    /// The image has more frames than a seek table can list.
    #[error("the image is too large for a seek table: use larger frames")]
    TooManyFrames,
}

/// A frame on its way.
#[derive(Default)]
struct Piece {
    content: Vec<u8>,
    compressed: Vec<u8>,
}

/// Compresses `image` into `artifact`, on all processors, and returns the index of it.
///
/// The artifact is plain zstd, in several frames, which `zstd -d` and every node restore bit for
/// bit, with or without the index. Blocks until done.
///
/// ```
/// use monok8s_sdk::image::{BuildOptions, build};
///
/// let image = vec![7; 1_000_000];
/// let mut artifact = Vec::new();
/// let index = build(&mut image.as_slice(), &mut artifact, BuildOptions::default())?;
/// assert_eq!(index.frame_count(), 4);
/// assert_eq!(zstd::decode_all(artifact.as_slice())?, image);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn build(
    image: &mut impl Read,
    artifact: &mut impl Write,
    options: BuildOptions,
) -> Result<Index, BuildError> {
    let BuildOptions { level, frame_log } = options;
    if !(16..=20).contains(&frame_log) {
        return Err(BuildError::FrameSize { frame_log });
    }
    let mut index = IndexBuilder::new(frame_log);
    let mut table = Vec::new();
    let mut written = Hashed { into: artifact, hasher: sha2::Sha256::new(), length: 0 };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut read = 0;
    loop {
        let mut batch = read_batch(image, threads * 4, 1 << frame_log, &mut read)?;
        if batch.is_empty() {
            break;
        }
        compress(&mut batch, threads, level)?;
        for Piece { content, compressed } in &batch {
            written.put(compressed)?;
            // A frame is at most a little longer than its content, 1 MiB.
            let compressed = u32::try_from(compressed.len()).unwrap_or(u32::MAX);
            let expanded = u32::try_from(content.len()).unwrap_or(u32::MAX);
            index.add(content, compressed);
            table.push(SeekEntry { compressed, expanded });
        }
    }
    written.put(&encode(&table).ok_or(BuildError::TooManyFrames)?)?;
    written.into.flush().map_err(|source| BuildError::Write { source })?;
    let digest = <[u8; 32]>::from(written.hasher.finalize()).into();
    Ok(index.finish(Whole { length: written.length, digest })?)
}

struct Hashed<'a, W> {
    into: &'a mut W,
    hasher: sha2::Sha256,
    length: u64,
}

impl<W: Write> Hashed<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.into.write_all(bytes).map_err(|source| BuildError::Write { source })
    }
}

/// The next frames' content; fewer only at the end.
fn read_batch(
    image: &mut impl Read,
    frames: usize,
    frame_size: usize,
    read: &mut u64,
) -> Result<Vec<Piece>, BuildError> {
    let mut batch = Vec::new();
    while batch.len() < frames {
        let mut content = Vec::with_capacity(frame_size);
        image
            .by_ref()
            .take(frame_size as u64)
            .read_to_end(&mut content)
            .map_err(|source| BuildError::Read { read: *read, source })?;
        *read += content.len() as u64;
        if content.is_empty() {
            break;
        }
        let is_last = content.len() < frame_size;
        batch.push(Piece { content, ..Piece::default() });
        if is_last {
            break;
        }
    }
    Ok(batch)
}

fn compress(batch: &mut [Piece], threads: usize, level: i32) -> Result<(), BuildError> {
    let share = batch.len().div_ceil(threads).max(1);
    let done = thread::scope(|scope| {
        let workers: Vec<_> = batch
            .chunks_mut(share)
            .map(|pieces| {
                scope.spawn(move || -> io::Result<()> {
                    let mut compressor = Compressor::new(level)?;
                    for piece in pieces {
                        piece.compressed = compressor.compress(&piece.content)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<io::Result<Vec<()>>>()
    });
    done.map(drop).map_err(|source| BuildError::Compress { level, source })
}

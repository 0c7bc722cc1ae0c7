//! Making artifacts that nodes can fetch in part: independent frames, a seek table and an index.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::thread;

use sha2::Digest as _;
use zstd::bulk::Compressor;

use super::index::{BLOCK, BlockHash, Index, IndexError, Whole, block_hash};
use super::index_builder::IndexBuilder;
use super::seek_table::{SeekEntry, encode};
use crate::disk::is_zero;

/// Known blocks between new ones, in bytes, that are fetched along rather than cut out.
const BRIDGE: usize = 2 * BLOCK;
/// The least level of zstd for what is new.
const NEW_LEVEL: i32 = 19;

/// How an artifact is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// The level of zstd, 1 to 22. What [`build_after`] finds to be new is compressed at 19 at least:
    /// it is little, and every node fetches it.
    pub level: i32,
    /// log2 of how much of the image a frame holds at most, 16 to 20. Small frames mean that less
    /// is fetched around a block that changed; below 18 they compress noticeably worse. Better than
    /// small frames is to say what nodes have: see [`build_after`].
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
struct Piece {
    content: Vec<u8>,
    level: i32,
    compressed: Vec<u8>,
}

impl Piece {
    fn compress(&mut self) -> Result<(), BuildError> {
        let failed = |source| BuildError::Compress { level: self.level, source };
        let mut compressor = Compressor::new(self.level).map_err(failed)?;
        self.compressed = compressor.compress(&self.content).map_err(failed)?;
        Ok(())
    }
}

/// Blocks that nodes are likely to have: those of the images that were released before.
#[derive(Clone, Debug, Default)]
pub struct KnownBlocks(HashSet<BlockHash>);

impl KnownBlocks {
    /// Adds the blocks of an image. Blocks until it is read.
    pub fn add(&mut self, image: &mut impl Read) -> io::Result<()> {
        let mut content = Vec::new();
        loop {
            content.clear();
            image.by_ref().take(1 << 20).read_to_end(&mut content)?;
            if content.is_empty() {
                return Ok(());
            }
            self.0.extend(content.chunks_exact(BLOCK).filter(|block| !is_zero(block)).map(block_hash));
        }
    }
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
    build_after(&KnownBlocks::default(), image, artifact, options)
}

/// Compresses an image for nodes that have `known` blocks: what is new gets frames of its own, so that
/// such a node fetches that and little around it, and these few are compressed as well as can be. Large
/// frames are best then. Any other node does no worse than with [`build`].
pub fn build_after(
    known: &KnownBlocks,
    image: &mut impl Read,
    artifact: &mut impl Write,
    options: BuildOptions,
) -> Result<Index, BuildError> {
    if !(16..=20).contains(&options.frame_log) {
        return Err(BuildError::FrameSize { frame_log: options.frame_log });
    }
    let mut index = IndexBuilder::new();
    let mut table = Vec::new();
    let mut written = Hashed { into: artifact, hasher: sha2::Sha256::new(), length: 0 };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut read = 0;
    loop {
        let mut batch = read_batch(known, image, threads * 4, options, &mut read)?;
        if batch.is_empty() {
            break;
        }
        compress(&mut batch, threads)?;
        for Piece { content, compressed, level: _ } in &batch {
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

/// The next frames' content; none at the end.
fn read_batch(
    known: &KnownBlocks,
    image: &mut impl Read,
    frames: usize,
    options: BuildOptions,
    read: &mut u64,
) -> Result<Vec<Piece>, BuildError> {
    let frame_size = 1 << options.frame_log;
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
        let mut rest = content.as_slice();
        for Cut { length, novelty } in cuts(known, &content) {
            let (part, behind) = rest.split_at(length.min(rest.len()));
            let level = match novelty {
                Novelty::New => options.level.max(NEW_LEVEL),
                Novelty::Old => options.level,
            };
            batch.push(Piece { content: part.to_owned(), level, compressed: Vec::new() });
            rest = behind;
        }
    }
    Ok(batch)
}

/// A frame within some content.
struct Cut {
    length: usize,
    novelty: Novelty,
}

/// Whether nodes are likely to have it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Novelty {
    New,
    Old,
}

/// How `content` is cut into frames: where what is known borders on what is not.
fn cuts(known: &KnownBlocks, content: &[u8]) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = Vec::new();
    for block in content.chunks(BLOCK) {
        // Where nothing is known, nothing is worth a frame of its own.
        let is_old = known.0.is_empty() || is_zero(block) || known.0.contains(&block_hash(block));
        let novelty = if is_old { Novelty::Old } else { Novelty::New };
        match cuts.as_mut_slice() {
            [.., last] if last.novelty == novelty => last.length += block.len(),
            // A short known run between new ones is not worth two more frames.
            [.., before, last] if last.novelty == Novelty::Old && last.length <= BRIDGE => {
                before.length += last.length + block.len();
                cuts.pop();
            }
            _ => cuts.push(Cut { length: block.len(), novelty }),
        }
    }
    cuts
}

fn compress(batch: &mut [Piece], threads: usize) -> Result<(), BuildError> {
    let share = batch.len().div_ceil(threads).max(1);
    let done = thread::scope(|scope| {
        let workers: Vec<_> = batch
            .chunks_mut(share)
            .map(|pieces| scope.spawn(move || pieces.iter_mut().try_for_each(Piece::compress)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<()>, BuildError>>()
    });
    done.map(drop)
}

//! Artifacts and indexes as files, for those who publish them: what they are, whether they fit each
//! other, and the index of an artifact that exists.

use std::io::{self, Read, Seek, SeekFrom};

use zstd::bulk::Decompressor;

use super::expand::{PIECE, next_block, take_frame};
use super::frame::{self, BLOCK_HEADER, FrameHeader, LONGEST_HEADER, Start};
use super::index::{BLOCK, Index, IndexError, Whole};
use super::index_builder::IndexBuilder;
use super::progress::Progress;
use super::seek_table::{self, SeekEntry, SeekTableError, parse_seek_table};
use super::wire::Wire;
use super::write_error::WriteError;
use crate::digest::Sha256Digest;

/// What is wrong with an artifact, or with its index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExamineError {
    /// The artifact cannot be read, or is no whole zstd file.
    #[error(transparent)]
    Artifact(#[from] WriteError),
    /// No index of it is possible.
    #[error(
        "the artifact cannot have an index: {what}. An index needs frames of whole 4 KiB blocks, at most 1 MiB each, one after the other; `ctl image build` makes them"
    )]
    NoIndexPossible {
        /// What it lacks.
        what: String,
    },
    /// The index that came out of it is none.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The index is of a longer or shorter artifact.
    #[error(
        "the artifact has {found} bytes, but its index is of one with {expected}: they belong to different builds"
    )]
    Length {
        /// What the index says, in bytes.
        expected: u64,
        /// What the artifact has, in bytes.
        found: u64,
    },
    /// A frame is not what the index says.
    #[error("frame {number} (at byte {offset} of the artifact) is not what the index says: {what}")]
    Frame {
        /// The frame's number, from 0.
        number: usize,
        /// Where it begins in the artifact.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// There is no readable seek table behind the frames.
    #[error("behind the last frame, at byte {offset} of the artifact, should be its seek table")]
    SeekTable {
        /// Where it should begin.
        offset: u64,
        /// Why it cannot be read.
        source: SeekTableError,
    },
    /// The seek table lists something else than the frames that are there.
    #[error("the seek table is not that of this artifact, from its entry {entry} on")]
    OtherSeekTable {
        /// The first entry that differs, from 0.
        entry: usize,
    },
    /// A digest in the index is wrong.
    #[error("the {what} has the digest {found}, but the index says {expected}: build both again")]
    Digest {
        /// Artifact or image.
        what: &'static str,
        /// What the index says.
        expected: Sha256Digest,
        /// What was computed.
        found: Sha256Digest,
    },
    /// The index lists wrong blocks.
    #[error("the index lists other blocks than the image has: build it again")]
    OtherBlocks,
}

/// What an artifact is, by its outline alone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outline {
    /// Its length in bytes.
    pub length: u64,
    /// Its sha256.
    pub digest: Sha256Digest,
    /// How many frames of data it has.
    pub frames: usize,
    /// What they expand to, in bytes, if all of them say so.
    pub expanded: Option<u64>,
    /// What the largest of them expands to, in bytes, if it says so.
    pub largest_frame: Option<u64>,
    /// How many frames the seek table lists, if there is one.
    pub seek_table: Option<usize>,
}

/// How much of the end of an artifact is looked at for a seek table.
const TAIL: u64 = 16 << 20;

/// Looks at an artifact's frames, and expands none.
pub fn outline(artifact: &mut (impl Read + Seek)) -> Result<Outline, ExamineError> {
    let length = length_of(artifact)?;
    let mut wire = Wire::new(&mut *artifact, u64::MAX, Progress::default());
    let (mut frames, mut expanded, mut largest) = (0, Some(0_u64), Some(0_u64));
    while let Some(header) = next_frame(&mut wire)? {
        let Found::Frame(header) = header else { continue };
        skip_frame(&mut wire, header)?;
        frames += 1;
        expanded = expanded.zip(header.content).and_then(|(sum, content)| sum.checked_add(content));
        largest = largest.zip(header.content).map(|(largest, content)| largest.max(content));
    }
    let (_, digest) = wire.finish();
    let table = parse_seek_table(&tail(artifact, length.saturating_sub(TAIL))?);
    let seek_table = table.ok().map(|entries| entries.len());
    Ok(Outline { length, digest, frames, expanded, largest_frame: largest, seek_table })
}

/// Makes the index of an artifact, if its frames allow one.
pub fn index_artifact(artifact: &mut impl Read) -> Result<Index, ExamineError> {
    let impossible = |what| ExamineError::NoIndexPossible { what };
    let mut wire = Wire::new(artifact, u64::MAX, Progress::default());
    let mut decompressor = Decompressor::new().map_err(|error| wire.corrupt(error))?;
    let (mut packed, mut content) = (Vec::new(), vec![0; PIECE]);
    let mut builder = IndexBuilder::new();
    let (mut number, mut last, mut between) = (0_u64, 0, false);
    while let Some(found) = next_frame(&mut wire)? {
        let Found::Frame(header) = found else {
            between = true;
            continue;
        };
        let Some(length) = header.content.filter(|length| *length > 0) else {
            return Err(impossible(format!("frame {number} does not say how much it holds")));
        };
        if length > PIECE as u64 {
            return Err(impossible(format!("frame {number} holds {length} bytes")));
        }
        if last % BLOCK as u64 != 0 {
            return Err(impossible(format!("the frame before frame {number} holds {last} bytes")));
        }
        if between {
            return Err(impossible(format!("something else stands before frame {number}")));
        }
        packed.clear();
        let into =
            usize::try_from(length).ok().and_then(|length| content.get_mut(..length)).unwrap_or_default();
        take_frame(&mut wire, header, into.len(), &mut packed)?;
        let expanded =
            decompressor.decompress_to_buffer(&packed, into).map_err(|error| wire.corrupt(error))?;
        if expanded != into.len() {
            return Err(wire.corrupt(io::ErrorKind::InvalidData.into()).into());
        }
        builder.add(into, u32::try_from(packed.len()).unwrap_or(u32::MAX));
        last = length;
        number += 1;
    }
    if number == 0 {
        return Err(impossible("it has no frame".to_owned()));
    }
    let (length, digest) = wire.finish();
    Ok(builder.finish(Whole { length, digest })?)
}

/// Checks all of an artifact against its index: lengths, each frame, the seek table, and the
/// digests of artifact, image and blocks. The error is about the first thing that is wrong.
pub fn verify_artifact(artifact: &mut (impl Read + Seek), index: &Index) -> Result<(), ExamineError> {
    let found = length_of(artifact)?;
    if found != index.artifact_length() {
        return Err(ExamineError::Length { expected: index.artifact_length(), found });
    }
    let mut wire = Wire::new(artifact, u64::MAX, Progress::default());
    let mut decompressor = Decompressor::new().map_err(|error| wire.corrupt(error))?;
    let mut rebuilt = IndexBuilder::new();
    let (mut packed, mut content) = (Vec::new(), vec![0; index.frame_size()]);
    let (mut end, mut listed) = (0, Vec::new());
    for number in 0..index.frame_count() {
        let Some(frame) = index.frame(number) else { continue };
        let other = |what: String| ExamineError::Frame { number, offset: frame.artifact.start, what };
        // The index bounds a frame by little more than its content.
        let compressed = u32::try_from(frame.artifact.end - frame.artifact.start).unwrap_or(u32::MAX);
        packed.clear();
        wire.take(usize::try_from(compressed).unwrap_or(usize::MAX), &mut packed)?;
        let into = content.get_mut(..frame.len()).unwrap_or_default();
        let expanded = decompressor.decompress_to_buffer(&packed, into);
        match expanded {
            Err(error) => return Err(other(format!("it cannot be expanded ({error})"))),
            Ok(length) if length != into.len() => {
                return Err(other(format!("it expands to {length} bytes instead of {}", into.len())));
            }
            Ok(_) if Sha256Digest::of(into) != frame.digest => {
                return Err(other("its sha256 is another one".to_owned()));
            }
            Ok(_) => rebuilt.add(into, compressed),
        }
        listed.push(SeekEntry { compressed, expanded: u32::try_from(frame.len()).unwrap_or(u32::MAX) });
        end = frame.artifact.end;
    }
    check_tail(&mut wire, end, &listed)?;
    let (length, digest) = wire.finish();
    let rebuilt = rebuilt.finish(Whole { length, digest })?;
    for (what, expected, found) in
        [("artifact", index.artifact(), rebuilt.artifact()), ("image", index.image(), rebuilt.image())]
    {
        if expected != found {
            return Err(ExamineError::Digest { what, expected, found });
        }
    }
    if rebuilt == *index { Ok(()) } else { Err(ExamineError::OtherBlocks) }
}

/// What stands behind the frames: nothing, or the table of exactly these frames.
fn check_tail<R: Read>(wire: &mut Wire<R>, end: u64, listed: &[SeekEntry]) -> Result<(), ExamineError> {
    let mut rest = Vec::new();
    loop {
        let found = wire.peek(1)?;
        let length = found.len();
        if length == 0 {
            break;
        }
        rest.extend_from_slice(found);
        wire.consume(length);
        if rest.len() as u64 > TAIL {
            break;
        }
    }
    if rest.is_empty() {
        return Ok(());
    }
    let table = parse_seek_table(&rest).map_err(|source| ExamineError::SeekTable { offset: end, source })?;
    let differs = table.iter().zip(listed).position(|(found, expected)| found != expected);
    let differs = differs.or_else(|| (table.len() != listed.len()).then(|| table.len().min(listed.len())));
    if let Some(entry) = differs {
        return Err(ExamineError::OtherSeekTable { entry });
    }
    // It may carry checksums, which make it longer, but nothing may stand before it.
    if seek_table::length_in(&rest, listed.len()) == rest.len() {
        return Ok(());
    }
    Err(ExamineError::SeekTable {
        offset: end,
        source: SeekTableError::Damaged { what: "something else stands before it" },
    })
}

/// What comes next in an artifact.
enum Found {
    Frame(FrameHeader),
    /// A frame that decoders skip; it was stepped over.
    Skipped,
}

fn next_frame<R: Read>(wire: &mut Wire<R>) -> Result<Option<Found>, WriteError> {
    let at = wire.received();
    let found = wire.peek(LONGEST_HEADER)?;
    let found = found.get(..LONGEST_HEADER.min(found.len())).unwrap_or_default();
    if found.is_empty() {
        return Ok(None);
    }
    match frame::start(found) {
        Start::Frame(FrameHeader { dictionary: 1.., .. }) => Err(WriteError::Dictionary),
        Start::Frame(header) => Ok(Some(Found::Frame(header))),
        Start::Skippable(length) => wire.skip(length).map(|()| Some(Found::Skipped)),
        Start::Foreign if at == 0 => {
            Err(WriteError::NotZstd { start: found.get(..4).unwrap_or_default().to_vec() })
        }
        Start::Foreign => Err(wire.corrupt(io::ErrorKind::InvalidData.into())),
        Start::Short => Err(wire.truncated()),
    }
}

fn skip_frame<R: Read>(wire: &mut Wire<R>, header: FrameHeader) -> Result<(), WriteError> {
    wire.skip(header.length as u64)?;
    loop {
        let block = next_block(wire)?;
        wire.skip((BLOCK_HEADER + block.length) as u64)?;
        if block.last {
            return wire.skip(header.trailer as u64);
        }
    }
}

fn length_of(artifact: &mut impl Seek) -> Result<u64, WriteError> {
    let length = artifact.seek(SeekFrom::End(0)).and_then(|length| artifact.rewind().map(|()| length));
    length.map_err(|source| WriteError::Source { received: 0, source })
}

fn tail(artifact: &mut (impl Read + Seek), from: u64) -> Result<Vec<u8>, WriteError> {
    let mut tail = Vec::new();
    let read = artifact.seek(SeekFrom::Start(from)).and_then(|_| artifact.take(TAIL).read_to_end(&mut tail));
    read.map(|_| tail).map_err(|source| WriteError::Source { received: from, source })
}

#[cfg(test)]
#[path = "examine_tests.rs"]
mod tests;

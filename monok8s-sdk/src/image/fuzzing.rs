//! The targets of [`crate::fuzzing`] that need what only this module sees.
#![allow(clippy::missing_panics_doc, reason = "a panic is how a target reports")]

use std::io::Read as _;
use std::sync::Arc;

use super::expand::{PIECE, WINDOW_LOG_MAX};
use super::head::HEAD;
use super::resume::{Answer, Identity, Received, Take, judge};
use super::spans::spans;
use super::{Cancel, Expected, GuardFiles, GuardFound, Index, Progress, inspect as inspect_slot};
use super::{parse_seek_table, write_body};
use crate::digest::Sha256Digest;
use crate::disk::{InactiveSlot, Written, WrittenSlot};
use crate::fuzzing::MemoryTarget;
use crate::slot::Slot;

/// The slot of [`write`], in bytes: small, as it is made anew for every input, and no multiple of
/// anything.
const SLOT: usize = 3 * HEAD + 4096 + 512;
/// What it holds before.
const BEFORE: u8 = 0xA5;

/// Block indices: whatever is accepted accounts for every byte of its image and its artifact.
pub fn index(bytes: &[u8]) {
    let Ok(index) = Index::parse(bytes.to_vec()) else { return };
    assert_eq!(index.as_bytes(), bytes);
    let (mut image, mut artifact, mut hashes) = (0, 0, 0);
    for number in 0..index.frame_count() {
        let frame = index.frame(number);
        assert!(frame.is_some(), "frame {number} is counted and not there");
        let Some(frame) = frame else { return };
        assert_eq!((frame.image.start, frame.artifact.start), (image, artifact), "frame {number} has a gap");
        assert!(frame.len() <= index.frame_size().min(PIECE));
        (image, artifact) = (frame.image.end, frame.artifact.end);
        let mut zero = true;
        for hash in index.hash_numbers(number).flatten() {
            assert_eq!(hash, hashes, "hashes are not in order");
            assert!(index.hash(hash).is_some(), "hash {hash} is not there");
            (hashes, zero) = (hashes + 1, false);
        }
        assert_eq!(index.is_zero_frame(number), zero);
    }
    assert_eq!((image, hashes), (index.image_length(), index.hash_count()));
    assert!(artifact <= index.artifact_length());
    assert!(index.frame(index.frame_count()).is_none());
    let missing: Vec<usize> = (0..index.frame_count()).filter(|number| number % 3 != 1).collect();
    let asked: usize = spans(&missing).into_iter().map(|frames| frames.len()).sum();
    assert_eq!(asked, missing.len(), "frames are missing that nobody asks for");
}

/// Seek tables, at the end of an artifact.
pub fn seek_table(bytes: &[u8]) {
    let Ok(entries) = parse_seek_table(bytes) else { return };
    assert!(entries.len() * 8 + 17 <= bytes.len(), "more entries than bytes");
}

/// Artifacts into a slot: an error that leaves nothing bootable, or the image that zstd itself
/// makes of the bytes, proven.
pub fn write(bytes: &[u8]) {
    let target = Arc::new(MemoryTarget::holding(vec![BEFORE; SLOT]));
    let slot = InactiveSlot::on_test_storage(Slot::B, target.clone());
    let written = write_body(slot, bytes, &Expected::default(), &Progress::default(), &Cancel::default());
    let head_is = |byte| target.bytes().iter().take(HEAD).all(|found| *found == byte);
    let Ok(body) = written else {
        assert!(head_is(0) || head_is(BEFORE), "a failed write leaves a head");
        return;
    };
    assert!(body.length() == 0 || head_is(0), "the head is there before the end");
    let (image, length) = (body.image(), body.length());
    let verified = body.finish().map(WrittenSlot::verify);
    assert!(matches!(verified, Ok(Ok(_))), "what was written is not there: {verified:?}");
    let expanded = expanded(bytes);
    assert_eq!(expanded.as_deref().map(Sha256Digest::of), Some(image), "zstd makes another image of it");
    let content = target.bytes();
    assert_eq!(expanded.as_deref().map(<[u8]>::len), usize::try_from(length).ok());
    assert!(expanded.is_some_and(|expanded| content.starts_with(&expanded)));
}

/// What zstd makes of an artifact; `None` for what it refuses, or what does not fit.
fn expanded(artifact: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::new(artifact).ok()?;
    decoder.window_log_max(WINDOW_LOG_MAX).ok()?;
    let mut image = Vec::new();
    decoder.take(SLOT as u64 + 1).read_to_end(&mut image).ok()?;
    (image.len() <= SLOT).then_some(image)
}

/// ext4 images in a slot that was read back.
pub fn inspect(bytes: &[u8]) {
    let target = Arc::new(MemoryTarget::holding(bytes.to_vec()));
    let slot = InactiveSlot::on_test_storage(Slot::B, target);
    let unread = if bytes.is_empty() { Vec::new() } else { vec![Written::data(0, bytes)] };
    let written = WrittenSlot::new(slot, Sha256Digest::of(bytes), bytes.len() as u64, unread);
    let verified = written.verify();
    assert!(verified.is_ok(), "memory does not hold what it was given");
    let files = GuardFiles::default();
    if let Ok(Ok(found)) = verified.map(|slot| inspect_slot(&slot, &files))
        && let GuardFound::Enabled { program } | GuardFound::NotEnabled { program } = found.guard
    {
        assert!(files.programs.contains(&program));
    }
}

/// HTTP answers to a request for a part or for all of a file. The bytes are what was received (8),
/// where the part ends (8, 0 is the end of the file), the file's length (8, 0 is unknown), the
/// answer's status (2), its Content-Length (8, 0 is none) and then lines: Content-Range, `ETag`,
/// Last-Modified, Content-Encoding, and the `ETag` and Last-Modified of before.
pub fn answer(bytes: &[u8]) {
    let Some((numbers, text)) = bytes.split_at_checked(34) else { return };
    let number = |at: usize| {
        let bytes = numbers.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let given = |number: u64| Some(number).filter(|number| *number > 0);
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(|line| Some(line.to_owned()).filter(|line| !line.is_empty()));
    let mut line = || lines.next().flatten();
    let answer = Answer {
        status: u16::try_from(number(24) & 0xFFFF).unwrap_or_default(),
        content_length: given(number(26)),
        content_range: line(),
        etag: line(),
        last_modified: line(),
        content_encoding: line(),
    };
    let before = Answer { etag: line(), last_modified: line(), ..Answer::default() };
    let received = Received {
        offset: number(0),
        end: given(number(8)),
        total: given(number(16)),
        known: Some(Identity::of(&before)),
    };
    let _ = received.is_complete();
    if let Ok(Take { skip, .. }) = judge(&received, &answer) {
        let first = answer.content_range.as_deref().and_then(|range| range.split('-').next());
        let digits: Option<String> = first.map(|first| first.chars().filter(char::is_ascii_digit).collect());
        let placed = digits.and_then(|digits| digits.parse().ok()) == Some(received.offset);
        assert!(skip == received.offset || (skip == 0 && placed), "bytes are taken at another place");
    }
}

use std::io::Cursor;

use super::super::build::{BuildOptions, build};
use super::*;

fn built() -> (Vec<u8>, Vec<u8>, Index) {
    let mut image: Vec<u8> =
        (0..300_123_usize).map(|at| u8::try_from(at * at / 7 % 251).unwrap() | 1).collect();
    image[70_000..140_000].fill(0);
    let mut artifact = Vec::new();
    let index = build(&mut &image[..], &mut artifact, BuildOptions { level: 3, frame_log: 16 }).unwrap();
    (image, artifact, index)
}

fn verify(artifact: &[u8], index: &Index) -> Result<(), ExamineError> {
    verify_artifact(&mut Cursor::new(artifact), index)
}

fn with(index: &Index, change: impl FnOnce(&mut [u8])) -> Index {
    let mut raw = index.as_bytes().to_vec();
    change(&mut raw);
    Index::parse(raw).unwrap()
}

#[test]
fn what_was_built_together_fits_and_the_index_can_be_made_again() {
    let (image, artifact, index) = built();
    verify(&artifact, &index).unwrap();
    assert!(index_artifact(&mut &artifact[..]).unwrap() == index);
    let outline = outline(&mut Cursor::new(&artifact)).unwrap();
    assert_eq!((outline.length, outline.digest), (artifact.len() as u64, Sha256Digest::of(&artifact)));
    assert_eq!((outline.frames, outline.seek_table), (5, Some(5)));
    assert_eq!((outline.expanded, outline.largest_frame), (Some(image.len() as u64), Some(65_536)));
    assert_eq!(index.zero_bytes(), 16 * 4096);
}

#[test]
fn the_first_thing_that_is_wrong_is_named() {
    let (_, artifact, index) = built();
    let end = usize::try_from(index.frame(4).unwrap().artifact.end).unwrap();
    let changed = |at: usize| {
        let mut artifact = artifact.clone();
        artifact[at] ^= 1;
        artifact
    };
    let said = |artifact: &[u8], index: &Index| verify(artifact, index).unwrap_err().to_string();
    assert!(said(&artifact[..artifact.len() - 1], &index).contains("belong to different builds"));
    let third = usize::try_from(index.frame(3).unwrap().artifact.start).unwrap();
    let error = said(&changed(third + 100), &index);
    assert!(error.starts_with(&format!("frame 3 (at byte {third} of the artifact) is not")), "{error}");
    assert!(said(&changed(end), &index).contains("should be its seek table"));
    assert!(said(&changed(end + 8 + 2 * 8), &index).contains("from its entry 2 on"));
    for (at, what) in [(64, "the artifact has the digest"), (32, "the image has the digest")] {
        let error = said(&artifact, &with(&index, |raw| raw[at] ^= 1));
        assert!(error.starts_with(what), "{error}");
    }
    let last = index.as_bytes().len() - 1;
    assert!(said(&artifact, &with(&index, |raw| raw[last] ^= 1)).contains("other blocks"));
    // Bytes between frames and table, of which the index knows.
    let padded = [&artifact[..end], &[0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0], &artifact[end..]].concat();
    let grown = with(&index, |raw| raw[24..32].copy_from_slice(&(padded.len() as u64).to_le_bytes()));
    let error = crate::causes::chain(&verify(&padded, &grown).unwrap_err());
    assert!(error.contains("something else stands before it"), "{error}");
    // An artifact without a table is one as well.
    let bare = &artifact[..end];
    verify(bare, &index_artifact(&mut &bare[..]).unwrap()).unwrap();
}

fn unsized_frame() -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_contentsize(false).unwrap();
    std::io::Write::write_all(&mut encoder, &vec![7; 1 << 16]).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn frames_that_no_index_can_describe_are_refused() {
    let frame = |length: usize| zstd::bulk::compress(&vec![7; length], 3).unwrap();
    let skipped = [0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let cases: [(Vec<u8>, &str); 5] = [
        (frame(3 << 20), "frame 0 holds 3145728 bytes"),
        ([frame(70_000), frame(70_000)].concat(), "the frame before frame 1 holds 70000 bytes"),
        ([frame(1 << 16), skipped.to_vec(), frame(1 << 16)].concat(), "something else stands before frame 1"),
        (unsized_frame(), "frame 0 does not say how much it holds"),
        (skipped.to_vec(), "it has no frame"),
    ];
    for (artifact, what) in cases {
        let error = index_artifact(&mut &artifact[..]).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("`ctl image build`"), "{what}: {error}");
    }
    let alone = index_artifact(&mut &frame(100)[..]).unwrap();
    assert_eq!((alone.frame_count(), alone.frame_size(), alone.image_length()), (1, 100, 100));
}

#[test]
fn damage_anywhere_is_an_error_and_never_a_panic() {
    let (_, artifact, index) = built();
    for at in (0..artifact.len()).step_by(997) {
        let mut damaged = artifact.clone();
        damaged[at] ^= 0x80;
        assert!(verify(&damaged, &index).is_err(), "byte {at}");
        if let Ok(other) = index_artifact(&mut &damaged[..]) {
            assert!(other != index, "byte {at}");
        }
        let _ = outline(&mut Cursor::new(&damaged));
        assert!(index_artifact(&mut &artifact[..at]).is_err() || at == 0 || at + 100 > artifact.len());
    }
    assert!(outline(&mut Cursor::new(b"<html>")).unwrap_err().to_string().contains("not zstd"));
}

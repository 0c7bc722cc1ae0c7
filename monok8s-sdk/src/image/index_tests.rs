use proptest::prelude::*;

use super::super::build::{BuildOptions, KnownBlocks, build, build_after};
use super::super::seek_table::parse_seek_table;
use super::*;

fn built(image: &[u8], frame_log: u8) -> (Vec<u8>, Index) {
    let mut artifact = Vec::new();
    let options = BuildOptions { frame_log, ..BuildOptions::default() };
    let index = build(&mut &image[..], &mut artifact, options).unwrap();
    (artifact, index)
}

/// An image with data, runs of zeroes and a length that is no multiple of anything.
fn image() -> Vec<u8> {
    let mut image: Vec<u8> = (0..700_123_usize).map(|at| u8::try_from(at / 7 % 251).unwrap() | 1).collect();
    image[100_000..300_000].fill(0);
    image[500_000..508_192].fill(0);
    image
}

#[test]
fn an_index_tells_where_everything_is_and_what_it_must_be() {
    let image = image();
    let (artifact, index) = built(&image, 16);
    assert_eq!(Index::parse(index.as_bytes().to_vec()).unwrap(), index);
    assert_eq!((index.image_length(), index.image()), (700_123, Sha256Digest::of(&image)));
    assert_eq!(
        (index.artifact_length(), index.artifact()),
        (artifact.len() as u64, Sha256Digest::of(&artifact))
    );
    assert_eq!(index.frame_count(), 11);
    let table = parse_seek_table(&artifact).unwrap();
    let mut hashes = 0;
    assert_eq!(table.len(), index.frame_count());
    for (number, listed) in table.into_iter().enumerate() {
        let frame = index.frame(number).unwrap();
        let content = &image[usize::try_from(frame.image.start).unwrap()..][..frame.len()];
        let packed = &artifact
            [usize::try_from(frame.artifact.start).unwrap()..usize::try_from(frame.artifact.end).unwrap()];
        assert_eq!(zstd::decode_all(packed).unwrap(), content);
        assert_eq!(frame.digest, Sha256Digest::of(content));
        assert_eq!(listed.compressed as usize, packed.len());
        assert_eq!(listed.expanded as usize, content.len());
        assert_eq!(index.is_zero_frame(number), content.iter().all(|byte| *byte == 0));
        let blocks: Vec<&[u8]> = content.chunks(BLOCK).collect();
        let numbers: Vec<Option<usize>> = index.hash_numbers(number).collect();
        assert_eq!(numbers.len(), blocks.len());
        for (block, number) in blocks.into_iter().zip(numbers) {
            match number {
                None => assert!(block.iter().all(|byte| *byte == 0)),
                Some(number) => {
                    assert_eq!(index.hash(number).unwrap(), block_hash(block));
                    assert_eq!(number, hashes);
                    hashes += 1;
                }
            }
        }
    }
    assert_eq!(hashes, index.hash_count());
    assert!(index.frame(index.frame_count()).is_none());
}

#[test]
fn what_is_no_index_is_refused_with_its_reason() {
    let (artifact, index) = built(&image(), 18);
    let parse = |bytes: &[u8]| Index::parse(bytes.to_vec()).map(drop).unwrap_err();
    assert!(matches!(parse(&artifact), IndexError::NotAnIndex));
    assert!(matches!(parse(b""), IndexError::NotAnIndex));
    let good = index.as_bytes();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        bytes
    };
    assert!(matches!(parse(&with(8, 2)), IndexError::UnknownVersion { found: 2 }));
    assert!(matches!(parse(&with(10, 13)), IndexError::Damaged { .. }));
    assert!(matches!(parse(&with(12, 99)), IndexError::Damaged { .. }), "another number of frames");
    assert!(matches!(parse(&with(97, 0xFF)), IndexError::Damaged { .. }), "a frame that is no whole block");
    assert!(matches!(parse(&with(18, 0)), IndexError::Damaged { .. }), "another image length");
    assert!(matches!(parse(&with(22, 0xFF)), IndexError::Damaged { .. }), "an absurd image length");
    assert!(matches!(parse(&with(24, 0)), IndexError::Damaged { .. }), "an artifact shorter than its frames");
    assert!(matches!(parse(&with(102, 0xFF)), IndexError::Damaged { .. }), "a frame longer than it can be");
    assert!(matches!(parse(&good[..good.len() - 1]), IndexError::Damaged { .. }));
    assert!(matches!(parse(&[good, b"x"].concat()), IndexError::Damaged { .. }));
    let large = vec![0; usize::try_from(MAX_INDEX_BYTES).unwrap() + 1];
    assert!(matches!(parse(&large), IndexError::TooLarge { .. }));
}

#[test]
fn what_is_new_gets_frames_of_its_own() {
    let old = image();
    let mut new = old.clone();
    // One block, two with a known one between them, and one in the middle of zeroes.
    for block in [20, 90, 92, 40] {
        new[block * BLOCK..][..BLOCK].fill(u8::try_from(block).unwrap());
    }
    let mut known = KnownBlocks::default();
    known.add(&mut old.as_slice()).unwrap();
    let mut artifact = Vec::new();
    let options = BuildOptions { frame_log: 18, ..BuildOptions::default() };
    let index = build_after(&known, &mut new.as_slice(), &mut artifact, options).unwrap();
    assert_eq!(zstd::decode_all(artifact.as_slice()).unwrap(), new);
    let frames: Vec<(u64, u64)> = (0..index.frame_count())
        .map(|number| index.frame(number).unwrap().image)
        .map(|bytes| (bytes.start / BLOCK as u64, bytes.end.div_ceil(BLOCK as u64)))
        .collect();
    for new in [(20, 21), (40, 41), (90, 93)] {
        assert!(frames.contains(&new), "{new:?} in {frames:?}");
    }
    // The end is no whole block, so that nobody can have it.
    assert_eq!(frames.len(), 10, "{frames:?}");
    assert_eq!(Index::parse(index.as_bytes().to_vec()).unwrap(), index);
}

proptest! {
    /// Whatever is changed in an index, it is refused or describes frames that exist.
    #[test]
    fn damage_never_panics(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6), cut in any::<usize>()) {
        let (_, index) = built(&image(), 16);
        let mut bytes = index.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if cut % 5 == 0 {
            bytes.truncate(cut % bytes.len());
        }
        if let Ok(index) = Index::parse(bytes) {
            for number in 0..index.frame_count() {
                prop_assert!(index.frame(number).unwrap().artifact.end <= index.artifact_length());
                for hash in index.hash_numbers(number).flatten() {
                    prop_assert!(index.hash(hash).is_some());
                }
            }
        }
    }
}

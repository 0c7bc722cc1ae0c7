//! Which parts of an artifact are asked for, so that many small requests do not cost more than
//! the bytes between them. Pure.

use std::ops::Range;

use super::index::Index;

/// Up to this many requests for one batch of frames, nothing is fetched that is not missing.
const MANY: usize = 48;
/// Beyond that, gaps of up to this many bytes are fetched along: a request costs more.
const GAP: u64 = 16 * 1024;

/// Frames that are asked for by one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The missing frames in it, in order.
    pub(super) frames: Vec<usize>,
    /// The bytes of the artifact from the first to the last of them.
    pub(super) bytes: Range<u64>,
}

/// The spans that bring these frames, which are in order.
pub(super) fn spans(index: &Index, missing: &[usize]) -> Vec<Span> {
    let exact = joined(index, missing, 0);
    if exact.len() > MANY { joined(index, missing, GAP) } else { exact }
}

/// Frames, joined over gaps of up to `gap` bytes.
fn joined(index: &Index, missing: &[usize], gap: u64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for number in missing {
        let Some(frame) = index.frame(*number) else { continue };
        match spans.last_mut() {
            Some(last) if frame.artifact.start - last.bytes.end <= gap => {
                last.frames.push(*number);
                last.bytes.end = frame.artifact.end;
            }
            _ => spans.push(Span { frames: vec![*number], bytes: frame.artifact }),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::build::{BuildOptions, build};
    use super::*;

    /// 64 frames of about 64 KiB each that do not compress.
    fn index() -> Index {
        let mut state = 1_u64;
        let image: Vec<u8> = (0..64 << 16)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[2]
            })
            .collect();
        let options = BuildOptions { frame_log: 16, level: 1 };
        build(&mut image.as_slice(), &mut Vec::new(), options).unwrap()
    }

    #[test]
    fn neighbours_are_asked_for_together() {
        let index = index();
        let frames = |missing: &[usize], gap| {
            joined(&index, missing, gap).into_iter().map(|span| span.frames).collect::<Vec<_>>()
        };
        assert!(frames(&[], 0).is_empty());
        assert_eq!(frames(&[5], 0), [[5]]);
        assert_eq!(frames(&[5, 6, 8], 0), [vec![5, 6], vec![8]]);
        let frame = 70_000;
        assert_eq!(frames(&[5, 6, 8], frame), [[5, 6, 8]], "a small gap is fetched along");
        assert_eq!(frames(&[5, 6, 8], GAP), [vec![5, 6], vec![8]]);
        assert_eq!(frames(&[5, 30], frame), [[5], [30]]);
    }

    proptest! {
        #[test]
        fn every_missing_frame_is_in_one_span(missing in proptest::collection::btree_set(0_usize..64, 0..64)) {
            let index = index();
            let missing: Vec<usize> = missing.into_iter().collect();
            let spans = spans(&index, &missing);
            let asked: Vec<usize> = spans.iter().flat_map(|span| span.frames.clone()).collect();
            prop_assert_eq!(asked, missing);
            for span in &spans {
                let (first, last) = (span.frames[0], span.frames[span.frames.len() - 1]);
                prop_assert_eq!(span.bytes.start, index.frame(first).unwrap().artifact.start);
                prop_assert_eq!(span.bytes.end, index.frame(last).unwrap().artifact.end);
            }
        }
    }
}

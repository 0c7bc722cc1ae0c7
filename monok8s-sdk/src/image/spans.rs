//! Which parts of an artifact are asked for, so that many small requests do not cost more than
//! the bytes between them. Pure.

use std::ops::Range;

use super::index::Index;

/// Up to this many requests, nothing is fetched that is not missing.
const MANY: usize = 256;
/// Beyond that, gaps of up to this many bytes are fetched along: a request costs more.
const GAP: u64 = 256 * 1024;
/// A longer span is cut, so that several are in flight.
const LONGEST: u64 = 32 << 20;

/// Frames that are asked for by one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The frames, those between the missing ones included.
    pub(super) frames: Range<usize>,
    /// Their bytes in the artifact.
    pub(super) bytes: Range<u64>,
}

/// The spans that bring all frames that are `missing`, in order.
pub(super) fn spans(index: &Index, missing: &[bool]) -> Vec<Span> {
    let exact = joined(index, missing, 0);
    if exact.len() > MANY { joined(index, missing, GAP) } else { exact }
}

/// Missing frames, joined over gaps of up to `gap` bytes.
fn joined(index: &Index, missing: &[bool], gap: u64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (number, _) in (0..).zip(missing).filter(|(_, missing)| **missing) {
        let Some(frame) = index.frame(number) else { continue };
        match spans.last_mut() {
            Some(last)
                if frame.artifact.start - last.bytes.end <= gap
                    && frame.artifact.end - last.bytes.start <= LONGEST =>
            {
                last.frames.end = number + 1;
                last.bytes.end = frame.artifact.end;
            }
            _ => spans.push(Span { frames: number..number + 1, bytes: frame.artifact }),
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
        let missing = |frames: &[usize], gap| {
            let mut missing = vec![false; 64];
            for frame in frames {
                missing[*frame] = true;
            }
            let ends = |span: Span| (span.frames.start, span.frames.end);
            joined(&index, &missing, gap).into_iter().map(ends).collect::<Vec<_>>()
        };
        assert!(missing(&[], 0).is_empty());
        assert_eq!(missing(&[5], 0), [(5, 6)]);
        assert_eq!(missing(&[5, 6, 8], 0), [(5, 7), (8, 9)]);
        assert_eq!(missing(&[5, 6, 8], GAP), [(5, 9)], "a small gap is fetched along");
        assert_eq!(missing(&[5, 30], GAP), [(5, 6), (30, 31)]);
    }

    proptest! {
        #[test]
        fn every_missing_frame_is_in_one_span(missing in proptest::collection::vec(any::<bool>(), 64)) {
            let index = index();
            let spans = spans(&index, &missing);
            for (number, missing) in missing.iter().enumerate() {
                let times = spans.iter().filter(|span| span.frames.contains(&number)).count();
                prop_assert!(times <= 1 && (!missing || times == 1));
            }
            for span in &spans {
                prop_assert!(missing[span.frames.start] && missing[span.frames.end - 1]);
                prop_assert_eq!(span.bytes.start, index.frame(span.frames.start).unwrap().artifact.start);
                prop_assert_eq!(span.bytes.end, index.frame(span.frames.end - 1).unwrap().artifact.end);
            }
        }
    }
}

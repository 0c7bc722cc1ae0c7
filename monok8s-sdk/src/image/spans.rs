//! Which frames are asked for by one request: neighbours, and nothing between them that is not
//! missing. Pure.

use std::ops::Range;

/// Frames, which are in order, joined with their neighbours.
pub(super) fn spans(missing: &[usize]) -> Vec<Range<usize>> {
    let neighbours = missing.chunk_by(|one, next| one + 1 == *next);
    neighbours.filter_map(|frames| Some(*frames.first()?..frames.last()? + 1)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_are_asked_for_together() {
        assert!(spans(&[]).is_empty());
        assert_eq!(spans(&[5, 6, 8]), [5..7, 8..9]);
        assert_eq!(spans(&[0, 2, 3, 4]), [0..1, 2..5]);
    }

    proptest! {
        #[test]
        fn all_that_is_missing_is_asked_for_once_and_nothing_else(
            missing in proptest::collection::btree_set(0_usize..2000, 0..1000)
        ) {
            let missing: Vec<usize> = missing.into_iter().collect();
            let spans = spans(&missing);
            prop_assert!(spans.windows(2).all(|pair| pair[0].end < pair[1].start), "neighbours are apart");
            prop_assert_eq!(spans.into_iter().flatten().collect::<Vec<_>>(), missing);
        }
    }
}

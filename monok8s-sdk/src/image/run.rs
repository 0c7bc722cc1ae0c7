//! Runs of zeroes within an image.

use std::ops::Range;

use crate::disk::is_zero;

/// The shortest run of zeroes that is zeroed rather than written, and how much of a piece is
/// looked at to see whether comparing all of it may pay, in bytes.
pub(super) const UNIT: usize = 64 * 1024;

/// Bytes to put, all zero or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run<'a> {
    Zero(usize),
    Data(&'a [u8]),
}

impl Run<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Zero(length) => *length,
            Self::Data(data) => data.len(),
        }
    }

    pub(super) fn start(self, length: usize) -> Self {
        self.part(0..length.min(self.len()))
    }

    pub(super) fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Zero(_) => Self::Zero(range.len()),
            Self::Data(data) => Self::Data(data.get(range).unwrap_or_default()),
        }
    }

    pub(super) fn holds(&self, start: usize, block: &[u8]) -> bool {
        match self {
            Self::Zero(_) => is_zero(block),
            Self::Data(data) => data.get(start..start + block.len()) == Some(block),
        }
    }
}

/// Cuts bytes into runs of zeroes and of data, in units of [`UNIT`].
pub(super) fn runs(bytes: &[u8]) -> Vec<Run<'_>> {
    let units: Vec<&[u8]> = bytes.chunks(UNIT).collect();
    let mut rest = bytes;
    units
        .chunk_by(|left, right| is_zero(left) == is_zero(right))
        .map(|group| {
            let length = group.iter().map(|unit| unit.len()).sum();
            let (run, behind) = rest.split_at(length);
            rest = behind;
            if group.first().is_some_and(|unit| is_zero(unit)) { Run::Zero(length) } else { Run::Data(run) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_cover_the_bytes_in_order(
            lengths in proptest::collection::vec((any::<bool>(), 0_usize..200_000), 0..6)
        ) {
            let bytes: Vec<u8> = lengths
                .iter()
                .flat_map(|(zero, length)| std::iter::repeat_n(u8::from(!zero), *length))
                .collect();
            let mut rebuilt = Vec::new();
            let runs = runs(&bytes);
            for run in &runs {
                match run {
                    Run::Zero(length) => rebuilt.resize(rebuilt.len() + length, 0),
                    Run::Data(data) => rebuilt.extend_from_slice(data),
                }
            }
            prop_assert!(rebuilt == bytes);
            prop_assert!(runs.windows(2).all(
                |pair| matches!(pair, [Run::Zero(_), Run::Data(_)] | [Run::Data(_), Run::Zero(_)])
            ));
        }
    }
}

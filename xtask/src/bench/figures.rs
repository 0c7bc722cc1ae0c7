//! Arithmetic on what was measured.

use std::fs::File;
use std::io::{Read, Take};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// The unit of file systems and of deltas.
const BLOCK: usize = 4096;

/// For ratios and for people, where 53 bits are enough.
#[allow(clippy::cast_precision_loss)]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// The middle one; of an even number the mean of the two in the middle. 0 of none.
pub(super) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => at(odd / 2),
        even => f64::midpoint(at(even / 2 - 1), at(even / 2)),
    }
}

/// What a write of an image has to do, whoever does it; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Work {
    /// Blocks that are not zero: they must be read back.
    pub(super) data: u64,
    /// Those of them that the slot does not hold in their place: they must be written.
    pub(super) changed: u64,
}

/// Compares block by block. `before` is what the slot holds; `None` for zeroes.
pub(super) fn work(image: &Path, before: Option<&Path>) -> Result<Work> {
    let mut image = File::open(image)?;
    let mut before = before.map(File::open).transpose()?;
    let mut work = Work::default();
    loop {
        let new = chunk(&mut image)?;
        if new.is_empty() {
            return Ok(work);
        }
        let old = before.as_mut().map(chunk).transpose()?.unwrap_or_default();
        let mut old = old.chunks(BLOCK);
        for block in new.chunks(BLOCK) {
            let old = old.next();
            if block.iter().any(|byte| *byte != 0) {
                work.data += block.len() as u64;
                work.changed += if old == Some(block) { 0 } else { block.len() as u64 };
            }
        }
    }
}

fn chunk(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut part: Take<&mut File> = file.take(1 << 20);
    part.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The time, in seconds, of an updater that proves what it wrote if all its stages overlap, but for the
/// read-back, which follows the write. Where a device does both at once, less is possible.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Limit {
    pub(super) fetch: f64,
    pub(super) decode: f64,
    pub(super) disk: f64,
}

impl Limit {
    pub(super) fn seconds(self) -> f64 {
        self.fetch.max(self.decode).max(self.disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn only_blocks_that_are_not_zero_are_work_and_only_those_in_another_place_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, blocks: &[u8]| {
            let path = directory.path().join(name);
            let bytes: Vec<u8> = blocks.iter().flat_map(|byte| vec![*byte; BLOCK]).collect();
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (new, old) = (file("new", &[1, 0, 2, 3]), file("old", &[1, 1, 3, 2]));
        let (data, changed) = (3 * BLOCK as u64, 2 * BLOCK as u64);
        assert_eq!(work(&new, Some(&old)).unwrap(), Work { data, changed });
        assert_eq!(work(&new, None).unwrap(), Work { data, changed: data });
    }
}

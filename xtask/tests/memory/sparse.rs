//! An image of zeroes with noise here and there, which is made up as it is read.

use std::io::{self, Read};
use std::sync::Arc;

use crate::{KIB, MIB};

const SCATTERED: u64 = 16;
const SCATTERED_BYTES: u64 = 2 * MIB;
const BLOCK: u64 = 4 * KIB;

/// Bytes of an image that are not zero.
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Extent {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// The image. Clones share its noise.
#[derive(Clone)]
pub(crate) struct Sparse {
    pub(crate) bytes: u64,
    /// In order.
    pub(crate) extents: Arc<[Extent]>,
}

impl Sparse {
    /// Small extents from the first byte to the last, and one that is so large that whoever looks at
    /// 48 places of a slot comes across it.
    pub(crate) fn new(bytes: u64) -> Self {
        let mut state = bytes;
        let mut extent = |offset: u64, length| {
            let offset = offset / BLOCK * BLOCK;
            Extent { offset, bytes: noise(&mut state, length) }
        };
        let last = bytes - SCATTERED_BYTES;
        let mut extents: Vec<Extent> =
            (0..SCATTERED).map(|number| extent(last * number / (SCATTERED - 1), SCATTERED_BYTES)).collect();
        extents.insert(4, extent(last * 7 / (SCATTERED - 1) / 2, bytes / 48 + 8 * MIB));
        assert!(extents.is_sorted_by(|one, next| one.end() < next.offset), "extents overlap");
        Self { bytes, extents: extents.into() }
    }

    /// How much of it is not zero.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.bytes.len() as u64).sum()
    }

    /// All of it, from the first byte.
    pub(crate) fn reader(&self) -> Reader {
        Reader { image: self.clone(), at: 0 }
    }
}

/// xorshift64; Marsaglia, "Xorshift RNGs", 2003.
fn noise(state: &mut u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap() / 8 * 8];
    for word in bytes.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

pub(crate) struct Reader {
    image: Sparse,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (extents, at) = (&self.image.extents, self.at);
        let next = extents.get(extents.partition_point(|extent| extent.end() <= at));
        let zeroes = next.map_or(self.image.bytes, |extent| extent.offset).saturating_sub(at);
        let length = if zeroes > 0 {
            let length = usize::try_from(zeroes).unwrap().min(buf.len());
            buf[..length].fill(0);
            length
        } else {
            let from = |extent: &'_ Extent| usize::try_from(at - extent.offset).unwrap();
            next.map_or(Ok(0), |extent| (&extent.bytes[from(extent)..]).read(buf))?
        };
        self.at += length as u64;
        Ok(length)
    }
}

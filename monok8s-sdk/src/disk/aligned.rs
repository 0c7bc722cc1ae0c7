//! Memory that the kernel accepts for direct I/O.

use std::ops::{Deref, DerefMut};

/// Alignment of addresses, and a multiple of every sector size in use, in bytes.
pub const ALIGNMENT: usize = 4096;

/// A byte buffer whose first byte sits at an address that direct I/O accepts.
///
/// It over-allocates and skips to the first aligned byte, which needs no `unsafe`.
#[derive(Debug)]
pub struct AlignedBuf {
    // Never grown: the heap block, and so the aligned start in it, stays where it is.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        // `align_offset` may decline to answer; then the buffer is only slower, never wrong.
        let start = match bytes.as_ptr().align_offset(ALIGNMENT) {
            skip if skip < ALIGNMENT => skip,
            _ => 0,
        };
        Self { bytes, start, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// Whether `bytes` starts at an address that direct I/O accepts.
pub(super) fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(ALIGNMENT) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        for len in [0, 1, 4095, 4096, 1 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert!(len == 0 || is_aligned(&buf));
            buf.fill(7);
            assert!(buf.iter().all(|&byte| byte == 7));
        }
    }
}

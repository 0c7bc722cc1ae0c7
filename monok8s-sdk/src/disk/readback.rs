//! Comparing the medium with what was written to it.

use super::target::{BlockTarget, DiskError};

/// A part of a slot that was written, and what it must read back as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Where, in bytes.
    pub(crate) offset: u64,
    /// How long, in bytes; never 0.
    pub(crate) length: u64,
    /// What it holds.
    pub(crate) content: Content,
}

/// What a part of a slot holds, in a form that is small enough to keep until it is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeroes.
    Zeroes,
    /// Bytes with this 128-bit XXH3. A medium that fails does not aim: 128 bits find its errors as
    /// surely as a sha256 does. Against people who do aim the bytes were checked before.
    Data(u128),
}

/// How the medium compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// It holds what was written.
    Same,
    /// It holds something else.
    Differs,
}

impl Written {
    /// Takes note of bytes that were written at `offset`.
    #[cfg(feature = "image")]
    pub(crate) fn data(offset: u64, bytes: &[u8]) -> Self {
        let content = Content::Data(xxhash_rust::xxh3::xxh3_128(bytes));
        Self { offset, length: bytes.len() as u64, content }
    }

    /// Takes note of zeroes that were written at `offset`.
    #[cfg(feature = "image")]
    pub(crate) fn zeroes(offset: u64, length: u64) -> Self {
        Self { offset, length, content: Content::Zeroes }
    }

    /// Reads it back from the medium, through `scratch`.
    pub(crate) fn compare(
        &self,
        target: &dyn BlockTarget,
        scratch: &mut [u8],
    ) -> Result<Comparison, DiskError> {
        let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
        let (mut offset, mut left) = (self.offset, self.length);
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            let part = scratch.get_mut(..step).unwrap_or_default();
            target.read_at(offset, part)?;
            match self.content {
                Content::Zeroes if !is_zero(part) => return Ok(Comparison::Differs),
                Content::Zeroes => {}
                Content::Data(_) => hasher.update(part),
            }
            offset += step as u64;
            left -= step as u64;
        }
        match self.content {
            Content::Data(expected) if hasher.digest128() != expected => Ok(Comparison::Differs),
            Content::Data(_) | Content::Zeroes => Ok(Comparison::Same),
        }
    }
}

/// Whether every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|part| ZEROES.get(..part.len()) == Some(part))
}

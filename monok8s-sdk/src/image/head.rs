//! The start of an image, which goes into the slot last.

use super::write_error::WriteError;
use crate::disk::AlignedBuf;

/// What is kept back until the end, in bytes: it holds the superblock, without which nothing
/// mounts or boots the slot.
pub(super) const HEAD: usize = 64 * 1024;

/// The first 64 KiB of the image, which are not on the medium yet.
pub(super) struct Head {
    bytes: AlignedBuf,
    /// How much of it came, in bytes.
    came: usize,
    /// How much of the image is in its place, this included, in bytes.
    pub(super) placed: u64,
}

impl Default for Head {
    /// Nothing came yet.
    fn default() -> Self {
        Self { bytes: AlignedBuf::zeroed(HEAD), came: 0, placed: 0 }
    }
}

impl Head {
    /// Takes in what belongs at this place.
    pub(super) fn take(&mut self, at: usize, part: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + part.len()) {
            place.copy_from_slice(part);
            self.came += part.len();
        }
    }

    /// The same for zeroes, which are there from the start.
    pub(super) fn take_zeroes(&mut self, length: u64) {
        self.came += usize::try_from(length).unwrap_or(0);
    }

    /// The head of an image of this length; an error if not all of the image came. What is not
    /// proven must not boot, whatever mistake led there.
    pub(super) fn of(&self, length: u64) -> Result<&[u8], WriteError> {
        if self.placed != length {
            return Err(WriteError::Incomplete { placed: self.placed, length });
        }
        let wanted = usize::try_from(length).unwrap_or(HEAD).min(HEAD);
        self.bytes
            .get(..wanted)
            .filter(|_| self.came == wanted)
            .ok_or(WriteError::HeadIncomplete { came: self.came, wanted })
    }
}

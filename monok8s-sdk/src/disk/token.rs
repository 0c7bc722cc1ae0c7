//! What is known about the bytes in a slot, as types.
//!
//! None of them can be copied or made up: a [`VerifiedSlot`] in hand means that the medium was
//! read back by this process and found to hold the image, and that the slot is still held.

use std::ops::ControlFlow;

use sha2::Digest as _;

use super::aligned::AlignedBuf;
use super::guard::InactiveSlot;
use super::readback::{Comparison, Written};
use super::target::{Bytes, DiskError};
use crate::api::FailureReason;
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// How much is read at a time, in bytes.
const STEP: usize = 1 << 20;

/// A slot whose image was written and flushed. Some of it was not read back yet, so it may still
/// differ on the medium.
#[derive(Debug)]
#[must_use = "a written slot is of no use until it is verified"]
pub struct WrittenSlot {
    slot: InactiveSlot,
    image: Sha256Digest,
    length: u64,
    /// All of the image that was not read back.
    unread: Vec<Written>,
}

/// A slot that was read back from the medium and holds the image.
#[derive(Debug)]
pub struct VerifiedSlot {
    slot: InactiveSlot,
    image: Sha256Digest,
    length: u64,
}

/// A slot that was booted and confirmed at some time in the past.
///
/// Its bytes may have changed since, because it was mounted: going back to it trusts the confirm,
/// not a digest.
#[derive(Debug)]
pub struct KnownGoodSlot {
    slot: Slot,
    version: OsVersion,
    image: Option<Sha256Digest>,
}

/// Why a slot does not count as verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The medium holds other bytes than were written.
    #[error("slot {slot} ({device}) reads back as {found}, but {expected} was written ({} compared): the medium or a cache on the way to it loses data, replace the disk if a retry fails too", Bytes(*length))]
    Mismatch {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
        /// The digest of the image.
        expected: Sha256Digest,
        /// The digest of what was read.
        found: Sha256Digest,
        /// How many bytes were read.
        length: u64,
    },
    /// A part of the medium holds other bytes than were just written there.
    #[error(
        "slot {slot} ({device}) reads back differently than it was written at byte {offset} ({length} bytes compared): the medium or a cache on the way to it loses data, replace the disk if a retry fails too"
    )]
    PartDiffers {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
        /// Where the part begins, in bytes.
        offset: u64,
        /// The part's length in bytes.
        length: u64,
    },
    /// The slot cannot be read.
    #[error("cannot read back slot {slot}")]
    Read {
        /// The slot.
        slot: Slot,
        /// Why.
        source: DiskError,
    },
    /// The caller asked to stop.
    #[error("the read-back of slot {slot} was cancelled: start it again to verify the slot")]
    Cancelled {
        /// The slot.
        slot: Slot,
    },
}

impl VerifyError {
    /// The word for `failureReason`.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Mismatch { .. } | Self::PartDiffers { .. } => FailureReason::ReadBackMismatch,
            Self::Read { source, .. } => source.reason(),
            Self::Cancelled { .. } => FailureReason::Cancelled,
        }
    }
}

impl WrittenSlot {
    /// Only the writer, after its last flush, may say that a slot is written, and that everything
    /// but `unread` was read back since.
    #[cfg_attr(not(feature = "image"), expect(dead_code, reason = "the writer is part of `image`"))]
    pub(crate) fn new(slot: InactiveSlot, image: Sha256Digest, length: u64, unread: Vec<Written>) -> Self {
        Self { slot, image, length, unread }
    }

    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot.slot()
    }

    /// The digest of the expanded image.
    #[must_use]
    pub fn image(&self) -> Sha256Digest {
        self.image
    }

    /// The expanded image's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads back from the medium what the writer has not read back itself.
    pub fn verify(self) -> Result<VerifiedSlot, VerifyError> {
        let slot = self.slot.slot();
        let mut scratch = AlignedBuf::zeroed(STEP);
        for part in &self.unread {
            let compared = part.compare(&**self.slot.target(), &mut scratch);
            match compared.map_err(|source| VerifyError::Read { slot, source })? {
                Comparison::Same => {}
                Comparison::Differs => {
                    let device = self.slot.description().to_owned();
                    let Written { offset, length, .. } = *part;
                    return Err(VerifyError::PartDiffers { slot, device, offset, length });
                }
            }
        }
        Ok(VerifiedSlot { slot: self.slot, image: self.image, length: self.length })
    }
}

impl InactiveSlot {
    /// Reads back what an earlier run wrote, known from its record: `length` bytes with the digest
    /// `image`. Blocks until every byte of the image was read.
    pub fn verify(self, image: Sha256Digest, length: u64) -> Result<VerifiedSlot, VerifyError> {
        self.verify_observed(image, length, |_| ControlFlow::Continue(()))
    }

    /// [`verify`](Self::verify), telling `observe` after each step how many bytes were read so
    /// far; it may break off.
    pub fn verify_observed(
        self,
        image: Sha256Digest,
        length: u64,
        mut observe: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<VerifiedSlot, VerifyError> {
        let slot = self.slot();
        let mut hasher = sha2::Sha256::new();
        let mut buf = AlignedBuf::zeroed(STEP);
        let mut done = 0;
        while done < length {
            let step = usize::try_from(length - done).unwrap_or(STEP).min(STEP);
            let part = buf.get_mut(..step).unwrap_or_default();
            self.target().read_at(done, part).map_err(|source| VerifyError::Read { slot, source })?;
            hasher.update(part);
            done += step as u64;
            if observe(done).is_break() {
                return Err(VerifyError::Cancelled { slot });
            }
        }
        let found = Sha256Digest::from(<[u8; 32]>::from(hasher.finalize()));
        if found != image {
            let (device, expected) = (self.description().to_owned(), image);
            return Err(VerifyError::Mismatch { slot, device, expected, found, length });
        }
        Ok(VerifiedSlot { slot: self, image, length })
    }
}

impl VerifiedSlot {
    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot.slot()
    }

    /// The digest of the expanded image.
    #[must_use]
    pub fn image(&self) -> Sha256Digest {
        self.image
    }

    /// The expanded image's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What an operator would call the slot, such as `/dev/sda3`.
    #[must_use]
    pub fn description(&self) -> &str {
        self.slot.description()
    }

    /// Reads the image, past the page cache. Bytes behind its end cannot be read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        read_inside(&**self.slot.target(), self.length, offset, buf)
    }

    /// A second reader of the same storage that outlives borrows of this one.
    #[cfg(feature = "image")]
    pub(crate) fn reader(&self) -> SlotReader {
        SlotReader { target: std::sync::Arc::clone(self.slot.target()), length: self.length }
    }
}

/// Reads a verified image.
#[cfg(feature = "image")]
pub(crate) struct SlotReader {
    target: std::sync::Arc<dyn super::target::BlockTarget>,
    length: u64,
}

#[cfg(feature = "image")]
impl SlotReader {
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        read_inside(&*self.target, self.length, offset, buf)
    }
}

fn read_inside(
    target: &dyn super::target::BlockTarget,
    length: u64,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), DiskError> {
    if offset.checked_add(buf.len() as u64).is_none_or(|end| end > length) {
        return Err(DiskError::OutOfBounds {
            target: target.description().to_owned(),
            offset,
            length: buf.len() as u64,
            size: length,
        });
    }
    target.read_at(offset, buf)
}

impl KnownGoodSlot {
    /// What the node's record says of a slot that was confirmed: its version, and the digest of
    /// the image it was written from (`None` for a slot that was installed by other means).
    ///
    /// The caller vouches that the record says so; nothing is read here.
    #[must_use]
    pub fn from_confirm_record(slot: Slot, version: OsVersion, image: Option<Sha256Digest>) -> Self {
        Self { slot, version, image }
    }

    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The version that was confirmed.
    #[must_use]
    pub fn version(&self) -> &OsVersion {
        &self.version
    }

    /// The digest of the image it was written from.
    #[must_use]
    pub fn image(&self) -> Option<Sha256Digest> {
        self.image
    }
}

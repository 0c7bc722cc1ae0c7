//! What can go wrong between an artifact's first byte and the slot's last.

use std::io;

use super::expand::WINDOW_LOG_MAX;
use crate::api::FailureReason;
use crate::digest::Sha256Digest;
use crate::disk::{Bytes, DiskError, GuardError};
use crate::slot::Slot;

/// Why an artifact was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The declared size does not fit into the slot. Nothing was written.
    #[error(transparent)]
    TooLarge(GuardError),
    /// The artifact is another one than was ordered.
    #[error("the artifact's checksum is {found}, but {expected} was ordered ({} received): another file is served there, or the catalog's checksum is wrong", Bytes(*received))]
    ChecksumMismatch {
        /// The checksum ordered.
        expected: Sha256Digest,
        /// The checksum of what arrived.
        found: Sha256Digest,
        /// How many bytes arrived.
        received: u64,
    },
    /// A part of the artifact is not what the index says. It was not written.
    #[error(
        "frame {frame} of the artifact (at byte {offset}) is not what its index says: another file is served there, upload artifact and index again"
    )]
    OtherFrame {
        /// The frame's number, from 0.
        frame: usize,
        /// Where it begins in the artifact, in bytes.
        offset: u64,
    },
    /// The expanded image is another one than was ordered.
    #[error(
        "the expanded image's checksum is {found}, but {expected} was ordered: correct imageChecksum in the catalog, or the artifact"
    )]
    ImageChecksumMismatch {
        /// The checksum ordered.
        expected: Sha256Digest,
        /// The checksum of what was expanded.
        found: Sha256Digest,
    },
    /// The artifact expands to more than its declared size. Stopped there.
    #[error(
        "the artifact expands to more than its declared size of {declared} bytes: stopped there; correct `size` in the catalog if the image is meant to be larger"
    )]
    ExpandsBeyondSize {
        /// The declared size in bytes.
        declared: u64,
    },
    /// The artifact expands to more than the slot holds. Stopped there.
    #[error(
        "the artifact expands to more than slot {} holds ({slot_size} bytes): stopped there; choose an image that fits",
        slot
    )]
    ExpandsBeyondSlot {
        /// The slot.
        slot: Slot,
        /// The slot's size in bytes.
        slot_size: u64,
    },
    /// The artifact expands to less than its declared size.
    #[error(
        "the artifact expands to {found} bytes, but its declared size is {declared}: correct `size` in the catalog (zstd -lv shows it), or the artifact"
    )]
    SizeMismatch {
        /// The declared size in bytes.
        declared: u64,
        /// The size in bytes it has.
        found: u64,
    },
    /// The artifact ends within a frame.
    #[error(
        "the artifact ends after {received} bytes, in the middle of its compressed data: it was cut off, upload it again"
    )]
    Truncated {
        /// How many bytes arrived.
        received: u64,
    },
    /// The artifact is longer than the slot it should be expanded into.
    #[error(
        "the artifact is longer than {limit} bytes, more than an image for this slot can have: another file is served there"
    )]
    ArtifactTooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// The artifact is not zstd.
    #[error("the artifact is not zstd-compressed, it begins with {}: a file like rootfs.ext4.zst was expected", start.escape_ascii())]
    NotZstd {
        /// Its first bytes, four at most.
        start: Vec<u8>,
    },
    /// The artifact needs more memory to decode than is granted.
    #[error("the artifact's zstd window is larger than {} MiB: compress it without --ultra -21 or above and without --long", 1 << (WINDOW_LOG_MAX - 20))]
    WindowTooLarge,
    /// The artifact was compressed with a dictionary.
    #[error("the artifact needs a zstd dictionary, which a node does not have: compress it without -D")]
    Dictionary,
    /// The artifact's compressed data is damaged, or followed by something else.
    #[error("the artifact's compressed data is damaged near byte {received}: upload it again")]
    Corrupt {
        /// How many bytes had arrived.
        received: u64,
        /// What the decoder says.
        source: io::Error,
    },
    /// The source broke off.
    #[error("cannot read the artifact after {received} bytes")]
    Source {
        /// How many bytes had arrived.
        received: u64,
        /// Why.
        source: io::Error,
    },
    /// The slot cannot be written.
    #[error("cannot write the slot after {} of the image", Bytes(*written))]
    Disk {
        /// How many bytes of the image were written before.
        written: u64,
        /// Why.
        source: DiskError,
    },
    /// The medium does not hold what was written to it.
    #[error(
        "{device} reads back differently than it was written at byte {offset} ({length} bytes compared): the medium or a cache on the way to it loses data, replace the disk if a retry fails too"
    )]
    ReadBack {
        /// The device.
        device: String,
        /// Where the part begins, in bytes.
        offset: u64,
        /// The part's length in bytes.
        length: u64,
    },
    /// Not all of the image came. Nothing can boot the slot.
    #[error(
        "{placed} bytes of an image of {length} came: this is a mistake of this program, please report it; the slot cannot be booted"
    )]
    Incomplete {
        /// How many bytes are in their places.
        placed: u64,
        /// How many the image has.
        length: u64,
    },
    /// Not all of the image's first 64 KiB came. Nothing can boot the slot.
    #[error(
        "only {came} of the first {wanted} bytes of the image came: this is a mistake of this program, please report it; the slot cannot be booted"
    )]
    HeadIncomplete {
        /// How many bytes came.
        came: usize,
        /// How many there are.
        wanted: usize,
    },
    /// The caller asked to stop.
    #[error("writing the slot was cancelled: write it again before it is booted")]
    Cancelled,
}

impl WriteError {
    /// The word for `failureReason`.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::TooLarge(_) | Self::ExpandsBeyondSlot { .. } => FailureReason::ImageTooLarge,
            Self::ChecksumMismatch { .. } | Self::OtherFrame { .. } => FailureReason::ChecksumMismatch,
            Self::ImageChecksumMismatch { .. } => FailureReason::ImageChecksumMismatch,
            Self::ExpandsBeyondSize { .. } => FailureReason::ExpandsBeyondSize,
            Self::SizeMismatch { .. } => FailureReason::SizeMismatch,
            Self::Truncated { .. } => FailureReason::TruncatedArtifact,
            Self::ArtifactTooLong { .. } => FailureReason::ArtifactTooLong,
            Self::NotZstd { .. } => FailureReason::NotZstd,
            Self::WindowTooLarge => FailureReason::WindowTooLarge,
            Self::Corrupt { .. } | Self::Dictionary => FailureReason::CorruptArtifact,
            Self::Source { .. } => FailureReason::ArtifactUnreadable,
            Self::Disk { source, .. } => source.reason(),
            Self::Incomplete { .. } | Self::HeadIncomplete { .. } => FailureReason::Interrupted,
            Self::ReadBack { .. } => FailureReason::ReadBackMismatch,
            Self::Cancelled => FailureReason::Cancelled,
        }
    }
}

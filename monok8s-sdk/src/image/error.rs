//! Everything that can go wrong between an artifact and a slot that may be booted.

use super::fetch_error::FetchError;
use super::inspect::InspectError;
use super::write_error::WriteError;
use crate::api::FailureReason;
use crate::disk::{Action, DiskError, GuardError, VerifyError};

/// Why an image did not get into a slot. Grouped by the step that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The slot may not be written, or the image does not fit.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The artifact could not be downloaded.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The artifact is not what it should be, or could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The slot does not read back as it was written.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The image that was written must not be booted.
    #[error(transparent)]
    Inspect(#[from] InspectError),
}

/// Whether trying the same again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Networks and reads fail for a while: try again later, without anyone's help.
    Later,
    /// The same will fail again: a person must change something first.
    Never,
}

impl ImageError {
    /// The word for `failureReason`.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Guard(error) => error.reason(),
            Self::Fetch(error) => error.reason(),
            Self::Write(error) => error.reason(),
            Self::Verify(error) => error.reason(),
            Self::Inspect(error) => error.reason(),
        }
    }

    /// Whether trying the same again may help: only after errors of the network, and of reads
    /// from the disk.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Fetch(error) => error.retry(),
            Self::Write(WriteError::Disk { source: DiskError::Io { action: Action::Read, .. }, .. })
            | Self::Verify(VerifyError::Read { source: DiskError::Io { .. }, .. })
            | Self::Inspect(InspectError::Read { source: DiskError::Io { .. }, .. }) => Retry::Later,
            Self::Guard(_) | Self::Write(_) | Self::Verify(_) | Self::Inspect(_) => Retry::Never,
        }
    }

    /// Whether the caller's own [`Cancel`](super::Cancel) is why it ended.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.reason() == FailureReason::Cancelled
    }
}

//! Failures of the long work, as the status tells them.

use std::error::Error;

use monok8s_sdk::api::FailureReason;
use monok8s_sdk::disk::{GuardError, VerifyError};
use monok8s_sdk::image::{FetchError, ImageError, InspectError, Retry, WriteError};

/// Why an attempt does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The word for programs.
    pub(super) reason: FailureReason,
    /// The whole story in one line.
    pub(super) message: String,
    /// Whether the same may go well a little later.
    pub(super) retry: Retry,
}

impl Failure {
    /// A failure that only a person can end.
    pub(super) fn lasting(reason: FailureReason, message: String) -> Self {
        Self { reason, message, retry: Retry::Never }
    }

    /// What an error of the image steps means.
    pub(super) fn of(error: &ImageError) -> Self {
        Self { reason: reason(error), message: chain(error), retry: error.retry() }
    }
}

fn reason(error: &ImageError) -> FailureReason {
    match error {
        ImageError::Guard(error) => of_guard(error),
        ImageError::Fetch(FetchError::NotFound { .. } | FetchError::Forbidden { .. }) => {
            FailureReason::ArtifactNotFound
        }
        ImageError::Write(error) => of_write(error),
        ImageError::Verify(VerifyError::Mismatch { .. }) => FailureReason::VerifyFailed,
        ImageError::Inspect(error) => of_inspection(error),
        ImageError::Fetch(_) => FailureReason::DownloadFailed,
        // Reading back, and whatever a later release of the SDK distinguishes: the disk's doing.
        _ => FailureReason::DiskError,
    }
}

fn of_guard(error: &GuardError) -> FailureReason {
    match error {
        GuardError::TooSmall { .. } => FailureReason::ImageTooLarge,
        GuardError::Open { .. } => FailureReason::DiskError,
        _ => FailureReason::SlotRefused,
    }
}

fn of_write(error: &WriteError) -> FailureReason {
    match error {
        WriteError::TooLarge(_)
        | WriteError::ExpandsBeyondSize { .. }
        | WriteError::ExpandsBeyondSlot { .. } => FailureReason::ImageTooLarge,
        WriteError::ChecksumMismatch { .. } => FailureReason::ChecksumMismatch,
        WriteError::ImageChecksumMismatch { .. } | WriteError::SizeMismatch { .. } => {
            FailureReason::ImageMismatch
        }
        WriteError::Source { .. } => FailureReason::DownloadFailed,
        WriteError::Disk { .. } => FailureReason::DiskError,
        _ => FailureReason::ArtifactCorrupt,
    }
}

fn of_inspection(error: &InspectError) -> FailureReason {
    match error {
        InspectError::Read { .. } => FailureReason::DiskError,
        InspectError::WrongVersion { .. } => FailureReason::WrongVersion,
        InspectError::GuardMissing { .. } => FailureReason::GuardMissing,
        _ => FailureReason::ImageUnreadable,
    }
}

/// An error and all that caused it, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Transparent wrappers repeat what they wrap.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

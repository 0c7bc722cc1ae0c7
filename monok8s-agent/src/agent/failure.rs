//! Failures of the long work, as the status tells them.

use monok8s_sdk::api::FailureReason;
use monok8s_sdk::causes::chain;
use monok8s_sdk::image::{ImageError, Retry};

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
        Self { reason: error.reason(), message: chain(error), retry: error.retry() }
    }
}

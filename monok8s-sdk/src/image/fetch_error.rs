//! What can go wrong on the way from a server.

use std::time::Duration;

use super::error::Retry;
use crate::api::FailureReason;

/// Why an artifact could not be downloaded. URLs are shown without credentials and queries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// There was nothing to ask.
    #[error("no URL to download the artifact from: give at least one")]
    NoUrl,
    /// No mirror has the file.
    #[error("{url} does not exist (status {status}): upload the artifact there, or correct the catalog")]
    NotFound {
        /// The last URL that was asked.
        url: String,
        /// 404 or 410.
        status: u16,
    },
    /// No mirror lets us have it.
    #[error("{url} may not be read (status {status}): the server refuses this node, check its permissions")]
    Forbidden {
        /// The last URL that was asked.
        url: String,
        /// 401 or 403.
        status: u16,
    },
    /// No mirror gives an answer that can be used.
    #[error("{url} gives no usable answer: {what}")]
    Unusable {
        /// The last URL that was asked.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// No mirror sends parts of files.
    #[error("{url} cannot be asked for parts of the file: {what}")]
    NoRanges {
        /// A URL that has the file.
        url: String,
        /// What it sends instead.
        what: String,
    },
    /// The file was replaced while it was downloaded, or is not the same on every mirror.
    #[error("{url} changed during the download: start it again from the beginning")]
    Changed {
        /// The URL.
        url: String,
    },
    /// Interrupted too often in a row.
    #[error(
        "gave up on {url} after {attempts} attempts in a row without a new byte ({received} bytes received before)"
    )]
    Interrupted {
        /// The last URL that was asked.
        url: String,
        /// How many attempts.
        attempts: u32,
        /// How many bytes arrived in all, from all mirrors.
        received: u64,
        /// The last interruption.
        source: Interruption,
    },
    /// Out of time.
    #[error("{url} was not downloaded within {} s ({received} bytes received)", limit.as_secs())]
    TimedOut {
        /// The first URL.
        url: String,
        /// The limit.
        limit: Duration,
        /// How many bytes arrived, from all mirrors.
        received: u64,
    },
    /// The caller asked to stop.
    #[error("the download was cancelled")]
    Cancelled,
}

/// Why one attempt ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Interruption {
    /// The network, or the server's end of it.
    #[error("the connection failed")]
    Network(#[source] reqwest::Error),
    /// The server asks to come back later.
    #[error("the server answers with status {status}")]
    Busy {
        /// The status.
        status: u16,
    },
    /// Nothing arrived for too long.
    #[error("no byte for {} s", after.as_secs())]
    Stalled {
        /// The limit.
        after: Duration,
    },
    /// The body ended before the announced length.
    #[error("the body ended at byte {received} of {total}")]
    EndedEarly {
        /// How many bytes arrived.
        received: u64,
        /// How many were announced.
        total: u64,
    },
}

impl FetchError {
    /// The word for `failureReason`.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::NoUrl => FailureReason::NoArtifactUrl,
            Self::NotFound { .. } => FailureReason::ArtifactNotFound,
            Self::Forbidden { .. } => FailureReason::ArtifactForbidden,
            Self::Unusable { .. } | Self::NoRanges { .. } => FailureReason::UnusableAnswer,
            Self::Changed { .. } => FailureReason::ArtifactChanged,
            Self::Interrupted { .. } => FailureReason::DownloadInterrupted,
            Self::TimedOut { .. } => FailureReason::DownloadTimedOut,
            Self::Cancelled => FailureReason::Cancelled,
        }
    }

    /// Whether trying the same again may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Changed { .. } | Self::Interrupted { .. } | Self::TimedOut { .. } => Retry::Later,
            Self::NoUrl
            | Self::NotFound { .. }
            | Self::Forbidden { .. }
            | Self::Unusable { .. }
            | Self::NoRanges { .. }
            | Self::Cancelled => Retry::Never,
        }
    }
}

//! What several tests of images need: a server that misbehaves, releases, and machines made of files.
#![allow(dead_code, unused_imports, reason = "no test needs all of it")]

pub(crate) mod machine;
pub(crate) mod release;
pub(crate) mod server;

use std::time::Duration;

use monok8s_sdk::http::{HttpOptions, http_client};
use monok8s_sdk::image::{Download, DownloadLimits};

pub(crate) use server::{Reply, Request, Server};

/// Limits that are soon reached.
pub(crate) const LIMITS: DownloadLimits = DownloadLimits {
    total: Duration::from_secs(60),
    stall: Duration::from_millis(1500),
    attempts: 4,
    first_backoff: Duration::from_millis(5),
    longest_backoff: Duration::from_millis(20),
    rate: None,
};

/// A download from any of `urls` that is soon out of patience.
pub(crate) fn download(urls: impl IntoIterator<Item = reqwest::Url>) -> Download {
    // Several tests may come here first; one of them installs the provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Download::new(http_client(&HttpOptions::default()).unwrap(), urls).with_limits(LIMITS)
}

//! Where a file comes from over HTTP, how patiently, and who takes it. The transfer itself is in
//! [`transfer`](super::transfer).

use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, Url};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::source::MAX_CHUNK;
use crate::http::shown_url;

/// Where an artifact is downloaded from, and how patiently.
///
/// The same bytes are expected from every URL, and the first one is liked best. A mirror that fails,
/// has no such file, or sends wrong bytes comes after the others from then on, for everything that is
/// fetched for the image; an interrupted download goes on where it was, at the next one.
#[derive(Clone, Debug)]
pub struct Download {
    pub(super) client: Client,
    pub(super) urls: Vec<Url>,
    pub(super) limits: DownloadLimits,
    /// When everything that the rate granted so far is used up; shared by all connections.
    spent_until: Arc<Mutex<Option<Instant>>>,
}

/// When to give up, and how long to wait in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownloadLimits {
    /// All of an image's download, waits included: its index, what is fetched by it, and the whole
    /// artifact if it comes to that. The limits of the artifact count; an index is waited for at most
    /// a quarter of that time, since it is never needed.
    pub total: Duration,
    /// No byte for this long is an interruption.
    pub stall: Duration,
    /// How many interruptions of a request in a row, without one new byte of anything in between,
    /// end the download.
    pub attempts: u32,
    /// The wait after the first interruption; it doubles with each further one in a row. Waits
    /// are jittered down to a half, so that a fleet does not come back all at once.
    pub first_backoff: Duration,
    /// The longest wait.
    pub longest_backoff: Duration,
    /// Bytes a second, over all connections together; `None` is as fast as it goes.
    pub rate: Option<NonZeroU64>,
}

impl Default for DownloadLimits {
    /// One hour in all, 30 s without a byte, as many attempts as that takes, waits from 1 s to 30 s,
    /// no rate.
    fn default() -> Self {
        Self {
            total: Duration::from_secs(3600),
            stall: Duration::from_secs(30),
            attempts: u32::MAX,
            first_backoff: Duration::from_secs(1),
            longest_backoff: Duration::from_secs(30),
            rate: None,
        }
    }
}

impl Download {
    /// A download of the same file from any of `urls`, with the default limits. The client should
    /// come from [`http_client`](crate::http::http_client); it must not decompress bodies.
    pub fn new(client: Client, urls: impl IntoIterator<Item = Url>) -> Self {
        Self {
            client,
            urls: urls.into_iter().collect(),
            limits: DownloadLimits::default(),
            spent_until: Arc::default(),
        }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(self, limits: DownloadLimits) -> Self {
        Self { limits, ..self }
    }

    /// Waits until the rate allows what was just received.
    pub(super) async fn keep_pace(&self, bytes: usize) {
        let Some(rate) = self.limits.rate else { return };
        let now = Instant::now();
        let until = {
            let mut spent_until = self.spent_until.lock().unwrap_or_else(PoisonError::into_inner);
            let until = after(spent_until.unwrap_or(now).max(now), bytes, rate);
            *spent_until = Some(until);
            until
        };
        sleep_until(until).await;
    }
}

/// Whoever takes what arrives.
pub(super) trait Outlet: Send {
    /// The bytes from `offset` on are about to be asked for, from this mirror. Returns where it should
    /// begin instead: what must not be made up of the bytes of two mirrors is asked for again.
    fn begin(&mut self, _mirror: usize, offset: u64) -> u64 {
        offset
    }

    /// Takes the next bytes; breaks when no more are wanted.
    fn take(&mut self, bytes: Bytes) -> impl Future<Output = ControlFlow<()>> + Send;
}

impl Outlet for mpsc::Sender<Bytes> {
    async fn take(&mut self, mut bytes: Bytes) -> ControlFlow<()> {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MAX_CHUNK));
            if self.send(part).await.is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

/// How a transfer ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Every byte was taken.
    Whole,
    /// The taker went away; it knows why.
    Abandoned,
}

/// When `bytes` are used up at this rate, from `start` on.
fn after(start: Instant, bytes: usize, rate: NonZeroU64) -> Instant {
    let nanoseconds = (bytes as u128) * 1_000_000_000 / u128::from(rate.get());
    start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// A URL for messages: without what may be secret.
pub(super) fn shown(url: &Url) -> String {
    shown_url(url.as_str())
}

impl fmt::Display for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.urls.first() {
            Some(url) => f.write_str(&shown(url)),
            None => f.write_str("no URL"),
        }
    }
}

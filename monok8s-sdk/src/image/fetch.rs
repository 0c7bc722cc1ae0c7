//! An artifact over HTTP: mirrors, resumed downloads, bounded patience.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU64;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Client, Response, Url};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::fetch_error::{FetchError, Interruption};
use super::progress::{Cancel, Progress};
use super::resume::{Answer, Identity, Received, Verdict, judge};
use super::source::MAX_CHUNK;
use crate::http::{root_cause, shown_url};

/// Where an artifact is downloaded from, and how patiently.
///
/// The same bytes are expected from every URL. They are asked for in turn; an interrupted
/// download goes on where it was, at the next one.
#[derive(Clone, Debug)]
pub struct Download {
    client: Client,
    urls: Vec<Url>,
    limits: DownloadLimits,
    /// When everything that the rate granted so far is used up; shared by all connections.
    spent_until: Arc<Mutex<Option<Instant>>>,
}

/// When to give up, and how long to wait in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownloadLimits {
    /// The whole download, waits included.
    pub total: Duration,
    /// No byte for this long is an interruption.
    pub stall: Duration,
    /// How many interruptions in a row, without one new byte in between, end the download.
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
    async fn keep_pace(&self, bytes: usize) {
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

    /// Hands on the bytes of `part` in order. Ends without an error when nobody takes them any more.
    pub(super) async fn run(
        &self,
        part: Part,
        into: impl Outlet,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Taken, FetchError> {
        let first = self.urls.first().ok_or(FetchError::NoUrl)?;
        let received = match part {
            Part::Whole => Received::default(),
            Part::Of { bytes, total } => {
                Received { offset: bytes.start, end: Some(bytes.end), total: Some(total), known: None }
            }
        };
        let known = vec![None; self.urls.len()];
        let mut transfer = Transfer { download: self, into, progress, received, known };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(FetchError::Cancelled),
            ended = timeout_at(Instant::now() + self.limits.total, transfer.run()) => ended.unwrap_or_else(|_| {
                let (limit, received) = (self.limits.total, transfer.received.offset);
                Err(FetchError::TimedOut { url: shown(first), limit, received })
            }),
        }
    }
}

/// What of a file is downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// These bytes, of a file of this length. A server that sends the whole file instead is of no
    /// use, unless they are its first.
    Of { bytes: Range<u64>, total: u64 },
}

/// Whoever takes what arrives.
pub(super) trait Outlet: Send {
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

/// How one attempt ended.
enum Ended {
    Taken(Taken),
    /// Try again, here or elsewhere.
    Interrupted(Interruption),
    /// This mirror is of no use.
    Useless(FetchError),
    /// No mirror can help.
    Fatal(FetchError),
}

struct Transfer<'a, O> {
    download: &'a Download,
    into: O,
    progress: &'a Progress,
    received: Received,
    /// What each mirror said about the file.
    known: Vec<Option<Identity>>,
}

impl<O: Outlet> Transfer<'_, O> {
    async fn run(&mut self) -> Result<Taken, FetchError> {
        let limits = &self.download.limits;
        let mut mirrors: std::collections::VecDeque<usize> = (0..self.download.urls.len()).collect();
        let mut fruitless = 0;
        let mut useless = FetchError::NoUrl;
        while let Some(mirror) = mirrors.pop_front() {
            let Some(url) = self.download.urls.get(mirror) else { continue };
            let before = self.received.offset;
            match self.attempt(mirror, url).await {
                Ended::Taken(taken) => return Ok(taken),
                Ended::Fatal(error) => return Err(error),
                // That the file is there, though only whole, is the better news.
                Ended::Useless(error) if !matches!(useless, FetchError::NoRanges { .. }) => useless = error,
                Ended::Useless(_) => {}
                Ended::Interrupted(source) => {
                    mirrors.push_back(mirror);
                    fruitless = if self.received.offset > before { 0 } else { fruitless + 1 };
                    if fruitless >= limits.attempts {
                        let (url, received) = (shown(url), self.received.offset);
                        return Err(FetchError::Interrupted { url, attempts: fruitless, received, source });
                    }
                    sleep(backoff(limits, fruitless, RandomState::new().hash_one(0))).await;
                }
            }
        }
        Err(useless)
    }

    async fn attempt(&mut self, mirror: usize, url: &Url) -> Ended {
        self.received.known = self.known.get(mirror).cloned().flatten();
        let response = match self.request(url).await {
            Ok(response) => response,
            Err(ended) => return ended,
        };
        let answer = answer(&response);
        let (skip, total) = match judge(&self.received, &answer) {
            Verdict::Take { skip, total } => (skip, total),
            // Its first answer: nothing changed, it has another file than the one that is described.
            Verdict::Changed if self.received.end.is_some() && self.received.known.is_none() => {
                let what = "it has another file than the index describes".to_owned();
                return Ended::Useless(FetchError::Unusable { url: shown(url), what });
            }
            verdict => return refuse(verdict, answer.status, url),
        };
        if let Some(known) = self.known.get_mut(mirror) {
            *known = Some(Identity::of(&answer));
        }
        if answer.status == 200 && skip > 0 && self.received.end.is_some() {
            return Ended::Useless(FetchError::NoRanges { url: shown(url) });
        }
        if let (Some(total), None) = (total, self.received.end) {
            self.progress.set_total(total);
        }
        self.received.total = total;
        self.body(response, skip).await
    }

    async fn request(&self, url: &Url) -> Result<Response, Ended> {
        let mut request = self.download.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if self.received.is_part() {
            let last = self.received.end.map_or(String::new(), |end| (end - 1).to_string());
            request = request.header(header::RANGE, format!("bytes={}-{last}", self.received.offset));
            if let Some(value) = self.received.known.as_ref().and_then(Identity::if_range) {
                request = request.header(header::IF_RANGE, value);
            }
        }
        let stall = self.download.limits.stall;
        let response = match timeout(stall, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_redirect() || error.is_builder() => {
                let what = root_cause(&error);
                return Err(Ended::Useless(FetchError::Unusable { url: shown(url), what }));
            }
            Ok(Err(error)) => return Err(Ended::Interrupted(Interruption::Network(error.without_url()))),
            Err(_) => return Err(Ended::Interrupted(Interruption::Stalled { after: stall })),
        };
        // For clients that were built without our redirect policy.
        if url.scheme() == "https" && response.url().scheme() != "https" {
            let what = "it redirects from https to an unprotected URL".to_owned();
            return Err(Ended::Useless(FetchError::Unusable { url: shown(url), what }));
        }
        Ok(response)
    }

    async fn body(&mut self, mut response: Response, mut skip: u64) -> Ended {
        let stall = self.download.limits.stall;
        loop {
            let mut bytes = match timeout(stall, response.chunk()).await {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => break,
                // Everything is here; how the connection ends does not matter.
                _ if self.received.is_complete() => break,
                Ok(Err(error)) => return Ended::Interrupted(Interruption::Network(error.without_url())),
                Err(_) => return Ended::Interrupted(Interruption::Stalled { after: stall }),
            };
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            drop(bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len())));
            if let Some(end) = self.received.end {
                let left = end.saturating_sub(self.received.offset);
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            }
            self.received.offset += bytes.len() as u64;
            self.download.keep_pace(bytes.len()).await;
            if self.into.take(bytes).await.is_break() {
                return Ended::Taken(Taken::Abandoned);
            }
            if self.received.end.is_some() && self.received.is_complete() {
                break;
            }
        }
        match self.received.end.or(self.received.total) {
            Some(total) if self.received.offset < total => {
                Ended::Interrupted(Interruption::EndedEarly { received: self.received.offset, total })
            }
            _ => Ended::Taken(Taken::Whole),
        }
    }
}

fn refuse(verdict: Verdict, status: u16, url: &Url) -> Ended {
    let url = shown(url);
    match verdict {
        Verdict::Busy => Ended::Interrupted(Interruption::Busy { status }),
        Verdict::Changed => Ended::Fatal(FetchError::Changed { url }),
        Verdict::NotFound => Ended::Useless(FetchError::NotFound { url, status }),
        Verdict::Forbidden => Ended::Useless(FetchError::Forbidden { url, status }),
        Verdict::Unusable(what) => Ended::Useless(FetchError::Unusable { url, what }),
        Verdict::Take { .. } => Ended::Taken(Taken::Whole),
    }
}

fn answer(response: &Response) -> Answer {
    let text = |name: HeaderName| header_text(response.headers(), &name);
    Answer {
        status: response.status().as_u16(),
        content_length: text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        content_range: text(header::CONTENT_RANGE),
        content_encoding: text(header::CONTENT_ENCODING),
        etag: text(header::ETAG),
        last_modified: text(header::LAST_MODIFIED),
    }
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// How long to wait before the next attempt. `random` spreads it over the upper half.
fn backoff(limits: &DownloadLimits, fruitless: u32, random: u64) -> Duration {
    let doubled = limits.first_backoff.saturating_mul(1 << fruitless.saturating_sub(1).min(20));
    let whole = doubled.min(limits.longest_backoff);
    let thousandths = u32::try_from(random % 1001).unwrap_or(0);
    whole / 2 + whole / 2000 * thousandths
}

/// When `bytes` are used up at this rate, from `start` on.
fn after(start: Instant, bytes: usize, rate: NonZeroU64) -> Instant {
    let nanoseconds = (bytes as u128) * 1_000_000_000 / u128::from(rate.get());
    start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// A URL for messages: without what may be secret.
fn shown(url: &Url) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_are_jittered() {
        let limits = DownloadLimits::default();
        for (fruitless, least, most) in
            [(0, 500, 1000), (1, 500, 1000), (3, 2000, 4000), (60, 15_000, 30_000)]
        {
            let range = Duration::from_millis(least)..=Duration::from_millis(most);
            for random in [0, 1, 500, 999, 1000, u64::MAX] {
                assert!(range.contains(&backoff(&limits, fruitless, random)), "{fruitless} {random}");
            }
        }
    }
}

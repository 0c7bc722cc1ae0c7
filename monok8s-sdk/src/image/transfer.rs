//! The download of one image: one deadline for all of it, and what is known of its mirrors.
//!
//! A [`Session`] serves the index, every frame that is fetched by it, and the whole artifact if it
//! comes to that. Its requests share a [`Mirrors`] for each file.

use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Response;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::exchange::{Refusal, answer, request};
use super::fetch::{Download, DownloadLimits, Outlet, Taken, shown};
use super::fetch_error::{FetchError, Interruption};
use super::mirrors::{Fault, Mirrors, Need, Next, Seen};
use super::progress::{Cancel, Progress};
use super::resume::{Identity, Received, Refused, Take, judge};

/// An index may take this part of the time that everything has.
const INDEX_SHARE: u32 = 4;
/// How long the end of a body is waited for behind its last byte, so that its connection can be used
/// for the next request.
const LAST_BYTE: Duration = Duration::from_secs(1);

/// All requests for one image.
pub(super) struct Session {
    artifact: File,
    index: Option<File>,
    began: Instant,
    limit: Duration,
    /// How many bytes came, of anything.
    arrived: AtomicU64,
}

/// A file on its mirrors.
struct File {
    download: Download,
    mirrors: Mutex<Mirrors>,
}

/// Why bytes did not come.
#[derive(Debug)]
pub(super) enum Missed {
    /// Every mirror was found to be of no use for them.
    NobodyLeft(FetchError),
    /// Anything else.
    Because(FetchError),
}

impl From<Missed> for FetchError {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::NobodyLeft(error) | Missed::Because(error) => error,
        }
    }
}

impl Session {
    /// Begins now: the time that the artifact's limits allow runs from here.
    pub(super) fn begin(artifact: Download, index: Option<Download>) -> Self {
        let limit = artifact.limits.total;
        let (artifact, index) = (File::new(artifact), index.map(File::new));
        Self { artifact, index, began: Instant::now(), limit, arrived: AtomicU64::new(0) }
    }

    /// Hands on the whole index.
    pub(super) async fn index(&self, into: impl Outlet, cancel: &Cancel) -> Result<Taken, FetchError> {
        let file = self.index.as_ref().ok_or(FetchError::NoUrl)?;
        let limit = file.download.limits.total.min(self.limit / INDEX_SHARE);
        let mut transfer = Transfer::new(self, file, Received::default(), &[], into, None);
        Ok(transfer.until(limit, cancel).await?)
    }

    /// Hands on the whole artifact.
    pub(super) async fn whole(
        &self,
        into: impl Outlet,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Taken, FetchError> {
        let mut transfer =
            Transfer::new(self, &self.artifact, Received::default(), &[], into, Some(progress));
        Ok(transfer.until(self.limit, cancel).await?)
    }

    /// Hands on these bytes of the artifact, which has `total` of them, from any mirror that is not in
    /// `except`. Whoever takes them checks them: no mirror is relied on to have the same file as ever.
    pub(super) async fn part(
        &self,
        bytes: Range<u64>,
        total: u64,
        except: &[usize],
        into: impl Outlet,
        cancel: &Cancel,
    ) -> Result<Taken, Missed> {
        let wanted = Received { offset: bytes.start, end: Some(bytes.end), total: Some(total), known: None };
        Transfer::new(self, &self.artifact, wanted, except, into, None).until(self.limit, cancel).await
    }

    /// Takes note that a mirror of the artifact sent wrong bytes.
    pub(super) fn sent_wrong_bytes(&self, mirror: usize) {
        self.artifact.saw(mirror, Seen::WrongBytes);
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl File {
    fn new(download: Download) -> Self {
        let mirrors = Mutex::new(Mirrors::new(download.urls.len()));
        Self { download, mirrors }
    }

    fn mirrors(&self) -> std::sync::MutexGuard<'_, Mirrors> {
        // Every change of it is one assignment, so that a panic leaves it whole.
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, mirror: usize, seen: Seen) {
        self.mirrors().saw(mirror, seen);
    }

    fn shown(&self, mirror: usize) -> String {
        self.download.urls.get(mirror).map(shown).unwrap_or_default()
    }

    /// Why nobody is left.
    fn nobody_left(&self) -> FetchError {
        let mirrors = self.mirrors();
        let Some((mirror, fault)) = mirrors.useless() else {
            // Mirrors that were not to be asked, or there was none.
            let what = "it sends other bytes than the index describes".to_owned();
            let wrong = |url| FetchError::Unusable { url: shown(url), what };
            return self.download.urls.first().map_or(FetchError::NoUrl, wrong);
        };
        let url = self.shown(mirror);
        match fault.clone() {
            Fault::NotFound(status) => FetchError::NotFound { url, status },
            Fault::Forbidden(status) => FetchError::Forbidden { url, status },
            Fault::Other => FetchError::Changed { url },
            Fault::Unusable(what) => FetchError::Unusable { url, what },
        }
    }
}

/// How one request ended.
enum Ended {
    Taken(Taken),
    /// Try again, here or elsewhere.
    Interrupted(Interruption),
    /// This is known of the mirror now; somebody else is asked.
    Seen(Seen),
    /// No mirror can help.
    Fatal(FetchError),
}

/// Bytes on their way from one mirror after the other.
struct Transfer<'a, O> {
    session: &'a Session,
    file: &'a File,
    except: &'a [usize],
    into: O,
    /// Whom to tell how long the file is.
    progress: Option<&'a Progress>,
    received: Received,
    /// What each mirror said about the file of which it sent something.
    begun: Vec<Option<Identity>>,
    /// Whether the last request brought anything.
    came: bool,
}

impl<'a, O: Outlet> Transfer<'a, O> {
    fn new(
        session: &'a Session,
        file: &'a File,
        received: Received,
        except: &'a [usize],
        into: O,
        progress: Option<&'a Progress>,
    ) -> Self {
        let begun = vec![None; file.download.urls.len()];
        Self { session, file, except, into, progress, received, begun, came: false }
    }

    /// Until everything is there, or `limit` after the session's begin.
    async fn until(&mut self, limit: Duration, cancel: &Cancel) -> Result<Taken, Missed> {
        let (session, url) = (self.session, self.file.shown(0));
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Missed::Because(FetchError::Cancelled)),
            ended = timeout_at(session.began + limit, self.run()) => ended.unwrap_or_else(|_| {
                Err(Missed::Because(FetchError::TimedOut { url, limit, received: session.arrived() }))
            }),
        }
    }

    /// Whether it is a part of the artifact, each frame of which is checked by itself.
    fn is_part(&self) -> bool {
        self.received.end.is_some()
    }

    fn need(&self) -> Need {
        if self.is_part() { Need::Part } else { Need::Rest { from: self.received.offset } }
    }

    async fn run(&mut self) -> Result<Taken, Missed> {
        let limits = &self.file.download.limits;
        let mut fruitless = 0;
        loop {
            let next = self.file.mirrors().next(self.need(), self.except);
            let mirror = match next {
                Next::Ask(mirror) => mirror,
                Next::OnlyWhole { mirror, why } => return Err(self.no_ranges(mirror, why)),
                Next::Nobody => return Err(Missed::NobodyLeft(self.file.nobody_left())),
            };
            let (before, arrived) = (self.file.mirrors().failures(mirror), self.session.arrived());
            match self.attempt(mirror).await {
                Ended::Taken(taken) => return Ok(taken),
                Ended::Fatal(error) => return Err(Missed::Because(error)),
                Ended::Seen(seen) => self.file.saw(mirror, seen),
                Ended::Interrupted(source) => {
                    let before = if self.came { 0 } else { before };
                    self.file.saw(mirror, Seen::Failed { before });
                    fruitless = if self.session.arrived() > arrived { 0 } else { fruitless + 1 };
                    if fruitless >= limits.attempts {
                        return Err(self.gave_up(mirror, fruitless, source));
                    }
                    sleep(backoff(limits, fruitless, RandomState::new().hash_one(0))).await;
                }
            }
        }
    }

    fn no_ranges(&self, mirror: usize, what: String) -> Missed {
        Missed::Because(FetchError::NoRanges { url: self.file.shown(mirror), what })
    }

    fn gave_up(&self, mirror: usize, attempts: u32, source: Interruption) -> Missed {
        // Whoever has the whole is better than nobody.
        if self.is_part()
            && let Some((mirror, why)) = self.file.mirrors().only_whole(self.except)
        {
            return self.no_ranges(mirror, why);
        }
        let (url, received) = (self.file.shown(mirror), self.session.arrived());
        Missed::Because(FetchError::Interrupted { url, attempts, received, source })
    }

    /// Asks one mirror for what is lacking.
    async fn attempt(&mut self, mirror: usize) -> Ended {
        let file = self.file;
        let Some(url) = file.download.urls.get(mirror) else { return Ended::Seen(unusable("no URL")) };
        self.came = false;
        self.received.offset = self.into.begin(mirror, self.received.offset);
        self.received.known = self.begun.get(mirror).cloned().flatten();
        let asked = Instant::now();
        let response = match request(&file.download, url, &self.received).await {
            Ok(response) => response,
            Err(Refusal::Interrupted(why)) => return Ended::Interrupted(why),
            Err(Refusal::Unusable(what)) => return Ended::Seen(unusable(what)),
        };
        let answer = answer(&response);
        let (skip, total) = match judge(&self.received, &answer) {
            Ok(Take { skip, total }) => (skip, total),
            Err(refused) => return self.refuse(refused, answer.status, mirror),
        };
        let identity = Identity::of(&answer);
        file.saw(mirror, Seen::Answered(identity.clone()));
        if answer.status == 200 && self.received.is_part() {
            let what = "it sends the whole file when a part of it is asked for".to_owned();
            if self.is_part() {
                return Ended::Seen(Seen::NoRanges(what));
            }
            file.saw(mirror, Seen::NoRanges(what));
        }
        if !self.is_part() {
            if let Some(begun) = self.begun.get_mut(mirror) {
                *begun = Some(identity);
            }
            if let (Some(total), Some(progress)) = (total, self.progress) {
                progress.set_total(total);
            }
        }
        self.received.total = total;
        file.saw(mirror, Seen::Came { bytes: 0, waited: asked.elapsed() });
        self.body(mirror, response, skip).await
    }

    fn refuse(&self, refused: Refused, status: u16, mirror: usize) -> Ended {
        let useless = |fault| Ended::Seen(Seen::Useless(fault));
        match refused {
            Refused::Busy => Ended::Interrupted(Interruption::Busy { status }),
            // What an index describes does not change, so that this mirror has another file.
            Refused::Changed if self.is_part() => {
                Ended::Seen(unusable("it has another file than the index describes"))
            }
            // It sent some of what was handed on.
            Refused::Changed if self.received.known.is_some() => {
                Ended::Fatal(FetchError::Changed { url: self.file.shown(mirror) })
            }
            Refused::Changed => useless(Fault::Other),
            Refused::NotFound => useless(Fault::NotFound(status)),
            Refused::Forbidden => useless(Fault::Forbidden(status)),
            Refused::WrongPart(what) if self.is_part() => Ended::Seen(Seen::NoRanges(what)),
            Refused::WrongPart(what) | Refused::Unusable(what) => useless(Fault::Unusable(what)),
        }
    }

    /// Takes what a mirror sends, but for the first `skip` bytes.
    async fn body(&mut self, mirror: usize, mut response: Response, mut skip: u64) -> Ended {
        let stall = self.file.download.limits.stall;
        loop {
            let asked = Instant::now();
            let mut bytes = match timeout(stall, response.chunk()).await {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => break,
                // Everything is here; how the connection ends does not matter.
                _ if self.received.is_complete() => break,
                Ok(Err(error)) => return Ended::Interrupted(Interruption::Network(error.without_url())),
                Err(_) => return Ended::Interrupted(Interruption::Stalled { after: stall }),
            };
            self.came = true;
            let came = Seen::Came { bytes: bytes.len() as u64, waited: asked.elapsed() };
            self.file.saw(mirror, came);
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            drop(bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len())));
            if let Some(end) = self.received.end {
                let left = end.saturating_sub(self.received.offset);
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            }
            self.received.offset += bytes.len() as u64;
            self.session.arrived.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.file.download.keep_pace(bytes.len()).await;
            if self.into.take(bytes).await.is_break() {
                return Ended::Taken(Taken::Abandoned);
            }
            if self.is_part() && self.received.is_complete() {
                let _ = timeout(LAST_BYTE, response.chunk()).await;
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

fn unusable(what: impl Into<String>) -> Seen {
    Seen::Useless(Fault::Unusable(what.into()))
}

/// How long to wait before the next attempt. `random` spreads it over the upper half.
fn backoff(limits: &DownloadLimits, fruitless: u32, random: u64) -> Duration {
    let doubled = limits.first_backoff.saturating_mul(1 << fruitless.saturating_sub(1).min(20));
    let whole = doubled.min(limits.longest_backoff);
    let thousandths = u32::try_from(random % 1001).unwrap_or(0);
    whole / 2 + whole / 2000 * thousandths
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

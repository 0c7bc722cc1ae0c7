//! The long work: writing a slot and reading it back, beside the loop and cancellable.

use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use monok8s_sdk::api::{ByteProgress, FailureReason, ImageRef};
use monok8s_sdk::causes::chain;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::{
    DiskError, GuardError, HostView, InactiveSlot, SlotLayout, SlotMap, Throttle, VerifiedSlot, VerifyError,
    WrittenSlot,
};
use monok8s_sdk::image::{
    self, BodyWritten, Cancel, Download, Expected, GuardFiles, ImageError, Indexed, Inspection, KeptIndexes,
    Progress, Retry, Source,
};
use monok8s_sdk::node_upgrade::Action;
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use reqwest::Url;
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};
use tokio::time::Instant;

use super::failure::Failure;
use super::present::WorkView;
use crate::politeness::Politeness;
use crate::reboot::Inhibitor;

/// Interruptions of a download in a row that end it.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A piece of long work, by what it is to bring about. Two equal jobs are the same work.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Job {
    /// Stream an artifact into a slot, all but its first 64 KiB.
    Write { hop: Box<ImageRef>, slot: Slot, attempt: u32 },
    /// Read a slot back, and look into it.
    Verify { slot: Slot, digest: Sha256Digest, len: u64, version: OsVersion },
}

impl Job {
    /// The long work that an action asks for, if it does.
    pub(super) fn of(action: &Action) -> Option<Self> {
        match action {
            Action::Write { hop, slot, attempt } => {
                Some(Self::Write { hop: Box::new(hop.clone()), slot: *slot, attempt: *attempt })
            }
            Action::Verify { slot, digest, len, version, phase: _ } => {
                Some(Self::Verify { slot: *slot, digest: *digest, len: *len, version: version.clone() })
            }
            _ => None,
        }
    }

    /// Whether it is to verify just what was written.
    fn verifies(&self, written: Own) -> bool {
        matches!(self, Self::Verify { slot, digest, len, version: _ }
            if (Own { slot: *slot, digest: *digest, len: *len }) == written)
    }
}

/// What a job came to.
pub(super) enum Outcome {
    Written(BodyWritten),
    Verified(VerifiedSlot),
    /// The medium gave back other bytes than this process wrote, right after the write or later.
    ReadBackDiffers(String),
    /// The slot does not hold what an earlier process wrote.
    NotAsRecorded(Slot, String),
    Failed(Failure),
    /// It was told to stop.
    Cancelled,
}

/// Who wrote what is to be verified.
enum Writer {
    /// This process, just now; most of it was read back already.
    ThisProcess(Option<WrittenSlot>),
    /// An earlier one, which may have lost power before its last flush.
    AnEarlierOne,
}

/// What every job needs.
#[derive(Clone)]
pub(super) struct Workshop {
    pub(super) host: HostView,
    pub(super) layout: SlotLayout,
    pub(super) http: reqwest::Client,
    pub(super) politeness: Politeness,
    pub(super) guard: Arc<GuardFiles>,
    pub(super) kept: KeptIndexes,
}

/// A job under way.
struct Work {
    job: Job,
    progress: Progress,
    cancel: Cancel,
    task: JoinHandle<Outcome>,
    /// What the task came to, once somebody has waited for it.
    outcome: Option<Outcome>,
}

impl Work {
    fn start(workshop: &Workshop, job: Job, writer: Writer) -> Self {
        let (progress, cancel) = (Progress::default(), Cancel::default());
        let workshop = workshop.clone();
        let task = {
            let (job, progress, cancel) = (job.clone(), progress.clone(), cancel.clone());
            tokio::spawn(async move { workshop.carry_out(job, writer, progress, cancel).await })
        };
        Self { job, progress, cancel, task, outcome: None }
    }

    /// Bytes of the transfer so far.
    fn bytes(&self) -> ByteProgress {
        let now = self.progress.snapshot();
        let count = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        ByteProgress {
            bytes_total: count(now.bytes_total.unwrap_or(0)),
            bytes_done: count(now.bytes_done),
            bytes_written: count(now.bytes_written),
            bytes_reused: count(now.bytes_reused),
        }
    }

    /// Waits for its end, without giving it up when the wait is.
    async fn finished(&mut self) -> Outcome {
        if let Some(outcome) = self.outcome.take() {
            return outcome;
        }
        match (&mut self.task).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let message = format!("the work on the slot ended without a result: {error}");
                Outcome::Failed(Failure::lasting(FailureReason::Interrupted, message))
            }
        }
    }

    /// Tells it to stop, and waits until nothing of it holds the slot any more.
    async fn stop(mut self) {
        self.cancel.cancel();
        self.finished().await;
    }
}

/// The long work of a node, its pauses and how long it is tried.
pub(super) struct Effort {
    work: Option<Work>,
    /// The slot that was just written, most of it read back already; it is held until its
    /// verification, or any other work, begins.
    written: Option<WrittenSlot>,
    /// What this process wrote last, from its end until a write begins: if it has to be read back
    /// once more, all of it, other bytes are still no power cut's.
    own: Option<Own>,
    pause: Option<Pause>,
    /// For how long networks and disk reads are tried again after the first failure.
    patience: Duration,
    bytes: Option<ByteProgress>,
}

/// An image that this process put into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Own {
    slot: Slot,
    digest: Sha256Digest,
    len: u64,
}

/// A job that failed and is tried again.
struct Pause {
    job: Job,
    first_failure: Instant,
    rounds: u32,
    until: Instant,
    why: String,
}

/// How a job stands.
pub(super) enum Standing {
    /// It goes on by itself; look again when it ends.
    UnderWay,
    /// It is tried again after this time.
    Paused(Duration),
    /// It ended.
    Ended(Outcome),
}

impl Effort {
    pub(super) fn new(patience: Duration) -> Self {
        Self { work: None, written: None, own: None, pause: None, patience, bytes: None }
    }

    /// Whether this is what is under way.
    pub(super) fn is_on(&self, job: &Job) -> bool {
        self.work.as_ref().is_some_and(|work| work.job == *job)
    }

    /// Gets `job` done: starts it, or lets it go on, and stops any other.
    pub(super) async fn drive(&mut self, workshop: &Workshop, job: &Job) -> Standing {
        match self.work.take() {
            Some(work) if work.job != *job => work.stop().await,
            Some(mut work) => {
                if matches!(job, Job::Write { .. }) {
                    self.bytes = Some(work.bytes());
                }
                if work.outcome.is_none() && !work.task.is_finished() {
                    self.work = Some(work);
                    return Standing::UnderWay;
                }
                return self.judge(job, work.finished().await);
            }
            None => {}
        }
        let pause = self.pause.take_if(|pause| pause.job == *job);
        if let Some(wait) =
            pause.as_ref().and_then(|pause| pause.until.checked_duration_since(Instant::now()))
        {
            self.pause = pause;
            return Standing::Paused(wait);
        }
        self.pause = pause;
        self.bytes = matches!(job, Job::Verify { .. }).then_some(self.bytes).flatten();
        let writer = self.writer_of(job);
        self.work = Some(Work::start(workshop, job.clone(), writer));
        Standing::UnderWay
    }

    /// Who wrote what a job verifies. A job that writes makes an end of what was written before.
    fn writer_of(&mut self, job: &Job) -> Writer {
        let written = self.written.take();
        if matches!(job, Job::Write { .. }) {
            self.own = None;
        }
        match self.own.filter(|own| job.verifies(*own)) {
            // The slot that was kept, if there still is one, is the last one that was written.
            Some(_) => Writer::ThisProcess(written),
            None => Writer::AnEarlierOne,
        }
    }

    /// Keeps a slot that was written, so that what was read back of it is not read again.
    pub(super) fn keep(&mut self, written: WrittenSlot) {
        let (slot, digest, len) = (written.slot(), written.image(), written.length());
        self.own = Some(Own { slot, digest, len });
        self.written = Some(written);
    }

    /// What passes is tried again for as long as the patience lasts.
    fn judge(&mut self, job: &Job, outcome: Outcome) -> Standing {
        let Outcome::Failed(failure) = &outcome else {
            self.pause = None;
            return Standing::Ended(outcome);
        };
        let before = self.pause.take().filter(|pause| pause.job == *job);
        let now = Instant::now();
        let first_failure = before.as_ref().map_or(now, |pause| pause.first_failure);
        if failure.retry == Retry::Never || now.duration_since(first_failure) >= self.patience {
            return Standing::Ended(outcome);
        }
        let rounds = before.map_or(1, |pause| pause.rounds.saturating_add(1));
        let wait = FIRST_PAUSE.saturating_mul(1 << rounds.min(6)).min(LONGEST_PAUSE).min(self.patience);
        tracing::warn!(failure = failure.message, ?wait, "tried again");
        let why = failure.message.clone();
        self.pause = Some(Pause { job: job.clone(), first_failure, rounds, until: now + wait, why });
        Standing::Paused(wait)
    }

    /// Stops whatever is under way.
    pub(super) async fn stop(&mut self) {
        (self.pause, self.written) = (None, None);
        if let Some(work) = self.work.take() {
            work.stop().await;
        }
    }

    /// How far it is.
    pub(super) fn view(&self) -> WorkView {
        let bytes = self.work.as_ref().filter(|work| matches!(work.job, Job::Write { .. })).map(Work::bytes);
        WorkView {
            progress: bytes.or(self.bytes),
            interrupted_by: self.pause.as_ref().map(|pause| pause.why.clone()),
        }
    }

    /// Returns when the work under way ends; never if there is none.
    pub(super) async fn ended(&mut self) {
        match &mut self.work {
            Some(work) => {
                let outcome = work.finished().await;
                work.outcome = Some(outcome);
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Workshop {
    async fn carry_out(self, job: Job, writer: Writer, progress: Progress, cancel: Cancel) -> Outcome {
        let done = match job {
            Job::Write { hop, slot, .. } => {
                let why = format!("slot {slot} is being written");
                let _inhibitor = block_in_place(|| Inhibitor::take(&self.host, &why));
                self.write(*hop, slot, progress, cancel).await
            }
            Job::Verify { slot, digest, len, version } => {
                self.verify(writer, slot, digest, len, version, cancel).await
            }
        };
        done.unwrap_or_else(|error| error)
    }

    async fn write(
        self,
        hop: ImageRef,
        slot: Slot,
        progress: Progress,
        cancel: Cancel,
    ) -> Result<Outcome, Outcome> {
        let urls: Result<Vec<Url>, Outcome> = hop.urls.iter().map(|url| parse(url)).collect();
        let urls = urls?;
        let index = match &hop.index {
            Some(index) => Some((parse(&index.url)?, index.checksum)),
            None => None,
        };
        let (inactive, source) = blocking(move || {
            let map = self.map()?;
            let throttle = self.politeness.throttle(&self.host);
            let inactive = self.open(&map, slot, &throttle)?;
            // One round; the effort around it is as patient as it was told to be.
            let limits = self.politeness.download_limits(ATTEMPTS, inactive.size());
            let download = |urls| Download::new(self.http.clone(), urls).with_limits(limits);
            let artifact = download(urls);
            let source = match index {
                Some((index, checksum)) => {
                    let index = download(vec![index]);
                    let reuse = map.open_to_reuse(slot, cannot_be_used_again);
                    let reuse = reuse.into_iter().map(|source| source.paced(&throttle)).collect();
                    let indexed = Indexed::new(artifact, index, checksum).with_reuse(reuse);
                    indexed.with_kept(self.kept.clone()).into()
                }
                None => Source::Http(artifact),
            };
            Ok((inactive, source))
        })
        .await?;
        let expected = Expected {
            checksum: Some(hop.checksum),
            size: hop.size.and_then(|size| u64::try_from(size).ok()),
            image_checksum: hop.image_checksum,
        };
        let body = image::write(inactive, source, expected, &progress, &cancel)
            .await
            .map_err(|error| ended(&error))?;
        tracing::info!(%slot, delivery = ?body.delivery(), "the slot is written");
        Ok(Outcome::Written(body))
    }

    async fn verify(
        self,
        writer: Writer,
        slot: Slot,
        digest: Sha256Digest,
        len: u64,
        version: OsVersion,
        cancel: Cancel,
    ) -> Result<Outcome, Outcome> {
        blocking(move || {
            let observe =
                |_| if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let throttle = self.politeness.throttle(&self.host);
            let is_own = matches!(writer, Writer::ThisProcess(_));
            let verified = match writer {
                Writer::ThisProcess(Some(written)) => written.verify(),
                Writer::ThisProcess(None) | Writer::AnEarlierOne => {
                    self.open(&self.map()?, slot, &throttle)?.verify_observed(digest, len, observe)
                }
            }
            .map_err(|error| not_verified(error, is_own))?;
            let found: Inspection =
                image::inspect(&verified, &self.guard).map_err(|error| ended(&error.into()))?;
            found.require(slot, &version, &self.guard).map_err(|error| ended(&error.into()))?;
            Ok(Outcome::Verified(verified))
        })
        .await
    }

    fn map(&self) -> Result<SlotMap, Outcome> {
        SlotMap::discover(&self.host, &self.layout).map_err(|error| {
            Outcome::Failed(Failure::lasting(FailureReason::UnexpectedDevice, chain(&error)))
        })
    }

    fn open(&self, map: &SlotMap, slot: Slot, throttle: &Throttle) -> Result<InactiveSlot, Outcome> {
        let opened = map.open_for_writing(&self.host, slot);
        let slot = opened.map_err(|error: GuardError| ended(&ImageError::Guard(error)))?;
        let slot = slot.paced(throttle);
        #[cfg(feature = "failpoints")]
        let slot = crate::failpoints::watched::slot(&slot);
        Ok(slot)
    }
}

fn cannot_be_used_again(slot: Slot, error: &DiskError) {
    tracing::warn!(%slot, error = chain(error), "cannot be used again");
}

fn parse(url: &str) -> Result<Url, Outcome> {
    url.parse().map_err(|error| {
        let message = format!("{url:?} is not a URL that an artifact can be downloaded from: {error}");
        Outcome::Failed(Failure::lasting(FailureReason::NoArtifactUrl, message))
    })
}

/// Other bytes than an earlier process recorded are what a power cut before its last flush leaves;
/// other bytes than this process wrote are the medium's, or its driver's.
fn not_verified(error: VerifyError, is_own: bool) -> Outcome {
    match error {
        VerifyError::Mismatch { slot, .. } if !is_own => Outcome::NotAsRecorded(slot, chain(&error)),
        error => ended(&ImageError::Verify(error)),
    }
}

fn ended(error: &ImageError) -> Outcome {
    if error.is_cancelled() {
        return Outcome::Cancelled;
    }
    match error {
        error if error.reason() == FailureReason::ReadBackMismatch => Outcome::ReadBackDiffers(chain(error)),
        error => Outcome::Failed(Failure::of(error)),
    }
}

/// Runs `work` on a thread that may block. It is cut short only by the end of the runtime, or by
/// a panic, which is passed on: taken for the former, the work would begin again for ever.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Outcome> + Send + 'static,
) -> Result<T, Outcome> {
    match spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_)) => Err(Outcome::Cancelled),
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;

//! How far a transfer is, and the way to stop it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Counters of a transfer, shared between the one who transfers and those who look. Clones count
/// together. All are in bytes.
///
/// No counter ever goes back, with one exception that can be seen: if the image has to be begun again,
/// as when no server sends parts of the artifact after all,
/// [`begun_again`](ProgressSnapshot::begun_again) rises, and what is counted of the slot begins at 0.
/// What is fetched twice is counted twice, in `bytes_done` and in `bytes_total`.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    /// How often it was begun again. Held while the counters of the slot go back to 0, and while all
    /// are read, so that nobody sees some of before and some of after.
    begun_again: Mutex<u32>,
    /// What `done` was when the artifact was begun that `total` counts.
    before: AtomicU64,
    /// 0 while unknown: no artifact is empty.
    total: AtomicU64,
    done: AtomicU64,
    /// 0 while unknown: no image is empty.
    image: AtomicU64,
    written: AtomicU64,
    reused: AtomicU64,
    verified: AtomicU64,
}

/// The counters at one moment. All are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProgressSnapshot {
    /// How often the image was begun again from its first byte. Whenever this is another number than
    /// before, the counters of the slot (`bytes_written`, `bytes_reused` and `bytes_verified`) began
    /// at 0; those of the download go on.
    pub begun_again: u32,
    /// How much is downloaded in all: the artifact's length as served, or what of it is missing and
    /// its index; more when something has to be fetched again. `None` until it is known.
    pub bytes_total: Option<u64>,
    /// How much of that arrived.
    pub bytes_done: u64,
    /// How long the expanded image is, if that was declared or an index says so. `bytes_verified` ends
    /// there.
    pub image_bytes: Option<u64>,
    /// How much of the expanded image was put into the slot, zeroes included.
    pub bytes_written: u64,
    /// How much of the expanded image was already right in the slot.
    pub bytes_reused: u64,
    /// How much was read back from the slot.
    pub bytes_verified: u64,
}

impl Progress {
    /// The counters now. They are read one after the other, without stopping the transfer.
    #[must_use]
    pub fn snapshot(&self) -> ProgressSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let known = |counter: &AtomicU64| Some(get(counter)).filter(|bytes| *bytes > 0);
        let begun_again = self.begun_again();
        ProgressSnapshot {
            begun_again: *begun_again,
            bytes_total: known(&self.0.total),
            bytes_done: get(&self.0.done),
            image_bytes: known(&self.0.image),
            bytes_written: get(&self.0.written),
            bytes_reused: get(&self.0.reused),
            bytes_verified: get(&self.0.verified),
        }
    }

    /// Awaits a transfer, and shows the counters at every interval meanwhile, and once more at its end.
    pub async fn watch<T>(
        &self,
        interval: Duration,
        transfer: impl Future<Output = T>,
        mut show: impl FnMut(ProgressSnapshot),
    ) -> T {
        let mut transfer = std::pin::pin!(transfer);
        loop {
            let ended = timeout(interval, transfer.as_mut()).await;
            show(self.snapshot());
            if let Ok(ended) = ended {
                return ended;
            }
        }
    }

    fn begun_again(&self) -> MutexGuard<'_, u32> {
        self.0.begun_again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The artifact is read as a whole from here on. What came before, such as an index, stays counted.
    pub(super) fn begin_whole(&self) {
        self.0.before.store(self.0.done.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The same after the image was begun another way: whatever was put into the slot is put there
    /// again.
    pub(super) fn begin_again(&self) {
        let mut begun_again = self.begun_again();
        *begun_again = begun_again.saturating_add(1);
        for counter in [&self.0.written, &self.0.reused, &self.0.verified] {
            counter.store(0, Ordering::Relaxed);
        }
        drop(begun_again);
        self.begin_whole();
    }

    /// How long the artifact is that is read as a whole.
    pub(super) fn set_total(&self, bytes: u64) {
        let total = self.0.before.load(Ordering::Relaxed).saturating_add(bytes);
        self.0.total.fetch_max(total, Ordering::Relaxed);
    }

    /// How long the expanded image is.
    pub(super) fn set_image(&self, bytes: u64) {
        self.0.image.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_total(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_done(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_written(&self, bytes: u64) {
        self.0.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_reused(&self, bytes: u64) {
        self.0.reused.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_verified(&self, bytes: u64) {
        self.0.verified.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_verified(&self, bytes: u64) {
        self.0.verified.store(bytes, Ordering::Relaxed);
    }
}

/// A request to stop, shared between the one who stops and those who must. Clones are one.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Stop>);

#[derive(Debug)]
struct Stop {
    here: watch::Sender<bool>,
    above: Option<Cancel>,
}

impl Default for Cancel {
    fn default() -> Self {
        Self::with(None)
    }
}

impl Cancel {
    fn with(above: Option<Self>) -> Self {
        Self(Arc::new(Stop { here: watch::Sender::new(false), above }))
    }

    /// One for a part of the work: it is cancelled when this one is, and not the other way round.
    ///
    /// ```
    /// # use monok8s_sdk::image::Cancel;
    /// let all = Cancel::default();
    /// let (one, other) = (all.below(), all.below());
    /// one.cancel();
    /// assert!(one.is_cancelled() && !all.is_cancelled() && !other.is_cancelled());
    /// all.cancel();
    /// assert!(other.is_cancelled());
    /// ```
    #[must_use]
    pub fn below(&self) -> Self {
        Self::with(Some(self.clone()))
    }

    /// Asks to stop. The transfer ends with an error at its next step.
    pub fn cancel(&self) {
        self.0.here.send_replace(true);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.here.borrow() || self.0.above.as_ref().is_some_and(Self::is_cancelled)
    }

    /// Returns when it is asked to stop.
    pub(super) async fn cancelled(&self) {
        let mut here = self.0.here.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let here = here.wait_for(|cancelled| *cancelled);
        match &self.0.above {
            Some(above) => {
                tokio::select! {
                    _ = here => {}
                    () = Box::pin(above.cancelled()) => {}
                }
            }
            None => drop(here.await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_below_is_cancelled_from_above_and_never_the_other_way() {
        let above = Cancel::default();
        let (one, other) = (above.below().below(), above.below());
        one.cancel();
        one.cancelled().await;
        assert!(!above.is_cancelled() && !other.is_cancelled());
        let waiting = tokio::spawn(async move { other.below().cancelled().await });
        tokio::task::yield_now().await;
        above.cancel();
        waiting.await.unwrap();
    }

    #[test]
    fn what_is_fetched_twice_counts_twice_and_nothing_goes_back() {
        let progress = Progress::default();
        progress.add_total(10);
        progress.add_done(10);
        progress.add_total(100);
        progress.add_done(40);
        progress.add_written(500);
        let before = progress.snapshot();
        progress.begin_again();
        let again = progress.snapshot();
        assert_eq!((again.begun_again, again.bytes_written), (1, 0));
        assert_eq!((again.bytes_total, again.bytes_done), (Some(110), 50), "the download goes on");
        progress.set_total(1000);
        let known = progress.snapshot();
        assert_eq!((known.bytes_total, before.bytes_total), (Some(1050), Some(110)));
        // A mirror that says less does not take anything back.
        progress.set_total(7);
        assert_eq!(progress.snapshot(), known);
    }

    #[tokio::test]
    async fn a_transfer_is_shown_while_it_goes_on_and_when_it_has_ended() {
        let progress = Progress::default();
        let transfer = async {
            for _ in 0..5 {
                progress.add_done(17);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            "ended"
        };
        let mut shown = Vec::new();
        let show = |now: ProgressSnapshot| shown.push(now.bytes_done);
        assert_eq!(progress.watch(Duration::from_millis(5), transfer, show).await, "ended");
        assert!(shown.first() < Some(&85) && shown.last() == Some(&85), "{shown:?}");
    }
}

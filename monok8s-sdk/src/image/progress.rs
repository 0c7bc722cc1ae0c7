//! How far a transfer is, and the way to stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Counters of a transfer, shared between the one who transfers and those who look. Clones count
/// together. All are in bytes.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    /// 0 while unknown: no artifact is empty.
    total: AtomicU64,
    done: AtomicU64,
    written: AtomicU64,
    reused: AtomicU64,
    verified: AtomicU64,
}

/// The counters at one moment. All are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProgressSnapshot {
    /// How much is downloaded: the artifact's length as served, or what of it is missing and its
    /// index; `None` until it is known.
    pub bytes_total: Option<u64>,
    /// How much of that arrived.
    pub bytes_done: u64,
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
        ProgressSnapshot {
            bytes_total: Some(get(&self.0.total)).filter(|total| *total > 0),
            bytes_done: get(&self.0.done),
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

    pub(super) fn set_total(&self, bytes: u64) {
        self.0.total.store(bytes, Ordering::Relaxed);
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
pub struct Cancel(watch::Sender<bool>);

impl Default for Cancel {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Cancel {
    /// Asks to stop. The transfer ends with an error at its next step.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is asked to stop.
    pub(super) async fn cancelled(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|cancelled| *cancelled).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! Writing what the agent says: at once when it is news, unless there is news without end, at a bounded rate when only
//! bytes moved, never when nothing changed, and with patience while the API server is away.

use std::collections::VecDeque;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::OSUpgradeProgress;
use monok8s_sdk::causes::chain;
use tokio::time::Instant;

use super::cluster::{Cluster, ClusterError, Precondition};
use super::known::Known;
use super::spread::spread;
use super::status::{Change, Report, change, status};

/// How often byte counts are written: a fleet that is staged at once must not wear out its API server.
pub(super) const BYTES_INTERVAL: Duration = Duration::from_secs(10);
/// So much news in so long is more than an upgrade has. An agent that goes round in a circle is held back.
const BURST: usize = 10;
const BURST_SPAN: Duration = Duration::from_secs(20);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Paces the writes.
#[derive(Debug)]
pub(super) struct Reporter {
    written: Written,
    retry_at: Option<Instant>,
    backoff: Duration,
}

/// When the last reports were written, the oldest first.
#[derive(Debug, Default)]
struct Written(VecDeque<Instant>);

impl Written {
    /// When another one may be written.
    fn next(&self, change: Change) -> Option<Instant> {
        match change {
            Change::None => None,
            Change::Bytes => self.0.back().map(|last| *last + BYTES_INTERVAL),
            Change::News => self.0.front().filter(|_| self.0.len() == BURST).map(|first| *first + BURST_SPAN),
        }
    }

    fn note(&mut self, now: Instant) {
        self.0.push_back(now);
        if self.0.len() > BURST {
            self.0.pop_front();
        }
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The object says it.
    Yes,
    /// It will be said later; look again at the latest after this time.
    Later(Duration),
}

impl Reporter {
    pub(super) fn new() -> Self {
        Self { written: Written::default(), retry_at: None, backoff: FIRST_BACKOFF }
    }

    /// Makes the object say `report`, if it does not yet.
    pub(super) async fn say(
        &mut self,
        cluster: &Cluster,
        known: &mut Known,
        object: &OSUpgradeProgress,
        report: &Report,
    ) -> Said {
        let previous = object.status.clone().unwrap_or_default();
        let next = status(report, &previous, Timestamp::now());
        let now = Instant::now();
        let due = match change(&previous, &next) {
            Change::None => return Said::Yes,
            change => self.written.next(change),
        };
        if let Some(wait) = due.max(self.retry_at).and_then(|at| at.checked_duration_since(now)) {
            return Said::Later(wait);
        }
        match cluster.write_progress(object, &next, Precondition::SameObject).await {
            Ok(written) => {
                known.learn(written);
                self.written.note(now);
                (self.retry_at, self.backoff) = (None, FIRST_BACKOFF);
                Said::Yes
            }
            Err(error) => self.failed(known, object, &error),
        }
    }

    fn failed(&mut self, known: &mut Known, object: &OSUpgradeProgress, error: &ClusterError) -> Said {
        if matches!(error, ClusterError::Absent { .. }) {
            known.miss(object);
            return Said::Yes;
        }
        tracing::warn!(error = %chain(error), "cannot report, trying again");
        // Whoever else was cut off by the same outage comes back at another time.
        let wait = spread(self.backoff);
        self.retry_at = Some(Instant::now() + wait);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        Said::Later(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_goes_out_at_once_until_there_is_too_much_of_it() {
        let (start, mut written) = (Instant::now(), Written::default());
        for second in 0..10 {
            assert_eq!(written.next(Change::News), None);
            written.note(start + Duration::from_secs(second));
        }
        assert_eq!(written.next(Change::News), Some(start + BURST_SPAN));
        assert_eq!(written.next(Change::Bytes), Some(start + Duration::from_secs(9) + BYTES_INTERVAL));
        written.note(start + BURST_SPAN);
        assert_eq!(written.next(Change::News), Some(start + Duration::from_secs(1) + BURST_SPAN));
    }
}

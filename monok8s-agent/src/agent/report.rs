//! Writing what the agent says: at once when it is news, unless there is news without end or it is over in a moment, at
//! a bounded rate when only bytes moved, never when nothing changed, and with patience while the API server is away.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::{OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase};
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
/// A phase that ends within this time is told with the one that follows it, which saves a write for each node.
const A_MOMENT: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Paces the writes.
#[derive(Debug)]
pub(super) struct Reporter {
    written: Written,
    /// What is not written yet, by the object's UID.
    passing: BTreeMap<String, Passing>,
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

/// A phase that may be over in a moment, as it would be written.
#[derive(Debug)]
struct Passing {
    status: OSUpgradeProgressStatus,
    until: Instant,
}

/// Whether the next phase may be over in a moment: leave to stage often follows the order at once, and
/// much of what was just written is read back already.
fn is_passing(said: &OSUpgradeProgressStatus, next: &OSUpgradeProgressStatus) -> bool {
    match next.phase {
        Some(ProgressPhase::Pending) => said.phase.is_none(),
        Some(ProgressPhase::Verifying) => said.phase != next.phase,
        _ => false,
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
        Self { written: Written::default(), passing: BTreeMap::new(), retry_at: None, backoff: FIRST_BACKOFF }
    }

    /// Makes the object say `report`, if it does not yet.
    pub(super) async fn say(
        &mut self,
        cluster: &Cluster,
        known: &mut Known,
        object: &OSUpgradeProgress,
        report: &Report,
    ) -> Said {
        let now = Instant::now();
        let next = match self.pace(object, report, now) {
            Ok(next) => next,
            Err(said) => return said,
        };
        match cluster.write_progress(object, &next, Precondition::SameObject).await {
            Ok(written) => {
                known.learn(written);
                self.written.note(now);
                self.wrote(object);
                (self.retry_at, self.backoff) = (None, FIRST_BACKOFF);
                Said::Yes
            }
            Err(error) => self.failed(known, object, &error),
        }
    }

    /// The status to write, or what there is to say without a write.
    fn pace(
        &mut self,
        object: &OSUpgradeProgress,
        report: &Report,
        now: Instant,
    ) -> Result<OSUpgradeProgressStatus, Said> {
        let said = object.status.clone().unwrap_or_default();
        let next = status(report, &self.told(object), Timestamp::now());
        let mut due = match change(&said, &next) {
            Change::None => return Err(Said::Yes),
            change => self.written.next(change).max(self.retry_at),
        };
        if is_passing(&said, &next) {
            let until = self.passing.get(uid(object)).map_or(now + A_MOMENT, |passing| passing.until);
            self.passing.insert(uid(object).to_owned(), Passing { status: next.clone(), until });
            due = due.max(Some(until));
        }
        match due.and_then(|at| at.checked_duration_since(now)) {
            Some(wait) if !wait.is_zero() => Err(Said::Later(wait)),
            _ => Ok(next),
        }
    }

    /// What the object says, with the phase that may be over in a moment.
    pub(super) fn told(&self, object: &OSUpgradeProgress) -> OSUpgradeProgressStatus {
        let passing = self.passing.get(uid(object));
        let said = object.status.as_ref();
        passing.map(|passing| &passing.status).or(said).cloned().unwrap_or_default()
    }

    /// The object says all that there was to say.
    pub(super) fn wrote(&mut self, object: &OSUpgradeProgress) {
        self.passing.remove(uid(object));
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

fn uid(object: &OSUpgradeProgress) -> &str {
    object.metadata.uid.as_deref().unwrap_or_default()
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

    #[test]
    fn what_is_over_in_a_moment_is_told_with_what_follows() {
        use ProgressPhase::{Downloading, Pending, Staged, Verifying};
        let object = |status| -> OSUpgradeProgress {
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "order", "uid": "uid" },
                "spec": { "sourceRef": { "name": "up" }, "nodeName": "node-1" },
                "status": status,
            }))
            .unwrap()
        };
        let new = object(serde_json::json!({ "observedGeneration": -1 }));
        let (mut reporter, start) = (Reporter::new(), Instant::now());
        let mut of = |object: &OSUpgradeProgress, phase, second| {
            let report = super::super::status::fixture(phase);
            let next = reporter.pace(object, &report, start + Duration::from_secs(second))?;
            // As after a write.
            reporter.wrote(object);
            Ok(next.timeline.iter().map(|entry| entry.phase.clone()).collect::<Vec<_>>())
        };
        let later = |seconds| Err(Said::Later(Duration::from_secs(seconds)));
        assert_eq!(of(&new, Pending, 0), later(10));
        assert_eq!(of(&new, Downloading, 1), Ok(vec![Pending, Downloading]));

        let object = object(serde_json::json!({ "phase": "Downloading" }));
        let mut pace = |phase, second| of(&object, phase, second);
        assert_eq!(pace(Pending, 2), Ok(vec![Pending]), "that is news");
        assert_eq!(pace(Verifying, 3), later(10));
        assert_eq!(pace(Verifying, 6), later(7));
        assert_eq!(pace(Staged, 7), Ok(vec![Verifying, Staged]));
        assert_eq!(pace(Verifying, 9), later(10), "another one has its own time");
        assert_eq!(pace(Verifying, 19), Ok(vec![Verifying]));
    }
}

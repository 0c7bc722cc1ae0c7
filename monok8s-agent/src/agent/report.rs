//! Writing what the agent says: at once when it is news, at a bounded rate when only bytes moved,
//! never when nothing changed, and with patience while the API server is away.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::OSUpgradeProgress;
use monok8s_sdk::causes::chain;
use tokio::time::Instant;

use super::cluster::{Cluster, ClusterError, Precondition};
use super::known::Known;
use super::status::{Change, Report, change, status};

/// How often byte counts are written: a fleet that is staged at once must not wear out its API server.
pub(super) const BYTES_INTERVAL: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Paces the writes.
#[derive(Debug)]
pub(super) struct Reporter {
    written_at: Option<Instant>,
    retry_at: Option<Instant>,
    backoff: Duration,
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
        Self { written_at: None, retry_at: None, backoff: FIRST_BACKOFF }
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
            Change::Bytes => self.written_at.map(|at| at + BYTES_INTERVAL),
            Change::News => None,
        };
        if let Some(wait) = due.max(self.retry_at).and_then(|at| at.checked_duration_since(now)) {
            return Said::Later(wait);
        }
        match cluster.write_progress(object, &next, Precondition::SameObject).await {
            Ok(written) => {
                known.learn(written);
                *self = Self { written_at: Some(now), ..Self::new() };
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
        let wait = self.backoff;
        self.retry_at = Some(Instant::now() + wait);
        self.backoff = (wait * 2).min(LONGEST_BACKOFF);
        Said::Later(wait)
    }
}

//! Nodes as counts and histograms: how attempts ended, and how long each phase took.

use std::time::Duration;

use monok8s_sdk::api::{ConditionType, OSUpgradeProgress, ProgressPhase, find_condition};
use monok8s_sdk::rollout::DRAIN_FORCED;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// How an attempt ends.
const OUTCOMES: [ProgressPhase; 3] =
    [ProgressPhase::Completed, ProgressPhase::Failed, ProgressPhase::RolledBack];

/// The phases that take a time that is worth knowing.
const TIMED: [ProgressPhase; 6] = [
    ProgressPhase::Downloading,
    ProgressPhase::Verifying,
    ProgressPhase::Staged,
    ProgressPhase::Draining,
    ProgressPhase::Rebooting,
    ProgressPhase::Confirming,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabel {
    phase: String,
}

/// 1 s to 9 h.
#[derive(Clone)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(1.0, 2.0, 16))
    }
}

/// The series of all nodes.
pub(super) struct Nodes {
    outcomes: Family<PhaseLabel, Counter>,
    phases: Family<PhaseLabel, Histogram, Seconds>,
    forced: Counter,
}

impl Default for Nodes {
    fn default() -> Self {
        let nodes = Self {
            outcomes: Family::default(),
            phases: Family::new_with_constructor(Seconds),
            forced: Counter::default(),
        };
        // A rate is there from the first scrape on.
        for phase in OUTCOMES {
            drop(nodes.outcomes.get_or_create(&label(&phase)));
        }
        for phase in TIMED {
            drop(nodes.phases.get_or_create(&label(&phase)));
        }
        nodes
    }
}

fn label(phase: &ProgressPhase) -> PhaseLabel {
    PhaseLabel { phase: phase.to_string() }
}

impl Nodes {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "node_outcomes",
            "Attempts that ended, by the phase they ended in",
            self.outcomes.clone(),
        );
        registry.register_with_unit(
            "node_phase_duration",
            "Time in a phase, by the node's own clock, of attempts that ended",
            Unit::Seconds,
            self.phases.clone(),
        );
        registry.register("forced_drains", "Attempts that ended after a drain by force", self.forced.clone());
    }

    /// An attempt may have ended: the phase of its object has changed.
    pub(super) fn ended(&self, object: &OSUpgradeProgress) {
        let phase = object.phase();
        if !OUTCOMES.contains(&phase) {
            return;
        }
        self.outcomes.get_or_create(&label(&phase)).inc();
        let drained = find_condition(object.conditions(), &ConditionType::Drained);
        // Once the next attempt has begun, the reason is a memory.
        if drained.is_some_and(|drained| drained.reason == DRAIN_FORCED && drained.status == "True") {
            self.forced.inc();
        }
        for (phase, took) in attempt(object) {
            self.phases.get_or_create(&label(&phase)).observe(took.as_secs_f64());
        }
    }
}

/// The phases of the attempt that the timeline ends with, and how long each lasted.
fn attempt(object: &OSUpgradeProgress) -> Vec<(ProgressPhase, Duration)> {
    let timeline = object.status.as_ref().map_or(&[][..], |status| status.timeline.as_slice());
    // Back to the end of the attempt before.
    let phases = timeline.windows(2).rev().map_while(|pair| match pair {
        [entry, next] if !entry.phase.is_final() => Some((entry, next)),
        _ => None,
    });
    let timed = phases.filter(|(entry, _)| TIMED.contains(&entry.phase));
    timed
        .filter_map(|(entry, next)| {
            let took = Duration::try_from(next.since.0.duration_since(entry.since.0)).ok()?;
            Some((entry.phase.clone(), took))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use monok8s_sdk::api::{OSUpgradeProgressSpec, SourceRef, TimelineEntry};

    use super::super::Metrics;
    use super::*;

    fn progress(timeline: &[(ProgressPhase, i64)]) -> OSUpgradeProgress {
        let spec = OSUpgradeProgressSpec {
            source_ref: SourceRef { name: "up".to_owned() },
            node_name: "node-1".to_owned(),
            retry_nonce: None,
            rollback_nonce: None,
            order: None,
        };
        let mut object = OSUpgradeProgress::new("one", spec);
        let status = object.status.get_or_insert_default();
        status.phase = timeline.last().map(|(phase, _)| phase.clone());
        let entry = |(phase, second): &(ProgressPhase, i64)| TimelineEntry {
            phase: phase.clone(),
            since: Time(Timestamp::from_second(*second).unwrap()),
            hop: None,
            boot_id: None,
            slot: None,
            image_digest: None,
            drained: None,
        };
        status.timeline = timeline.iter().map(entry).collect();
        object
    }

    #[test]
    fn an_attempt_is_timed_when_it_ends() {
        use ProgressPhase::{Completed, Downloading, Failed, Pending, Rebooting, Staged, Verifying};
        let metrics = Metrics::default();
        let zero = r#"node_outcomes_total{phase="RolledBack"} 0"#;
        assert!(metrics.text().unwrap().contains(zero));
        metrics.ended(&progress(&[(Pending, 0), (Downloading, 10), (Failed, 30)]));
        // The attempt after it is timed alone, and a clock that was set back tells nothing.
        metrics.ended(&progress(&[
            (Pending, 0),
            (Downloading, 10),
            (Failed, 30),
            (Downloading, 100),
            (Verifying, 140),
            (Staged, 150),
            (Rebooting, 120),
            (Completed, 200),
        ]));
        let text = metrics.text().unwrap();
        for line in [
            r#"node_outcomes_total{phase="Failed"} 1"#,
            r#"node_outcomes_total{phase="Completed"} 1"#,
            r#"node_phase_duration_seconds_sum{phase="Downloading"} 60.0"#,
            r#"node_phase_duration_seconds_count{phase="Downloading"} 2"#,
            r#"node_phase_duration_seconds_count{phase="Staged"} 0"#,
            r#"node_phase_duration_seconds_sum{phase="Rebooting"} 80.0"#,
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}

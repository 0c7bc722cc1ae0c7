//! Upgrades as series: the phase each is in, which of its conditions hold, where its nodes are, what they wait for.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::{ConditionType, NodeCounts, Truth, UpgradePhase, UpgradeReason};
use monok8s_sdk::rollout::Outlook;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::registry::Registry;

use super::shown::Shown;

/// How many upgrades have series of their own.
pub const MAX_UPGRADES: usize = 100;

/// The conditions that have a series, whether they hold or not.
const CONDITIONS: [ConditionType; 8] = [
    ConditionType::CatalogReachable,
    ConditionType::DrainBlocked,
    ConditionType::HealthGate,
    ConditionType::Paused,
    ConditionType::Ready,
    ConditionType::Reconciling,
    ConditionType::Stalled,
    ConditionType::WaitingForWindow,
];

/// What is shown of one upgrade.
#[derive(Clone, Debug)]
pub struct UpgradeGauges {
    name: String,
    phase: UpgradePhase,
    true_conditions: Vec<ConditionType>,
    nodes: NodeCounts,
    waiting: BTreeMap<UpgradeReason, i64>,
    ends: Option<i64>,
}

impl UpgradeGauges {
    /// What is shown of the upgrade of this name.
    #[must_use]
    pub fn new(name: &str, outlook: &Outlook) -> Self {
        let true_conditions = outlook.conditions.iter().filter(|(_, truth, ..)| *truth == Truth::True);
        let mut waiting = BTreeMap::new();
        for wait in outlook.waits.values() {
            *waiting.entry(wait.reason.clone()).or_default() += 1;
        }
        Self {
            name: name.to_owned(),
            phase: outlook.phase.clone(),
            true_conditions: true_conditions.map(|(kind, ..)| kind.clone()).collect(),
            nodes: outlook.nodes.clone(),
            waiting,
            ends: outlook.ends.map(Timestamp::as_second),
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct PhaseLabels {
    upgrade: String,
    phase: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct ConditionLabels {
    upgrade: String,
    condition: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct NodeLabels {
    upgrade: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct WaitLabels {
    upgrade: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct UpgradeLabels {
    upgrade: String,
}

/// The series of all upgrades.
#[derive(Default)]
pub(super) struct Upgrades {
    phases: Shown<PhaseLabels>,
    conditions: Shown<ConditionLabels>,
    nodes: Shown<NodeLabels>,
    waiting: Shown<WaitLabels>,
    ends: Shown<UpgradeLabels>,
}

impl Upgrades {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("upgrade_phase", "1 for the phase an upgrade is in", self.phases.family());
        let conditions = self.conditions.family();
        registry.register("upgrade_condition", "1 for each condition of an upgrade that is True", conditions);
        registry.register("nodes", "Selected nodes of an upgrade by state", self.nodes.family());
        registry.register("waiting_nodes", "Nodes of an upgrade that wait, by reason", self.waiting.family());
        registry.register(
            "upgrade_expected_completion_timestamp_seconds",
            "When a run is expected to end, while that can be said",
            self.ends.family(),
        );
    }

    /// Shows these upgrades, as far as there is room, and no others.
    pub(super) fn show(&self, upgrades: &[UpgradeGauges]) {
        let mut shown: Vec<_> = upgrades.iter().collect();
        // What is over is what somebody can do without.
        shown.sort_by_key(|upgrade| upgrade.true_conditions.contains(&ConditionType::Ready));
        let all = || shown.iter().copied().take(MAX_UPGRADES);
        let name = |upgrade: &UpgradeGauges| upgrade.name.clone();
        self.phases.show(all().flat_map(|it| {
            UpgradePhase::KNOWN.iter().map(move |phase| {
                (PhaseLabels { upgrade: name(it), phase: phase.to_string() }, i64::from(*phase == it.phase))
            })
        }));
        self.conditions.show(all().flat_map(|it| {
            CONDITIONS.iter().map(move |kind| {
                let labels = ConditionLabels { upgrade: name(it), condition: kind.to_string() };
                (labels, i64::from(it.true_conditions.contains(kind)))
            })
        }));
        self.nodes.show(all().flat_map(|it| {
            let states = by_state(&it.nodes).into_iter();
            states.map(move |(state, count)| (NodeLabels { upgrade: name(it), state }, i64::from(count)))
        }));
        self.waiting.show(all().flat_map(|it| {
            let waiting = it.waiting.iter();
            waiting.map(move |(reason, count)| {
                (WaitLabels { upgrade: name(it), reason: reason.to_string() }, *count)
            })
        }));
        self.ends.show(all().filter_map(|it| Some((UpgradeLabels { upgrade: name(it) }, it.ends?))));
    }
}

fn by_state(nodes: &NodeCounts) -> [(&'static str, i32); 10] {
    // Every count has a series: a new field does not compile until it is placed.
    let NodeCounts {
        total: _,
        up_to_date,
        pending,
        staging,
        staged,
        draining,
        rebooting,
        failed,
        excluded,
        refused,
        superseded,
        failed_names: _,
    } = nodes;
    [
        ("upToDate", *up_to_date),
        ("pending", *pending),
        ("staging", *staging),
        ("staged", *staged),
        ("draining", *draining),
        ("rebooting", *rebooting),
        ("failed", *failed),
        ("excluded", *excluded),
        ("refused", *refused),
        ("superseded", *superseded),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    fn upgrade(name: &str, phase: UpgradePhase, staged: i32) -> UpgradeGauges {
        UpgradeGauges {
            name: name.to_owned(),
            phase,
            true_conditions: vec![ConditionType::Reconciling],
            nodes: NodeCounts { staged, ..NodeCounts::default() },
            waiting: [(UpgradeReason::WaitingForBudget, 2)].into(),
            ends: Some(1_800_000_000),
        }
    }

    #[test]
    fn an_upgrade_has_all_its_series_from_the_first_look_and_none_after_the_last() {
        let metrics = Metrics::default();
        metrics.show_upgrades(&[
            upgrade("one", UpgradePhase::Accepted, 2),
            upgrade("two", UpgradePhase::Pending, 0),
        ]);
        let done = UpgradeGauges {
            true_conditions: vec![ConditionType::Ready],
            waiting: BTreeMap::new(),
            ends: None,
            ..upgrade("one", UpgradePhase::Completed, 3)
        };
        let before = metrics.text().unwrap();
        for series in [
            r#"upgrade_phase{upgrade="one",phase="Accepted"} 1"#,
            r#"upgrade_condition{upgrade="one",condition="Stalled"} 0"#,
            r#"waiting_nodes{upgrade="one",reason="WaitingForBudget"} 2"#,
            r#"upgrade_expected_completion_timestamp_seconds{upgrade="two"} 1800000000"#,
        ] {
            assert!(before.contains(series), "{series}: {before}");
        }
        metrics.show_upgrades(&[done]);
        let text = metrics.text().unwrap();
        for series in [
            r#"monok8s_operator_nodes{upgrade="one",state="staged"} 3"#,
            r#"upgrade_phase{upgrade="one",phase="Completed"} 1"#,
            r#"upgrade_phase{upgrade="one",phase="Accepted"} 0"#,
            r#"upgrade_condition{upgrade="one",condition="Reconciling"} 0"#,
        ] {
            assert!(text.contains(series), "{series}: {text}");
        }
        assert!(!text.contains("two") && !text.contains("WaitingForBudget"), "{text}");
        assert!(!text.contains("timestamp_seconds{"), "{text}");
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = Metrics::default();
        let mut many: Vec<_> =
            (0..500).map(|n| upgrade(&format!("u-{n}"), UpgradePhase::Pending, n)).collect();
        many[0].true_conditions = vec![ConditionType::Ready];
        metrics.show_upgrades(&many);
        let text = metrics.text().unwrap();
        assert_eq!(text.matches(r#"phase="Pending"} 1"#).count(), MAX_UPGRADES);
        assert!(!text.contains(r#"upgrade="u-0""#), "what is Ready comes last");
    }
}

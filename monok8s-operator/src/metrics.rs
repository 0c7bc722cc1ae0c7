//! What a Prometheus sees. Labels are words of fixed lists, except for names of upgrades, of which
//! the first [`MAX_UPGRADES`] by name are shown.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use monok8s_sdk::api::{NodeCounts, UpgradePhase};

/// How many upgrades have series of their own.
pub const MAX_UPGRADES: usize = 100;

/// All metrics, and the registry they are in.
pub struct Metrics {
    registry: Registry,
    passes: Histogram,
    plans: Histogram,
    actions: Family<ActionLabels, Counter>,
    conflicts: Counter,
    failures: Family<StageLabels, Counter>,
    catalog_reads: Family<CatalogLabels, Counter>,
    watch_errors: Family<ResourceLabels, Counter>,
    unreadable: Family<KindLabels, Gauge>,
    nodes: Family<NodeLabels, Gauge>,
    phases: Family<PhaseLabels, Gauge>,
    refusing_budgets: Family<BudgetLabels, Gauge>,
    leading: Gauge,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    nodes: Vec<NodeLabels>,
    phases: Vec<PhaseLabels>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BudgetLabels {
    node: String,
    budget: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ActionLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CatalogLabels {
    source: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabels {
    upgrade: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    upgrade: String,
    phase: String,
}

/// What is shown of one upgrade.
#[derive(Clone, Debug)]
pub struct UpgradeGauges {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: UpgradePhase,
    /// Its nodes.
    pub nodes: NodeCounts,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("monok8s_operator"),
            // 1 ms to 16 s.
            passes: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            // 0.1 ms to 1.6 s.
            plans: Histogram::new(exponential_buckets(0.0001, 2.0, 15)),
            actions: Family::default(),
            conflicts: Counter::default(),
            failures: Family::default(),
            catalog_reads: Family::default(),
            watch_errors: Family::default(),
            unreadable: Family::default(),
            nodes: Family::default(),
            phases: Family::default(),
            refusing_budgets: Family::default(),
            leading: Gauge::default(),
            shown: Mutex::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        let passes = self.passes.clone();
        registry.register_with_unit("pass_duration", "From observation to status", Unit::Seconds, passes);
        let plans = self.plans.clone();
        registry.register_with_unit("plan_duration", "The planner alone", Unit::Seconds, plans);
        registry.register("actions", "Writes that a plan asked for and that were made", self.actions.clone());
        registry.register("conflicts", "Writes refused since the object had changed", self.conflicts.clone());
        registry.register("failed_passes", "Passes that ended early, by stage", self.failures.clone());
        registry.register("catalog_reads", "Reads of catalogs", self.catalog_reads.clone());
        registry.register("watch_errors", "Interruptions of watches", self.watch_errors.clone());
        registry.register("unreadable_objects", "Objects this release cannot read", self.unreadable.clone());
        registry.register("nodes", "Selected nodes of an upgrade by state", self.nodes.clone());
        registry.register("upgrade_phase", "1 for the phase an upgrade is in", self.phases.clone());
        let budgets = self.refusing_budgets.clone();
        registry.register("refusing_budgets", "1 for each budget that holds up a node's drain", budgets);
        registry.register("leading", "Whether this operator may act", self.leading.clone());
        self
    }

    /// A pass from observation to status took this long.
    pub fn passed(&self, took: Duration) {
        self.passes.observe(took.as_secs_f64());
    }

    /// The planner took this long to decide.
    pub fn planned(&self, took: Duration) {
        self.plans.observe(took.as_secs_f64());
    }

    /// A pass ended early in a stage.
    pub fn failed(&self, stage: &'static str) {
        self.failures.get_or_create(&StageLabels { stage }).inc();
    }

    /// An action of a plan was carried out.
    pub fn acted(&self, kind: &'static str) {
        self.actions.get_or_create(&ActionLabels { kind }).inc();
    }

    /// A write lost a race.
    pub fn conflicted(&self) {
        self.conflicts.inc();
    }

    /// A catalog was read, or could not be.
    pub fn read_catalog(&self, source: &'static str, result: &'static str) {
        self.catalog_reads.get_or_create(&CatalogLabels { source, result }).inc();
    }

    /// A watch was interrupted.
    pub fn watch_failed(&self, resource: &str) {
        self.watch_errors.get_or_create(&ResourceLabels { resource: resource.to_owned() }).inc();
    }

    /// How many objects of a kind cannot be read.
    pub fn unreadable(&self, kind: &'static str, count: usize) {
        self.unreadable.get_or_create(&KindLabels { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether this operator may act.
    pub fn leading(&self, leads: bool) {
        self.leading.set(i64::from(leads));
    }

    /// Shows these upgrades, and forgets those that were shown before and are not among them.
    pub fn show_upgrades(&self, upgrades: &[UpgradeGauges]) {
        let mut shown = Shown::default();
        for upgrade in upgrades.iter().take(MAX_UPGRADES) {
            let phase = PhaseLabels { upgrade: upgrade.name.clone(), phase: upgrade.phase.to_string() };
            self.phases.get_or_create(&phase).set(1);
            shown.phases.push(phase);
            for (state, count) in by_state(&upgrade.nodes) {
                let labels = NodeLabels { upgrade: upgrade.name.clone(), state };
                self.nodes.get_or_create(&labels).set(i64::from(count));
                shown.nodes.push(labels);
            }
        }
        let mut before = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for stale in before.phases.iter().filter(|labels| !shown.phases.contains(labels)) {
            self.phases.remove(stale);
        }
        for stale in before.nodes.iter().filter(|labels| !shown.nodes.contains(labels)) {
            self.nodes.remove(stale);
        }
        *before = shown;
    }

    /// Shows these disruption budgets (as `namespace/name`), each with the node that it holds up, and no others.
    pub fn show_refusing_budgets(&self, budgets: BTreeSet<(String, String)>) {
        self.refusing_budgets.clear();
        for (node, budget) in budgets {
            self.refusing_budgets.get_or_create(&BudgetLabels { node, budget }).set(1);
        }
    }

    /// All metrics as `OpenMetrics` text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
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
    use super::*;

    fn upgrade(name: &str, phase: UpgradePhase, staged: i32) -> UpgradeGauges {
        UpgradeGauges { name: name.to_owned(), phase, nodes: NodeCounts { staged, ..NodeCounts::default() } }
    }

    #[test]
    fn a_deleted_upgrade_and_a_left_phase_disappear() {
        let metrics = Metrics::default();
        metrics.show_upgrades(&[
            upgrade("one", UpgradePhase::Accepted, 2),
            upgrade("two", UpgradePhase::Pending, 0),
        ]);
        metrics.show_upgrades(&[upgrade("one", UpgradePhase::Completed, 3)]);
        let text = metrics.text().unwrap();
        assert!(text.contains(r#"monok8s_operator_nodes{upgrade="one",state="staged"} 3"#), "{text}");
        assert!(text.contains(r#"upgrade_phase{upgrade="one",phase="Completed"} 1"#), "{text}");
        assert!(!text.contains("two") && !text.contains("Accepted"), "{text}");
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = Metrics::default();
        let many: Vec<_> = (0..500).map(|n| upgrade(&format!("u-{n}"), UpgradePhase::Pending, n)).collect();
        metrics.show_upgrades(&many);
        assert_eq!(metrics.text().unwrap().matches("upgrade_phase{").count(), MAX_UPGRADES);
    }
}

//! What a Prometheus sees. Labels are words of fixed lists, except for names of upgrades, of which
//! [`MAX_UPGRADES`] are shown, and of nodes and budgets while a budget holds up a node's drain.

mod nodes;
mod shown;
mod upgrades;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use monok8s_sdk::api::OSUpgradeProgress;
use monok8s_sdk::rollout::Action;

use nodes::Nodes;
use shown::Shown;
use upgrades::Upgrades;

pub use upgrades::{MAX_UPGRADES, UpgradeGauges};

/// The stages in which a pass can end early.
const STAGES: [&str; 2] = ["apply", "status"];

/// All metrics, and the registry they are in.
pub struct Metrics {
    registry: Registry,
    passes: Histogram,
    plans: Histogram,
    plan_cpu: Counter<f64, AtomicU64>,
    actions: Family<ActionLabels, Counter>,
    conflicts: Counter,
    failures: Family<StageLabels, Counter>,
    catalog_reads: Family<CatalogLabels, Counter>,
    watch_errors: Family<ResourceLabels, Counter>,
    unreadable: Family<KindLabels, Gauge>,
    upgrades: Upgrades,
    nodes: Nodes,
    refusing_budgets: Shown<BudgetLabels>,
    leading: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
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

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("monok8s_operator"),
            // 1 ms to 16 s.
            passes: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            // 0.1 ms to 1.6 s.
            plans: Histogram::new(exponential_buckets(0.0001, 2.0, 15)),
            plan_cpu: Counter::default(),
            actions: Family::default(),
            conflicts: Counter::default(),
            failures: Family::default(),
            catalog_reads: Family::default(),
            watch_errors: Family::default(),
            unreadable: Family::default(),
            upgrades: Upgrades::default(),
            nodes: Nodes::default(),
            refusing_budgets: Shown::default(),
            leading: Gauge::default(),
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
        let plan_cpu = self.plan_cpu.clone();
        registry.register_with_unit(
            "plan_cpu",
            "Time of a processor that decisions took",
            Unit::Seconds,
            plan_cpu,
        );
        registry.register("actions", "Writes that a plan asked for and that were made", self.actions.clone());
        registry.register("conflicts", "Writes refused since the object had changed", self.conflicts.clone());
        registry.register("failed_passes", "Passes that ended early, by stage", self.failures.clone());
        registry.register("catalog_reads", "Reads of catalogs", self.catalog_reads.clone());
        registry.register("watch_errors", "Interruptions of watches", self.watch_errors.clone());
        registry.register("unreadable_objects", "Objects this release cannot read", self.unreadable.clone());
        self.upgrades.register(registry);
        self.nodes.register(registry);
        let budgets = self.refusing_budgets.family();
        registry.register("refusing_budgets", "1 for each budget that holds up a node's drain", budgets);
        registry.register("leading", "Whether this operator may act", self.leading.clone());
        // A rate is there from the first scrape on.
        for kind in Action::KINDS {
            drop(self.actions.get_or_create(&ActionLabels { kind }));
        }
        for stage in STAGES {
            drop(self.failures.get_or_create(&StageLabels { stage }));
        }
        self
    }

    /// A pass from observation to status took this long.
    pub fn passed(&self, took: Duration) {
        self.passes.observe(took.as_secs_f64());
    }

    /// The planner took this long to decide, and so much of a processor's time.
    pub fn planned(&self, took: Duration, cpu: Duration) {
        self.plans.observe(took.as_secs_f64());
        self.plan_cpu.inc_by(cpu.as_secs_f64());
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
        self.upgrades.show(upgrades);
    }

    /// An attempt of a node has ended.
    pub fn ended(&self, object: &OSUpgradeProgress) {
        self.nodes.ended(object);
    }

    /// Shows these disruption budgets (as `namespace/name`), each with the node that it holds up, and no others.
    pub fn show_refusing_budgets(&self, budgets: BTreeSet<(String, String)>) {
        let series = budgets.into_iter().map(|(node, budget)| (BudgetLabels { node, budget }, 1));
        self.refusing_budgets.show(series);
    }

    /// All metrics as `OpenMetrics` text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

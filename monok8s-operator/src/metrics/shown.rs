//! Series that are there as long as what they are about.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// A family of gauges, and which of them are shown.
pub(super) struct Shown<L> {
    family: Family<L, Gauge>,
    labels: Mutex<BTreeSet<L>>,
}

// Derived, it would ask for labels that have a default.
impl<L: Clone + Hash + Eq> Default for Shown<L> {
    fn default() -> Self {
        Self { family: Family::default(), labels: Mutex::default() }
    }
}

impl<L> Shown<L>
where
    L: Clone + Debug + Hash + Ord + EncodeLabelSet + Send + Sync + 'static,
{
    /// What the registry reads.
    pub(super) fn family(&self) -> Family<L, Gauge> {
        self.family.clone()
    }

    /// Shows these series and no others. One that stays is never gone for a moment, which a scrape would see.
    pub(super) fn show(&self, series: impl IntoIterator<Item = (L, i64)>) {
        let mut before = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for (labels, value) in series {
            self.family.get_or_create(&labels).set(value);
            now.insert(labels);
        }
        for stale in before.difference(&now) {
            self.family.remove(stale);
        }
        *before = now;
    }
}

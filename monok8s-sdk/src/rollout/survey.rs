//! The fleet, indexed: which order is whose, which nodes are unavailable, which upgrades are live.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::fleet::{Fleet, Management, NodeReport, NodeView, Readiness, Role, Scheduling, UpgradeView};
use super::order::OrderView;
use super::outlook::NewRun;
use super::run;
use crate::api::{
    ANNOTATION_HOLD, DowngradePolicy, InvalidSelector, Mode, RolloutSpec, Selector, annotation_is_on,
};
use crate::digest::Sha256Digest;
use crate::version::Minor;

/// The fleet, indexed.
pub(super) struct Survey<'f> {
    pub(super) fleet: &'f Fleet,
    pub(super) now: Timestamp,
    /// All progress objects, by name.
    pub(super) orders: Vec<OrderView<'f>>,
    /// The upgrades that are not being deleted, in the order in which they were accepted; those
    /// that never were come last, by age and name.
    pub(super) campaigns: Vec<Campaign<'f>>,
    /// The names of nodes that are NotReady, cordoned or about to reboot.
    unavailable: BTreeSet<&'f str>,
}

/// One upgrade, with what its spec selects.
pub(super) struct Campaign<'f> {
    pub(super) view: &'f UpgradeView,
    pub(super) rollout: RolloutSpec,
    /// The run under way; `None` if none is, or if another one has to begin first.
    pub(super) run: Option<i64>,
    /// The run that has to begin first, should the upgrade be carried out.
    pub(super) next_run: Option<NewRun>,
    /// The managed nodes that match, by name.
    pub(super) selected: Result<Vec<&'f NodeView>, InvalidSelector>,
}

impl<'f> Survey<'f> {
    pub(super) fn new(fleet: &'f Fleet, now: Timestamp) -> Self {
        let mut orders: Vec<_> = fleet.progresses.iter().map(|progress| OrderView { progress }).collect();
        orders.sort_by_key(|order| order.name());
        let live = fleet.upgrades.iter().filter(|view| view.upgrade.metadata.deletion_timestamp.is_none());
        let mut campaigns: Vec<_> = live.map(|view| Campaign::new(view, fleet, now)).collect();
        campaigns.sort_by(|a, b| a.age().cmp(&b.age()));
        let mut survey = Self { fleet, now, orders, campaigns, unavailable: BTreeSet::new() };
        survey.unavailable =
            fleet.nodes.iter().filter(|node| survey.is_away(node)).map(|node| node.name.as_str()).collect();
        survey
    }

    fn is_away(&self, node: &NodeView) -> bool {
        node.readiness == Readiness::NotReady
            || node.scheduling == Scheduling::Cordoned
            || self.orders_of(node).any(|order| order.is_committed() || order.may_yet_commit())
    }

    /// Every progress object for this very node, hand-made ones included.
    pub(super) fn orders_of(&self, node: &NodeView) -> impl Iterator<Item = OrderView<'f>> {
        self.orders.iter().copied().filter(|order| order.is_for(node))
    }

    /// The live upgrade, its run and the node that an order is for, if it is for the run that is
    /// under way.
    pub(super) fn campaign_of(&self, order: OrderView<'_>) -> Option<&Campaign<'f>> {
        let (uid, run) = (order.upgrade_uid()?, order.order()?.run);
        self.campaigns.iter().find(|campaign| campaign.view.uid() == uid && campaign.run == Some(run))
    }

    /// The order of the run under way for this very node.
    pub(super) fn current_order(&self, campaign: &Campaign<'_>, node: &NodeView) -> Option<OrderView<'f>> {
        let run = campaign.run?;
        self.orders_of(node).find(|order| {
            order.upgrade_uid() == Some(campaign.view.uid())
                && order.order().is_some_and(|ordered| ordered.run == run)
        })
    }

    pub(super) fn is_unavailable(&self, node: &NodeView) -> bool {
        self.unavailable.contains(node.name.as_str())
    }

    /// The nodes that run the control plane. One that was taken out by its annotation is still a
    /// vote in etcd, so it is here.
    pub(super) fn control_plane(&self) -> impl Iterator<Item = &'f NodeView> {
        self.fleet.nodes.iter().filter(|node| node.role == Role::ControlPlane)
    }

    /// The minor release of the oldest API server that is live; `None` if nobody knows.
    pub(super) fn lowest_api_server(&self) -> Option<Minor> {
        let live = self.control_plane().filter(|node| node.readiness == Readiness::Ready);
        let lowest = live.filter_map(|node| node.version.as_ref()).min();
        lowest.or(self.fleet.api_server.as_ref()).map(crate::version::OsVersion::minor)
    }

    /// How many managed nodes remember that this artifact failed on them after a commit, not
    /// counting what a person has seen and answered with a new nonce.
    pub(super) fn failures_of(&self, checksum: &Sha256Digest, campaign: &Campaign<'_>) -> usize {
        let answered = campaign.answered_until();
        let counts = |node: &&NodeView| match &node.report {
            NodeReport::Present(report) => report.failed_images.iter().any(|failed| {
                failed.checksum == *checksum && answered.is_none_or(|answered| failed.at.0 >= answered)
            }),
            NodeReport::Missing | NodeReport::Foreign => false,
        };
        self.fleet.nodes.iter().filter(|node| node.management == Management::Managed).filter(counts).count()
    }
}

impl<'f> Campaign<'f> {
    fn new(view: &'f UpgradeView, fleet: &'f Fleet, now: Timestamp) -> Self {
        let next_run = view.target().and_then(|target| run::new_run(view, target, now));
        let run = match (view.target(), &next_run) {
            (Some(_), None) => run::current_run(view),
            _ => None,
        };
        let selected = view.upgrade.selector().map(|selector| select(fleet, &selector));
        Self { view, rollout: view.upgrade.spec.rollout(), run, next_run, selected }
    }

    pub(super) fn selected(&self) -> &[&'f NodeView] {
        self.selected.as_deref().unwrap_or_default()
    }

    pub(super) fn policy(&self) -> DowngradePolicy {
        self.view.upgrade.spec.downgrade_policy.unwrap_or_default()
    }

    pub(super) fn mode(&self) -> Mode {
        self.view.upgrade.spec.mode.unwrap_or_default()
    }

    /// Why a person stopped it, if one did.
    pub(super) fn pause(&self) -> Option<&'static str> {
        if self.view.upgrade.spec.paused == Some(true) {
            return Some("spec.paused is true");
        }
        let held = annotation_is_on(self.view.upgrade.metadata.annotations.as_ref(), ANNOTATION_HOLD);
        held.then_some("the annotation monok8s.io/hold is set")
    }

    pub(super) fn run_started_at(&self) -> Option<Timestamp> {
        let status = self.view.upgrade.status.as_ref()?;
        status.run_started_at.as_ref().map(|time| time.0)
    }

    /// Until when failures are answered: the run that a nonce began is the answer to all before it.
    fn answered_until(&self) -> Option<Timestamp> {
        let status = self.view.upgrade.status.as_ref()?;
        let nonce = status.observed_retry_nonce.as_ref().filter(|nonce| !nonce.is_empty());
        nonce.and_then(|_| self.run_started_at())
    }

    /// Accepted before comes first; one whose run has yet to begin is the youngest.
    fn age(&self) -> (Timestamp, Option<Timestamp>, &str) {
        let begun = self.run.and_then(|_| self.run_started_at()).unwrap_or(Timestamp::MAX);
        let created = self.view.upgrade.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (begun, created, self.view.name())
    }
}

fn select<'f>(fleet: &'f Fleet, selector: &Selector) -> Vec<&'f NodeView> {
    let managed = fleet.nodes.iter().filter(|node| node.management == Management::Managed);
    let by_name: BTreeMap<_, _> = managed
        .filter(|node| selector.matches(&node.labels))
        .map(|node| (node.name.as_str(), node))
        .collect();
    by_name.into_values().collect()
}

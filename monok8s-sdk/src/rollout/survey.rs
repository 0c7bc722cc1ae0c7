//! What is found out once for a plan: which nodes are unavailable, which upgrades are live, what failed where.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::fleet::{Fleet, Management, NodeReport, Readiness, Role, Scheduling, UpgradeView};
use super::halt::Failed;
use super::index::{Index, NodeEntry, OrderEntry};
use super::order::{State, later};
use super::outlook::NewRun;
use super::run;
use super::windows::{WindowError, WindowState, Windows};
use crate::api::{
    ANNOTATION_HOLD, DowngradePolicy, InvalidSelector, Mode, ProgressPhase, RolloutSpec, Selector,
    WindowScope, annotation_is_on,
};
use crate::digest::Sha256Digest;
use crate::version::{Minor, OsVersion};

/// What is found out once for a plan.
pub(super) struct Survey<'f> {
    pub(super) fleet: &'f Fleet,
    pub(super) now: Timestamp,
    pub(super) index: &'f Index,
    control_plane: Vec<&'f NodeEntry>,
    /// The groups that take turns in any upgrade, by name.
    groups: Vec<&'f str>,
    /// The node that the operator runs on.
    operator: Option<&'f NodeEntry>,
    /// How many nodes are managed.
    pub(super) managed: usize,
    lowest_api_server: Option<Minor>,
    /// On which nodes artifacts failed after a commit, and when; once for each node. Those that are taken out of
    /// everything count too: an image is no better for it.
    failures: BTreeMap<&'f Sha256Digest, Vec<(&'f str, Timestamp)>>,
    /// The upgrades that are not being deleted, in the order in which they were accepted; those
    /// that never were come last, by age and name.
    pub(super) campaigns: Vec<Campaign<'f>>,
    /// How long a node takes from its commit until it is back: the median of those that came back.
    pub(super) reboot_takes: SignedDuration,
    /// How long a node is emptied before: the median of those that are done, and no time as long as none is.
    drain_takes: SignedDuration,
    /// How long a node takes to download and write an image: the median of those that did.
    pub(super) stage_takes: SignedDuration,
    /// Nodes that failed in a run under way and are gone by now, or not selected any more: the index of the campaign,
    /// the name, and when. No node that is taken away takes back what it told of an image.
    failed_and_gone: Vec<(usize, &'f str, Failed)>,
}

/// One upgrade, with what its spec selects.
pub(super) struct Campaign<'f> {
    pub(super) view: &'f UpgradeView,
    /// Where it is among the campaigns.
    pub(super) index: usize,
    pub(super) rollout: RolloutSpec,
    /// The run under way; `None` if none is, or if another one has to begin first.
    pub(super) run: Option<i64>,
    /// The run that has to begin first, should the upgrade be carried out.
    pub(super) next_run: Option<NewRun>,
    /// The managed nodes that match, by name.
    pub(super) selected: Result<Vec<&'f NodeEntry>, InvalidSelector>,
    /// The numbers of the workers that go first. The operator's own node is none of them: it goes last.
    canaries: BTreeSet<usize>,
    /// Whether canaries are asked for, and no worker is one.
    pub(super) lacks_canaries: bool,
    /// Whether a node may be staged now.
    pub(super) stage_window: WindowState,
    /// Whether a node may begin its turn, and reboot, now.
    pub(super) reboot_window: WindowState,
    /// Its windows, or what is wrong with them: then nothing is open.
    pub(super) windows: Result<Windows, WindowError>,
}

/// How long a node is expected to be away, as long as none has come back.
const REBOOT_TAKES: SignedDuration = SignedDuration::from_mins(10);
/// How long staging is expected to take, as long as no node has.
const STAGE_TAKES: SignedDuration = SignedDuration::from_mins(5);

impl<'f> Survey<'f> {
    pub(super) fn new(fleet: &'f Fleet, index: &'f Index, now: Timestamp) -> Self {
        let operator = fleet.operator_node.as_deref().and_then(|name| index.node_named(name));
        let live = fleet.upgrades.iter().filter(|view| view.upgrade.metadata.deletion_timestamp.is_none());
        let mut campaigns: Vec<_> = live.map(|view| Campaign::new(view, index, operator, now)).collect();
        campaigns.sort_by(|a, b| a.age().cmp(&b.age()));
        campaigns.iter_mut().enumerate().for_each(|(index, campaign)| campaign.index = index);
        let control_plane: Vec<_> = index.nodes().filter(|node| node.role == Role::ControlPlane).collect();
        Self {
            failed_and_gone: failed_and_gone(index, &campaigns, now),
            fleet,
            now,
            lowest_api_server: lowest_api_server(fleet, index, &control_plane, &campaigns, now),
            control_plane,
            managed: index.nodes().filter(|node| node.management == Management::Managed).count(),
            failures: failures(index),
            groups: groups(&campaigns),
            campaigns,
            operator,
            reboot_takes: median(index.orders().filter_map(|order| order.reboot_took), REBOOT_TAKES),
            drain_takes: median(index.orders().filter_map(|order| order.drain_took), SignedDuration::ZERO),
            stage_takes: median(index.orders().filter_map(|order| order.stage_took), STAGE_TAKES),
            index,
        }
    }

    /// How long the turn of a node takes, from its cordon until it is back.
    pub(super) fn turn_takes(&self) -> SignedDuration {
        self.drain_takes + self.reboot_takes
    }

    /// Whether a node is `NotReady`, cordoned or about to reboot.
    pub(super) fn is_unavailable(&self, node: &NodeEntry) -> bool {
        node.readiness == Readiness::NotReady
            || node.scheduling == Scheduling::Cordoned
            || self.index.orders_of(node).any(|order| order.is_committed() || order.may_yet_commit())
    }

    /// The live upgrade that an order is for, if it is for the run that is under way.
    pub(super) fn campaign_of(&self, order: &OrderEntry) -> Option<&Campaign<'f>> {
        order.run?;
        self.campaigns.iter().find(|campaign| campaign.owns(order) && campaign.run == order.run)
    }

    /// The order of the run under way for this very node.
    pub(super) fn current_order(&self, campaign: &Campaign<'_>, node: &NodeEntry) -> Option<&'f OrderEntry> {
        campaign.run?;
        self.index.orders_of(node).find(|order| campaign.owns(order) && order.run == campaign.run)
    }

    /// The nodes that run the control plane. One that was taken out by its annotation is still a
    /// vote in etcd, so it is here.
    pub(super) fn control_plane(&self) -> impl Iterator<Item = &'f NodeEntry> {
        self.control_plane.iter().copied()
    }

    /// Where the group of a node is among all that take turns, by name.
    pub(super) fn group_number(&self, campaign: &Campaign<'_>, node: &NodeEntry) -> usize {
        let own = campaign.group_of(node);
        self.groups.partition_point(|group| *group < own)
    }

    /// Whether the operator itself runs on a node.
    pub(super) fn hosts_operator(&self, node: &NodeEntry) -> bool {
        self.operator.is_some_and(|operator| operator.number == node.number)
    }

    /// When the next node of the control plane has been away for so long that its API server does not count any more.
    pub(super) fn control_plane_changes(&self) -> impl Iterator<Item = Timestamp> {
        self.control_plane.iter().filter_map(|node| blinks_until(node)).filter(|ends| *ends > self.now)
    }

    /// The minor release of the oldest API server that is live; `None` if nobody knows.
    pub(super) fn lowest_api_server(&self) -> Option<Minor> {
        self.lowest_api_server
    }

    /// The nodes that failed in the run under way and are not selected any more, by name.
    pub(super) fn failed_and_gone(&self, campaign: &Campaign<'_>) -> impl Iterator<Item = (&'f str, Failed)> {
        let own = self.failed_and_gone.iter().filter(move |(index, ..)| *index == campaign.index);
        own.map(|(_, name, failed)| (*name, *failed))
    }

    /// The nodes that remember that this artifact failed on them after a commit, without
    /// what a person has seen and answered with a new nonce.
    pub(super) fn failures_of(&self, checksum: &Sha256Digest, campaign: &Campaign<'_>) -> Vec<&'f str> {
        let answered = campaign.answered_until();
        let failed = self.failures.get(checksum).into_iter().flatten();
        let unanswered = failed.filter(|(_, at)| answered.is_none_or(|answered| *at >= answered));
        unanswered.map(|(node, _)| *node).collect()
    }
}

impl<'f> Campaign<'f> {
    fn new(view: &'f UpgradeView, index: &'f Index, operator: Option<&'f NodeEntry>, now: Timestamp) -> Self {
        let next_run = view.target().and_then(|target| run::new_run(view, target, now));
        let run = match (view.target(), &next_run) {
            (Some(_), None) => run::current_run(view),
            _ => None,
        };
        let selected = view.upgrade.selector().map(|selector| select(index, &selector));
        let rollout = view.upgrade.spec.rollout();
        let mut canaries = canaries(&rollout, selected.as_deref().unwrap_or_default());
        let lacks_canaries = rollout.canary.is_some() && canaries.is_empty();
        canaries.retain(|number| operator.is_none_or(|operator| operator.number != *number));
        let windows = Windows::new(&rollout.windows);
        let window =
            |scope| windows.as_ref().map_or(WindowState::Closed { opens: None }, |all| all.state(scope, now));
        Self {
            view,
            index: 0,
            run,
            next_run,
            selected,
            canaries,
            lacks_canaries,
            stage_window: window(WindowScope::Stage),
            reboot_window: window(WindowScope::Reboot),
            windows,
            rollout,
        }
    }

    /// Whether a progress object belongs to the upgrade, in whatever run.
    pub(super) fn owns(&self, order: &OrderEntry) -> bool {
        order.owner() == Some(self.view.uid())
    }

    pub(super) fn selected(&self) -> &[&'f NodeEntry] {
        self.selected.as_deref().unwrap_or_default()
    }

    pub(super) fn selects(&self, node: &NodeEntry) -> bool {
        self.selected().binary_search_by_key(&node.number, |known| known.number).is_ok()
    }

    pub(super) fn is_canary(&self, node: &NodeEntry) -> bool {
        self.canaries.contains(&node.number)
    }

    /// How long the fleet is left alone after a node.
    pub(super) fn soak(&self) -> SignedDuration {
        seconds(self.rollout.soak_seconds)
    }

    /// How long a node may take from its commit until it is back.
    pub(super) fn reboot_timeout(&self) -> SignedDuration {
        SignedDuration::from_secs(self.rollout.reboot_timeout_seconds().into())
    }

    /// How long it is left alone after this one as a canary.
    pub(super) fn canary_soak(&self, node: &NodeEntry) -> SignedDuration {
        let canary = self.rollout.canary.as_ref().filter(|_| self.is_canary(node));
        seconds(canary.and_then(|canary| canary.soak_seconds))
    }

    /// How long it is left alone after this one.
    pub(super) fn soaks(&self, node: &NodeEntry) -> SignedDuration {
        self.soak().max(self.canary_soak(node))
    }

    /// The longest time that any node soaks.
    pub(super) fn soaks_longest(&self) -> SignedDuration {
        let canary = self.rollout.canary.as_ref().and_then(|canary| canary.soak_seconds);
        self.soak().max(seconds(canary))
    }

    /// The group of a node; one without the label is in the first.
    pub(super) fn group_of<'n>(&self, node: &'n NodeEntry) -> &'n str {
        let key = self.rollout.group_by.as_ref();
        key.and_then(|key| node.view().labels.get(key)).map(String::as_str).unwrap_or_default()
    }

    /// The label that nodes are grouped by, if none of them has it: most often it is misspelt.
    pub(super) fn missing_group(&self) -> Option<&str> {
        let label = self.rollout.group_by.as_deref()?;
        let has_it = |node: &&NodeEntry| node.view().labels.contains_key(label);
        (!self.selected().iter().any(has_it)).then_some(label)
    }

    /// When something opens or closes next.
    pub(super) fn window_changes(&self) -> impl Iterator<Item = Timestamp> {
        [self.stage_window, self.reboot_window].into_iter().filter_map(|window| match window {
            WindowState::Open { closes } => closes,
            WindowState::Closed { opens } => opens,
        })
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

/// A node of the control plane that is not ready for so long is dead, and its API server is none.
const DEAD_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// One that is in its reboot, or blinks, may be back any moment with what it ran.
fn lowest_api_server(
    fleet: &Fleet,
    index: &Index,
    control_plane: &[&NodeEntry],
    campaigns: &[Campaign<'_>],
    now: Timestamp,
) -> Option<Minor> {
    let is_expected = |order: &OrderEntry| {
        let campaign = campaigns.iter().find(|campaign| campaign.owns(order) && order.is_committed());
        let late = |campaign: &Campaign<'_>| order.deadline(&State::Committed, &campaign.rollout, now);
        campaign.is_some_and(|campaign| late(campaign).is_none_or(|at| at > now))
    };
    let is_live = |node: &NodeEntry| {
        node.readiness == Readiness::Ready
            || blinks_until(node).is_some_and(|ends| ends > now)
            || index.orders_of(node).any(is_expected)
    };
    let live = control_plane.iter().filter(|node| is_live(node));
    let lowest = live.filter_map(|node| node.version()).min();
    lowest.or(fleet.api_server.as_ref()).map(OsVersion::minor)
}

/// Until when a node that is not ready may merely blink.
fn blinks_until(node: &NodeEntry) -> Option<Timestamp> {
    node.view().not_ready_since.map(|since| later(since, DEAD_AFTER))
}

/// Of several failures of an artifact on one node the last one counts.
fn failures(index: &Index) -> BTreeMap<&Sha256Digest, Vec<(&str, Timestamp)>> {
    let mut failures: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for node in index.nodes().filter(|node| node.has_failed_images) {
        let NodeReport::Present(report) = &node.view().report else { continue };
        let mut last: BTreeMap<_, Timestamp> = BTreeMap::new();
        for failed in &report.failed_images {
            let at = last.entry(&failed.checksum).or_insert(failed.at.0);
            *at = failed.at.0.max(*at);
        }
        for (checksum, at) in last {
            failures.entry(checksum).or_default().push((node.name(), at));
        }
    }
    failures
}

fn failed_and_gone<'f>(
    index: &'f Index,
    campaigns: &[Campaign<'f>],
    now: Timestamp,
) -> Vec<(usize, &'f str, Failed)> {
    let mut left = Vec::new();
    let may_have_failed = |order: &&OrderEntry| {
        order.is_committed()
            || order.has_conditions
            || matches!(order.phase, ProgressPhase::Failed | ProgressPhase::RolledBack)
    };
    for order in index.orders().filter(may_have_failed) {
        let Some(campaign) = campaigns.iter().find(|campaign| campaign.owns(order)) else { continue };
        let is_selected = index.node_of(order).is_some_and(|node| campaign.selects(node));
        if order.run.is_some() && campaign.run == order.run && !is_selected {
            let failed = order.failed(&campaign.rollout, now);
            let name = order.progress().spec.node_name.as_str();
            left.extend(failed.map(|failed| (campaign.index, name, failed)));
        }
    }
    left
}

fn seconds(seconds: Option<i32>) -> SignedDuration {
    SignedDuration::from_secs(seconds.unwrap_or(0).into())
}

fn median(taken: impl Iterator<Item = SignedDuration>, otherwise: SignedDuration) -> SignedDuration {
    let mut taken: Vec<_> = taken.collect();
    taken.sort_unstable();
    taken.get(taken.len() / 2).copied().unwrap_or(otherwise)
}

fn canaries(rollout: &RolloutSpec, selected: &[&NodeEntry]) -> BTreeSet<usize> {
    let selector = rollout.canary.as_ref().and_then(|canary| canary.node_selector.parse().ok());
    let Some(selector) = selector else { return BTreeSet::new() };
    let workers = selected.iter().filter(|node| node.role == Role::Worker);
    workers.filter(|node| selector.matches(&node.view().labels)).map(|node| node.number).collect()
}

fn groups<'f>(campaigns: &[Campaign<'f>]) -> Vec<&'f str> {
    let grouped = campaigns.iter().filter(|campaign| campaign.rollout.group_by.is_some());
    let groups = grouped.flat_map(|campaign| campaign.selected().iter().map(|node| campaign.group_of(node)));
    groups.collect::<BTreeSet<_>>().into_iter().collect()
}

fn select<'f>(index: &'f Index, selector: &Selector) -> Vec<&'f NodeEntry> {
    let managed = index.nodes().filter(|node| node.management == Management::Managed);
    managed.filter(|node| selector.matches(&node.view().labels)).collect()
}

//! Which upgrade governs a node, and where each selected node stands in each upgrade.

use std::collections::BTreeMap;

use super::fleet::{NodeView, Readiness};
use super::order::{OrderView, State};
use super::route::Way;
use super::survey::{Campaign, Survey};
use crate::api::{
    ConditionType, DowngradePolicy, ImageRef, Mode, ProgressPhase, UpgradePhase, UpgradeReason,
};

/// Where a selected node stands in an upgrade.
#[derive(Clone, Debug)]
pub(super) enum Stand<'f> {
    /// It runs the target.
    UpToDate,
    /// It is governed by the upgrade of this name, or was moved on by one that is gone.
    MovedOn(Option<&'f str>),
    /// A rule refuses it.
    Refused(UpgradeReason, String),
    /// It cannot be upgraded.
    Excluded(UpgradeReason, String),
    /// Nobody says yet what it runs.
    Unknown,
    /// It has committed to what another order wanted, and finishes that first.
    Finishing(OrderView<'f>),
    /// It has no order yet.
    Unordered(Vec<ImageRef>),
    /// It has one.
    Ordered(OrderView<'f>, State<'f>),
}

/// The stands of all selected nodes, by upgrade UID and node name.
pub(super) struct Stands<'f> {
    by_upgrade: BTreeMap<&'f str, BTreeMap<&'f str, (&'f NodeView, Stand<'f>)>>,
    governors: BTreeMap<&'f str, &'f str>,
}

impl<'f> Stands<'f> {
    pub(super) fn new(survey: &Survey<'f>) -> Self {
        let governors = governors(survey);
        let by_upgrade = survey
            .campaigns
            .iter()
            .map(|campaign| {
                let stands = campaign.selected().iter().map(|node| {
                    let governor = governors.get(node.name.as_str()).copied();
                    (node.name.as_str(), (*node, stand(survey, campaign, node, governor)))
                });
                (campaign.view.uid(), stands.collect())
            })
            .collect();
        let governors = governors.into_iter().map(|(node, campaign)| (node, campaign.view.uid())).collect();
        Self { by_upgrade, governors }
    }

    /// The nodes of an upgrade, by name.
    pub(super) fn of(&self, campaign: &Campaign<'_>) -> impl Iterator<Item = (&'f NodeView, &Stand<'f>)> {
        self.by_upgrade
            .get(campaign.view.uid())
            .into_iter()
            .flatten()
            .map(|(_, (node, stand))| (*node, stand))
    }

    /// Where a node stands in an upgrade that selects it.
    pub(super) fn stand_of(&self, campaign: &Campaign<'_>, node: &NodeView) -> Option<&Stand<'f>> {
        self.by_upgrade.get(campaign.view.uid())?.get(node.name.as_str()).map(|(_, stand)| stand)
    }

    pub(super) fn governs(&self, campaign: &Campaign<'_>, node: &NodeView) -> bool {
        self.governors.get(node.name.as_str()) == Some(&campaign.view.uid())
    }

    /// Whether any upgrade governs the node.
    pub(super) fn is_governed(&self, node: &NodeView) -> bool {
        self.governors.contains_key(node.name.as_str())
    }
}

impl Stand<'_> {
    /// Whether the node will get further by itself, so that others may wait for it. A dead node
    /// and one that waits for a person hold up nobody.
    pub(super) fn moves(&self, node: &NodeView) -> bool {
        match self {
            Self::Ordered(_, State::Committed) => true,
            Self::Unordered(_) | Self::Finishing(_) => node.readiness == Readiness::Ready,
            Self::Ordered(_, State::Unstaged(_) | State::Staging(_) | State::Staged(_)) => {
                node.readiness == Readiness::Ready
            }
            _ => false,
        }
    }
}

/// Which upgrade governs each node: of those that could do something for it, one that allows
/// downgrades overrides all that were accepted before it; of the rest the highest version, and of
/// several with that the one accepted first.
fn governors<'s, 'f>(survey: &'s Survey<'f>) -> BTreeMap<&'f str, &'s Campaign<'f>> {
    let mut governors: BTreeMap<&'f str, &'s Campaign<'f>> = BTreeMap::new();
    // In the order of acceptance.
    for campaign in &survey.campaigns {
        let Some(target) = campaign.view.target().filter(|_| campaign.mode() == Mode::Apply) else {
            continue;
        };
        for node in campaign.selected().iter().copied() {
            let way = Way::find(node, target, campaign.policy());
            if !way.is_open() || was_moved_on(survey, campaign, node) {
                continue;
            }
            let higher = governors.get(node.name.as_str()).is_none_or(|other| {
                let other = other.view.target().map(|target| &target.resolved.version);
                Some(&target.resolved.version) > other
            });
            if higher || campaign.policy() == DowngradePolicy::Allow {
                governors.insert(&node.name, campaign);
            }
        }
    }
    governors
}

fn stand<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    node: &'f NodeView,
    governor: Option<&Campaign<'f>>,
) -> Stand<'f> {
    let Some(target) = campaign.view.target() else { return Stand::MovedOn(None) };
    let own = governor.is_some_and(|governor| governor.view.uid() == campaign.view.uid());
    let way = Way::find(node, target, campaign.policy());
    if campaign.mode() == Mode::Apply && !own {
        if was_moved_on(survey, campaign, node) {
            return Stand::MovedOn(governor.map(|governor| governor.view.name()));
        }
        if let (true, Some(governor)) = (way.is_open(), governor) {
            return Stand::MovedOn(Some(governor.view.name()));
        }
    }
    let current = survey.current_order(campaign, node).map(|order| {
        let state = order.state(node, &campaign.rollout, survey.now);
        (order, state)
    });
    match (current, way) {
        (Some((_, state)), Way::Arrived) if !outweighs(&state) => Stand::UpToDate,
        (Some((order, state)), _) => Stand::Ordered(order, state),
        (None, Way::Arrived) => Stand::UpToDate,
        (None, Way::Refused(reason, message)) => Stand::Refused(reason, message),
        (None, Way::Excluded(reason, message)) => Stand::Excluded(reason, message),
        (None, Way::Unknown) => Stand::Unknown,
        (None, Way::Hops(hops)) => match survey.orders_of(node).find(|order| order.is_committed()) {
            Some(other) => Stand::Finishing(other),
            None => Stand::Unordered(hops),
        },
    }
}

/// Whether what the order says outweighs what the node runs: it is in the middle of a reboot, the
/// two contradict each other, or a person sends the node back. Nothing else is ever staged on a
/// node that has arrived.
fn outweighs(state: &State<'_>) -> bool {
    matches!(
        state,
        State::Committed
            | State::Lost
            | State::Settling
            | State::Unexplained
            | State::SentBack
            | State::Staged(_)
    )
}

/// Whether something else moved a node on after this run had done with it. A run is not carried
/// out twice, so the upgrade leaves such a node alone.
fn was_moved_on(survey: &Survey<'_>, campaign: &Campaign<'_>, node: &NodeView) -> bool {
    let Some((target, _)) = campaign.view.target().zip(campaign.run) else { return false };
    let target = &target.resolved.version;
    let Some(running) = node.version.as_ref().filter(|_| !node.runs(target)) else { return false };
    let order = survey.current_order(campaign, node);
    if order.is_some_and(OrderView::is_committed) {
        return false;
    }
    let newer = running > target;
    if newer && campaign.policy() == DowngradePolicy::Refuse {
        return true;
    }
    match order {
        Some(order) if order.progress.phase() == ProgressPhase::Completed => {
            newer && !order.rollback_is_wanted() || order.says(&ConditionType::Superseded)
        }
        Some(_) => false,
        None => was_there_when_completed(campaign, node),
    }
}

/// A node that is older than a run which is complete was on the target then, or has an order.
fn was_there_when_completed(campaign: &Campaign<'_>, node: &NodeView) -> bool {
    let phase = campaign.view.upgrade.status.as_ref().and_then(|status| status.phase.as_ref());
    let older = node.created.zip(campaign.run_started_at()).is_some_and(|(node, run)| node <= run);
    phase == Some(&UpgradePhase::Completed) && older
}

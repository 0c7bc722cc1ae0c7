//! Which upgrade governs a node, and where each selected node stands in each upgrade.

use std::rc::Rc;

use super::fleet::Readiness;
use super::index::{NodeEntry, OrderEntry};
use super::order::State;
use super::route::{Routes, Way};
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
    Finishing(&'f OrderEntry),
    /// It has no order yet.
    Unordered(Rc<[ImageRef]>),
    /// It has one.
    Ordered(&'f OrderEntry, State<'f>),
}

/// A node that an upgrade selects.
pub(super) struct Member<'f> {
    pub(super) node: &'f NodeEntry,
    /// Its order of the run under way.
    pub(super) order: Option<&'f OrderEntry>,
    pub(super) stand: Stand<'f>,
    /// The state of its order, where the node is up to date and that overrules it.
    overruled: Option<State<'f>>,
    governed: bool,
}

impl<'f> Member<'f> {
    /// Its order of the run under way, and where it stands in that.
    pub(super) fn ordered(&self) -> Option<(&'f OrderEntry, &State<'f>)> {
        match &self.stand {
            Stand::Ordered(order, state) => Some((*order, state)),
            _ => self.order.zip(self.overruled.as_ref()),
        }
    }
}

/// The stands of all selected nodes.
pub(super) struct Stands<'f> {
    /// The members of each campaign, by name.
    members: Vec<Vec<Member<'f>>>,
}

impl<'f> Stands<'f> {
    pub(super) fn new(survey: &Survey<'f>) -> Self {
        let claims: Vec<_> = survey.campaigns.iter().map(|campaign| claims(survey, campaign)).collect();
        let governors = governors(survey, &claims);
        let member = |campaign: &Campaign<'f>, claim: Claim<'f>| {
            let governor = governors.get(claim.node.number).copied().flatten();
            let governor = governor.and_then(|index| survey.campaigns.get(index));
            let (node, order) = (claim.node, claim.order);
            let (stand, overruled) = stand(survey, campaign, claim, governor);
            let governed = governor.is_some_and(|governor| governor.index == campaign.index);
            Member { node, order, stand, overruled, governed }
        };
        let members = survey.campaigns.iter().zip(claims);
        let members = members
            .map(|(campaign, claims)| claims.into_iter().map(|claim| member(campaign, claim)).collect())
            .collect();
        Self { members }
    }

    /// The nodes of an upgrade, by name.
    pub(super) fn members(&self, campaign: &Campaign<'_>) -> &[Member<'f>] {
        self.members.get(campaign.index).map(Vec::as_slice).unwrap_or_default()
    }

    /// Those of them that it governs.
    pub(super) fn governed(&self, campaign: &Campaign<'_>) -> impl Iterator<Item = &Member<'f>> {
        self.members(campaign).iter().filter(|member| member.governed)
    }

    /// The nodes of an upgrade, and where they stand, by name.
    pub(super) fn of(&self, campaign: &Campaign<'_>) -> impl Iterator<Item = (&'f NodeEntry, &Stand<'f>)> {
        self.members(campaign).iter().map(|member| (member.node, &member.stand))
    }

    /// Where a node stands in an upgrade that selects it.
    pub(super) fn stand_of(&self, campaign: &Campaign<'_>, node: &NodeEntry) -> Option<&Stand<'f>> {
        find(self.members(campaign), node).map(|member| &member.stand)
    }

    /// Whether an upgrade governs the node, but not this one.
    pub(super) fn another_governs(&self, campaign: &Campaign<'_>, node: &NodeEntry) -> bool {
        let governs = |members: &Vec<Member<'f>>| find(members, node).is_some_and(|member| member.governed);
        self.members.iter().position(governs).is_some_and(|governor| governor != campaign.index)
    }
}

fn find<'m, 'f>(members: &'m [Member<'f>], node: &NodeEntry) -> Option<&'m Member<'f>> {
    let at = members.binary_search_by_key(&node.number, |member| member.node.number).ok()?;
    members.get(at)
}

impl Stand<'_> {
    /// Whether the node will get further by itself, so that others may wait for it. A dead node
    /// and one that waits for a person hold up nobody.
    pub(super) fn moves(&self, node: &NodeEntry) -> bool {
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

/// What an upgrade has to say about a node, before it is known who governs it.
struct Claim<'f> {
    node: &'f NodeEntry,
    order: Option<&'f OrderEntry>,
    /// `None`: the upgrade leads nowhere.
    way: Option<Way>,
    /// Whether something else moved it on.
    moved_on: bool,
}

fn claims<'f>(survey: &Survey<'f>, campaign: &Campaign<'f>) -> Vec<Claim<'f>> {
    let mut routes = campaign.view.target().map(|target| Routes::new(target, campaign.policy()));
    let claim = |node: &'f NodeEntry| {
        let order = survey.current_order(campaign, node);
        Claim {
            node,
            order,
            way: routes.as_mut().map(|routes| routes.way(node)),
            moved_on: was_moved_on(campaign, node, order),
        }
    };
    campaign.selected().iter().copied().map(claim).collect()
}

/// Which upgrade governs each node: of those that could do something for it, one that allows
/// downgrades overrides all that were accepted before it; of the rest the highest version, and of
/// several with that the one accepted first. By the number of the node: the index of the campaign.
fn governors<'f>(survey: &Survey<'f>, claims: &[Vec<Claim<'f>>]) -> Vec<Option<usize>> {
    let mut governors = vec![None; survey.index.nodes().len()];
    let target = |campaign: &Campaign<'f>| campaign.view.target().map(|target| &target.resolved.version);
    // In the order of acceptance.
    for (campaign, claims) in survey.campaigns.iter().zip(claims) {
        let Some(own) = target(campaign).filter(|_| campaign.mode() == Mode::Apply) else { continue };
        let open = |claim: &&Claim<'_>| claim.way.as_ref().is_some_and(Way::is_open) && !claim.moved_on;
        for claim in claims.iter().filter(open) {
            let Some(governor) = governors.get_mut(claim.node.number) else { continue };
            let other = governor.and_then(|index: usize| survey.campaigns.get(index));
            let higher = other.is_none_or(|other| Some(own) > target(other));
            if higher || campaign.policy() == DowngradePolicy::Allow {
                *governor = Some(campaign.index);
            }
        }
    }
    governors
}

fn stand<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    Claim { node, order, way, moved_on }: Claim<'f>,
    governor: Option<&Campaign<'f>>,
) -> (Stand<'f>, Option<State<'f>>) {
    let Some(way) = way else { return (Stand::MovedOn(None), None) };
    let own = governor.is_some_and(|governor| governor.index == campaign.index);
    if campaign.mode() == Mode::Apply && !own {
        if moved_on {
            return (Stand::MovedOn(governor.map(|governor| governor.view.name())), None);
        }
        if let (true, Some(governor)) = (way.is_open(), governor) {
            return (Stand::MovedOn(Some(governor.view.name())), None);
        }
    }
    let current = order.map(|order| (order, order.state(node, &campaign.rollout, survey.now)));
    let stand = match (current, way) {
        (Some((_, state)), Way::Arrived) if !outweighs(&state) => return (Stand::UpToDate, Some(state)),
        (Some((order, state)), _) => Stand::Ordered(order, state),
        (None, Way::Arrived) => Stand::UpToDate,
        (None, Way::Refused(reason, message)) => Stand::Refused(reason, message),
        (None, Way::Excluded(reason, message)) => Stand::Excluded(reason, message),
        (None, Way::Unknown) => Stand::Unknown,
        (None, Way::Hops(hops)) => match survey.index.orders_of(node).find(|order| order.is_committed()) {
            Some(other) => Stand::Finishing(other),
            None => Stand::Unordered(hops),
        },
    };
    (stand, None)
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
fn was_moved_on(campaign: &Campaign<'_>, node: &NodeEntry, order: Option<&OrderEntry>) -> bool {
    let Some((target, _)) = campaign.view.target().zip(campaign.run) else { return false };
    let target = &target.resolved.version;
    let Some(running) = node.version().filter(|_| !node.runs(target)) else { return false };
    if order.is_some_and(OrderEntry::is_committed) {
        return false;
    }
    let newer = running > target;
    if newer && campaign.policy() == DowngradePolicy::Refuse {
        return true;
    }
    match order {
        Some(order) if order.phase == ProgressPhase::Completed => {
            newer && !order.rollback_is_wanted || order.says(&ConditionType::Superseded)
        }
        Some(_) => false,
        None => was_there_when_completed(campaign, node),
    }
}

/// A node that is older than a run which is complete was on the target then, or has an order.
fn was_there_when_completed(campaign: &Campaign<'_>, node: &NodeEntry) -> bool {
    let phase = campaign.view.upgrade.status.as_ref().and_then(|status| status.phase.as_ref());
    let older = node.view().created.zip(campaign.run_started_at()).is_some_and(|(node, run)| node <= run);
    phase == Some(&UpgradePhase::Completed) && older
}

//! Cordon, drain, and leave to reboot.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::action::Action;
use super::draft::Draft;
use super::drain;
use super::fleet::{NodeView, Readiness, Scheduling};
use super::gates::Turn;
use super::govern::{Stand, Stands};
use super::halt::Failures;
use super::health;
use super::line::Place;
use super::order::{GRANT_LIFETIME, OrderView, State, later};
use super::outlook::Wait;
use super::pace::Pace;
use super::survey::{Campaign, Survey};
use super::windows::WindowState;
use crate::api::{BootGrant, RolloutSpec, UpgradeReason};
use crate::version::OsVersion;

struct Candidate<'a, 'f> {
    campaign: &'a Campaign<'f>,
    node: &'f NodeView,
    order: OrderView<'f>,
    version: &'a OsVersion,
}

impl Candidate<'_, '_> {
    /// Whether it has its turn already, by our own cordon or grant.
    fn has_turn(&self) -> bool {
        self.order.boot().is_some() || self.is_cordoned_for_it()
    }

    fn is_cordoned_for_it(&self) -> bool {
        self.node.scheduling == Scheduling::Cordoned
            && self.node.cordoned_for.as_deref() == Some(self.order.uid())
    }

    /// Whether it would be available but for its turn.
    fn is_away_for_its_turn_alone(&self) -> bool {
        let cordoned_by_others = self.node.scheduling == Scheduling::Cordoned && !self.is_cordoned_for_it();
        self.has_turn() && self.node.readiness == Readiness::Ready && !cordoned_by_others
    }
}

/// Decides whose turn it is. First come the nodes that have theirs: the gates are asked again as
/// long as the grant can be taken back. Then one after the other gets a turn, and each one that
/// does counts for the next.
pub(super) fn take_turns<'f>(survey: &Survey<'f>, stands: &Stands<'f>, draft: &mut Draft) {
    let halts: BTreeMap<&str, Option<Wait>> = survey
        .campaigns
        .iter()
        .map(|campaign| (campaign.view.uid(), Failures::of(campaign, stands).halt()))
        .collect();
    let paces: BTreeMap<&str, Pace<'_>> = survey
        .campaigns
        .iter()
        .map(|campaign| (campaign.view.uid(), Pace::of(survey, campaign, stands)))
        .collect();
    paces.values().filter_map(|pace| pace.ends).for_each(|ends| draft.wake_at(ends));
    let nothing = Pace::default();
    let (in_turn, waiting): (Vec<_>, Vec<_>) =
        candidates(survey, stands).into_iter().partition(Candidate::has_turn);

    let mut away = away(survey);
    for candidate in in_turn.iter().filter(|candidate| candidate.is_away_for_its_turn_alone()) {
        away.remove(candidate.node.name.as_str());
    }
    let mut in_work = in_work(survey);
    for candidate in &in_turn {
        in_work.remove(candidate.node.name.as_str());
    }
    let mut in_vain = BTreeMap::new();
    let mut spent: BTreeMap<&str, Wait> = BTreeMap::new();
    for (candidate, had_turn) in
        in_turn.iter().map(|turn| (turn, true)).chain(waiting.iter().map(|turn| (turn, false)))
    {
        if !had_turn {
            // Nodes that lose their turn are away until they were seen to be back.
            away.extend(in_vain.keys().copied());
            in_work.append(&mut in_vain);
        }
        let turn = Turn {
            survey,
            stands,
            campaign: candidate.campaign,
            halt: halts.get(candidate.campaign.view.uid()).and_then(Option::as_ref),
            node: candidate.node,
            order: candidate.order,
            version: candidate.version,
            away: &away,
            in_work: &in_work,
            has_begun: had_turn,
            pace: paces.get(candidate.campaign.view.uid()).unwrap_or(&nothing),
            spent: spent.get(candidate.campaign.view.uid()).filter(|_| !had_turn),
        };
        if let Some(wait) = turn.wait() {
            if !had_turn && wait.reason == UpgradeReason::WaitingForBudget {
                spent.insert(candidate.campaign.view.uid(), wait.clone());
            }
            draft.waits(candidate.campaign, candidate.node, wait);
            if had_turn {
                in_vain.insert(candidate.node.name.as_str(), candidate.node);
            }
        } else {
            spent.clear();
            away.insert(&candidate.node.name);
            in_work.insert(&candidate.node.name, candidate.node);
            draft.admitted.insert(candidate.order.uid().to_owned());
            go_on(candidate, survey, draft);
        }
    }
}

fn away<'f>(survey: &Survey<'f>) -> BTreeSet<&'f str> {
    let away = survey.fleet.nodes.iter().filter(|node| survey.is_unavailable(node));
    away.map(|node| node.name.as_str()).collect()
}

/// The nodes that are on their way into a reboot or out of one, whoever ordered it, and those that still wear our
/// cordon. One that did not come back in time is nobody's work any more.
fn in_work<'f>(survey: &Survey<'f>) -> BTreeMap<&'f str, &'f NodeView> {
    let nodes = survey.fleet.nodes.iter().map(|node| (node.name.as_str(), node.as_ref()));
    let nodes: BTreeMap<&str, &NodeView> = nodes.collect();
    let (mut committed, mut lost) = (BTreeMap::new(), BTreeSet::new());
    for order in survey.orders.iter().filter(|order| order.is_committed()) {
        let name = order.progress.spec.node_name.as_str();
        let Some((name, node)) = nodes.get_key_value(name).filter(|(_, node)| order.is_for(node)) else {
            continue;
        };
        let rollout = survey.campaign_of(*order).map(|campaign| &campaign.rollout);
        let state = match rollout {
            Some(rollout) => order.state(node, rollout, survey.now),
            None => order.state(node, &RolloutSpec::default(), survey.now),
        };
        if state == State::Lost {
            lost.insert(*name);
        } else {
            committed.insert(*name, *node);
        }
    }
    let cordoned =
        nodes.into_iter().filter(|(name, node)| node.cordoned_for.is_some() && !lost.contains(name));
    committed.extend(cordoned);
    committed
}

fn candidates<'a, 'f>(survey: &'a Survey<'f>, stands: &'a Stands<'f>) -> Vec<Candidate<'a, 'f>> {
    let mut candidates = Vec::new();
    for campaign in &survey.campaigns {
        for (node, stand) in stands.of(campaign) {
            if let Stand::Ordered(order, State::Staged(version)) = stand
                && stands.governs(campaign, node)
            {
                candidates.push(Candidate { campaign, node, order: *order, version });
            }
        }
    }
    // The longer a turn has gone on, the later it is given up.
    candidates.sort_by_cached_key(|candidate| {
        let granted = candidate.order.boot().is_none();
        (granted, !candidate.has_turn(), Place::of(candidate.node, candidate.campaign, survey))
    });
    candidates
}

/// The next step of a node whose turn it is.
fn go_on<'f>(candidate: &Candidate<'_, 'f>, survey: &Survey<'f>, draft: &mut Draft) {
    let Candidate { node, order, version, .. } = candidate;
    let cordoned = node.scheduling == Scheduling::Cordoned;
    let closes = match candidate.campaign.reboot_window {
        WindowState::Open { closes } if !order.rollback_is_wanted() => closes,
        _ => None,
    };
    let in_time = |grant: &BootGrant| {
        grant.not_after.0 > survey.now && closes.is_none_or(|closes| grant.not_after.0 <= closes)
    };
    let foreign = node.cordoned_for.as_deref().is_some_and(|uid| uid != order.uid());
    match order.boot() {
        // Someone took the cordon off: the grant goes first, then it is put back.
        Some(_) if !cordoned => draft.push(Action::WithdrawBoot { progress: order.object() }),
        Some(grant) if grant.version == **version && in_time(grant) => {
            draft.wake_at(grant.not_after.0);
        }
        // The cordon of an order that is over is taken off first.
        _ if foreign => {}
        _ if cordoned => {
            let is_drained = drain::go_on(survey, candidate.campaign, node, *order, draft);
            let sick = health::wait(candidate.campaign, *order).filter(|_| is_drained);
            if let (true, None) = (is_drained, &sick) {
                let latest = later(survey.now, GRANT_LIFETIME);
                let not_after = closes.into_iter().fold(latest, Ord::min);
                let grant = BootGrant { version: (*version).clone(), not_after: Time(not_after) };
                return draft.push(Action::GrantBoot { progress: order.object(), grant });
            }
            if let Some(wait) = sick {
                draft.waits(candidate.campaign, node, wait);
            }
            // One that ran out is no reason to leave things as they are.
            if order.boot().is_some() {
                draft.push(Action::WithdrawBoot { progress: order.object() });
            }
        }
        _ => draft.push(Action::Cordon { node: node.object(), progress_uid: order.uid().to_owned() }),
    }
}

//! Cordon, drain, and leave to reboot.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::action::Action;
use super::budget::Away;
use super::draft::Draft;
use super::drain;
use super::fleet::{Readiness, Scheduling};
use super::gates::{LEAVE_ENDS_WITH_WINDOW, Turn, stands};
use super::govern::{Stand, Stands};
use super::halt::{Failures, unread_catalog};
use super::health;
use super::index::{NodeEntry, OrderEntry};
use super::line::Place;
use super::order::{GRANT_LIFETIME, State, later};
use super::outlook::Wait;
use super::pace::Pace;
use super::survey::{Campaign, Survey};
use super::windows::WindowState;
use crate::api::{BootGrant, RolloutSpec, UpgradeReason};
use crate::version::OsVersion;

struct Candidate<'a, 'f> {
    campaign: &'a Campaign<'f>,
    node: &'f NodeEntry,
    order: &'f OrderEntry,
    version: &'a OsVersion,
    terms: &'a Terms<'a, 'f>,
}

/// What an upgrade has all its candidates wait for.
struct Terms<'a, 'f> {
    halt: Option<Wait>,
    pace: Pace<'a, 'f>,
}

impl Candidate<'_, '_> {
    /// Whether it has its turn already, by our own cordon or grant.
    fn has_turn(&self) -> bool {
        self.order.has_boot || self.is_cordoned_for_it()
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
pub(super) fn take_turns<'f>(survey: &Survey<'f>, stands: &Stands<'f>, draft: &mut Draft<'f>) {
    let terms = survey.campaigns.iter().map(|campaign| Terms {
        halt: Failures::of(survey, campaign, stands).halt(),
        pace: Pace::of(survey, campaign, stands),
    });
    let terms: Vec<_> = terms.collect();
    terms.iter().filter_map(|terms| terms.pace.ends).for_each(|ends| draft.wake_at(ends));
    let (in_turn, waiting): (Vec<_>, Vec<_>) =
        candidates(survey, stands, &terms).into_iter().partition(Candidate::has_turn);

    let mut round =
        Round { survey, stands, away: Away::of(survey), in_work: in_work(survey), spent: BTreeMap::new() };
    for candidate in &in_turn {
        if candidate.is_away_for_its_turn_alone() {
            round.away.remove(candidate.node);
        }
        round.in_work.remove(&candidate.node.number);
    }
    let mut in_vain = in_turn;
    in_vain.retain(|candidate| !round.admits(candidate, draft));
    // Nodes that lose their turn are away until they were seen to be back.
    for candidate in &in_vain {
        round.takes(candidate.node);
    }
    round.spent.clear();
    for candidate in &waiting {
        round.admits(candidate, draft);
    }
}

/// The candidates one after the other.
struct Round<'a, 'f> {
    survey: &'a Survey<'f>,
    stands: &'a Stands<'f>,
    away: Away<'a, 'f>,
    in_work: BTreeMap<usize, &'f NodeEntry>,
    /// What a candidate was told for want of budget, by the index of its upgrade. As long as nobody is admitted, the
    /// next one waits for the same.
    spent: BTreeMap<usize, Wait>,
}

impl<'a, 'f> Round<'a, 'f> {
    /// Whether it is a node's turn. If so, its next step is in the draft, else what it waits for.
    fn admits(&mut self, candidate: &Candidate<'a, 'f>, draft: &mut Draft<'f>) -> bool {
        let Candidate { campaign, node, order, version, terms } = *candidate;
        let turn = Turn {
            survey: self.survey,
            stands: self.stands,
            campaign,
            halt: terms.halt.as_ref(),
            node,
            order,
            version,
            away: &self.away,
            in_work: &self.in_work,
            has_begun: candidate.has_turn(),
            pace: &terms.pace,
            spent: self.spent.get(&campaign.index),
        };
        let Some(wait) = turn.wait() else {
            self.spent.clear();
            self.takes(node);
            draft.admitted.insert(order.number);
            go_on(candidate, self.survey, draft);
            return true;
        };
        if wait.reason == UpgradeReason::WaitingForBudget {
            self.spent.entry(campaign.index).or_insert_with(|| wait.clone());
        }
        draft.waits(campaign, node, wait);
        false
    }

    fn takes(&mut self, node: &'f NodeEntry) {
        self.away.insert(node);
        self.in_work.insert(node.number, node);
    }
}

/// The nodes that are on their way into a reboot or out of one, whoever ordered it, and those that still wear our
/// cordon. One that did not come back in time is nobody's work any more.
fn in_work<'f>(survey: &Survey<'f>) -> BTreeMap<usize, &'f NodeEntry> {
    let (mut committed, mut lost) = (BTreeMap::new(), BTreeSet::new());
    for order in survey.index.orders().filter(|order| order.is_committed()) {
        let Some(node) = survey.index.node_of(order) else { continue };
        let rollout = survey.campaign_of(order).map(|campaign| &campaign.rollout);
        let state = match rollout {
            Some(rollout) => order.state(node, rollout, survey.now),
            None => order.state(node, &RolloutSpec::default(), survey.now),
        };
        if state == State::Lost {
            lost.insert(node.number);
        } else {
            committed.insert(node.number, node);
        }
    }
    let nodes = survey.index.nodes();
    let cordoned = nodes.filter(|node| node.cordoned_for.is_some() && !lost.contains(&node.number));
    committed.extend(cordoned.map(|node| (node.number, node)));
    committed
}

fn candidates<'a, 'f>(
    survey: &'a Survey<'f>,
    stands: &'a Stands<'f>,
    terms: &'a [Terms<'a, 'f>],
) -> Vec<Candidate<'a, 'f>> {
    let mut candidates = Vec::new();
    for (campaign, terms) in survey.campaigns.iter().zip(terms) {
        for member in stands.governed(campaign) {
            // One that is asked to go back has to answer first: the leave that it still has was used.
            if let Stand::Ordered(order, State::Staged(version)) = &member.stand
                && !order.is_done()
            {
                candidates.push(Candidate { campaign, node: member.node, order, version, terms });
            }
        }
    }
    // The longer a turn has gone on, the later it is given up.
    candidates.sort_by_cached_key(|candidate| {
        let granted = !candidate.order.has_boot;
        let place = Place::of(candidate.node, candidate.campaign, survey);
        (granted, !candidate.has_turn(), place, candidate.node.number)
    });
    candidates
}

/// The next step of a node whose turn it is.
fn go_on<'f>(candidate: &Candidate<'_, 'f>, survey: &Survey<'f>, draft: &mut Draft<'f>) {
    let Candidate { node, order, version, .. } = candidate;
    let cordoned = node.scheduling == Scheduling::Cordoned;
    let closes = match candidate.campaign.reboot_window {
        WindowState::Open { closes } if !order.rollback_is_wanted && stands(LEAVE_ENDS_WITH_WINDOW) => closes,
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
            let is_drained = drain::go_on(survey, candidate.campaign, node, order, draft);
            let unread = unread_catalog(candidate.campaign).filter(|_| !order.rollback_is_wanted);
            let wait = unread.or_else(|| health::wait(candidate.campaign, order)).filter(|_| is_drained);
            if let (true, None) = (is_drained, &wait) {
                let latest = later(survey.now, GRANT_LIFETIME);
                let not_after = closes.into_iter().fold(latest, Ord::min);
                let grant = BootGrant { version: (*version).clone(), not_after: Time(not_after) };
                return draft.push(Action::GrantBoot { progress: order.object(), grant });
            }
            if let Some(wait) = wait {
                draft.waits(candidate.campaign, node, wait);
            }
            // One that ran out is no reason to leave things as they are.
            if order.has_boot {
                draft.push(Action::WithdrawBoot { progress: order.object() });
            }
        }
        _ => draft.push(Action::Cordon { node: node.object(), progress_uid: order.uid().to_owned() }),
    }
}

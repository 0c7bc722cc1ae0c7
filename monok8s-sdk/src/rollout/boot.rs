//! Cordon, and leave to reboot. A drain will have its place between the two.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::action::Action;
use super::draft::Draft;
use super::fleet::{NodeView, Readiness, Scheduling};
use super::gates::Turn;
use super::govern::{Stand, Stands};
use super::halt::Failures;
use super::line::Place;
use super::order::{GRANT_LIFETIME, OrderView, State};
use super::outlook::Wait;
use super::survey::{Campaign, Survey};
use crate::api::BootGrant;
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
    let (in_turn, waiting): (Vec<_>, Vec<_>) =
        candidates(survey, stands).into_iter().partition(Candidate::has_turn);

    let mut away = away(survey);
    for candidate in in_turn.iter().filter(|candidate| candidate.is_away_for_its_turn_alone()) {
        away.remove(candidate.node.name.as_str());
    }
    let mut in_vain = BTreeSet::new();
    for (candidate, had_turn) in
        in_turn.iter().map(|turn| (turn, true)).chain(waiting.iter().map(|turn| (turn, false)))
    {
        if !had_turn {
            // Nodes that lose their turn are away until they were seen to be back.
            away.append(&mut in_vain);
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
        };
        if let Some(wait) = turn.wait() {
            draft.waits(candidate.campaign, candidate.node, wait);
            if had_turn {
                in_vain.insert(candidate.node.name.as_str());
            }
        } else {
            away.insert(&candidate.node.name);
            draft.admitted.insert(candidate.order.uid().to_owned());
            go_on(candidate, survey, draft);
        }
    }
}

fn away<'f>(survey: &Survey<'f>) -> BTreeSet<&'f str> {
    let away = survey.fleet.nodes.iter().filter(|node| survey.is_unavailable(node));
    away.map(|node| node.name.as_str()).collect()
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
    candidates.sort_by_key(|candidate| {
        let granted = candidate.order.boot().is_none();
        (granted, !candidate.has_turn(), Place::of(candidate.node, candidate.campaign, survey))
    });
    candidates
}

/// The next step of a node whose turn it is.
fn go_on(candidate: &Candidate<'_, '_>, survey: &Survey<'_>, draft: &mut Draft) {
    let Candidate { node, order, version, .. } = candidate;
    let cordoned = node.scheduling == Scheduling::Cordoned;
    let foreign = node.cordoned_for.as_deref().is_some_and(|uid| uid != order.uid());
    match order.boot() {
        // Someone took the cordon off: the grant goes first, then it is put back.
        Some(_) if !cordoned => draft.push(Action::WithdrawBoot { progress: order.object() }),
        Some(grant) if grant.version == **version && grant.not_after.0 > survey.now => {
            draft.wake_at(grant.not_after.0);
        }
        // The cordon of an order that is over is taken off first.
        _ if foreign => {}
        _ if cordoned => {
            let not_after = survey.now + GRANT_LIFETIME;
            let grant = BootGrant { version: (*version).clone(), not_after: Time(not_after) };
            draft.push(Action::GrantBoot { progress: order.object(), grant });
        }
        _ => draft.push(Action::Cordon { node: node.object(), progress_uid: order.uid().to_owned() }),
    }
}

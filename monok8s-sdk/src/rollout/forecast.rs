//! When nodes will be done, if nothing holds them up that nobody can foresee. An estimate for people; nothing is
//! decided by it.

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::fleet::NodeView;
use super::govern::{Stand, Stands};
use super::line::Place;
use super::order::{Soak, State, later};
use super::outlook::Wait;
use super::survey::{Campaign, Survey};
use super::windows::{WindowState, Windows};
use crate::api::{UpgradeReason, WindowScope};

/// What a node has before it.
struct Work<'f> {
    node: &'f NodeView,
    /// How much longer until what it is about to boot is in its other slot.
    until_staged: SignedDuration,
    /// How many reboots.
    reboots: usize,
    /// When the reboot that is under way is over.
    comes_back: Option<Timestamp>,
}

/// When each node that moves will be done. Nodes that wait for a person, or for something that has no time, are
/// not in it, and neither is anyone behind them.
pub(super) fn forecast<'f, 'w>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    mut waits: impl Iterator<Item = &'w Wait>,
) -> BTreeMap<&'f str, Timestamp> {
    let mut ends = BTreeMap::new();
    let Ok(windows) = Windows::new(&campaign.rollout.windows) else { return ends };
    let work = |(node, stand)| work(survey, node, stand);
    let mut line: Vec<_> = stands.of(campaign).filter_map(work).collect();
    line.sort_by_cached_key(|work| (work.comes_back.is_none(), Place::of(work.node, campaign, survey)));
    if waits.any(|wait| has_no_time(&wait.reason)) {
        line.retain(|work| work.comes_back.is_some());
    }
    let staging = campaign.rollout.max_parallel_staging(campaign.selected().len()).max(1);
    let at_once = campaign.rollout.max_unavailable(campaign.selected().len()).max(1);
    let soaked = soaked(survey, campaign, stands);
    let mut lanes = vec![soaked; at_once.min(line.len()).max(1)];
    let mut staged = vec![survey.now; staging.min(line.len()).max(1)];
    for work in &line {
        let first = take(&mut staged, work.until_staged);
        let end = match work.comes_back {
            Some(back) if work.reboots == 0 => take_until(&mut lanes, back, campaign.soak()),
            _ => {
                let reboots = i32::try_from(work.reboots).unwrap_or(i32::MAX);
                let takes = survey.reboot_takes * reboots + survey.stage_takes * (reboots - 1).max(0);
                let earliest = work.comes_back.unwrap_or(survey.now).max(first);
                go(&mut lanes, &windows, earliest, takes, campaign.soak())
            }
        };
        let Some(end) = end else { break };
        ends.insert(work.node.name.as_str(), end);
    }
    ends
}

fn work<'f>(survey: &Survey<'f>, node: &'f NodeView, stand: &Stand<'f>) -> Option<Work<'f>> {
    let hops = |order: super::order::OrderView<'_>| {
        let running = node.version.as_ref()?;
        let hops = &order.order()?.hops;
        let next = order.next_hop(running)?;
        hops.iter().position(|hop| hop.version == next.version).map(|at| hops.len() - at)
    };
    let (until_staged, reboots, comes_back) = match stand {
        // Nobody knows when it will be back.
        stand if !stand.moves(node) && !matches!(stand, Stand::Ordered(_, State::Settling)) => return None,
        Stand::Unordered(hops) => (survey.stage_takes, hops.len(), None),
        Stand::Ordered(order, State::Unstaged(_)) => (survey.stage_takes, hops(*order)?, None),
        Stand::Ordered(order, State::Staging(_)) => {
            let spent = order.staging_began(survey.now).map(|began| survey.now.duration_since(began));
            let left = survey.stage_takes - spent.unwrap_or_default();
            (left.max(SignedDuration::ZERO), hops(*order)?, None)
        }
        Stand::Ordered(order, State::Staged(_)) => (SignedDuration::ZERO, hops(*order).unwrap_or(1), None),
        Stand::Ordered(order, State::Committed) => {
            let began = order.committed_at().unwrap_or(survey.now);
            let back = later(began, survey.reboot_takes).max(survey.now);
            (SignedDuration::ZERO, hops(*order).map_or(0, |left| left.saturating_sub(1)), Some(back))
        }
        Stand::Ordered(_, State::Settling) => (SignedDuration::ZERO, 0, Some(survey.now)),
        _ => return None,
    };
    Some(Work { node, until_staged, reboots, comes_back })
}

/// When the nodes that soak will have.
fn soaked(survey: &Survey<'_>, campaign: &Campaign<'_>, stands: &Stands<'_>) -> Timestamp {
    let ends = stands.of(campaign).filter_map(|(node, _)| {
        let order = survey.current_order(campaign, node)?;
        let Soak::Since(since) = order.soak(campaign, node, survey.now) else { return None };
        Some(later(since, campaign.soak().max(campaign.canary_soak(node))))
    });
    ends.fold(survey.now, Ord::max)
}

/// Whether a wait ends at a time that nobody knows.
fn has_no_time(reason: &UpgradeReason) -> bool {
    matches!(
        reason,
        UpgradeReason::Paused
            | UpgradeReason::NoWindow
            | UpgradeReason::CanaryFailed
            | UpgradeReason::HealthGate
            | UpgradeReason::DrainBlocked
            | UpgradeReason::VersionBlocked
            | UpgradeReason::VersionQuarantined
            | UpgradeReason::FailureThresholdReached
            | UpgradeReason::TooManyFailedNodes
    )
}

/// The earliest of the lanes is taken for so long; when that is over.
fn take(lanes: &mut [Timestamp], lasts: SignedDuration) -> Timestamp {
    let Some(lane) = lanes.iter_mut().min() else { return Timestamp::MAX };
    *lane = later(*lane, lasts);
    *lane
}

fn take_until(lanes: &mut [Timestamp], end: Timestamp, soak: SignedDuration) -> Option<Timestamp> {
    let lane = lanes.iter_mut().min()?;
    *lane = later((*lane).max(end), soak);
    Some(end)
}

/// The first lane that is free, when the node is staged and a window is open for long enough.
fn go(
    lanes: &mut [Timestamp],
    windows: &Windows,
    earliest: Timestamp,
    takes: SignedDuration,
    soak: SignedDuration,
) -> Option<Timestamp> {
    let lane = lanes.iter_mut().min()?;
    let mut start = (*lane).max(earliest);
    // A window that is too short is followed by another one.
    for _ in 0..16 {
        match windows.state(WindowScope::Reboot, start) {
            WindowState::Open { closes } if closes.is_none_or(|closes| later(start, takes) <= closes) => {
                let end = later(start, takes);
                *lane = later(end, soak);
                return Some(end);
            }
            WindowState::Open { closes: Some(next) } | WindowState::Closed { opens: Some(next) } => {
                start = next;
            }
            WindowState::Open { closes: None } | WindowState::Closed { opens: None } => return None,
        }
    }
    None
}

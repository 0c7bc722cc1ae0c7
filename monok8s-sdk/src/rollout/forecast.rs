//! When nodes will be done, if nothing holds them up that nobody can foresee. An estimate for people; nothing is
//! decided by it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::fleet::Role;
use super::govern::{Stand, Stands};
use super::index::{NodeEntry, OrderEntry};
use super::line::{Place, TurnInLine};
use super::order::{Soak, State, later};
use super::outlook::{Wait, Waits};
use super::survey::{Campaign, Survey};
use super::windows::{WindowState, Windows};
use crate::api::{NodeCounts, Rounding, UpgradeReason, WindowScope};

/// What a node has before it.
struct Work<'f> {
    node: &'f NodeEntry,
    place: Place,
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
    waits: impl Iterator<Item = &'w Wait>,
) -> Vec<(&'f NodeEntry, Timestamp)> {
    match &campaign.windows {
        Ok(windows) => within(windows, survey, campaign, stands, waits),
        Err(_) => Vec::new(),
    }
}

/// When the run is expected to end. Nobody can say so while a node needs a person, or while nothing moves and what is
/// waited for has no time.
pub(super) fn end<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    nodes: &NodeCounts,
    waits: &Waits,
) -> Option<Timestamp> {
    let open = nodes.total - nodes.up_to_date - nodes.refused - nodes.excluded - nodes.superseded;
    let goes_on = |wait: &Wait| {
        use UpgradeReason::{Draining, Soaking, WaitingForWindow};
        matches!(wait.reason, Draining | Soaking | WaitingForWindow)
    };
    let mut moving = stands.of(campaign).filter(|(node, stand)| stand.moves(node) || is_back(node, stand));
    // Nothing is granted while the catalog cannot be read, and nothing is staged while no window is open for it.
    let is_closed = matches!(campaign.stage_window, WindowState::Closed { .. });
    let has_to_stage =
        |stand: &Stand<'_>| matches!(stand, Stand::Unordered(_) | Stand::Ordered(_, State::Unstaged(_)));
    let held_up = campaign.view.catalog_error.is_some()
        || is_closed && stands.of(campaign).any(|(_, stand)| has_to_stage(stand));
    let may_go_on = |node: &NodeEntry| waits.get(node.name()).is_none_or(|wait| goes_on(wait));
    if campaign.run.is_none() || held_up || !moving.any(|(node, _)| may_go_on(node)) {
        return None;
    }
    let ends = forecast(survey, campaign, stands, waits.values().map(Arc::as_ref));
    // An end that some do not reach is none.
    let all = i32::try_from(ends.len()) == Ok(open);
    latest(&ends).filter(|_| all)
}

/// How long the run would take, were every window open.
pub(super) fn duration<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
) -> Option<SignedDuration> {
    let ends = within(&Windows::default(), survey, campaign, stands, std::iter::empty());
    latest(&ends).map(|end| end.duration_since(survey.now))
}

fn latest(ends: &[(&NodeEntry, Timestamp)]) -> Option<Timestamp> {
    ends.iter().map(|(_, end)| *end).max()
}

fn within<'f, 'w>(
    windows: &Windows,
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    mut waits: impl Iterator<Item = &'w Wait>,
) -> Vec<(&'f NodeEntry, Timestamp)> {
    let mut line: Vec<_> =
        stands.of(campaign).filter_map(|(node, stand)| work(survey, campaign, node, stand)).collect();
    line.sort_by_key(|work| (work.comes_back.is_none(), work.place));
    if waits.any(|wait| has_no_time(&wait.reason)) {
        line.retain(|work| work.comes_back.is_some());
    }
    let staging = campaign.rollout.max_parallel_staging(campaign.selected().len()).max(1);
    let at_once = campaign.rollout.max_unavailable(campaign.selected().len());
    let of_operator = survey.fleet.max_unavailable.as_ref();
    let of_operator = of_operator.map(|limit| limit.of(campaign.selected().len(), Rounding::DownAtLeastOne));
    let at_once = at_once.min(of_operator.unwrap_or(at_once)).max(1);
    let soaked = soaked(survey, campaign, stands);
    let mut lanes = Lanes::new(at_once.min(line.len()), soaked);
    let mut staged = Lanes::new(staging.min(line.len()), survey.now);
    let mut window = Window::new(windows);
    let mut precedence = Precedence::default();
    let mut ends = Vec::with_capacity(line.len());
    for work in &line {
        let first = staged.take(work.until_staged);
        let end = match work.comes_back {
            // How long it soaks is in what the lanes begin with, if it is back.
            Some(back) if work.reboots == 0 && back <= survey.now => back,
            Some(back) if work.reboots == 0 => {
                lanes.take_until(later(back.max(lanes.first()), campaign.soaks(work.node)));
                back
            }
            _ => {
                let reboots = i32::try_from(work.reboots).unwrap_or(i32::MAX);
                let takes = survey.turn_takes() * reboots + survey.stage_takes * (reboots - 1).max(0);
                let begins = work.comes_back.or_else(|| precedence.begins(work));
                let earliest = begins.unwrap_or(first).max(first).max(lanes.first());
                let Some(start) = window.start(earliest, takes) else { break };
                let end = later(start, takes);
                lanes.take_until(later(end, campaign.soaks(work.node)));
                end
            }
        };
        precedence.ends(work, later(end, campaign.soaks(work.node)));
        ends.push((work.node, end));
    }
    ends
}

/// What a node waits for however many may be away at once: all nodes of the turns before its own, and for one of the
/// control plane the one before it.
#[derive(Default)]
struct Precedence {
    /// When all turns before the last one asked about are done; they are not in `turns` any more.
    before: Option<Timestamp>,
    /// When those of each other turn are.
    turns: BTreeMap<TurnInLine, Timestamp>,
    control_plane: Option<Timestamp>,
}

impl Precedence {
    /// When what a node waits for is over. Nodes have to be asked about in the order of their turns.
    fn begins(&mut self, work: &Work<'_>) -> Option<Timestamp> {
        while let Some(first) = self.turns.first_entry().filter(|first| *first.key() < work.place.turn) {
            self.before = self.before.max(Some(first.remove()));
        }
        match work.node.role {
            Role::ControlPlane => self.before.max(self.control_plane),
            Role::Worker => self.before,
        }
    }

    fn ends(&mut self, work: &Work<'_>, end: Timestamp) {
        let latest = self.turns.entry(work.place.turn).or_insert(end);
        *latest = end.max(*latest);
        if work.node.role == Role::ControlPlane {
            self.control_plane = self.control_plane.max(Some(end));
        }
    }
}

fn work<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    node: &'f NodeEntry,
    stand: &Stand<'f>,
) -> Option<Work<'f>> {
    let hops = |order: &OrderEntry| {
        let running = node.version()?;
        let hops = order.hops();
        let next = order.next_hop(running)?;
        hops.iter().position(|hop| hop.version == next.version).map(|at| hops.len() - at)
    };
    let (until_staged, reboots, comes_back) = match stand {
        _ if is_back(node, stand) => (SignedDuration::ZERO, 0, Some(survey.now)),
        // Nobody knows when it will be back.
        stand if !stand.moves(node) && !matches!(stand, Stand::Ordered(_, State::Settling)) => return None,
        Stand::Unordered(hops) => (survey.stage_takes, hops.len(), None),
        Stand::Ordered(order, State::Unstaged(_)) => (survey.stage_takes, hops(order)?, None),
        Stand::Ordered(order, State::Staging(_)) => {
            let spent = order.staging_began(survey.now).map(|began| survey.now.duration_since(began));
            let left = survey.stage_takes - spent.unwrap_or_default();
            (left.max(SignedDuration::ZERO), hops(order)?, None)
        }
        Stand::Ordered(order, State::Staged(_)) => (SignedDuration::ZERO, hops(order).unwrap_or(1), None),
        Stand::Ordered(order, State::Committed) => {
            let began = order.committed_at().unwrap_or(survey.now);
            let back = later(began, survey.reboot_takes).max(survey.now);
            (SignedDuration::ZERO, hops(order).map_or(0, |left| left.saturating_sub(1)), Some(back))
        }
        Stand::Ordered(_, State::Settling) => (SignedDuration::ZERO, 0, Some(survey.now)),
        _ => return None,
    };
    let place = Place::of(node, campaign, survey);
    Some(Work { node, place, until_staged, reboots, comes_back })
}

/// Whether a node is done but for the cordon, which comes off next.
fn is_back(node: &NodeEntry, stand: &Stand<'_>) -> bool {
    node.cordoned_for.is_some() && matches!(stand, Stand::UpToDate | Stand::Ordered(_, State::Done))
}

/// When the nodes that soak will have.
fn soaked(survey: &Survey<'_>, campaign: &Campaign<'_>, stands: &Stands<'_>) -> Timestamp {
    let ends = stands.members(campaign).iter().filter_map(|member| {
        let Soak::Since(since) = member.order?.soak(campaign, member.node, survey.now) else { return None };
        Some(later(since, campaign.soaks(member.node)))
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
            | UpgradeReason::KubeletSkew
            | UpgradeReason::VersionBlocked
            | UpgradeReason::VersionQuarantined
            | UpgradeReason::FailureThresholdReached
            | UpgradeReason::TooManyFailedNodes
    )
}

/// Places that are taken one after the other, by when they are free.
struct Lanes(BinaryHeap<Reverse<Timestamp>>);

impl Lanes {
    fn new(count: usize, free: Timestamp) -> Self {
        Self(std::iter::repeat_n(Reverse(free), count.max(1)).collect())
    }

    /// When the first one is free.
    fn first(&self) -> Timestamp {
        self.0.peek().map_or(Timestamp::MAX, |Reverse(free)| *free)
    }

    /// Takes the first one until then.
    fn take_until(&mut self, end: Timestamp) {
        if let Some(mut first) = self.0.peek_mut() {
            *first = Reverse(end);
        }
    }

    /// Takes the first one for so long; when that is over.
    fn take(&mut self, lasts: SignedDuration) -> Timestamp {
        let end = later(self.first(), lasts);
        self.take_until(end);
        end
    }
}

/// The window for reboots, of which one look is good until it closes or opens.
struct Window<'w> {
    windows: &'w Windows,
    known: Option<(Timestamp, WindowState)>,
}

impl<'w> Window<'w> {
    fn new(windows: &'w Windows) -> Self {
        Self { windows, known: None }
    }

    fn state(&mut self, at: Timestamp) -> WindowState {
        // One that closes at no time that is told closes a day later, or never.
        const HALF_A_DAY: SignedDuration = SignedDuration::from_hours(12);
        let known = self.known.filter(|(since, state)| {
            let until = match state {
                WindowState::Open { closes: None } => later(*since, HALF_A_DAY),
                WindowState::Open { closes: Some(edge) } | WindowState::Closed { opens: Some(edge) } => *edge,
                WindowState::Closed { opens: None } => Timestamp::MAX,
            };
            *since <= at && at < until
        });
        let (_, state) =
            *self.known.insert(known.unwrap_or_else(|| (at, self.windows.state(WindowScope::Reboot, at))));
        state
    }

    /// When something that takes so long may begin: at `earliest` or later.
    fn start(&mut self, earliest: Timestamp, takes: SignedDuration) -> Option<Timestamp> {
        let mut start = earliest;
        // A window that is too short is followed by another one.
        for _ in 0..16 {
            match self.state(start) {
                WindowState::Open { closes } if closes.is_none_or(|closes| later(start, takes) <= closes) => {
                    return Some(start);
                }
                WindowState::Open { closes: Some(next) } | WindowState::Closed { opens: Some(next) } => {
                    start = next;
                }
                WindowState::Open { closes: None } | WindowState::Closed { opens: None } => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Canary, IntOrPercent, NodeSelector, RolloutSpec, Window as Spec, WindowKind};
    use crate::rollout::Fleet;
    use crate::rollout::fixtures::{node, upgrade};
    use crate::rollout::index::Index;

    #[test]
    fn turns_come_one_after_the_other_however_many_may_be_away() {
        let takes = |names: &[&str], change: fn(&mut RolloutSpec)| {
            let node = |name: &&str| match name.split_once('-') {
                Some(("cp", _)) => node(name).control_plane(),
                Some((zone, _)) => node(name).labelled("zone", zone),
                None => node(name),
            };
            let up = upgrade("up").rollout(|rollout| rollout.max_unavailable = Some(IntOrPercent::Int(5)));
            let fleet = Fleet {
                nodes: names.iter().map(|name| Arc::new(node(name).view())).collect(),
                upgrades: vec![up.rollout(change).view()],
                operator_node: Some("operator".to_owned()),
                ..Fleet::default()
            };
            let index = Index::new(&fleet);
            let survey = Survey::new(&fleet, &index, "2026-11-24T12:00:00Z".parse().unwrap());
            let stands = Stands::new(&survey);
            duration(&survey, &survey.campaigns[0], &stands).unwrap().as_mins()
        };
        let (stage, reboot) = (5, 10);
        let by_zone = |rollout: &mut RolloutSpec| rollout.group_by = Some("zone".to_owned());
        let canary = |rollout: &mut RolloutSpec| {
            let node_selector = NodeSelector([("zone".to_owned(), "b".into())].into_iter().collect());
            rollout.canary = Some(Canary { node_selector, soak_seconds: Some(7 * 60) });
        };
        assert_eq!(takes(&["a-1", "a-2", "b-1"], |_| {}), stage + reboot);
        assert_eq!(takes(&["cp-1", "cp-2", "cp-3", "a-1", "a-2"], |_| {}), stage + 4 * reboot);
        assert_eq!(takes(&["a-1", "a-2", "b-1"], by_zone), stage + 2 * reboot);
        assert_eq!(takes(&["a-1", "a-2", "b-1"], canary), stage + 2 * reboot + 7);
        assert_eq!(takes(&["a-1", "operator"], |_| {}), stage + 2 * reboot);
    }

    #[test]
    fn a_node_on_its_way_back_holds_up_only_the_turns_after_its_own() {
        let at = |minutes| Some(Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes));
        let nodes = [node("a"), node("b"), node("s").control_plane(), node("t").control_plane()];
        let fleet = Fleet {
            nodes: nodes.map(|node| Arc::new(node.view())).into(),
            upgrades: vec![upgrade("up").view()],
            ..Fleet::default()
        };
        let index = Index::new(&fleet);
        let survey = Survey::new(&fleet, &index, Timestamp::UNIX_EPOCH);
        let [first, second, server, other_server] = ["a", "b", "s", "t"].map(|name| Work {
            node: index.node_named(name).unwrap(),
            place: Place::of(index.node_named(name).unwrap(), &survey.campaigns[0], &survey),
            until_staged: SignedDuration::ZERO,
            reboots: 0,
            comes_back: None,
        });
        let mut precedence = Precedence::default();
        precedence.ends(&first, at(7).unwrap());
        assert_eq!((precedence.begins(&second), precedence.begins(&server)), (None, None));
        precedence.ends(&server, at(5).unwrap());
        assert_eq!((precedence.begins(&second), precedence.begins(&other_server)), (at(5), at(5)));
    }

    #[test]
    fn a_look_at_a_window_is_good_until_its_edge() {
        let schedule = |kind, schedule: &str, duration_minutes| Spec {
            kind,
            schedule: schedule.to_owned(),
            duration_minutes,
            time_zone: Some("Europe/Berlin".to_owned()),
            applies_to: vec![],
        };
        let windows = Windows::new(&[
            schedule(WindowKind::Allow, "0 */2 * * *", 50),
            schedule(WindowKind::Deny, "30 8 * * *", 60),
        ])
        .unwrap();
        let mut window = Window::new(&windows);
        let begin: Timestamp = "2026-10-24T20:00:00Z".parse().unwrap();
        for minutes in (0..60 * 24 * 2).step_by(7).chain([5, 0]) {
            let at = later(begin, SignedDuration::from_mins(minutes));
            assert_eq!(window.state(at), windows.state(WindowScope::Reboot, at), "{at}");
        }
        // What does not fit into one begins in the next that it fits into, and never where there is none.
        let takes = |minutes| Window::new(&windows).start(begin, SignedDuration::from_mins(minutes));
        assert_eq!((takes(50), takes(51)), (Some(begin), None));
    }

    #[test]
    fn lanes_are_taken_in_the_order_in_which_they_are_free() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut lanes = Lanes::new(2, at(0));
        let ends: Vec<_> =
            [30, 10, 10, 10, 10].map(|takes| lanes.take(SignedDuration::from_secs(takes))).into();
        assert_eq!(ends, [30, 10, 20, 30, 40].map(at));
    }
}

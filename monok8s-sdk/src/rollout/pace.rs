//! The pace that a spec sets: windows, canaries, groups that take turns, and time to soak. Gates as those
//! in [`gates`](super::gates); a person who sends a node back waits for none of them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::fleet::{Readiness, Role};
use super::gates::Turn;
use super::govern::{Member, Stand, Stands};
use super::halt::names;
use super::index::NodeEntry;
use super::order::{Soak, State};
use super::outlook::Wait;
use super::survey::{Campaign, Survey};
use super::windows::WindowState;
use crate::api::UpgradeReason;
use crate::version::OsVersion;

/// What the gates here look at, once for each upgrade.
#[derive(Default)]
pub(super) struct Pace<'a, 'f> {
    /// A node soaks: no other one is started.
    soaking: Option<Wait>,
    /// A canary does: nobody else is started.
    canary_soaking: Option<Wait>,
    /// When the first of the two is over.
    pub(super) ends: Option<Timestamp>,
    /// The nodes that will still move, by their group.
    movers: BTreeMap<&'f str, Vec<(&'f NodeEntry, &'f OsVersion)>>,
    /// The nodes that go first.
    canaries: Vec<&'a Member<'f>>,
}

impl<'a, 'f> Pace<'a, 'f> {
    pub(super) fn of(survey: &Survey<'f>, campaign: &Campaign<'f>, stands: &'a Stands<'f>) -> Self {
        let canaries = stands.members(campaign).iter().filter(|member| campaign.is_canary(member.node));
        let mut pace = Self { canaries: canaries.collect(), ..Self::default() };
        if campaign.rollout.group_by.is_some() {
            for (node, _) in stands.of(campaign).filter(|(node, stand)| stand.moves(node)) {
                let movers = pace.movers.entry(campaign.group_of(node)).or_default();
                movers.extend(node.version().map(|version| (node, version)));
            }
        }
        if campaign.soaks_longest().is_zero() {
            return pace;
        }
        let (mut nodes, mut canaries) = (Soaking::default(), Soaking::default());
        for member in stands.governed(campaign) {
            let node = member.node;
            let order = match member.stand {
                Stand::UpToDate | Stand::Ordered(_, State::Done) => member.order,
                Stand::Ordered(_, State::Settling) => member.order.filter(|order| order.soaks_already()),
                _ => None,
            };
            let Some(Soak::Since(since)) = order.map(|order| order.soak(campaign, node, survey.now)) else {
                continue;
            };
            nodes.add(node, since, campaign.soak(), survey.now);
            canaries.add(node, since, campaign.canary_soak(node), survey.now);
        }
        pace.ends = nodes.until.into_iter().chain(canaries.until).min();
        pace.soaking = nodes.wait();
        pace.canary_soaking = canaries.wait();
        pace
    }
}

/// Nodes that soak, and until when the last one does.
#[derive(Default)]
struct Soaking<'f> {
    nodes: Vec<&'f str>,
    until: Option<Timestamp>,
}

impl<'f> Soaking<'f> {
    fn add(&mut self, node: &'f NodeEntry, since: Timestamp, lasts: SignedDuration, now: Timestamp) {
        let until = since.checked_add(lasts).unwrap_or(Timestamp::MAX);
        // As times are written in objects, so that the message is the same in the next plan.
        let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
        if until > now {
            self.nodes.push(node.name());
            self.until = self.until.max(Some(until));
        }
    }

    fn wait(&self) -> Option<Wait> {
        let until = self.until?;
        let message = format!("waits until {until}, when {} will have soaked", names(&self.nodes));
        Some(Wait { reason: UpgradeReason::Soaking, message })
    }
}

/// No reboot is started in a window that closes before the node is likely to be back.
pub(super) fn window(turn: &Turn<'_, '_>) -> Option<Wait> {
    if turn.order.rollback_is_wanted {
        return None;
    }
    let (closes, now) = match turn.campaign.reboot_window {
        WindowState::Closed { opens } => return Some(closed("reboot", opens)),
        WindowState::Open { closes } => (closes?, turn.survey.now),
    };
    let takes = if turn.has_begun { turn.survey.reboot_takes } else { turn.survey.turn_takes() };
    // Whoever has leave uses it as long as it is open.
    let fits = turn.order.has_boot || closes.duration_since(now) >= takes;
    (!fits).then(|| {
        let minutes = (takes.as_secs() + 59) / 60;
        let message = format!(
            "waits for a window that is open for the {minutes} minutes that a node takes; this one closes at {closes}"
        );
        Wait { reason: UpgradeReason::WaitingForWindow, message }
    })
}

/// The wait for a window to open.
pub(super) fn closed(what: &str, opens: Option<Timestamp>) -> Wait {
    match opens {
        Some(at) => Wait {
            reason: UpgradeReason::WaitingForWindow,
            message: format!("waits to {what} until the next window opens at {at}"),
        },
        None => Wait {
            reason: UpgradeReason::NoWindow,
            message: format!("may not {what}: no window opens within a year; look at rollout.windows"),
        },
    }
}

/// Where a canary stands in a hop.
enum Canary {
    /// It has done the hop, and is back.
    Done,
    /// It will do it.
    Pending,
    /// It failed, or was sent back.
    Failed,
    /// It does not answer, and never began; or it cannot be upgraded.
    Dead,
    /// It has no such hop before it.
    Elsewhere,
}

/// Canaries go first within a minor release: before the rest of the workers, and before the control plane
/// unless the release rises. One that failed holds the others back, which is what it is for; one that is dead, or
/// cannot be upgraded, does so as long as no other canary has shown anything. So does a selector that no node matches.
pub(super) fn canary_first(turn: &Turn<'_, '_>) -> Option<Wait> {
    let are_wanted = turn.campaign.lacks_canaries || !turn.pace.canaries.is_empty();
    let is_bound = are_wanted && !turn.campaign.is_canary(turn.node);
    if !is_bound || turn.order.rollback_is_wanted {
        return None;
    }
    let rises = turn.node.version().map(OsVersion::minor) != Some(turn.version.minor());
    if turn.node.role == Role::ControlPlane && (rises || turn.direction() == Ordering::Less) {
        return None;
    }
    if turn.campaign.lacks_canaries {
        let message = "waits for a canary: no worker of the upgrade matches rollout.canary.nodeSelector";
        return Some(Wait { reason: UpgradeReason::WaitingForCanary, message: message.to_owned() });
    }
    let (mut done, mut pending, mut failed, mut dead) = (0, Vec::new(), Vec::new(), Vec::new());
    for member in &turn.pace.canaries {
        match canary(turn, member.node, &member.stand) {
            Canary::Done => done += 1,
            Canary::Pending => pending.push(member.node),
            Canary::Failed => failed.push(member.node),
            Canary::Dead => dead.push(member.node),
            Canary::Elsewhere => {}
        }
    }
    let waits = |reason, nodes: Vec<&NodeEntry>, words| Turn::wait_for(reason, nodes.into_iter(), words);
    waits(UpgradeReason::CanaryFailed, failed, "which failed as canaries, to be retried")
        .or_else(|| waits(UpgradeReason::WaitingForCanary, pending, "to go first as canaries"))
        .or_else(|| {
            let dead = if done == 0 { dead } else { Vec::new() };
            waits(
                UpgradeReason::WaitingForCanary,
                dead,
                "which should go first as canaries, and are not ready or cannot",
            )
        })
        .or_else(|| turn.pace.canary_soaking.clone().filter(|_| !turn.has_begun))
}

fn canary(turn: &Turn<'_, '_>, node: &NodeEntry, stand: &Stand<'_>) -> Canary {
    let next = match stand {
        Stand::MovedOn(_) => return Canary::Elsewhere,
        Stand::Refused(..) | Stand::Excluded(..) => return Canary::Dead,
        Stand::Ordered(_, State::RolledBack | State::Lost | State::Unexplained | State::SentBack) => {
            return Canary::Failed;
        }
        Stand::Ordered(_, State::Failed) if node.readiness == Readiness::Ready => return Canary::Failed,
        Stand::Ordered(order, _) => {
            node.version().and_then(|running| order.next_hop(running)).map(|hop| &hop.version)
        }
        Stand::Unordered(hops) => hops.first().map(|hop| &hop.version),
        Stand::UpToDate | Stand::Unknown | Stand::Finishing(_) => None,
    };
    // The control plane waits only for those that do not wait for it.
    let there = turn.version.minor();
    let waits_for_it =
        next.is_some_and(|next| next.minor() != there || node.version().map(OsVersion::minor) != Some(there));
    if turn.node.role == Role::ControlPlane && waits_for_it {
        return Canary::Elsewhere;
    }
    let behind = node.version().is_none_or(|at| turn.version.cmp(at) == turn.direction());
    match (turn.in_work.contains_key(&node.number), behind, node.readiness) {
        (true, ..) | (false, true, Readiness::Ready) => Canary::Pending,
        (false, true, Readiness::NotReady) => Canary::Dead,
        (false, false, _) => Canary::Done,
    }
}

/// Groups go one after the other, by the order of their names, and two are never in work at once.
pub(super) fn group_turn(turn: &Turn<'_, '_>) -> Option<Wait> {
    let key = turn.campaign.rollout.group_by.as_deref()?;
    if turn.order.rollback_is_wanted {
        return None;
    }
    let own = turn.campaign.group_of(turn.node);
    let others = turn.in_work.values().copied();
    let others = others.filter(|node| turn.campaign.group_of(node) != own);
    let words = format!("of another {key}, which is in work");
    Turn::wait_for(UpgradeReason::WaitingForGroup, others, &words).or_else(|| {
        let mut earlier = turn.pace.movers.range(..own);
        earlier.find_map(|(group, movers)| {
            let movers = movers.iter().filter(|(node, at)| goes_before(turn, node, at));
            let words = format!("of the earlier {key} {group:?}");
            Turn::wait_for(UpgradeReason::WaitingForGroup, movers.map(|(node, _)| *node), &words)
        })
    })
}

/// Whether a node of an earlier group does the same hop before this one.
fn goes_before(turn: &Turn<'_, '_>, node: &NodeEntry, at: &OsVersion) -> bool {
    let is_canary = |node| turn.campaign.is_canary(node);
    // A control-plane node that is a hop ahead waits for this one; the operator's own goes after all groups.
    let ahead = turn.node.version().is_some_and(|running| at.cmp(running) == turn.direction());
    node.role == turn.node.role
        && is_canary(node) == is_canary(turn.node)
        && turn.version.cmp(at) == turn.direction()
        && !(node.role == Role::ControlPlane && ahead)
        && !turn.survey.hosts_operator(node)
}

/// After each node the fleet is left alone for a while.
pub(super) fn soaking(turn: &Turn<'_, '_>) -> Option<Wait> {
    let goes_on = turn.has_begun || turn.order.rollback_is_wanted;
    turn.pace.soaking.clone().filter(|_| !goes_on)
}

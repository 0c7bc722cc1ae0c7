//! What has to hold before a node is cordoned and may reboot. Each gate is one function; the first
//! that is shut is the reason that is reported.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::budget::{self, Away};
use super::fleet::{Management, Readiness, Role};
use super::govern::Stands;
use super::halt::{forbidden, names, unread_catalog};
use super::health;
use super::index::{NodeEntry, OrderEntry};
use super::outlook::Wait;
use super::pace::{self, Pace};
use super::survey::{Campaign, Survey};
use crate::api::UpgradeReason;
use crate::version::OsVersion;

/// A node whose turn to reboot is being considered.
pub(super) struct Turn<'a, 'f> {
    pub(super) survey: &'a Survey<'f>,
    pub(super) stands: &'a Stands<'f>,
    pub(super) campaign: &'a Campaign<'f>,
    pub(super) halt: Option<&'a Wait>,
    pub(super) node: &'f NodeEntry,
    pub(super) order: &'f OrderEntry,
    /// What it would boot.
    pub(super) version: &'a OsVersion,
    /// The nodes that are away, or will be by what was decided so far; without this one, unless it
    /// is away for a reason of its own.
    pub(super) away: &'a Away<'a, 'f>,
    /// The nodes that have their turn for certain, in whatever upgrade; without this one.
    pub(super) in_work: &'a BTreeMap<usize, &'f NodeEntry>,
    /// Whether its turn has begun: it holds the cordon, or the grant.
    pub(super) has_begun: bool,
    /// What soaks.
    pub(super) pace: &'a Pace<'a, 'f>,
    /// What an earlier node of the upgrade was told for want of budget, if nothing has changed since.
    pub(super) spent: Option<&'a Wait>,
}

type Gate = fn(&Turn<'_, '_>) -> Option<Wait>;

/// All gates, the ones that only a person opens first.
const GATES: [(&str, Gate); 16] = [
    ("paused", paused),
    ("halted", halted),
    ("image forbidden", image_forbidden),
    ("catalog read", catalog_read),
    ("window", pace::window),
    ("other reboot", other_reboot),
    ("control plane in step", control_plane_in_step),
    ("control plane first", control_plane_first),
    ("canary first", pace::canary_first),
    ("API server skew", api_server_skew),
    ("operator last", operator_last),
    ("group turn", pace::group_turn),
    ("soaking", pace::soaking),
    ("health", health::gate),
    ("one control-plane node", one_control_plane_node),
    ("budget", budget::budget),
];

impl<'f> Turn<'_, 'f> {
    /// Why the node may not go now.
    pub(super) fn wait(&self) -> Option<Wait> {
        let mut shut = GATES.iter().filter(|(name, _)| stands(name)).filter_map(|(_, gate)| gate(self));
        let first = shut.next()?;
        // A node that may not go for the skew that would be between it and others does not go when a window opens.
        let is_window = first.reason == UpgradeReason::WaitingForWindow;
        let next = is_window.then(|| shut.next()).flatten();
        Some(next.filter(|next| next.reason == UpgradeReason::KubeletSkew).unwrap_or(first))
    }

    /// Where the hop leads from what the node runs.
    pub(super) fn direction(&self) -> Ordering {
        self.node.version().map_or(Ordering::Greater, |running| self.version.cmp(running))
    }

    /// The other nodes of a role in this upgrade that will still move, and what they run.
    fn movers(&self, role: Role) -> impl Iterator<Item = (&'f NodeEntry, &'f OsVersion)> {
        // Of the control plane there are few, and every worker asks for it.
        let few = (role == Role::ControlPlane).then(|| self.survey.control_plane());
        let many = (role != Role::ControlPlane).then(|| self.stands.of(self.campaign));
        let few = few.into_iter().flatten();
        let few = few.filter_map(|node| Some((node, self.stands.stand_of(self.campaign, node)?)));
        few.chain(many.into_iter().flatten())
            .filter(move |(node, stand)| {
                node.number != self.node.number && node.role == role && stand.moves(node)
            })
            .filter_map(|(node, _)| Some((node, node.version()?)))
    }

    pub(super) fn wait_for<'n>(
        reason: UpgradeReason,
        nodes: impl Iterator<Item = &'n NodeEntry>,
        words: &str,
    ) -> Option<Wait> {
        let all: BTreeSet<&str> = nodes.map(NodeEntry::name).collect();
        let all: Vec<_> = all.into_iter().collect();
        (!all.is_empty()).then(|| Wait { reason, message: format!("waits for {} {words}", names(&all)) })
    }
}

fn paused(turn: &Turn<'_, '_>) -> Option<Wait> {
    let why = turn.campaign.pause()?;
    Some(Wait { reason: UpgradeReason::Paused, message: why.to_owned() })
}

/// A halt stops everything but what a person asked for on the node itself.
fn halted(turn: &Turn<'_, '_>) -> Option<Wait> {
    turn.halt
        .filter(|_| !turn.order.is_retried(turn.campaign.view) && !turn.order.rollback_is_wanted)
        .cloned()
}

fn image_forbidden(turn: &Turn<'_, '_>) -> Option<Wait> {
    let image = turn.order.hops().iter().find(|hop| hop.version == *turn.version)?;
    let wait = forbidden(turn.survey, turn.campaign, image)?;
    let asked_for =
        wait.reason == UpgradeReason::VersionQuarantined && turn.order.is_retried(turn.campaign.view);
    (!asked_for).then_some(wait)
}

/// Nothing is begun that could not be ended. A node whose turn has begun keeps it, and waits for leave.
fn catalog_read(turn: &Turn<'_, '_>) -> Option<Wait> {
    unread_catalog(turn.campaign).filter(|_| !turn.has_begun && !turn.order.rollback_is_wanted)
}

/// A node that has committed to something else finishes that first.
fn other_reboot(turn: &Turn<'_, '_>) -> Option<Wait> {
    let mut others = turn.survey.index.orders_of(turn.node).filter(|order| order.number != turn.order.number);
    let other = others.find(|order| order.is_committed() || order.may_yet_commit())?;
    let message = format!("{} has the node in a reboot", other.name());
    Some(Wait { reason: UpgradeReason::WaitingForUpgrade, message })
}

/// Every control-plane node finishes a hop before one starts the next, and no two of them ever run
/// API servers more than one minor release apart.
fn control_plane_in_step(turn: &Turn<'_, '_>) -> Option<Wait> {
    let running = turn.node.version()?;
    if turn.node.role != Role::ControlPlane || turn.order.rollback_is_wanted {
        return None;
    }
    let direction = turn.direction();
    let behind = turn
        .movers(Role::ControlPlane)
        .filter(|(_, at)| running.cmp(at) == direction && turn.version.cmp(at) == direction);
    let waits = Turn::wait_for(
        UpgradeReason::WaitingForControlPlane,
        behind.map(|(node, _)| node),
        "to finish its hop",
    );
    waits.or_else(|| {
        let there = turn.version.minor();
        let apart = turn.survey.control_plane().filter(|other| {
            let minor = other.version().map(OsVersion::minor);
            other.number != turn.node.number
                && other.management != Management::Excluded
                && minor
                    .is_some_and(|minor| minor.major != there.major || minor.minor.abs_diff(there.minor) > 1)
        });
        Turn::wait_for(UpgradeReason::ControlPlaneSkew, apart, "to come within one minor release of the hop")
    })
}

/// The control plane before the workers on the way up, after them on the way down.
fn control_plane_first(turn: &Turn<'_, '_>) -> Option<Wait> {
    if turn.order.rollback_is_wanted {
        return None;
    }
    let within = turn.node.version().map(OsVersion::minor) == Some(turn.version.minor());
    let (direction, first) = match (turn.node.role, turn.direction()) {
        (Role::Worker, Ordering::Greater) if within && turn.campaign.is_canary(turn.node) => {
            return None;
        }
        (Role::Worker, Ordering::Greater) => (Ordering::Greater, Role::ControlPlane),
        (Role::ControlPlane, Ordering::Less) => (Ordering::Less, Role::Worker),
        _ => return None,
    };
    let behind = turn.movers(first).filter(|(_, at)| turn.version.cmp(at) == direction);
    let (reason, words) = match first {
        Role::ControlPlane => (UpgradeReason::WaitingForControlPlane, "of the control plane to go first"),
        Role::Worker => (UpgradeReason::WaitingForWorkers, "to go down before the control plane"),
    };
    Turn::wait_for(reason, behind.map(|(node, _)| node), words)
}

/// No kubelet is newer than the oldest API server. Kubernetes promises this by minor release.
fn api_server_skew(turn: &Turn<'_, '_>) -> Option<Wait> {
    let there = turn.version.minor();
    if turn.node.role == Role::ControlPlane {
        let newer = turn.survey.index.nodes().filter(|other| {
            let minor = other.version().map(OsVersion::minor);
            other.role == Role::Worker
                && other.management != Management::Excluded
                && turn.direction() == Ordering::Less
                && minor > Some(there)
        });
        return Turn::wait_for(
            UpgradeReason::KubeletSkew,
            newer,
            "whose kubelet would be newer than this API server",
        );
    }
    let here = turn.node.version().map(OsVersion::minor);
    let lowest = turn.survey.lowest_api_server();
    if Some(there) <= here || lowest.is_some_and(|lowest| there <= lowest) {
        return None;
    }
    let message = match lowest {
        Some(lowest) => format!("waits for every API server to run {there}; the oldest runs {lowest}"),
        None => format!("waits to learn whether every API server runs {there}"),
    };
    Some(Wait { reason: UpgradeReason::KubeletSkew, message })
}

/// The operator's own node goes last in its role, so that its work is interrupted once.
fn operator_last(turn: &Turn<'_, '_>) -> Option<Wait> {
    if !turn.survey.hosts_operator(turn.node) || turn.order.rollback_is_wanted {
        return None;
    }
    let direction = turn.direction();
    let behind = turn.movers(turn.node.role).filter(|(other, at)| {
        // A control-plane node that is a hop ahead waits for this one.
        let ahead = turn.node.version().is_some_and(|running| at.cmp(&running) == direction);
        turn.version.cmp(at) == direction && !(other.role == Role::ControlPlane && ahead)
    });
    Turn::wait_for(
        UpgradeReason::OperatorNodeLast,
        behind.map(|(node, _)| node),
        "since the operator itself runs here",
    )
}

/// Never two control-plane nodes at once, whoever took the other one away.
fn one_control_plane_node(turn: &Turn<'_, '_>) -> Option<Wait> {
    if turn.node.role != Role::ControlPlane {
        return None;
    }
    let away = turn.survey.control_plane().filter(|other| {
        other.number != turn.node.number
            && match other.management {
                // What a person took out may be cordoned for years, but a vote in etcd is a vote.
                Management::Excluded => other.readiness == Readiness::NotReady,
                Management::Managed | Management::Unmanaged => turn.away.contains(other),
            }
    });
    Turn::wait_for(
        UpgradeReason::WaitingForControlPlane,
        away,
        "to be available: the control plane goes one node at a time",
    )
}

/// Rules that are no gates, and are taken away like them.
pub(super) const DRAIN: &str = "drain";
pub(super) const STAGING_LIMIT: &str = "staging limit";
pub(super) const LEAVE_ENDS_WITH_WINDOW: &str = "leave ends with the window";

/// Rules can be taken away, to see that somebody notices.
#[cfg(not(test))]
pub(super) const fn stands(_: &str) -> bool {
    true
}

#[cfg(test)]
pub(super) use removal::{gate_names, stands, without};

#[cfg(test)]
mod removal {
    use std::cell::Cell;

    thread_local! {
        static GONE: Cell<&'static str> = const { Cell::new("") };
    }

    pub(in crate::rollout) fn gate_names() -> impl Iterator<Item = &'static str> {
        super::GATES.iter().map(|(name, _)| *name)
    }

    pub(in crate::rollout) fn stands(name: &str) -> bool {
        GONE.get() != name
    }

    /// Does something without a gate, on this thread.
    pub(in crate::rollout) fn without<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
        GONE.set(name);
        let done = work();
        GONE.set("");
        done
    }
}

//! Health gates: what must hold in the cluster before each reboot.

use super::gates::Turn;
use super::index::OrderEntry;
use super::outlook::Wait;
use super::survey::Campaign;
use crate::api::UpgradeReason;

const PREFIX: &str = "waits for a health check: ";

/// What a health check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It holds for every object.
    Holds,
    /// It does not; the message names the object.
    DoesNotHold(String),
    /// It could not be evaluated, which is no reason to go on.
    Unknown(String),
}

/// Nothing is begun while a check does not hold. A node whose turn has begun keeps it meanwhile: what its drain
/// has disturbed is given the time to settle.
pub(super) fn gate(turn: &Turn<'_, '_>) -> Option<Wait> {
    wait(turn.campaign, turn.order).filter(|_| !turn.has_begun)
}

/// Why a node may not reboot now. A person who sends it back is not asked to wait for a healthy cluster.
pub(super) fn wait(campaign: &Campaign<'_>, order: &OrderEntry) -> Option<Wait> {
    if order.rollback_is_wanted {
        return None;
    }
    let seen = &campaign.view.health;
    let shut = campaign.rollout.health_checks.iter().enumerate().find_map(|(at, _)| match seen.get(at) {
        Some(Health::Holds) => None,
        Some(Health::DoesNotHold(why) | Health::Unknown(why)) => Some(why.as_str()),
        None => Some("its health checks were not evaluated yet"),
    })?;
    Some(Wait { reason: UpgradeReason::HealthGate, message: format!("{PREFIX}{shut}") })
}

/// Only what the check says.
pub(super) fn without_prefix(message: &str) -> &str {
    message.strip_prefix(PREFIX).unwrap_or(message)
}

//! When a run stops by itself.

use super::govern::{Stand, Stands};
use super::order::State;
use super::outlook::Wait;
use super::survey::{Campaign, Survey};
use crate::api::{ImageRef, UpgradeReason};

/// What went wrong so far in the nodes that an upgrade governs: their names, sorted.
pub(super) struct Failures<'f> {
    /// Before any reboot.
    pub(super) before_reboot: Vec<&'f str>,
    /// After a commit.
    pub(super) after_commit: Vec<&'f str>,
    before_limit: usize,
    after_limit: usize,
}

impl<'f> Failures<'f> {
    pub(super) fn of(campaign: &Campaign<'f>, stands: &Stands<'f>) -> Self {
        let named = |wanted: fn(&State<'_>) -> bool| -> Vec<&'f str> {
            let failed = stands.of(campaign).filter(|(_, stand)| match stand {
                Stand::Ordered(_, state) => wanted(state),
                _ => false,
            });
            failed.map(|(node, _)| node.name()).collect()
        };
        let selected = campaign.selected().len();
        Self {
            before_reboot: named(|state| matches!(state, State::Failed)),
            after_commit: named(|state| {
                matches!(state, State::RolledBack | State::Lost | State::Unexplained)
            }),
            before_limit: campaign.rollout.max_failed_nodes(selected),
            after_limit: campaign.rollout.failure_threshold(selected),
        }
    }

    /// Why the run goes no further, if it does not. Only nodes that a person retries still move.
    pub(super) fn halt(&self) -> Option<Wait> {
        if self.after_commit.len() >= self.after_limit {
            let message = format!(
                "{} did not come through the reboot, and failureThreshold is {}; look at the node, then retry it with a new retryNonce",
                names(&self.after_commit),
                self.after_limit
            );
            return Some(Wait { reason: UpgradeReason::FailureThresholdReached, message });
        }
        if self.before_reboot.len() > self.before_limit {
            let message = format!(
                "{} failed before any reboot, and maxFailedNodes allows {}; correct the cause, then set a new spec.retryNonce",
                names(&self.before_reboot),
                self.before_limit
            );
            return Some(Wait { reason: UpgradeReason::TooManyFailedNodes, message });
        }
        None
    }
}

/// Why an image may not be granted at all, whatever the node.
pub(super) fn forbidden(survey: &Survey<'_>, campaign: &Campaign<'_>, image: &ImageRef) -> Option<Wait> {
    let version = &image.version;
    if campaign.view.target().is_some_and(|target| target.blocked.contains(version)) {
        let message = format!(
            "the catalog blocks {version} by now; choose another version, or set a new spec.retryNonce to look for another path"
        );
        return Some(Wait { reason: UpgradeReason::VersionBlocked, message });
    }
    let limit = campaign.rollout.failure_threshold(campaign.selected().len());
    let failed = survey.failures_of(&image.checksum, campaign);
    (failed.len() >= limit).then(|| Wait {
        reason: UpgradeReason::VersionQuarantined,
        message: format!(
            "{version} failed on {} after a reboot and is quarantined; choose another version, or set a new spec.retryNonce to try it again",
            names(&failed)
        ),
    })
}

/// Up to ten names, and how many more there are.
pub(super) fn names(all: &[&str]) -> String {
    let shown = all.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    match all.len() {
        0..=10 => shown,
        more => format!("{shown} and {} more", more - 10),
    }
}

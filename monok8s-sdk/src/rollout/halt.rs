//! When a run stops by itself.

use super::govern::{Stand, Stands};
use super::outlook::Wait;
use super::survey::{Campaign, Survey};
use crate::api::{ImageRef, UpgradeReason};

/// When a node failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    BeforeReboot,
    AfterCommit,
}

/// What went wrong so far in the nodes that an upgrade governs, and in those that are gone or not selected any more:
/// their names, sorted.
pub(super) struct Failures<'f> {
    /// Before any reboot.
    pub(super) before_reboot: Vec<&'f str>,
    /// After a commit.
    pub(super) after_commit: Vec<&'f str>,
    before_limit: usize,
    after_limit: usize,
}

impl<'f> Failures<'f> {
    pub(super) fn of(survey: &Survey<'f>, campaign: &Campaign<'f>, stands: &Stands<'f>) -> Self {
        let named = |when: Failed| -> Vec<&'f str> {
            let there = stands.of(campaign).filter_map(|(node, stand)| match stand {
                Stand::Ordered(_, state) if state.failed() == Some(when) => Some(node.name()),
                _ => None,
            });
            let not_there = survey.failed_and_gone(campaign).filter(|(_, failed)| *failed == when);
            let mut names: Vec<_> = there.chain(not_there.map(|(name, _)| name)).collect();
            names.sort_unstable();
            names
        };
        let selected = campaign.selected().len();
        Self {
            before_reboot: named(Failed::BeforeReboot),
            after_commit: named(Failed::AfterCommit),
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

/// Why nothing is granted while the catalog cannot be read: what it blocks by now is not known.
pub(super) fn unread_catalog(campaign: &Campaign<'_>) -> Option<Wait> {
    let error = campaign.view.catalog_error.as_deref()?;
    let message = format!("waits for the catalog, to see what it blocks by now: {error}");
    Some(Wait { reason: UpgradeReason::CatalogUnavailable, message })
}

/// Up to ten names, and how many more there are.
pub(super) fn names(all: &[&str]) -> String {
    let shown = all.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    match all.len() {
        0..=10 => shown,
        more => format!("{shown} and {} more", more - 10),
    }
}

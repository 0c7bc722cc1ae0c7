//! The nodes that an upgrade cannot take along.

use std::collections::{BTreeMap, BTreeSet};

use super::govern::{Stand, Stands};
use super::halt::names;
use super::order::State;
use super::survey::Campaign;
use crate::api::UpgradeReason;

/// A node that cannot go, and why.
pub(super) struct Unable<'f> {
    node: &'f str,
    reason: UpgradeReason,
    message: String,
}

/// The nodes that cannot go, by name.
pub(super) fn unable<'f>(campaign: &Campaign<'f>, stands: &Stands<'f>) -> Vec<Unable<'f>> {
    let unable = stands.of(campaign).filter_map(|(node, stand)| {
        let (reason, message) = match stand {
            Stand::Refused(reason, message) | Stand::Excluded(reason, message) => {
                (reason.clone(), message.clone())
            }
            Stand::Ordered(_, State::SentBack) => {
                (UpgradeReason::SentBack, "a person sent the node back with a rollbackNonce".to_owned())
            }
            _ => return None,
        };
        Some(Unable { node: node.name(), reason, message })
    });
    unable.collect()
}

/// The reason that all share, or one that says that they do not.
pub(super) fn common_reason(unable: &[Unable<'_>]) -> UpgradeReason {
    let reasons: BTreeSet<&UpgradeReason> = unable.iter().map(|unable| &unable.reason).collect();
    match reasons.into_iter().collect::<Vec<_>>().as_slice() {
        [only] => (*only).clone(),
        _ => UpgradeReason::NodesRefused,
    }
}

/// The nodes that cannot go, those with the same cause together.
pub(super) fn explain(unable: &[Unable<'_>]) -> String {
    let mut by_cause: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for unable in unable {
        by_cause.entry(&unable.message).or_default().push(unable.node);
    }
    let causes = by_cause.iter().map(|(cause, nodes)| format!("{}: {cause}", names(nodes)));
    causes.collect::<Vec<_>>().join("; ")
}

//! Which images a node takes to a target, over what a run has frozen.

use super::fleet::{NodeReport, NodeView, Target};
use crate::api::{DowngradePolicy, ImageRef, TryCounting, UpgradeReason};
use crate::catalog::{self, Arch, CatalogImage};

/// Whether, and how, a node gets to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It is there.
    Arrived,
    /// Through these images, the target last.
    Hops(Vec<ImageRef>),
    /// Nobody says yet what the node runs.
    Unknown,
    /// A rule refuses it: the reason and a message that does not name the node.
    Refused(UpgradeReason, String),
    /// The node cannot be upgraded at all.
    Excluded(UpgradeReason, String),
}

impl Way {
    /// The way of `node` to `target`.
    pub(super) fn find(node: &NodeView, target: &Target, policy: DowngradePolicy) -> Self {
        let to = &target.resolved.version;
        if node.runs(to) {
            return Self::Arrived;
        }
        let Some(from) = &node.version else { return Self::Unknown };
        if let Some((reason, message)) = problem(node) {
            return Self::Excluded(reason, message);
        }
        let arch = node.arch.as_deref().and_then(|arch| arch.parse::<Arch>().ok());
        // An image that cannot be read is none: the node has no path through it.
        let images = target.resolved.images.iter().cloned();
        let images: Vec<CatalogImage> = images.filter_map(|image| image.try_into().ok()).collect();
        match catalog::path(from, to, &images, arch.as_ref(), policy) {
            Ok(hops) => Self::Hops(hops.into_iter().map(ImageRef::from).collect()),
            Err(refusal) if refusal.reason() == UpgradeReason::NoImageForArch => {
                Self::Excluded(refusal.reason(), refusal.to_string())
            }
            Err(refusal) => Self::Refused(refusal.reason(), refusal.to_string()),
        }
    }

    /// Whether the upgrade has something to say about the node.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Arrived | Self::Hops(_) | Self::Unknown)
    }
}

/// Why a node cannot be upgraded at all, by its own report.
fn problem(node: &NodeView) -> Option<(UpgradeReason, String)> {
    let NodeReport::Present(report) = &node.report else { return None };
    if let Some(problem) = report.problem.as_ref().filter(|problem| !problem.is_empty()) {
        return Some((UpgradeReason::NodeProblem, problem.clone()));
    }
    let loader = report.loader.as_ref()?;
    (loader.counts_tries == TryCounting::Unsupported).then(|| {
        let message = format!("the boot loader ({}) does not count the tries of a trial", loader.backend);
        (UpgradeReason::TrialUnsupported, message)
    })
}

//! Which images a node takes to a target, over what a run has frozen.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::fleet::{NodeReport, NodeView, Target};
use super::index::NodeEntry;
use crate::api::{DowngradePolicy, ImageRef, TryCounting, UpgradeReason};
use crate::catalog::{self, Arch, CatalogImage};
use crate::version::OsVersion;

/// Whether, and how, a node gets to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It is there.
    Arrived,
    /// Through these images, the target last.
    Hops(Rc<[ImageRef]>),
    /// Nobody says yet what the node runs.
    Unknown,
    /// A rule refuses it: the reason and a message that does not name the node.
    Refused(UpgradeReason, String),
    /// The node cannot be upgraded at all.
    Excluded(UpgradeReason, String),
}

/// The ways to one target, each found once for all nodes that run the same version on the same architecture.
pub(super) struct Routes<'f> {
    target: &'f Target,
    policy: DowngradePolicy,
    images: Vec<CatalogImage>,
    known: BTreeMap<(&'f OsVersion, Option<&'f str>), Way>,
}

impl<'f> Routes<'f> {
    pub(super) fn new(target: &'f Target, policy: DowngradePolicy) -> Self {
        // An image that cannot be read is none: nobody has a path through it.
        let images = target.resolved.images.iter().cloned();
        let images = images.filter_map(|image| image.try_into().ok()).collect();
        Self { target, policy, images, known: BTreeMap::new() }
    }

    /// The way of `node` to the target.
    pub(super) fn way(&mut self, node: &'f NodeEntry) -> Way {
        if node.runs(&self.target.resolved.version) {
            return Way::Arrived;
        }
        let Some(from) = node.version() else { return Way::Unknown };
        if node.has_problem
            && let Some((reason, message)) = problem(node.view())
        {
            return Way::Excluded(reason, message);
        }
        let alike = (from, node.arch());
        if let Some(known) = self.known.get(&alike) {
            return known.clone();
        }
        let way = self.find(from, node.arch());
        self.known.insert(alike, way.clone());
        way
    }

    fn find(&self, from: &OsVersion, arch: Option<&str>) -> Way {
        let arch = arch.and_then(|arch| arch.parse::<Arch>().ok());
        match catalog::path(from, &self.target.resolved.version, &self.images, arch.as_ref(), self.policy) {
            Ok(hops) => Way::Hops(hops.into_iter().map(ImageRef::from).collect()),
            Err(refusal) if refusal.reason() == UpgradeReason::NoImageForArch => {
                Way::Excluded(refusal.reason(), refusal.to_string())
            }
            Err(refusal) => Way::Refused(refusal.reason(), refusal.to_string()),
        }
    }
}

impl Way {
    /// Whether the upgrade has something to say about the node.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Arrived | Self::Hops(_) | Self::Unknown)
    }
}

/// Why a node cannot be upgraded at all, by its own report.
pub(super) fn problem(node: &NodeView) -> Option<(UpgradeReason, String)> {
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

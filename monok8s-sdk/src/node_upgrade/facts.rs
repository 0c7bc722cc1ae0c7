//! What a node knows about itself at one moment.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::checks::{CheckState, NamedCheck};
use super::record::Record;
use crate::boot::LoaderStatus;
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// The kernel's boot ID, as `/proc/sys/kernel/random/boot_id` prints it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    /// The slot that `/` runs from, by the kernel command line and the device.
    pub slot: Slot,
    /// The version, by the host's os-release, or else its kubelet. While neither tells, the one that
    /// was written to the slot; [`TrialHealth::version`] then fails.
    pub version: OsVersion,
    /// Which boot this is.
    pub boot_id: BootId,
}

/// That this process holds the token of a slot it read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldToken {
    /// The slot that was read.
    pub slot: Slot,
    /// The sha256 of what was read.
    pub digest: Sha256Digest,
}

/// Whether something that the trial needs is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is, for as long as it has to.
    Holds,
    /// It is not, or not for long enough; the text says what was seen.
    Fails(String),
    /// This node has no such thing.
    NotNeeded,
}

impl Check {
    /// What is missing, if anything.
    #[must_use]
    pub fn missing(&self) -> Option<&str> {
        match self {
            Self::Fails(seen) => Some(seen),
            Self::Holds | Self::NotNeeded => None,
        }
    }
}

/// What the API server says about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeView {
    /// The Node is Ready, with this boot's ID.
    ReadyInThisBoot,
    /// The Node is not, or its boot ID is an older one; the text says what was seen.
    NotReady(String),
    /// The API server does not answer.
    ApiUnreachable,
}

/// How well the booted slot is. Only looked at during a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialHealth {
    /// That the version in [`Booted`] is what runs, and not only what was written to the slot.
    pub version: Check,
    /// The kubelet's own health endpoint.
    pub kubelet: Check,
    /// The local API server and etcd, on a control-plane node.
    pub control_plane: Check,
    /// The checks that the upgrade configures.
    pub configured: Vec<NamedCheck>,
    /// The Node object.
    pub node: NodeView,
}

impl TrialHealth {
    /// Nothing was observed yet.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            version: Check::Fails("the version was not looked for yet".to_owned()),
            kubelet: Check::Fails("the kubelet was not asked yet".to_owned()),
            control_plane: Check::NotNeeded,
            configured: Vec::new(),
            node: NodeView::ApiUnreachable,
        }
    }

    /// The first thing on the node itself that is missing. The version is none: it may take the API
    /// server to tell it.
    #[must_use]
    pub fn missing_locally(&self) -> Option<String> {
        let own = [&self.kubelet, &self.control_plane].into_iter().find_map(Check::missing);
        own.map(str::to_owned).or_else(|| {
            let mut local = self.configured.iter().filter(|check| check.state != CheckState::ApiUnreachable);
            local.find_map(NamedCheck::missing)
        })
    }

    /// The first configured check that nobody can tell without the API server.
    #[must_use]
    pub fn missing_with_the_api(&self) -> Option<String> {
        let mut remote = self.configured.iter().filter(|check| check.state == CheckState::ApiUnreachable);
        remote.find_map(NamedCheck::missing)
    }
}

/// Whether this process has read the objects of its node since it started.
///
/// Until it has, the absence of an order means nothing: only what is already committed goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiView {
    /// Not yet.
    NotRead,
    /// It has: no order means that nothing is ordered.
    Read,
}

/// Everything a decision rests on, apart from the order and the time.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// What runs.
    pub booted: Booted,
    /// The loader's state, read now.
    pub loader: LoaderStatus,
    /// The record, as it is on the data partition.
    pub record: Record,
    /// The slot that this process read back, if it did.
    pub token: Option<HeldToken>,
    /// How well the booted slot is.
    pub health: TrialHealth,
    /// How long this boot has been running, by the monotonic clock.
    pub time_in_trial: Duration,
    /// Whether the objects were read.
    pub api: ApiView,
}

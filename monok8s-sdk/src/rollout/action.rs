//! What a plan consists of.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use super::outlook::Outlook;
use super::pods::PodView;
use crate::api::{BootGrant, OSUpgradeProgressSpec};
use crate::version::OsVersion;

/// What to do now, what to report, and when to look again without being told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes, in order. Stopping after any of them is safe; so is doing one twice.
    pub actions: Vec<Action>,
    /// What to report about each upgrade, by its UID.
    pub outlooks: BTreeMap<String, Outlook>,
    /// When a deadline passes, if that is the next thing that could change the plan.
    pub next_event: Option<Timestamp>,
}

/// An object as it was when something was decided about it. A write names the UID, and for
/// anything but a status the resourceVersion too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
}

/// A pod as it was when something was decided about it. Its writes name the UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl PodRef {
    pub(super) fn of(pod: &PodView) -> Self {
        Self { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
    }
}

/// One write. Each is decided on observed facts alone and needs no other one of its plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Clear `order.boot`. Only when this write succeeded may the node be uncordoned, which a later
    /// plan asks for.
    WithdrawBoot {
        /// The progress object.
        progress: ObjectRef,
    },
    /// Clear `order.stage`, its time and `order.boot`: the upgrade lets go of the node. The condition
    /// `Superseded` follows in a later plan.
    Supersede {
        /// The progress object.
        progress: ObjectRef,
    },
    /// Clear `spec.unschedulable` and the cordon annotation, in one write.
    Uncordon {
        /// The Node.
        node: ObjectRef,
    },
    /// Make these the operator's conditions in the status of a progress object, and remove those
    /// that are not listed, by server-side apply. The times in them are already right.
    Report {
        /// The progress object.
        progress: ObjectRef,
        /// All conditions of the operator, sorted by type.
        conditions: Vec<Condition>,
    },
    /// Delete a progress object, with UID and resourceVersion as preconditions.
    DeleteProgress {
        /// The progress object.
        progress: ObjectRef,
    },
    /// Create an empty `OSNode` of the Node's name, owned by the Node.
    CreateOsNode {
        /// The Node.
        node: ObjectRef,
    },
    /// Create a progress object.
    CreateProgress(Box<NewProgress>),
    /// Set `order.stage` and `order.stageGrantedAt`, and clear `order.boot`.
    GrantStage {
        /// The progress object.
        progress: ObjectRef,
        /// The hop that may be downloaded and written.
        version: OsVersion,
        /// When it is given, which is now.
        at: Timestamp,
    },
    /// Set `order.boot`.
    GrantBoot {
        /// The progress object.
        progress: ObjectRef,
        /// Which hop, and until when.
        grant: BootGrant,
    },
    /// Ask for a pod's eviction, with its UID as precondition. The answer goes to `Fleet::evictions`.
    Evict {
        /// The pod.
        pod: PodRef,
        /// Seconds that it gets to end; `None`: its own.
        grace_period_seconds: Option<i32>,
    },
    /// Delete a pod, with its UID as precondition, whatever disruption budgets say.
    DeletePod {
        /// The pod.
        pod: PodRef,
        /// Seconds that it gets to end; `None`: its own.
        grace_period_seconds: Option<i32>,
    },
    /// Set `spec.unschedulable` and the cordon annotation, in one write.
    Cordon {
        /// The Node.
        node: ObjectRef,
        /// The UID of the progress object it is for: the value of the annotation.
        progress_uid: String,
    },
}

impl Action {
    /// Every word that [`kind`](Self::kind) can be.
    pub const KINDS: [&'static str; 12] = [
        "withdraw-boot",
        "supersede",
        "uncordon",
        "report",
        "delete-progress",
        "create-osnode",
        "create-progress",
        "grant-stage",
        "grant-boot",
        "cordon",
        "evict",
        "delete-pod",
    ];

    /// What it does, as one word for logs and metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::WithdrawBoot { .. } => "withdraw-boot",
            Self::Supersede { .. } => "supersede",
            Self::Uncordon { .. } => "uncordon",
            Self::Report { .. } => "report",
            Self::DeleteProgress { .. } => "delete-progress",
            Self::CreateOsNode { .. } => "create-osnode",
            Self::CreateProgress(_) => "create-progress",
            Self::GrantStage { .. } => "grant-stage",
            Self::GrantBoot { .. } => "grant-boot",
            Self::Cordon { .. } => "cordon",
            Self::Evict { .. } => "evict",
            Self::DeletePod { .. } => "delete-pod",
        }
    }

    /// The name of the object that it writes.
    #[must_use]
    pub fn object_name(&self) -> &str {
        match self {
            Self::WithdrawBoot { progress }
            | Self::Supersede { progress }
            | Self::Report { progress, .. }
            | Self::DeleteProgress { progress }
            | Self::GrantStage { progress, .. }
            | Self::GrantBoot { progress, .. } => &progress.name,
            Self::Uncordon { node } | Self::CreateOsNode { node } | Self::Cordon { node, .. } => &node.name,
            Self::CreateProgress(new) => &new.name,
            Self::Evict { pod, .. } | Self::DeletePod { pod, .. } => &pod.name,
        }
    }
}

/// A progress object that is not there yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NewProgress {
    /// Its derived name.
    pub name: String,
    /// The upgrade's name and UID, for the owner reference.
    pub upgrade_name: String,
    /// The upgrade's UID.
    pub upgrade_uid: String,
    /// Its spec, with no grant yet.
    pub spec: OSUpgradeProgressSpec,
}

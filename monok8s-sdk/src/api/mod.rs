//! The API group `monok8s.io/v1alpha1`: three cluster-scoped kinds and the words they use.
//!
//! - [`OSUpgrade`]: what a person or a GitOps engine asks for.
//! - [`OSUpgradeProgress`]: one node's part of one run; its spec is the order, its status the report.
//! - [`OSNode`]: what a node says about its slots, loader and agent.
//!
//! Agents ship inside OS images, so an agent one release older or newer than the operator and the
//! CRDs is the normal case: unknown fields are tolerated, and phases and reasons are open strings
//! that parse into enums with an `Unknown` variant.

mod conditions;
mod crd;
mod names;
pub(crate) mod open_enum;
mod osnode;
mod osupgrade;
mod osupgrade_status;
mod percent;
mod progress;
mod rollout_spec;
mod scalars;
mod selector;
mod spec_selectors;
mod trial_status;
mod upgrade_reason;

pub use conditions::{
    ConditionType, Conditions, KSTATUS, Truth, find as find_condition, is_of_kstatus,
    is_true as condition_is_true, shorten as shorten_message,
};
pub(crate) use crd::sort_keys;
pub use crd::{crds, crds_yaml};
pub use names::{managed, progress_name, upgrade_name_of};
pub use osnode::{
    FailedImage, GuardState, LoaderReport, OSNode, OSNodeSpec, OSNodeStatus, OtherSlotReport, ReturnState,
    SlotReport, TryCounting,
};
pub use osupgrade::{CatalogSource, ChannelPolicy, DowngradePolicy, Mode, OSUpgrade, OSUpgradeSpec};
pub use osupgrade_status::{
    ImageRef, IndexRef, NodeCounts, OSUpgradeStatus, OperatorReport, Resolved, RunSummary, UpgradePhase,
};
pub use percent::{IntOrPercent, Rounding};
pub use progress::{
    BootGrant, ByteProgress, FailureReason, Installed, OSUpgradeProgress, OSUpgradeProgressSpec,
    OSUpgradeProgressStatus, OrderSpec, ProgressPhase, SourceRef, TimelineEntry,
};
pub use rollout_spec::{
    ApiUnavailable, Canary, DrainOnTimeout, DrainPolicy, DrainSpec, ExecCheck, HealthCheck, HttpCheck,
    PodsCheck, RolloutSpec, TrialCheck, TrialSpec, UnmanagedPods, Window, WindowKind, WindowScope,
};
pub use selector::{NodeSelector, Selector, SelectorError};
pub use spec_selectors::InvalidSelector;
pub use trial_status::{RollbackEvidence, RolledBackBy, TrialCheckResult, TrialCheckState, TrialStatus};
pub use upgrade_reason::UpgradeReason;

/// The API group of all kinds.
pub const GROUP: &str = "monok8s.io";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
/// A Node with this label set to `true` is managed. The image's kubelet sets it.
pub const LABEL_MANAGED: &str = "monok8s.io/managed";
/// The label that marks control-plane nodes.
pub const LABEL_CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// On a Node, takes it out of every selection and of the budget; any value but `false`.
pub const ANNOTATION_EXCLUDE: &str = "monok8s.io/exclude";
/// On an `OSUpgrade`, pauses it without touching the spec that Git owns; any value but `false`.
pub const ANNOTATION_HOLD: &str = "monok8s.io/hold";
/// On a Node, marks a cordon of ours. The value is the UID of the progress object it was made for.
pub const ANNOTATION_CORDON: &str = "monok8s.io/cordoned-for";
/// Field manager of everything the operator writes.
pub const OPERATOR_FIELD_MANAGER: &str = "monok8s-operator";
/// Field manager of everything an agent writes.
pub const AGENT_FIELD_MANAGER: &str = "monok8s-agent";
/// The longest human-readable message in a status, in bytes.
pub const MAX_MESSAGE_LEN: usize = 4096;
/// How many finished runs a status remembers, and progress objects are kept for.
pub const KEPT_RUNS: usize = 5;
/// The most hops one order can have, and images one run can freeze.
pub const MAX_HOPS: usize = 64;

/// Whether an on/off annotation of ours is on: present with any value but `false`.
#[must_use]
pub fn annotation_is_on(
    annotations: Option<&std::collections::BTreeMap<String, String>>,
    name: &str,
) -> bool {
    annotations.and_then(|all| all.get(name)).is_some_and(|value| value != "false")
}

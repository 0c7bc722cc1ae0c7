//! What the planner looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeStatus, NodeSystemInfo, Taint};
use k8s_openapi::jiff::Timestamp;

use super::action::ObjectRef;
use super::drain::Eviction;
use super::health::Health;
use super::pods::PodView;
use crate::api::{
    ANNOTATION_CORDON, ANNOTATION_EXCLUDE, IntOrPercent, LABEL_CONTROL_PLANE, LABEL_MANAGED, OSNode,
    OSNodeStatus, OSUpgrade, OSUpgradeProgress, Resolved, ReturnState, UpgradeReason, annotation_is_on,
};
use crate::version::OsVersion;

/// What Kubernetes itself taints nodes with that are cordoned, or not ready for a moment.
const TAINTS_OF_KUBERNETES: &str = "node.kubernetes.io/";

/// Everything the planner looks at: one consistent-enough view of the cluster. Facts may be old;
/// the preconditions of the actions catch that. Nodes and progress objects are shared with whoever keeps them: a look
/// at a fleet of thousands copies none of them. What has not changed should be the same `Arc` as before:
/// [`plan_with`](super::plan_with) looks only at what is another one.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// All Nodes of the cluster, managed or not: the control plane is protected as a whole, and a
    /// cordon of ours is taken off wherever it is.
    pub nodes: Vec<Arc<NodeView>>,
    /// All upgrades, each with what its spec and catalog were evaluated to.
    pub upgrades: Vec<UpgradeView>,
    /// All progress objects, also hand-made ones and those of upgrades that are gone.
    pub progresses: Vec<Arc<OSUpgradeProgress>>,
    /// The version of the API server as `/version` tells it. It bounds kubelets only where the
    /// control plane has no Nodes.
    pub api_server: Option<OsVersion>,
    /// The name of the Node that the operator itself runs on.
    pub operator_node: Option<String>,
    /// How many managed nodes may be unavailable at once over all upgrades. `None`: no such limit.
    pub max_unavailable: Option<IntOrPercent>,
    /// The operator's own pod, as `namespace/name`, which no drain asks to leave.
    pub operator_pod: Option<String>,
    /// The pods of cordoned nodes that are not in a reboot, by the Node's UID; without a node whose pods are not known
    /// yet.
    pub pods: BTreeMap<String, Vec<PodView>>,
    /// Why the pods of cordoned nodes, or their volumes, cannot be known, by the Node's UID.
    pub unseen: BTreeMap<String, String>,
    /// The names of the volumes attached to each node, by the Node's name; `None` if they are not known yet.
    pub volumes: Option<BTreeMap<String, BTreeSet<String>>>,
    /// The volumes behind claims, as `namespace/name`, of pods that no drain has leave.
    pub claims: BTreeMap<String, String>,
    /// What became of evictions, by the pod's UID. What an operator did not live to remember is asked again.
    pub evictions: BTreeMap<String, Eviction>,
}

/// An upgrade, and what its spec and catalog were evaluated to.
#[derive(Clone, Debug)]
pub struct UpgradeView {
    /// The object as read.
    pub upgrade: OSUpgrade,
    /// What its spec and catalog come to.
    pub evaluation: Evaluation,
    /// Why the last attempt to read the catalog failed; `None` if it succeeded. An upgrade whose
    /// run is frozen stays `Accepted` meanwhile.
    pub catalog_error: Option<String>,
    /// What its health checks came to, in their order. One that is missing was not evaluated yet.
    pub health: Vec<Health>,
}

/// What a spec and a catalog come to, without a look at nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evaluation {
    /// There is a target. Whether nodes can get there is the planner's to say.
    Accepted(Target),
    /// There is nothing that could be carried out until the spec or the catalog changes.
    Rejected {
        /// Why.
        reason: UpgradeReason,
        /// What is wrong and what to do.
        message: String,
        /// The version that was meant, as far as that is known.
        resolved: Option<OsVersion>,
    },
    /// It cannot be said yet; the attempt is repeated.
    Pending {
        /// Why not.
        reason: UpgradeReason,
        /// What is waited for.
        message: String,
        /// The version that was meant, as far as that is known.
        resolved: Option<OsVersion>,
    },
}

/// What an upgrade leads to.
///
/// While [`frozen_target`](super::frozen_target) gives one, `resolved` must be that: a run is
/// carried out with the artifacts it began with. Only `blocked` is read anew each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The version, the catalog it came from, and the images on the way, oldest first.
    pub resolved: Resolved,
    /// The versions that the catalog blocks by now.
    pub blocked: BTreeSet<OsVersion>,
}

/// One Node, reduced to what a rollout depends on. Made by [`NodeView::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its UID: a Node that was made again under its name is another one.
    pub uid: String,
    /// The precondition of a cordon.
    pub resource_version: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its labels, which the view without what the agent reports shares.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Whether it runs the control plane. A node that also runs workloads is still `ControlPlane`.
    pub role: Role,
    /// Whether upgrades apply to it.
    pub management: Management,
    /// Whether its kubelet says that it is ready.
    pub readiness: Readiness,
    /// Since when it is not ready, if it is not, and anybody says so.
    pub not_ready_since: Option<Timestamp>,
    /// Whether pods may be scheduled there.
    pub scheduling: Scheduling,
    /// The UID of the progress object that it was cordoned for, if the cordon is ours.
    pub cordoned_for: Option<String>,
    /// What keeps away pods that do not say that they tolerate it.
    pub taints: Taints,
    /// What it runs; `None` if neither source names an OS version.
    pub version: Option<OsVersion>,
    /// Who said what it runs.
    pub version_source: VersionSource,
    /// The boot ID as its kubelet reported it.
    pub boot_id: Option<String>,
    /// The architecture, as Kubernetes names it.
    pub arch: Option<String>,
    /// Its `OSNode`.
    pub report: NodeReport,
}

/// What is kept of an `OSNode`: whose it is, and its status. Made by [`OSNodeView::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct OSNodeView {
    /// Its name, which is that of its Node.
    pub name: String,
    /// The UID of the Node that owns it; `None` if it was made by hand.
    pub node_uid: Option<String>,
    /// What the agent says; empty until its first word.
    pub status: Arc<OSNodeStatus>,
}

/// What a node runs in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The control plane.
    ControlPlane,
    /// Workloads only.
    Worker,
}

/// Whether upgrades apply to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Management {
    /// They do.
    Managed,
    /// It would be managed, and its annotation takes it out.
    Excluded,
    /// It is not labelled as managed.
    Unmanaged,
}

/// What a kubelet says about its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Readiness {
    /// The Ready condition is True.
    Ready,
    /// It is False, Unknown or missing.
    NotReady,
}

/// Whether pods may be scheduled on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheduling {
    /// They may.
    Schedulable,
    /// It is cordoned, by us or by anyone.
    Cordoned,
}

/// The taints `NoSchedule` and `NoExecute` of a node, but for those that tell what the Node says in other ways too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taints(Vec<String>);

impl Taints {
    fn of(node: &Node) -> Self {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let lasting = taints.into_iter().flatten().filter(|taint| {
            !taint.key.starts_with(TAINTS_OF_KUBERNETES)
                && matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
        });
        let text = |taint: &Taint| {
            format!("{}={}:{}", taint.key, taint.value.as_deref().unwrap_or_default(), taint.effect)
        };
        Self(lasting.map(text).collect())
    }

    /// Whether pods that run on a node with the `other` taints are not kept away by these.
    #[must_use]
    pub fn admit_pods_of(&self, other: &Self) -> bool {
        self.0.iter().all(|taint| other.0.contains(taint))
    }
}

/// Who said which version a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionSource {
    /// Its agent, from the os-release of the current boot: exact to the image revision.
    Agent,
    /// Its kubelet, which knows no image revision.
    Kubelet,
}

/// The `OSNode` of a Node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeReport {
    /// There is none.
    Missing,
    /// There is one of an earlier Node of that name, which will be garbage-collected.
    Foreign,
    /// What the agent says; empty until its first word.
    Present(Arc<OSNodeStatus>),
}

impl UpgradeView {
    /// The upgrade's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.upgrade.metadata.name.as_deref().unwrap_or_default()
    }

    /// The upgrade's UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.upgrade.metadata.uid.as_deref().unwrap_or_default()
    }

    /// What it leads to, if it was accepted and is not being deleted.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        match &self.evaluation {
            Evaluation::Accepted(target) if self.upgrade.metadata.deletion_timestamp.is_none() => {
                Some(target)
            }
            _ => None,
        }
    }
}

impl NodeView {
    /// Reduces a Node and its `OSNode` to what a rollout depends on.
    #[must_use]
    pub fn new(node: &Node, os_node: Option<&OSNode>) -> Self {
        let alone = Self::alone(node);
        match os_node {
            Some(os_node) => alone.reported(&OSNodeView::new(os_node)),
            None => alone,
        }
    }

    /// A Node without its `OSNode`. The version is the kubelet's own, of which anything after `vX.Y.Z` that is not of
    /// our grammar is cut off (`v1.35.3+k3s1`).
    fn alone(node: &Node) -> Self {
        let metadata = &node.metadata;
        let labels = metadata.labels.clone().unwrap_or_default();
        let annotations = metadata.annotations.as_ref();
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        let said =
            |text: fn(&NodeSystemInfo) -> &String| info.map(text).filter(|text| !text.is_empty()).cloned();
        let (readiness, not_ready_since) = readiness(node.status.as_ref());
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            role: if labels.contains_key(LABEL_CONTROL_PLANE) { Role::ControlPlane } else { Role::Worker },
            management: match labels.get(LABEL_MANAGED).is_some_and(|value| value == "true") {
                true if annotation_is_on(annotations, ANNOTATION_EXCLUDE) => Management::Excluded,
                true => Management::Managed,
                false => Management::Unmanaged,
            },
            readiness,
            not_ready_since,
            scheduling: if unschedulable { Scheduling::Cordoned } else { Scheduling::Schedulable },
            taints: Taints::of(node),
            cordoned_for: annotations.and_then(|all| all.get(ANNOTATION_CORDON)).cloned(),
            version: info.and_then(|info| OsVersion::of_kubelet(&info.kubelet_version)),
            version_source: VersionSource::Kubelet,
            boot_id: said(|info| &info.boot_id),
            arch: said(|info| &info.architecture),
            report: NodeReport::Missing,
            labels: Arc::new(labels),
        }
    }

    /// The same node with what its agent reports. That is its version too, if it was reported in the boot that the
    /// kubelet reports.
    #[must_use]
    pub fn reported(mut self, os_node: &OSNodeView) -> Self {
        self.report = os_node.report_of(&self.uid);
        let NodeReport::Present(status) = &self.report else { return self };
        let is_of_this_boot = status.boot_id.is_some() && status.boot_id == self.boot_id;
        let booted = status.booted_version.as_ref().filter(|_| is_of_this_boot);
        if let Some(version) = booted.and_then(|text| text.parse().ok()) {
            (self.version, self.version_source) = (Some(version), VersionSource::Agent);
        }
        if let Some(arch) = &status.arch {
            self.arch = Some(arch.clone()).filter(|arch| !arch.is_empty());
        }
        self
    }

    /// The version in the other slot, if the node can be sent back to it.
    pub(super) fn goes_back_to(&self) -> Option<OsVersion> {
        let NodeReport::Present(status) = &self.report else { return None };
        let other = status.other_slot.as_ref()?;
        (other.return_state == ReturnState::KnownGood).then(|| other.version.as_ref()?.parse().ok())?
    }

    /// The node as the object of a write.
    pub(super) fn object(&self) -> ObjectRef {
        ObjectRef {
            name: self.name.clone(),
            uid: self.uid.clone(),
            resource_version: self.resource_version.clone(),
        }
    }
}

impl OSNodeView {
    /// Takes it from the object.
    #[must_use]
    pub fn new(os_node: &OSNode) -> Self {
        let mut owners = os_node.metadata.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.kind == "Node");
        Self {
            name: os_node.metadata.name.clone().unwrap_or_default(),
            node_uid: owner.map(|owner| owner.uid.clone()),
            status: Arc::new(os_node.status.clone().unwrap_or_default()),
        }
    }

    /// What it is to the Node of that UID. One without an owner was made by hand; it is as good as ours.
    fn report_of(&self, node_uid: &str) -> NodeReport {
        match &self.node_uid {
            Some(owner) if owner != node_uid => NodeReport::Foreign,
            _ => NodeReport::Present(Arc::clone(&self.status)),
        }
    }
}

fn readiness(status: Option<&NodeStatus>) -> (Readiness, Option<Timestamp>) {
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    if ready.is_some_and(|condition| condition.status == "True") {
        return (Readiness::Ready, None);
    }
    let since = ready.and_then(|condition| condition.last_transition_time.as_ref());
    (Readiness::NotReady, since.map(|time| time.0))
}

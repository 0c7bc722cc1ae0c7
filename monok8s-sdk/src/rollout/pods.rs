//! Pods on a node, and what a drain makes of each of them.
//!
//! The rules are those of `kubectl drain`
//! (<https://github.com/kubernetes/kubernetes/blob/v1.35.4/staging/src/k8s.io/kubectl/pkg/drain/filters.go>),
//! with `--ignore-daemonsets`, and `deleteEmptyDirData` and `unmanagedPods` in place of
//! `--delete-emptydir-data` and `--force`.

use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use crate::api::{DrainSpec, UnmanagedPods};

/// What the kubelet marks the pods with that it made of files.
const ANNOTATION_MIRROR: &str = "kubernetes.io/config.mirror";

/// One pod, reduced to what a drain depends on. Made by [`PodView::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a pod that was made again under its name is another one.
    pub uid: String,
    /// Who would make it again.
    pub controller: PodController,
    /// Whether it has run to its end.
    pub run: PodRun,
    /// Whether its data goes with it.
    pub data: PodData,
    /// The names of the claims behind its volumes.
    pub claims: Vec<String>,
    /// If it is being deleted: when its time to end is over.
    pub ends: Option<Timestamp>,
}

/// Who makes a pod again that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodController {
    /// A `DaemonSet`, on the same node.
    DaemonSet,
    /// The kubelet, of a file on the node.
    Kubelet,
    /// Something else, on any node.
    Other,
    /// Nobody.
    Nobody,
}

/// Whether a pod has run to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRun {
    /// It runs, or will.
    Running,
    /// It has succeeded or failed.
    Finished,
}

/// Whether a pod's data goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodData {
    /// It has an `emptyDir`, which is deleted with it.
    EmptyDir,
    /// It has none.
    Elsewhere,
}

/// What a drain makes of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays where it is.
    Stays,
    /// It is evicted.
    Leaves,
    /// Nobody would make it again.
    IsUnmanaged,
    /// Its data would be gone.
    WouldLoseData,
}

impl PodView {
    /// Reduces a pod to what a drain depends on.
    #[must_use]
    pub fn new(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let loses_data = volumes.iter().any(|volume| volume.empty_dir.is_some());
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            controller: controller_of(pod),
            run: match phase {
                Some("Succeeded" | "Failed") => PodRun::Finished,
                _ => PodRun::Running,
            },
            data: if loses_data { PodData::EmptyDir } else { PodData::Elsewhere },
            claims: volumes.iter().filter_map(|volume| claim_of(metadata, volume)).collect(),
            ends: metadata.deletion_timestamp.as_ref().map(|time| time.0),
        }
    }

    /// What a drain makes of it. One that has run to its end is nobody's loss.
    pub(super) fn fate(&self, drain: &DrainSpec) -> Fate {
        let finished = self.run == PodRun::Finished;
        let keeps_data = drain.delete_empty_dir_data == Some(false);
        let blocks = drain.unmanaged_pods.unwrap_or_default() == UnmanagedPods::Block;
        match self.controller {
            PodController::Kubelet => Fate::Stays,
            PodController::DaemonSet if !finished => Fate::Stays,
            _ if !finished && self.data == PodData::EmptyDir && keeps_data => Fate::WouldLoseData,
            PodController::Nobody if !finished && blocks => Fate::IsUnmanaged,
            _ => Fate::Leaves,
        }
    }

    /// The claims behind its volumes, as people write them.
    pub(super) fn full_claims(&self) -> impl Iterator<Item = String> {
        self.claims.iter().map(|claim| format!("{}/{claim}", self.namespace))
    }

    /// Whether a drain has it evicted.
    #[must_use]
    pub fn leaves(&self, drain: &DrainSpec) -> bool {
        self.fate(drain) == Fate::Leaves
    }

    /// Its namespace and name, as people write them.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A claim that is made for a pod has its name and that of the volume
/// (<https://kubernetes.io/docs/concepts/storage/ephemeral-volumes/#persistentvolumeclaim-naming>).
fn claim_of(pod: &ObjectMeta, volume: &Volume) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
    let made = || {
        volume.ephemeral.as_ref()?;
        Some(format!("{}-{}", pod.name.as_deref()?, volume.name))
    };
    named.or_else(made)
}

fn controller_of(pod: &Pod) -> PodController {
    let annotations = pod.metadata.annotations.as_ref();
    let mut owners = pod.metadata.owner_references.iter().flatten();
    match owners.find(|owner| owner.controller == Some(true)) {
        Some(owner) if owner.kind == "DaemonSet" => PodController::DaemonSet,
        _ if annotations.is_some_and(|all| all.contains_key(ANNOTATION_MIRROR)) => PodController::Kubelet,
        Some(_) => PodController::Other,
        None => PodController::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(metadata: &Value, spec: &Value, phase: &str) -> PodView {
        let pod = json!({ "metadata": metadata, "spec": spec, "status": { "phase": phase } });
        PodView::new(&serde_json::from_value(pod).unwrap())
    }

    fn owned_by(kind: &str) -> Value {
        let owner = json!({
            "apiVersion": "apps/v1", "kind": kind, "name": "it", "uid": "1", "controller": true,
        });
        json!({ "namespace": "default", "name": "it-1", "uid": "2", "ownerReferences": [owner] })
    }

    fn empty_dir() -> Value {
        json!({ "containers": [], "volumes": [{ "name": "cache", "emptyDir": {} }] })
    }

    #[test]
    fn the_rules_are_those_of_kubectl_drain() {
        let plain = json!({ "containers": [] });
        let bare = json!({ "namespace": "default", "name": "bare", "uid": "3" });
        let mirror = json!({ "name": "etcd", "annotations": { ANNOTATION_MIRROR: "x" },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "4", "controller": true }] });
        let careful = DrainSpec { delete_empty_dir_data: Some(false), ..DrainSpec::default() };
        let rough = DrainSpec { unmanaged_pods: Some(UnmanagedPods::Delete), ..DrainSpec::default() };
        let usual = DrainSpec::default();
        for (pod, drain, expected) in [
            (pod(&owned_by("ReplicaSet"), &plain, "Running"), &usual, Fate::Leaves),
            (pod(&owned_by("DaemonSet"), &plain, "Running"), &usual, Fate::Stays),
            (pod(&owned_by("DaemonSet"), &plain, "Failed"), &usual, Fate::Leaves),
            (pod(&mirror, &plain, "Running"), &rough, Fate::Stays),
            (pod(&owned_by("Job"), &plain, "Succeeded"), &careful, Fate::Leaves),
            (pod(&owned_by("ReplicaSet"), &empty_dir(), "Running"), &usual, Fate::Leaves),
            (pod(&owned_by("ReplicaSet"), &empty_dir(), "Running"), &careful, Fate::WouldLoseData),
            (pod(&owned_by("Job"), &empty_dir(), "Succeeded"), &careful, Fate::Leaves),
            (pod(&bare, &plain, "Running"), &usual, Fate::IsUnmanaged),
            (pod(&bare, &plain, "Running"), &rough, Fate::Leaves),
            (pod(&bare, &plain, "Succeeded"), &usual, Fate::Leaves),
        ] {
            assert_eq!(pod.fate(drain), expected, "{pod:?}");
        }
    }
}

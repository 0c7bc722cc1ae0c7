//! Nodes, upgrades and images in one line, for tests.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;

use super::fleet::{Evaluation, NodeView, Target, UpgradeView};
use super::run::run_digest;
use crate::api::{
    ANNOTATION_CORDON, ANNOTATION_EXCLUDE, CatalogSource, DowngradePolicy, FailedImage, ImageRef,
    LABEL_CONTROL_PLANE, LABEL_MANAGED, NodeSelector, OSNode, OSNodeSpec, OSNodeStatus, OSUpgrade,
    OSUpgradeSpec, OSUpgradeStatus, OtherSlotReport, Resolved, ReturnState, RolloutSpec, UpgradePhase,
};
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// A managed, ready worker node of version v1.35.1 that reports through an agent.
#[must_use]
pub fn node(name: &str) -> NodeFixture {
    let labels = [(LABEL_MANAGED, "true"), ("kubernetes.io/hostname", name)];
    NodeFixture {
        node: Node {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some(format!("{name}-uid")),
                resource_version: Some("1".to_owned()),
                creation_timestamp: Some(Time(Timestamp::UNIX_EPOCH)),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec::default()),
            status: Some(NodeStatus::default()),
        },
        report: Some(OSNodeStatus::default()),
    }
    .running("v1.35.1")
    .readiness("True")
}

/// An upgrade of all managed nodes to v1.35.4, whose first run is under way.
#[must_use]
pub fn upgrade(name: &str) -> UpgradeFixture {
    UpgradeFixture {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("{name}-uid")),
            generation: Some(1),
            creation_timestamp: Some(Time(Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        },
        spec: OSUpgradeSpec {
            version: "v1.35.4".to_owned(),
            node_selector: NodeSelector::default(),
            catalog: CatalogSource {
                url: Some("https://example.com/images.yaml".to_owned()),
                ..CatalogSource::default()
            },
            channel_policy: None,
            paused: None,
            mode: None,
            downgrade_policy: None,
            allow_empty: None,
            retry_nonce: None,
            rollout: None,
        },
        catalog: Vec::new(),
        blocked: Vec::new(),
        run: Some((1, Timestamp::UNIX_EPOCH)),
        phase: None,
    }
}

/// The image of a version, for every architecture.
///
/// # Panics
///
/// If the text is not a version.
#[must_use]
pub fn image(version: &str) -> ImageRef {
    ImageRef {
        version: parse(version),
        arch: None,
        urls: vec![format!("https://example.com/{version}/rootfs.ext4.zst")],
        checksum: Sha256Digest::of(version.as_bytes()),
        size: None,
        image_checksum: None,
        index: None,
        min_from: None,
    }
}

#[allow(clippy::expect_used, reason = "a fixture with a typo in it must not go unnoticed")]
fn parse(version: &str) -> OsVersion {
    version.parse().expect("the version of a fixture")
}

/// A node in the making.
#[derive(Clone, Debug)]
pub struct NodeFixture {
    node: Node,
    report: Option<OSNodeStatus>,
}

impl NodeFixture {
    fn label(mut self, key: &str, value: &str) -> Self {
        self.node.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    fn annotation(mut self, key: &str, value: &str) -> Self {
        self.node.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    fn readiness(mut self, status: &str) -> Self {
        let ready = NodeCondition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            ..NodeCondition::default()
        };
        self.node.status.get_or_insert_default().conditions = Some(vec![ready]);
        self
    }

    /// It runs the control plane.
    #[must_use]
    pub fn control_plane(self) -> Self {
        self.label(LABEL_CONTROL_PLANE, "")
    }

    /// It carries a label.
    #[must_use]
    pub fn labelled(self, key: &str, value: &str) -> Self {
        self.label(key, value)
    }

    /// It runs this version, as its kubelet and its agent say.
    #[must_use]
    pub fn running(mut self, version: &str) -> Self {
        let boot_id = format!("boot-into-{version}");
        self.node.status.get_or_insert_default().node_info = Some(NodeSystemInfo {
            boot_id: boot_id.clone(),
            kubelet_version: parse(version).kubernetes().to_string(),
            architecture: "amd64".to_owned(),
            ..NodeSystemInfo::default()
        });
        if let Some(report) = &mut self.report {
            report.boot_id = Some(boot_id);
            report.booted_version = Some(version.to_owned());
        }
        self
    }

    /// Its kubelet is not ready.
    #[must_use]
    pub fn not_ready(self) -> Self {
        self.readiness("Unknown")
    }

    /// Its kubelet is not ready since then.
    #[must_use]
    pub fn not_ready_since(self, since: Timestamp) -> Self {
        let mut silent = self.not_ready();
        let conditions =
            silent.node.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
        conditions.for_each(|condition| condition.last_transition_time = Some(Time(since)));
        silent
    }

    /// It keeps away pods that do not tolerate this.
    #[must_use]
    pub fn tainted(mut self, key: &str) -> Self {
        let taint = Taint { key: key.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        self.node.spec.get_or_insert_default().taints.get_or_insert_default().push(taint);
        self
    }

    /// A person cordoned it.
    #[must_use]
    pub fn cordoned(mut self) -> Self {
        self.node.spec.get_or_insert_default().unschedulable = Some(true);
        self
    }

    /// The operator cordoned it for the progress object of this UID.
    #[must_use]
    pub fn cordoned_for(self, progress_uid: &str) -> Self {
        self.cordoned().annotation(ANNOTATION_CORDON, progress_uid)
    }

    /// It is taken out by its annotation.
    #[must_use]
    pub fn excluded(self) -> Self {
        self.annotation(ANNOTATION_EXCLUDE, "true")
    }

    /// It is not managed.
    #[must_use]
    pub fn unmanaged(self) -> Self {
        self.label(LABEL_MANAGED, "false")
    }

    /// It was made again: same name, another UID, created at the time.
    #[must_use]
    pub fn made_again(mut self, uid: &str, at: Timestamp) -> Self {
        self.node.metadata.uid = Some(uid.to_owned());
        self.node.metadata.creation_timestamp = Some(Time(at));
        self
    }

    /// The resourceVersion.
    #[must_use]
    pub fn version(mut self, resource_version: u64) -> Self {
        self.node.metadata.resource_version = Some(resource_version.to_string());
        self
    }

    /// It has no `OSNode`.
    #[must_use]
    pub fn without_report(mut self) -> Self {
        self.report = None;
        self
    }

    /// Its agent says that it cannot be upgraded.
    #[must_use]
    pub fn with_problem(mut self, problem: &str) -> Self {
        self.report.get_or_insert_default().problem = Some(problem.to_owned());
        self
    }

    /// Its other slot holds this version, and can be gone back to.
    #[must_use]
    pub fn with_good_other_slot(mut self, version: &str) -> Self {
        self.report.get_or_insert_default().other_slot = Some(OtherSlotReport {
            slot: Slot::A,
            version: Some(version.to_owned()),
            image_digest: None,
            return_state: ReturnState::KnownGood,
        });
        self
    }

    /// The image of this version failed on it after a commit.
    #[must_use]
    pub fn remembers_failure_of(mut self, version: &str, at: Timestamp) -> Self {
        self.report.get_or_insert_default().failed_images.push(FailedImage {
            checksum: image(version).checksum,
            version: parse(version),
            reason: "FellBack".to_owned(),
            at: Time(at),
        });
        self
    }

    /// The Node object.
    #[must_use]
    pub fn node(&self) -> Node {
        self.node.clone()
    }

    /// Its `OSNode`, if it has one.
    #[must_use]
    pub fn os_node(&self) -> Option<OSNode> {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.metadata.name.clone().unwrap_or_default(),
            uid: self.node.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        self.report.as_ref().map(|report| OSNode {
            metadata: ObjectMeta {
                name: self.node.metadata.name.clone(),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: OSNodeSpec {},
            status: Some(report.clone()),
        })
    }

    /// What the planner sees of it.
    #[must_use]
    pub fn view(&self) -> NodeView {
        NodeView::new(&self.node, self.os_node().as_ref())
    }
}

/// An upgrade in the making.
#[derive(Clone, Debug)]
pub struct UpgradeFixture {
    metadata: ObjectMeta,
    spec: OSUpgradeSpec,
    catalog: Vec<ImageRef>,
    blocked: Vec<OsVersion>,
    run: Option<(i64, Timestamp)>,
    phase: Option<UpgradePhase>,
}

impl UpgradeFixture {
    /// It leads to this version.
    #[must_use]
    pub fn to(mut self, version: &str) -> Self {
        version.clone_into(&mut self.spec.version);
        self
    }

    /// The catalog lists these versions too.
    #[must_use]
    pub fn through(mut self, versions: &[&str]) -> Self {
        self.catalog = versions.iter().map(|version| image(version)).collect();
        self
    }

    /// The catalog blocks this version.
    #[must_use]
    pub fn blocking(mut self, version: &str) -> Self {
        self.blocked.push(parse(version));
        self
    }

    /// It selects by a label.
    #[must_use]
    pub fn selecting(mut self, key: &str, value: &str) -> Self {
        self.spec.node_selector.0.insert(key.to_owned(), value.into());
        self
    }

    /// It allows downgrades.
    #[must_use]
    pub fn allowing_downgrades(mut self) -> Self {
        self.spec.downgrade_policy = Some(DowngradePolicy::Allow);
        self
    }

    /// Its rollout settings.
    #[must_use]
    pub fn rollout(mut self, change: impl FnOnce(&mut RolloutSpec)) -> Self {
        change(self.spec.rollout.get_or_insert_default());
        self
    }

    /// Anything else about its spec.
    #[must_use]
    pub fn spec(mut self, change: impl FnOnce(&mut OSUpgradeSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// An annotation of the object.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// The operator has not seen it yet.
    #[must_use]
    pub fn unseen(mut self) -> Self {
        self.run = None;
        self
    }

    /// Which run is under way, and since when.
    #[must_use]
    pub fn run(mut self, run: i64, since: Timestamp) -> Self {
        self.run = Some((run, since));
        self
    }

    /// The phase it was in.
    #[must_use]
    pub fn in_phase(mut self, phase: UpgradePhase) -> Self {
        self.phase = Some(phase);
        self
    }

    /// What it is resolved to.
    #[must_use]
    pub fn resolved(&self) -> Resolved {
        let images = self.catalog.iter().cloned().chain([image(&self.spec.version)]);
        let images: BTreeMap<OsVersion, ImageRef> =
            images.map(|image| (image.version.clone(), image)).collect();
        Resolved {
            version: parse(&self.spec.version),
            catalog_digest: Sha256Digest::of(b"catalog"),
            images: images.into_values().collect(),
        }
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> OSUpgrade {
        let resolved = self.resolved();
        let nonce = self.spec.retry_nonce.clone();
        let status = self.run.map(|(run, since)| OSUpgradeStatus {
            run: Some(run),
            run_started_at: Some(Time(since)),
            run_digest: Some(run_digest(&self.spec, &resolved.version)),
            resolved: Some(resolved),
            observed_retry_nonce: nonce,
            phase: self.phase.clone(),
            ..OSUpgradeStatus::default()
        });
        OSUpgrade { metadata: self.metadata.clone(), spec: self.spec.clone(), status }
    }

    /// What the planner sees of it.
    #[must_use]
    pub fn view(&self) -> UpgradeView {
        let target = Target { resolved: self.resolved(), blocked: self.blocked.iter().cloned().collect() };
        UpgradeView {
            upgrade: self.object(),
            evaluation: Evaluation::Accepted(target),
            catalog_error: None,
            health: Vec::new(),
        }
    }
}

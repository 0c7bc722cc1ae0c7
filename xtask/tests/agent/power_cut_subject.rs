//! A machine with one order, whose agent is to be stopped.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{Patch, PatchParams};
use monok8s_sdk::api::{OSUpgradeProgress, OSUpgradeProgressStatus};
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{BootBackend as _, LoaderStatus};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::node_upgrade::Record;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::machine::{Machine, MachineSpec};
use xtask::programs::Program;
use xtask::rootfs::{Artifact, RootfsSpec};

use crate::bench::{Bench, MIB, NEW, OLD};
use crate::power_cut_rows::{Bytes, Meanwhile, Row, Story};

pub(crate) const PREVIOUS: &str = "v1.35.0";
const IMAGE: u64 = 8 * MIB;
const SLOT: u64 = 12 * MIB;
const HEAD: u64 = 64 << 10;
/// Until the guard acts, where it is meant to; longer than a boot takes on a busy machine.
const GUARD: Duration = Duration::from_secs(15);
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// One machine with one order.
pub(crate) struct Subject<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) row: Option<&'a Row>,
    pub(crate) machine: Machine,
    pub(crate) node: String,
    pub(crate) object: String,
    pub(crate) artifact: &'a Artifact,
    /// The artifact's path on the server, used by nobody else.
    pub(crate) path: String,
    pub(crate) is_granted: bool,
}

/// What a machine remembers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Memory {
    pub(crate) record: Record,
    pub(crate) loader: LoaderStatus,
}

/// A bench with small images, one for each story.
pub(crate) async fn cut_bench() -> Bench {
    let mut bench = Bench::start().await;
    let small = |version: &str| RootfsSpec::of(version).sized(IMAGE, 3 * MIB + 5);
    bench.build("old", &small(OLD));
    bench.build("previous", &small(PREVIOUS));
    bench.build_indexed("new", &small(NEW));
    bench.build("panics", &small(NEW).panicking());
    bench.build("unstated", &small(NEW).claiming_nothing());
    // Built now: nobody wants to wait for a compiler in the middle of a trial.
    for program in [Program::Agent, Program::StoppingAgent] {
        program.locate().unwrap();
    }
    bench
}

impl<'a> Subject<'a> {
    pub(crate) async fn start(bench: &'a Bench, number: usize, row: Option<&'a Row>) -> Self {
        let story = row.map_or(Story::Ordered, |row| row.story);
        let artifact = bench.artifact(match story {
            Story::Ordered | Story::Indexed | Story::ByHand => "new",
            Story::Panics => "panics",
            Story::Unstated => "unstated",
        });
        let (node, object) = (format!("node-{number}"), format!("osupgrade-{number}"));
        let path = format!("/image-{number}");
        bench.files.serve_file(&path, &artifact.path);
        let guard = match row.map(|row| row.meanwhile) {
            Some(Meanwhile::GuardActs) => GUARD,
            _ => Duration::from_secs(600),
        };
        let previous = Some(bench.artifact("previous").image.clone());
        let change = |spec| MachineSpec { previous, guard, slot_bytes: SLOT, ..spec };
        let machine = bench.machine_with(&node, &[], change).await;
        let subject = Self { bench, row, machine, node, object, artifact, path, is_granted: false };
        // What follows a boot is done with, so that every row begins in the same state.
        subject.rests().await;
        if let Some(row) = row {
            subject.machine.stop_at(row.point).await.unwrap();
        }
        match story {
            Story::ByHand => subject.made_by_hand().await,
            _ => subject.ordered(story).await,
        }
        subject
    }

    pub(crate) async fn rests(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.memory().loader.needs_marking(Slot::A) {
            assert!(Instant::now() < deadline, "{}: the first boot is never marked good", self.node);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn entry(&self, story: Story) -> Value {
        let mut entry = json!({
            "version": NEW,
            "checksum": self.artifact.digest.to_string(),
            "size": self.artifact.image.bytes,
        });
        if story == Story::Indexed {
            let index = self.artifact.index.as_ref().unwrap();
            let path = format!("{}.idx", self.path);
            self.bench.files.serve_file(&path, &index.path);
            entry["index"] =
                json!({"url": self.bench.files.url(&path), "checksum": index.digest.to_string()});
        }
        entry
    }

    /// As an operator orders it, with leave to stage.
    pub(crate) async fn ordered(&self, story: Story) {
        let node = Api::<Node>::all(self.bench.client()).get(&self.node).await.unwrap();
        let mut hop = self.entry(story);
        hop["urls"] = json!([self.bench.files.url(&self.path)]);
        let order = json!({"nodeUID": node.metadata.uid, "run": 1, "hops": [hop], "stage": NEW});
        let spec = json!({"sourceRef": {"name": "up"}, "nodeName": self.node, "order": order});
        let object = json!({"metadata": {"name": self.object}, "spec": spec});
        self.bench.create::<OSUpgradeProgress>(&object).await;
    }

    pub(crate) async fn made_by_hand(&self) {
        let upgrade = format!("up-{}", self.node);
        let mut entry = self.entry(Story::ByHand);
        entry["url"] = json!(self.bench.files.url(&self.path));
        self.bench.upgrade(&upgrade, NEW, &[entry]).await;
        self.bench.hand_made(&self.object, &upgrade, &self.node).await;
    }

    /// What a person would look at.
    pub(crate) fn told(&self) -> String {
        let log = std::fs::read_to_string(self.machine.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("{:?}\n{:?}\n{:?}\n{tail}", self.row, self.machine.boots(), self.memory())
    }

    pub(crate) async fn status(&self) -> OSUpgradeProgressStatus {
        self.bench.progress(&self.object).await.status.unwrap_or_default()
    }

    /// As an operator does once the node is empty. Later leave changes nothing.
    pub(crate) async fn granted_when_staged(&mut self, status: &OSUpgradeProgressStatus) {
        if self.is_granted || status.phase.as_ref().is_none_or(|phase| phase.as_str() != "Staged") {
            return;
        }
        let not_after = Timestamp::now() + SignedDuration::from_secs(600);
        let boot = json!({"version": NEW, "notAfter": not_after.to_string()});
        self.patch(json!({"boot": boot})).await;
        self.is_granted = true;
    }

    pub(crate) async fn patch(&self, order: Value) {
        let api = Api::<OSUpgradeProgress>::all(self.bench.client());
        let patch = Patch::Merge(json!({"spec": {"order": order}}));
        api.patch(&self.object, &PatchParams::default(), &patch).await.unwrap();
    }

    pub(crate) fn memory(&self) -> Memory {
        let record = RecordStore::in_dir(self.machine.data_dir()).load().unwrap();
        let loader = SimulatedLoader::open(self.machine.loader_path()).status().unwrap();
        Memory { record, loader }
    }

    /// What is in slot B; `None` for anything that no row expects.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        let digest = |bytes| self.machine.slot_digest(Slot::B, bytes).unwrap();
        let image = &self.artifact.image;
        let previous = &self.bench.artifact("previous").image;
        let zeroes = vec![0; usize::try_from(HEAD).unwrap()];
        if digest(image.bytes) == image.digest {
            Some(Bytes::New)
        } else if digest(previous.bytes) == previous.digest {
            Some(Bytes::Previous)
        } else if digest(HEAD) == Sha256Digest::of(&zeroes) {
            Some(Bytes::Headless)
        } else {
            None
        }
    }

    /// As an operator lets another upgrade have the node.
    pub(crate) async fn superseded(&self) {
        self.patch(json!({"stage": null, "boot": null})).await;
        let condition = json!({"type": "Superseded", "status": "True", "reason": "Superseded", "message": "",
            "lastTransitionTime": Timestamp::now().to_string()});
        let document = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": {"name": self.object},
            "status": {"conditions": [condition]},
        });
        let params = PatchParams::apply("monok8s-operator").force();
        let api = Api::<OSUpgradeProgress>::all(self.bench.client());
        api.patch_status(&self.object, &params, &Patch::Apply(document)).await.unwrap();
    }
}

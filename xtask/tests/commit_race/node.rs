//! A node that decides as the agent does. It has no disk: what it writes counts as written, and reads
//! back. Its commit is the agent's own.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use monok8s_agent::agent::{Cluster, ClusterError, Commitment};
use monok8s_sdk::api::{AGENT_FIELD_MANAGER, OSNode, OSUpgradeProgress, TrialSpec};
use monok8s_sdk::boot::{LoaderStatus, Tries};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::node_upgrade::{
    Action, ApiView, Attempt, BootId, Booted, Freshness, HeldToken, NodeFacts, Order, Record, Report, Step,
    TrialHealth, decide,
};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use serde_json::json;
use xtask::kubelet::{Kubelet, NodeSpec};

pub(super) const OLD: &str = "v1.35.1";
const IMAGE_LEN: u64 = 4096;

pub(super) struct DecidingNode {
    client: Client,
    cluster: Cluster,
    name: String,
    uid: String,
    facts: NodeFacts,
}

/// Where a node stands when it does nothing more by itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Halt {
    /// It waits, and says where it stands.
    Rests(Resting),
    /// It is about to write its commit.
    WouldCommit { version: OsVersion, slot: Slot },
    /// Its other slot boots next.
    Armed,
}

/// What a node that waits says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resting {
    Staged,
    Other(String),
}

impl DecidingNode {
    /// A Ready node that runs the old version from slot A.
    pub(super) async fn join(client: &Client, name: &str) -> Self {
        let kubelet = Kubelet::start(client.clone(), &NodeSpec::worker(name, OLD)).await.unwrap();
        let boot_id = BootId(kubelet.boot_id());
        drop(kubelet);
        let node = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone()).get(name).await.unwrap();
        let mut loader = LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL);
        loader.boot_once();
        let facts = NodeFacts {
            booted: Booted { slot: Slot::A, version: OLD.parse().unwrap(), boot_id },
            loader: loader.marked_good(Slot::A),
            record: Record::default(),
            token: None,
            health: TrialHealth::unknown(),
            time_in_trial: Duration::from_secs(600),
            api: ApiView::Read,
        };
        let cluster = Cluster::new(client.clone(), name.to_owned());
        let uid = node.metadata.uid.unwrap();
        Self { client: client.clone(), cluster, name: name.to_owned(), uid, facts }
    }

    /// Fills its `OSNode`.
    pub(super) async fn report(&self) {
        let booted = &self.facts.booted;
        let status = json!({
            "bootedSlot": booted.slot, "bootedVersion": booted.version, "bootID": booted.boot_id, "arch": "amd64",
            "loader": { "backend": "simulated", "countsTries": "Proven" },
        });
        let object = json!({ "apiVersion": "monok8s.io/v1alpha1", "kind": "OSNode",
            "metadata": { "name": self.name }, "status": status });
        let params = PatchParams::apply(AGENT_FIELD_MANAGER).force();
        let api = Api::<OSNode>::all(self.client.clone());
        api.patch_status(&self.name, &params, &Patch::Apply(&object)).await.unwrap();
    }

    /// Says that it is staged, as the operator must hear before it goes on.
    pub(super) async fn say_staged(&self, object: &OSUpgradeProgress) -> OSUpgradeProgress {
        let name = object.metadata.name.as_deref().unwrap();
        let hop = &object.spec.order.as_ref().unwrap().hops[0].version;
        let document = json!({ "apiVersion": "monok8s.io/v1alpha1", "kind": "OSUpgradeProgress",
            "metadata": { "name": name }, "status": { "phase": "Staged", "hop": hop } });
        let params = PatchParams::apply(AGENT_FIELD_MANAGER).force();
        let api = Api::<OSUpgradeProgress>::all(self.client.clone());
        api.patch_status(name, &params, &Patch::Apply(&document)).await.unwrap()
    }

    fn order(&self, object: &OSUpgradeProgress) -> Order {
        Order::read(object, &self.uid, Freshness::Quorum, &[], &TrialSpec::default()).unwrap()
    }

    /// Follows `object` for as long as it needs nothing from the API server.
    pub(super) fn follow(&mut self, object: &OSUpgradeProgress) -> Halt {
        let order = self.order(object);
        for _ in 0..40 {
            let facts = &mut self.facts;
            let step = match decide(facts, Some(&order), Timestamp::now()) {
                Action::Record(step) => step,
                Action::Write { hop, .. } => {
                    let image_digest = Sha256Digest::of(hop.version.to_string().as_bytes());
                    Step::Written { image_digest, image_len: IMAGE_LEN }
                }
                Action::Verify { slot, digest, .. } => {
                    facts.token = Some(HeldToken { slot, digest });
                    Step::Verified
                }
                Action::Invalidate { slot } => {
                    facts.loader = facts.loader.invalidated(slot);
                    continue;
                }
                Action::Arm { slot, attempt, tries, .. } => {
                    facts.loader = facts.loader.armed(slot, attempt, tries);
                    return Halt::Armed;
                }
                Action::Commit { version, slot, resource_version } => {
                    assert_eq!(Some(resource_version), object.metadata.resource_version);
                    return Halt::WouldCommit { version, slot };
                }
                Action::Report(Report::Staged { .. }) => return Halt::Rests(Resting::Staged),
                other @ (Action::Wait(_) | Action::Report(_)) => {
                    return Halt::Rests(Resting::Other(format!("{other:?}")));
                }
                other => panic!("{} decides {other:?}", self.name),
            };
            self.facts.record = self.facts.record.after(&step);
        }
        panic!("{} does not come to rest", self.name);
    }

    /// The agent's commit, on the object as it was read.
    pub(super) async fn commit(
        &mut self,
        object: &OSUpgradeProgress,
        version: &OsVersion,
        slot: Slot,
    ) -> Result<OSUpgradeProgress, ClusterError> {
        let (order, facts) = (self.order(object), &self.facts);
        let commitment = Commitment { object, order: &order, facts, version, slot, progress: None };
        let written = commitment.announce(&self.cluster, Timestamp::now()).await?;
        let boot_id = self.facts.booted.boot_id.clone();
        self.facts.record = self.facts.record.after(&Step::Committed { boot_id });
        Ok(written)
    }

    pub(super) fn is_armed(&self) -> bool {
        self.facts.loader.trial.is_some() || self.facts.loader.next_boot() != Some(Slot::A)
    }

    pub(super) fn has_attempt_past_its_intent(&self) -> bool {
        self.facts.record.attempt.as_ref().is_some_and(Attempt::may_be_committed)
    }
}

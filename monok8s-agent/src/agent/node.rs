//! The agent of one node: what it has in hands, and one turn of its loop.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::{OSUpgradeProgress, TrialSpec};
use monok8s_sdk::boot::record_store::{RecordLock, RecordStore};
use monok8s_sdk::causes::chain;
use monok8s_sdk::disk::{SlotMap, VerifiedSlot};
use monok8s_sdk::node_upgrade::{ApiView, Attempt, NodeFacts, Record, Selection, Step, decide, select};
use monok8s_sdk::version::OsVersion;
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::act::{Deed, Turn};
use super::cluster::{Cluster, ClusterError, Precondition};
use super::error::NodeError;
use super::health::HealthProbe;
use super::known::{Known, Snapshot};
use super::observe::Sight;
use super::ordering::Ordered;
use super::osnode::{self, Inventory, OsNodeWriter};
use super::present;
use super::report::{Reporter, Said};
use super::resolve::Resolver;
use super::status::{Report, acknowledged, troubled};
use super::work::{Effort, Workshop};
use crate::machine::{Loader, MachineArgs};
use crate::reboot::RebootCommand;

/// How long to rest when nothing is expected. Facts of the host that nobody announces are looked
/// at again after this.
pub(super) const IDLE: Duration = Duration::from_secs(30);
/// How long to rest before trying again what failed on this node.
const AFTER_TROUBLE: Duration = Duration::from_secs(5);
/// How old the Node's UID may be before it is asked for again.
const UID_LIFETIME: Duration = Duration::from_secs(300);
/// How soon it may be asked for again when an order names another one.
const UID_DOUBT: Duration = Duration::from_secs(10);

/// Everything that one agent holds.
pub(super) struct Node {
    pub(super) cluster: Cluster,
    pub(super) known: Known,
    pub(super) workshop: Workshop,
    pub(super) machine: MachineArgs,
    pub(super) store: RecordStore,
    /// Held through every turn, and from one to the next while an attempt goes on.
    lock: Option<RecordLock>,
    /// As it is on the data partition. While an attempt goes on, this process is its only writer.
    pub(super) record: Record,
    is_record_read: bool,
    /// Where the slots are, and which is booted: neither changes within a boot.
    pub(super) slots: Option<SlotMap>,
    pub(super) loader: Loader,
    pub(super) probe: HealthProbe,
    pub(super) reboot_command: Option<RebootCommand>,
    /// Whether the host was asked to reboot, in this boot.
    pub(super) reboot_asked: bool,
    /// When the host took a request to reboot.
    pub(super) going_down_since: Option<Instant>,
    pub(super) resolver: Resolver,
    /// A slot that this process read back, held until it is armed or written again.
    pub(super) token: Option<VerifiedSlot>,
    pub(super) effort: Effort,
    pub(super) reporter: Reporter,
    inventory: OsNodeWriter,
    /// The trial settings of the hand-made object with this UID.
    pub(super) trial: Option<(String, TrialSpec)>,
    uid: Option<KnownUid>,
    /// The kubelet's version in this boot, where the image states none.
    pub(super) kubelet_version: Option<OsVersion>,
}

/// The parts that an agent is made of.
pub(super) struct Parts {
    pub(super) cluster: Cluster,
    pub(super) known: Known,
    pub(super) workshop: Workshop,
    pub(super) machine: MachineArgs,
    pub(super) loader: Loader,
    pub(super) probe: HealthProbe,
    pub(super) reboot_command: Option<RebootCommand>,
    pub(super) resolver: Resolver,
    pub(super) effort: Effort,
}

struct KnownUid {
    uid: String,
    read_at: Instant,
}

impl Node {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { cluster, known, workshop, machine, loader, probe, reboot_command, resolver, effort } =
            parts;
        Self {
            cluster,
            known,
            workshop,
            store: machine.record(),
            machine,
            lock: None,
            record: Record::default(),
            is_record_read: false,
            slots: None,
            loader,
            probe,
            reboot_command,
            reboot_asked: false,
            going_down_since: None,
            resolver,
            token: None,
            effort,
            reporter: Reporter::new(),
            inventory: OsNodeWriter::default(),
            trial: None,
            uid: None,
            kubelet_version: None,
        }
    }

    /// Runs for ever: observes, decides, acts and reports.
    pub(super) async fn run(mut self) {
        loop {
            let rest = match self.turn().await {
                Ok(Turn::Again) => {
                    // A turn may never have waited for anything; others must get theirs.
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Turn::Rest(rest)) => rest,
                Err(error) => {
                    let problem = chain(&error);
                    tracing::error!(problem, "cannot go on, trying again");
                    self.tell_of(&problem).await;
                    AFTER_TROUBLE
                }
            };
            if self.is_between_attempts() {
                self.lock = None;
            }
            tokio::select! {
                () = self.known.changed() => {}
                () = self.effort.ended() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn turn(&mut self) -> Result<Turn, NodeError> {
        self.machine.require_lasting_data_dir()?;
        if self.lock.is_none() {
            let holder = format!("monok8s-agent (process {})", std::process::id());
            self.lock = Some(block_in_place(|| self.store.lock(&holder))?);
        }
        let Sight { mut facts, slots } = self.look().await?;
        let snapshot = self.known.snapshot();
        let uid = self.node_uid(&snapshot).await;
        let selection = match &uid {
            Some(uid) => select(&snapshot.objects, &self.record, uid),
            None => Selection::default(),
        };
        let ordered = match (&selection.current, &uid) {
            (Some(object), Some(uid)) => self.order(object, uid, &facts).await?,
            _ => Ordered::Nothing,
        };
        let is_complete =
            (snapshot.objects.is_empty() || uid.is_some()) && !snapshot.hides_commit_of(&self.record);
        let is_read = snapshot.listed && is_complete && !matches!(ordered, Ordered::Held { .. });
        facts.api = if is_read { ApiView::Read } else { ApiView::NotRead };
        facts.record = self.record.clone();

        let action = decide(&facts, ordered.order(), Timestamp::now());
        tracing::debug!(?action, "decided");
        let deed = Deed { facts: &facts, order: ordered.order(), object: selection.current.as_deref() };
        let turn = self.act(deed, &action).await?;
        let Turn::Rest(mut rest) = turn else { return Ok(turn) };
        if let (Ordered::Held { report, again }, Some(object)) = (&ordered, &selection.current) {
            rest = rest.min(*again).min(self.say(object, report).await);
        }
        rest = rest.min(self.tell_the_others(&selection, &facts).await);
        self.keep_os_node(&facts, &slots).await;
        Ok(Turn::Rest(rest))
    }

    /// Whether nothing is under way that a person who flashes a slot could come between.
    fn is_between_attempts(&self) -> bool {
        self.record.attempt.as_ref().is_none_or(Attempt::has_ended)
    }

    /// Reads the record, unless it is known. Between attempts a person may have flashed a slot, and
    /// had the record forget it: what was known before must not be written over that.
    pub(super) fn recall(&mut self) -> Result<(), NodeError> {
        if self.is_between_attempts() || !self.is_record_read {
            self.record = block_in_place(|| self.store.load())?;
            self.is_record_read = true;
        }
        Ok(())
    }

    /// The UID of this node's Node. An order carries the one it was made for.
    async fn node_uid(&mut self, snapshot: &Snapshot) -> Option<String> {
        let doubted = self.uid.as_ref().is_some_and(|known| {
            let ordered = snapshot.objects.values().filter_map(|object| object.spec.order.as_ref());
            ordered.into_iter().any(|order| order.node_uid != known.uid)
        });
        let lifetime = if doubted { UID_DOUBT } else { UID_LIFETIME };
        let is_fresh = self.uid.as_ref().is_some_and(|known| known.read_at.elapsed() < lifetime);
        // Nothing is asked for that nobody needs: without objects there is nothing to compare.
        if !is_fresh && !snapshot.objects.is_empty() {
            match self.cluster.node().await {
                Ok(node) => {
                    let uid = node.metadata.uid.unwrap_or_default();
                    self.uid = Some(KnownUid { uid, read_at: Instant::now() });
                }
                // A known one stays good while the API server is away; its orders are as old.
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "cannot read this node's Node");
                }
            }
        }
        self.uid.as_ref().map(|known| known.uid.clone())
    }

    /// Makes an object say `report`; how long it may take until it does.
    pub(super) async fn say(&mut self, object: &OSUpgradeProgress, report: &Report) -> Duration {
        match self.reporter.say(&self.cluster, &mut self.known, object, report).await {
            Said::Yes => {
                #[cfg(feature = "failpoints")]
                crate::failpoints::said(&report.phase);
                IDLE
            }
            Said::Later(wait) => wait,
        }
    }

    /// Tells the objects that wait what they wait for, and those that ended that their spec was seen.
    async fn tell_the_others(&mut self, selection: &Selection, facts: &NodeFacts) -> Duration {
        let mut wait = IDLE;
        let busy_with = match &selection.current {
            Some(object) => object.metadata.name.clone().unwrap_or_default(),
            None => "what the node has committed to".to_owned(),
        };
        for object in &selection.waiting {
            let message = format!("waits for {busy_with}: a node works on one object at a time");
            let report = present::holding(object, facts, "WaitingForTurn", message);
            wait = wait.min(self.say(object, &report).await);
        }
        for object in &selection.ended {
            let Some(status) = acknowledged(object) else { continue };
            match self.cluster.write_progress(object, &status, Precondition::SameObject).await {
                Ok(written) => self.known.learn(written),
                Err(ClusterError::Absent { .. }) => self.known.miss(object),
                Err(_) => wait = wait.min(AFTER_TROUBLE),
            }
        }
        wait
    }

    /// Says what is in the way on this node, where anyone would look for it. There is nothing to
    /// decide on, so everything else that was said still holds.
    async fn tell_of(&mut self, problem: &str) {
        self.inventory.tell_of(&self.cluster, problem).await;
        let snapshot = self.known.snapshot();
        let uid = self.uid.as_ref().map(|known| known.uid.as_str());
        let is_ours = |object: &OSUpgradeProgress| {
            object.spec.order.as_ref().is_none_or(|order| Some(order.node_uid.as_str()) == uid)
        };
        for object in snapshot.objects.values().filter(|object| !object.phase().is_final()) {
            if !is_ours(object) {
                continue;
            }
            let Some(status) = troubled(object, problem, Timestamp::now()) else { continue };
            match self.cluster.write_progress(object, &status, Precondition::SameObject).await {
                Ok(written) => self.known.learn(written),
                Err(error) => tracing::warn!(error = %chain(&error), "cannot report"),
            }
        }
    }

    async fn keep_os_node(&mut self, facts: &NodeFacts, slots: &SlotMap) {
        let guard = self.guard_state(&facts.booted.boot_id);
        let inventory = Inventory { facts, slots, backend: self.loader.backend().name(), guard };
        self.inventory.keep(&self.cluster, &osnode::status(&inventory)).await;
    }

    /// Saves the record as it is after `step`. What it leads to must not begin before this returns.
    pub(super) fn record(&mut self, step: &Step) -> Result<(), NodeError> {
        let next = self.record.after(step);
        if next != self.record {
            #[cfg(feature = "failpoints")]
            crate::failpoints::records(step);
            block_in_place(|| self.store.save(&next))?;
            self.record = next;
        }
        tracing::info!(?step, "recorded");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::{Client, Config};
    use monok8s_sdk::boot::Tries;
    use monok8s_sdk::boot::simulated::SimulatedLoader;
    use monok8s_sdk::catalog::source::{CatalogFetcher, FetchLimits};
    use monok8s_sdk::disk::fixture::FileMachine;
    use monok8s_sdk::image::KeptIndexes;
    use monok8s_sdk::node_upgrade::{BootId, Check, ObjectIdentity, SlotContent};
    use monok8s_sdk::slot::Slot;

    use super::super::config::{Endpoint, HealthArgs};
    use super::*;
    use crate::machine::BootBackendChoice;
    use crate::politeness::Politeness;

    fn agent(machine: &FileMachine, dir: &std::path::Path) -> Node {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Nothing listens there, and nothing is asked.
        let client = Client::try_from(Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let http = reqwest::Client::new();
        let (_, orders) = tokio::sync::watch::channel(super::super::orders::Orders::default());
        Node::new(Parts {
            cluster: Cluster::new(client, "node-1".to_owned()),
            known: Known::new(orders),
            workshop: Workshop {
                host: machine.host(),
                layout: machine.layout(),
                http: http.clone(),
                politeness: Politeness::default(),
                guard: Arc::default(),
                kept: KeptIndexes::new(dir),
            },
            machine: MachineArgs {
                host_root: machine.host().path(""),
                disk: Some(machine.disk()),
                slot_a_label: "rootfs-a".to_owned(),
                slot_b_label: "rootfs-b".to_owned(),
                data_dir: dir.to_owned(),
                boot_backend: BootBackendChoice::Simulated(dir.join("loader")),
            },
            loader: Loader::Simulated(
                SimulatedLoader::install(&dir.join("loader"), Slot::A, Tries::DEFAULT_FULL).unwrap(),
            ),
            probe: HealthProbe::new(HealthArgs {
                kubelet_healthz: Endpoint::None,
                apiserver_readyz: Endpoint::None,
            })
            .unwrap(),
            reboot_command: None,
            resolver: Resolver {
                fetcher: CatalogFetcher { http, config_maps: None, limits: FetchLimits::default() },
                arch: None,
            },
            effort: Effort::new(Duration::ZERO),
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_slot_that_was_flashed_by_hand_is_not_known_good_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = agent(&FileMachine::create(dir.path(), 8 << 20).unwrap(), dir.path());
        let known_good: SlotContent =
            serde_json::from_str(r#"{"version": "v1.34.6", "state": "KnownGood"}"#).unwrap();
        let mut record = Record::default();
        record.slots.b = Some(known_good);
        agent.store.save(&record).unwrap();
        agent.recall().unwrap();
        assert!(agent.record.slots.b.is_some());

        record.slots.b = None;
        agent.store.save(&record).unwrap();
        agent.recall().unwrap();
        let object = ObjectIdentity::new("osupgrade-1", "uid-1");
        let seen = Step::Accepted { object, generation: 1, retry_nonce: None, rollback_nonce: None };
        agent.record(&seen).unwrap();
        let kept = agent.store.load().unwrap();
        assert_eq!((kept.slots.b, kept.seen.len()), (None, 1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_written_to_a_slot_is_not_known_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = agent(&FileMachine::create(dir.path(), 8 << 20).unwrap(), dir.path());
        let written: SlotContent =
            serde_json::from_str(r#"{"version": "v1.35.4", "state": "Verified"}"#).unwrap();
        agent.record.slots.b = Some(written);
        let boot_id = BootId("b-1".to_owned());
        assert_eq!(agent.booted_version(Slot::A, &boot_id).await, None);
        let (version, known) = agent.booted_version(Slot::B, &boot_id).await.unwrap();
        assert_eq!(version.to_string(), "v1.35.4");
        assert!(known.missing().unwrap().contains("not known yet"), "{known:?}");

        agent.kubelet_version = Some("v1.35.3".parse().unwrap());
        let said = ("v1.35.3".parse().unwrap(), Check::Holds);
        assert_eq!(agent.booted_version(Slot::B, &boot_id).await, Some(said));
        let os_release = agent.workshop.host.path("etc/os-release");
        std::fs::create_dir_all(os_release.parent().unwrap()).unwrap();
        std::fs::write(os_release, "MONOK8S_VERSION=v1.35.5\n").unwrap();
        let said = ("v1.35.5".parse().unwrap(), Check::Holds);
        assert_eq!(agent.booted_version(Slot::B, &boot_id).await, Some(said));
    }
}

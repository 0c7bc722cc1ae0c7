//! Keeping this node's `OSNode` true.

use std::time::Duration;

use monok8s_sdk::api::{
    FailedImage, GuardState, LoaderReport, OSNode, OSNodeStatus, OtherSlotReport, ReturnState, SlotReport,
    shorten_message,
};
use monok8s_sdk::boot::TryCounting;
use monok8s_sdk::catalog::Arch;
use monok8s_sdk::causes::chain;
use monok8s_sdk::disk::SlotMap;
use monok8s_sdk::node_upgrade::{AttemptKind, NodeFacts, SlotContentState};
use monok8s_sdk::slot::Slot;
use tokio::time::Instant;

use super::cluster::{Cluster, ClusterError};
use super::spread::spread;

/// How soon, at the latest, to look again for an `OSNode` that the operator has not made yet, or that could not be
/// read or written.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// After how long, at the latest, to make sure that nobody else changed it.
const REFRESH: Duration = Duration::from_secs(300);

/// What is said about the node, beside what decisions rest on.
pub(super) struct Inventory<'a> {
    pub(super) facts: &'a NodeFacts,
    pub(super) slots: &'a SlotMap,
    pub(super) backend: &'a str,
    pub(super) guard: GuardState,
}

/// The status that says it.
pub(super) fn status(inventory: &Inventory<'_>) -> OSNodeStatus {
    let Inventory { facts, slots, backend, guard } = inventory;
    let booted = &facts.booted;
    OSNodeStatus {
        booted_slot: Some(booted.slot),
        booted_version: Some(booted.version.to_string()),
        boot_id: Some(booted.boot_id.0.clone()),
        arch: architecture().map(|arch| arch.to_string()),
        other_slot: Some(other_slot(facts, booted.slot.other())),
        slots: Slot::BOTH.map(|slot| slot_report(slots, slot)).into(),
        loader: Some(LoaderReport {
            backend: (*backend).to_owned(),
            counts_tries: facts.loader.try_counting().into(),
        }),
        guard: Some(guard.clone()),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        failed_images: failed_images(facts),
        problem: Some(problem(facts)),
    }
}

/// Why no upgrade can begin here; empty when one can.
fn problem(facts: &NodeFacts) -> String {
    match facts.loader.try_counting() {
        TryCounting::Proven => String::new(),
        TryCounting::Unsupported => {
            "the boot loader was not seen to count tries, so no trial is begun: set --boot-backend to the loader of this node".to_owned()
        }
    }
}

/// The architecture that this program runs on, as Kubernetes names it.
pub(super) fn architecture() -> Option<Arch> {
    std::env::consts::ARCH.parse().ok()
}

fn other_slot(facts: &NodeFacts, slot: Slot) -> OtherSlotReport {
    let content = facts.record.slots.get(slot);
    let return_state = match content.map(|content| &content.state) {
        Some(SlotContentState::KnownGood)
            if facts.loader.is_confirmed(slot) || is_going_back(facts, slot) =>
        {
            ReturnState::KnownGood
        }
        Some(SlotContentState::Verified) => ReturnState::Verified,
        _ => ReturnState::Empty,
    };
    OtherSlotReport {
        slot,
        version: content.map(|content| content.version.to_string()),
        image_digest: content.and_then(|content| content.image_digest),
        return_state,
    }
}

/// Whether the node is to go back to `slot`. It leaves the loader's order before the commit, and is
/// as good as before if its grant is taken back.
fn is_going_back(facts: &NodeFacts, slot: Slot) -> bool {
    let attempt = facts.record.attempt.as_ref();
    attempt.is_some_and(|attempt| {
        attempt.kind == AttemptKind::Rollback && attempt.slot == slot && !attempt.has_ended()
    })
}

fn slot_report(slots: &SlotMap, slot: Slot) -> SlotReport {
    let partition = &slots.get(slot).partition;
    SlotReport {
        slot,
        part_uuid: partition.guid.to_string(),
        size_bytes: i64::try_from(partition.length).unwrap_or(i64::MAX),
    }
}

fn failed_images(facts: &NodeFacts) -> Vec<FailedImage> {
    let failed = facts.record.failed.iter().map(|failed| FailedImage {
        checksum: failed.checksum,
        version: failed.version.clone(),
        reason: failed.reason.to_string(),
        at: failed.at.clone(),
    });
    failed.collect()
}

/// Writes the status when it changed, and only then.
#[derive(Debug, Default)]
pub(super) struct OsNodeWriter {
    /// The object as it was last read or written.
    known: Option<OSNode>,
    look_at: Option<Instant>,
}

impl OsNodeWriter {
    /// Makes the `OSNode` say `status`, if it is there and does not say so yet.
    pub(super) async fn keep(&mut self, cluster: &Cluster, status: &OSNodeStatus) {
        let is_due = self.look_at.is_none_or(|at| at <= Instant::now());
        let says_so = |known: &OSNode| known.status.as_ref() == Some(status);
        if !is_due && self.known.as_ref().is_none_or(says_so) {
            return;
        }
        match self.read_and_write(cluster, status, is_due).await {
            Ok(object) => {
                self.known = Some(object);
                self.look_at = is_due.then(|| Instant::now() + spread(REFRESH)).or(self.look_at);
            }
            Err(error) => {
                if !matches!(error, ClusterError::Absent { .. }) {
                    tracing::warn!(error = %chain(&error), "cannot keep this node's OSNode, trying again");
                }
                self.known = None;
                self.look_at = Some(Instant::now() + spread(LOOK_AGAIN));
            }
        }
    }

    /// Adds what is in the way to what was said before.
    pub(super) async fn tell_of(&mut self, cluster: &Cluster, problem: &str) {
        let known = match &self.known {
            Some(known) => known.clone(),
            None => match cluster.os_node().await {
                Ok(known) => known,
                Err(_) => return,
            },
        };
        let status = OSNodeStatus {
            problem: Some(shorten_message(problem.to_owned())),
            ..known.status.unwrap_or_default()
        };
        self.keep(cluster, &status).await;
    }

    async fn read_and_write(
        &self,
        cluster: &Cluster,
        status: &OSNodeStatus,
        is_due: bool,
    ) -> Result<OSNode, ClusterError> {
        let object = match &self.known {
            Some(known) if !is_due => known.clone(),
            _ => cluster.os_node().await?,
        };
        if object.status.as_ref() == Some(status) {
            return Ok(object);
        }
        cluster.write_os_node(&object, status).await
    }
}

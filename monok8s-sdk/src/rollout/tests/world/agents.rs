//! What agents do with their orders: what the real decision says, one action after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::host::{Host, Trial};
use super::{Mishap, World};
use crate::api::{FailureReason, Installed, OSUpgradeProgress, ProgressPhase, TimelineEntry, TrialSpec};
use crate::node_upgrade::{Action, Freshness, Order, Report, Step, decide, select};

/// More actions than any step of an upgrade takes.
const LONGEST: usize = 60;

/// What one action comes to for everybody else.
enum Turn {
    /// Nobody sees it.
    Silent,
    /// The cluster sees it.
    Seen,
    /// Nothing is left to do.
    Rest,
}

impl World {
    /// The agent on a machine works until the cluster sees something of it. Returns whether it did anything.
    pub(in crate::rollout::tests) fn agent(&mut self, name: &str) -> bool {
        let Some(machine) = self.machines.get_mut(name).filter(|machine| machine.alive && !machine.hangs)
        else {
            return false;
        };
        let uid = machine.uid.clone();
        machine.host.notice(&machine.runs);
        for _ in 0..LONGEST {
            match self.turn(name, &uid) {
                Turn::Silent => {}
                Turn::Seen => return true,
                Turn::Rest => return false,
            }
        }
        panic!("the agent of {name} does not come to rest: {:#?}", self.machines[name]);
    }

    /// Decides, and does it.
    fn turn(&mut self, name: &str, uid: &str) -> Turn {
        let now = self.now;
        let objects = self.orders_of(name, uid);
        let machine = &self.machines[name];
        let facts = machine.host.facts();
        let current = select(&objects, &facts.record, uid).current;
        // What agents do about caches and clocks is their own simulation's business.
        let read = |object: &Arc<OSUpgradeProgress>| {
            Order::read(object, uid, Freshness::Quorum, &[], &TrialSpec::default()).unwrap()
        };
        let order = current.as_ref().map(read);
        let action = decide(&facts, order.as_ref(), now);
        if let Action::Commit { resource_version, .. } = &action {
            let object = current.and_then(|object| object.metadata.name.clone()).unwrap();
            return self.commit(name, &object, resource_version);
        }
        self.carry_out(name, &action);
        let told = current.and_then(|object| object.metadata.name.clone());
        let is_news = self.tell(name, told.as_deref(), &action);
        match (is_news, action.is_rest()) {
            // A slot is read back in no time here.
            (true, _) if matches!(action, Action::Verify { .. }) => Turn::Silent,
            (true, _) => Turn::Seen,
            (false, true) => Turn::Rest,
            (false, false) => Turn::Silent,
        }
    }

    /// The orders for this very node.
    fn orders_of(&self, name: &str, uid: &str) -> BTreeMap<String, Arc<OSUpgradeProgress>> {
        let mine = self.progresses.iter().filter(|(_, progress)| {
            progress.spec.node_name == name
                && progress.spec.order.as_ref().is_some_and(|order| order.node_uid == uid)
        });
        mine.map(|(name, progress)| (name.clone(), Arc::new(progress.clone()))).collect()
    }

    fn carry_out(&mut self, name: &str, action: &Action) {
        let stamp = self.tick();
        let machine = self.machines.get_mut(name).unwrap();
        let mishap = |wanted: Mishap, mishaps: &mut Vec<Mishap>| {
            let happens = mishaps.last() == Some(&wanted);
            happens.then(|| mishaps.pop()).is_some()
        };
        match action {
            Action::Write { .. } if mishap(Mishap::FailsToStage, &mut machine.mishaps) => {
                let (reason, message) = (FailureReason::ChecksumMismatch, "other bytes".to_owned());
                machine.host.take(&Step::Failed { reason, message });
            }
            Action::Reboot { .. } => {
                let falls_back = mishap(Mishap::FallsBack, &mut machine.mishaps);
                machine.host.carry_out(action, if falls_back { Trial::NeverComesUp } else { Trial::Holds });
                machine.runs = machine.host.booted.version.to_string();
                machine.resource_version = stamp;
            }
            _ => machine.host.carry_out(action, Trial::Holds),
        }
    }

    /// The API server's part of a commit.
    fn commit(&mut self, name: &str, object: &str, resource_version: &str) -> Turn {
        let (now, stamp) = (self.now, self.tick());
        let machine = self.machines.get_mut(name).unwrap();
        let Some(progress) = self.progresses.get_mut(object) else { return Turn::Silent };
        if progress.metadata.resource_version.as_deref() != Some(resource_version) {
            return Turn::Silent;
        }
        assert!(machine.cordoned, "{name} commits to a reboot without a cordon");
        let boot_id = machine.host.booted.boot_id.clone();
        machine.host.take(&Step::Committed { boot_id });
        progress.metadata.resource_version = Some(stamp.to_string());
        enter(progress, ProgressPhase::Rebooting, &machine.host, now);
        Turn::Seen
    }

    /// Makes the status of an object say how it stands. Returns whether that is new.
    fn tell(&mut self, node: &str, object: Option<&str>, action: &Action) -> bool {
        let (now, stamp) = (self.now, self.tick());
        let host = &self.machines[node].host;
        let Some(progress) = object.and_then(|name| self.progresses.get_mut(name)) else { return false };
        let Some(phase) = action.phase() else { return false };
        let before = progress.clone();
        enter(progress, phase, host, now);
        details(progress, action, host, now);
        let changed = *progress != before;
        if changed {
            progress.metadata.resource_version = Some(stamp.to_string());
        }
        changed
    }
}

fn enter(progress: &mut OSUpgradeProgress, phase: ProgressPhase, host: &Host, now: Timestamp) {
    let status = progress.status.get_or_insert_default();
    if status.timeline.last().is_none_or(|last| last.phase != phase) {
        let boot_id = Some(host.booted.boot_id.0.clone());
        let entry = TimelineEntry {
            phase: phase.clone(),
            since: Time(now),
            hop: None,
            boot_id,
            slot: None,
            image_digest: None,
            drained: None,
        };
        status.timeline.push(entry);
    }
    status.phase = Some(phase);
}

/// What the planner reads of a status, beside the phase.
fn details(progress: &mut OSUpgradeProgress, action: &Action, host: &Host, now: Timestamp) {
    let (generation, uid) = (progress.metadata.generation, progress.metadata.uid.clone().unwrap_or_default());
    let status = progress.status.get_or_insert_default();
    status.observed_generation = generation;
    status.boot_id = Some(host.booted.boot_id.0.clone());
    if let Some(seen) = host.record.seen(&uid) {
        status.observed_retry_nonce = seen.retry_nonce.clone().or(status.observed_retry_nonce.take());
        status.observed_rollback_nonce =
            seen.rollback_nonce.clone().or(status.observed_rollback_nonce.take());
    }
    let hop = match action {
        Action::Write { hop, .. } => Some(&hop.version),
        Action::Verify { version, .. } | Action::Report(Report::Staged { version, .. }) => Some(version),
        _ => None,
    };
    status.hop = hop.map(ToString::to_string).or(status.hop.take());
    if host.is_confirmed() {
        let (slot, version) = (host.booted.slot, host.booted.version.clone());
        status.installed = Some(Installed { slot, version, image_digest: None });
    }
    if let Action::Report(Report::Completed { .. }) = action {
        status.completed_at.get_or_insert(Time(now));
    }
}

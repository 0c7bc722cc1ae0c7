//! What agents do with their orders, as far as a fleet can tell.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::{Machine, Mishap, World};
use crate::api::{
    ConditionType, Installed, OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase, TimelineEntry,
    condition_is_true,
};
use crate::slot::Slot;

impl World {
    /// One step of the agent on a machine. Returns whether it did anything.
    pub(in crate::rollout::tests) fn agent(&mut self, name: &str) -> bool {
        let Some(machine) = self.machines.get(name).filter(|machine| machine.alive).cloned() else {
            return false;
        };
        let mine = self.progresses.values().filter(|progress| {
            progress.spec.node_name == name
                && progress.spec.order.as_ref().is_some_and(|order| order.node_uid == machine.uid)
        });
        // What is committed goes first; then the oldest that wants something.
        let mut names: Vec<_> = mine
            .map(|progress| {
                let created = progress.metadata.creation_timestamp.as_ref().map(|time| time.0);
                (!progress.phase().is_committed(), created, progress.metadata.name.clone().unwrap())
            })
            .collect();
        names.sort();
        names.into_iter().any(|(_, _, progress)| self.agent_on(name, &machine, &progress))
    }

    fn agent_on(&mut self, node: &str, machine: &Machine, name: &str) -> bool {
        let now = self.now;
        let stamp = self.tick();
        let Some(progress) = self.progresses.get_mut(name) else { return false };
        let before = progress.clone();
        let step = agent_step(progress, machine, now);
        let changed = *progress != before;
        if changed {
            progress.metadata.resource_version = Some(stamp.to_string());
            let phase = progress.phase();
            let timeline = &mut progress.status.get_or_insert_default().timeline;
            timeline.push(TimelineEntry { phase, since: Time(now), hop: None });
        }
        let commits = progress.phase() == ProgressPhase::Rebooting && before.phase() == ProgressPhase::Staged;
        if commits {
            assert!(machine.cordoned, "{node} commits to a reboot without a cordon");
        }
        if let Some(step) = step {
            self.touch(node, step);
        }
        changed
    }
}

type Touch = Box<dyn FnOnce(&mut Machine)>;

/// What an agent does with one object; returns what happens to the machine.
fn agent_step(progress: &mut OSUpgradeProgress, machine: &Machine, now: Timestamp) -> Option<Touch> {
    let phase = progress.phase();
    let superseded = condition_is_true(progress.conditions(), &ConditionType::Superseded);
    let order = progress.spec.order.clone()?;
    let target = order.hops.last()?.version.clone();
    let running = machine.runs.parse().unwrap();
    let nonce = progress.spec.retry_nonce.clone().filter(|nonce| !nonce.is_empty());
    let status = progress.status.get_or_insert_default();
    let rising = target > running;
    let next = order.hops.iter().map(|hop| &hop.version);
    let next = next.clone().find(|hop| if rising { **hop > running } else { **hop < running }).cloned();
    match phase {
        ProgressPhase::Rebooting => return Some(reboot(status, machine, &order.boot?.version.to_string())),
        ProgressPhase::Confirming => {
            confirm(status, &target, &running, now);
            return None;
        }
        ProgressPhase::Completed | ProgressPhase::Superseded => return None,
        _ if superseded => status.phase = Some(ProgressPhase::Superseded),
        _ if running == target => confirm(status, &target, &running, now),
        ProgressPhase::Failed | ProgressPhase::RolledBack
            if nonce.is_some() && nonce != status.observed_retry_nonce =>
        {
            status.observed_retry_nonce = nonce;
            status.phase = Some(ProgressPhase::Pending);
        }
        ProgressPhase::Pending if order.stage.is_some() && order.stage == next => {
            status.hop = order.stage.map(|stage| stage.to_string());
            status.phase = Some(ProgressPhase::Downloading);
        }
        ProgressPhase::Downloading if machine.mishaps.last() == Some(&Mishap::FailsToStage) => {
            status.phase = Some(ProgressPhase::Failed);
            return Some(Box::new(|machine| machine.mishaps.truncate(machine.mishaps.len() - 1)));
        }
        ProgressPhase::Downloading => {
            status.phase = Some(ProgressPhase::Staged);
            let staged = status.hop.clone();
            return Some(Box::new(|machine| machine.staged = staged));
        }
        ProgressPhase::Staged => {
            let granted = order.boot.filter(|grant| grant.not_after.0 > now);
            if granted.is_some_and(|grant| Some(grant.version.to_string()) == machine.staged) {
                status.phase = Some(ProgressPhase::Rebooting);
            }
        }
        _ => {}
    }
    None
}

fn reboot(status: &mut OSUpgradeProgressStatus, machine: &Machine, into: &str) -> Touch {
    if machine.mishaps.last() == Some(&Mishap::FallsBack) {
        status.phase = Some(ProgressPhase::RolledBack);
        return Box::new(|machine| machine.mishaps.truncate(machine.mishaps.len() - 1));
    }
    status.phase = Some(ProgressPhase::Confirming);
    let into = into.to_owned();
    Box::new(|machine| machine.runs = into)
}

fn confirm(
    status: &mut OSUpgradeProgressStatus,
    target: &crate::version::OsVersion,
    running: &crate::version::OsVersion,
    now: Timestamp,
) {
    if running != target {
        status.phase = Some(ProgressPhase::Pending);
        return;
    }
    status.phase = Some(ProgressPhase::Completed);
    status.completed_at = Some(Time(now));
    status.installed = Some(Installed { slot: Slot::B, version: running.clone(), image_digest: None });
}

//! A machine under a Node object: its loader, slots and record as plain values.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::boot::{LoaderStatus, Reverter, Tries};
use crate::digest::Sha256Digest;
use crate::node_upgrade::{
    Action, ApiView, Attempt, AttemptKind, BootId, Booted, Check, FailedArtifact, HeldToken, NodeFacts,
    NodeView, Record, SlotContentState, Step, TrialHealth,
};
use crate::slot::Slot;
use crate::version::OsVersion;

/// How the image in a slot behaves when it is booted on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    Holds,
    NeverComesUp,
}

#[derive(Clone, Debug)]
pub(super) struct Host {
    loader: LoaderStatus,
    pub(super) record: Record,
    /// What each slot really holds.
    slots: BTreeMap<Slot, OsVersion>,
    pub(super) booted: Booted,
    boots: u32,
    token: Option<HeldToken>,
    /// Whether the kubelet was seen to be well in this boot: that takes a while.
    pub(super) well: bool,
}

fn version(text: &str) -> OsVersion {
    text.parse().unwrap()
}

impl Host {
    /// One that runs a version from slot A, its first good one.
    pub(super) fn new(runs: &str) -> Self {
        let booted = Booted { slot: Slot::A, version: version(runs), boot_id: BootId(String::new()) };
        let mut host = Self {
            loader: LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL),
            record: Record::default(),
            slots: [(Slot::A, version(runs))].into(),
            booted,
            boots: 0,
            token: None,
            well: false,
        };
        host.power_on(Trial::Holds);
        host
    }

    /// Somebody may have put another version into the booted slot.
    pub(super) fn notice(&mut self, runs: &str) {
        self.booted.version = version(runs);
        self.slots.insert(self.booted.slot, version(runs));
    }

    pub(super) fn failures(&self) -> &[FailedArtifact] {
        &self.record.failed
    }

    /// What the other slot holds, if the machine can go back to it.
    pub(super) fn good_other_version(&self) -> Option<&OsVersion> {
        let other = self.booted.slot.other();
        let content = self.record.slots.get(other).filter(|content| {
            let known_good = content.state == SlotContentState::KnownGood;
            known_good && (self.loader.is_confirmed(other) || self.is_going_back(other))
        });
        content.map(|content| &content.version)
    }

    /// Whether it is on its way back to `slot`, which leaves the loader's order before the commit.
    fn is_going_back(&self, slot: Slot) -> bool {
        let attempt = self.record.attempt.as_ref();
        attempt.is_some_and(|attempt| {
            attempt.kind == AttemptKind::Rollback && attempt.slot == slot && !attempt.has_ended()
        })
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.loader.is_confirmed(self.booted.slot)
    }

    pub(super) fn facts(&self) -> NodeFacts {
        let kubelet = if self.well { Check::Holds } else { Check::Fails("not asked yet".to_owned()) };
        NodeFacts {
            booted: self.booted.clone(),
            loader: self.loader.clone(),
            record: self.record.clone(),
            token: self.token,
            health: TrialHealth {
                version: Check::Holds,
                kubelet,
                control_plane: Check::NotNeeded,
                configured: Vec::new(),
                node: NodeView::ReadyInThisBoot,
            },
            time_in_trial: Duration::from_secs(60),
            api: ApiView::Read,
        }
    }

    /// The booted slot does not start any more. The other one does, if it is good and nothing is in between.
    pub(super) fn slot_rots(&mut self) {
        let is_between = self.record.attempt.as_ref().is_none_or(Attempt::has_ended);
        if is_between && self.loader.is_confirmed(self.booted.slot.other()) {
            self.loader = self.loader.invalidated(self.booted.slot);
            self.power_on(Trial::Holds);
        }
    }

    pub(super) fn take(&mut self, step: &Step) {
        self.record = self.record.after(step);
    }

    /// The effect of an action on the machine itself, and on its record.
    pub(super) fn carry_out(&mut self, action: &Action, trial: Trial) {
        match action {
            Action::Record(step) => self.take(step),
            Action::MarkGood { slot } => self.loader = self.loader.marked_good(*slot),
            Action::Invalidate { slot } => self.loader = self.loader.invalidated(*slot),
            Action::Write { hop, slot, .. } => {
                self.token = None;
                self.slots.insert(*slot, hop.version.clone());
                let image_digest = Sha256Digest::of(format!("expanded {}", hop.version).as_bytes());
                self.take(&Step::Written { image_digest, image_len: 4096 });
            }
            Action::Verify { slot, digest, version, .. } if self.slots.get(slot) == Some(version) => {
                self.token = Some(HeldToken { slot: *slot, digest: *digest });
                self.take(&Step::Verified);
            }
            Action::Verify { slot, .. } => self.take(&Step::SlotForgotten { slot: *slot }),
            Action::Arm { slot, attempt, tries, .. } => {
                self.token = None;
                self.loader = self.loader.armed(*slot, *attempt, *tries);
            }
            Action::Disarm => self.loader = self.loader.disarmed(),
            Action::Confirm { .. } => self.loader = self.loader.confirmed(),
            Action::RevertTrial { .. } => self.loader = self.loader.reverted(Reverter::Agent),
            Action::Reboot { .. } => self.power_on(trial),
            Action::AwaitHealth { .. } => self.well = true,
            // The API server's, or nothing at all.
            Action::Commit { .. } | Action::Reread | Action::Wait(_) | Action::Report(_) => {}
        }
    }

    /// The loader's part, then the guard's, which refills what is good.
    fn power_on(&mut self, trial: Trial) {
        let mut slot = self.loader.boot_once().unwrap();
        let on_trial = self.loader.trial.is_some_and(|trial| trial.slot == slot);
        if on_trial && trial == Trial::NeverComesUp {
            slot = self.loader.boot_once().unwrap();
        }
        self.boots += 1;
        let boot_id = BootId(format!("boot-{}", self.boots));
        self.booted = Booted { slot, version: self.slots[&slot].clone(), boot_id };
        self.loader = self.loader.marked_good(slot);
        (self.token, self.well) = (None, false);
    }
}

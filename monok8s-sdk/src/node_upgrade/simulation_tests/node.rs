//! The node of the simulation, and what may happen to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::fixture::{NEW, OLD, THEN, boot, expanded, image, now, order, version};
use super::super::*;
use crate::api::{BootGrant, ProgressPhase};
use crate::boot::{AttemptId, LoaderStatus, Reverter, Tries};
use crate::slot::Slot;
use crate::version::OsVersion;

/// How an image behaves once it is booted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Character {
    Good,
    NeverComesUp,
    NeverHealthy,
    OtherVersion,
}

/// What the medium of a slot really holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Medium {
    Torn,
    Whole(OsVersion),
}

/// Where the power fails in a turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cut {
    BeforeEffect,
    AfterEffect,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Turns(u8),
    PowerCut,
    LoaderIgnoresTrial,
    CutInTurn(Cut),
    AgentRestart { cache: u8 },
    Guard,
    Time,
    Api(bool),
    Grant,
    Withdraw,
    Supersede(bool),
    Delete,
    Replace { hops: bool },
    Retry(u8),
    Rollback(u8),
    Rot,
}

pub(super) struct Node {
    // Outlives power cuts.
    pub(super) loader: LoaderStatus,
    record: Record,
    medium: BTreeMap<Slot, Medium>,
    // The machine and the process.
    pub(super) booted: Booted,
    boots: u32,
    uptime: Duration,
    token: Option<HeldToken>,
    cache: Option<Order>,
    api: ApiView,
    // The world.
    api_up: bool,
    pub(super) object: Option<Order>,
    history: Vec<Order>,
    objects: u32,
    writes: u64,
    character: Character,
    // What really happened.
    trial_boots: BTreeMap<AttemptId, u32>,
    committed: BTreeSet<AttemptId>,
}

impl Node {
    pub(super) fn new(character: Character) -> Self {
        let loader = LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL);
        let medium = [(Slot::A, Medium::Whole(version(OLD))), (Slot::B, Medium::Torn)].into();
        let booted = Booted { slot: Slot::A, version: version(OLD), boot_id: boot("none") };
        let mut node = Self {
            loader,
            record: Record::default(),
            medium,
            booted,
            boots: 0,
            uptime: Duration::ZERO,
            token: None,
            cache: None,
            api: ApiView::NotRead,
            api_up: true,
            object: None,
            history: Vec::new(),
            objects: 0,
            writes: 0,
            character,
            trial_boots: BTreeMap::new(),
            committed: BTreeSet::new(),
        };
        node.replace(true);
        node.power_on();
        node
    }

    fn character(&self, image: &OsVersion) -> Character {
        if *image == version(OLD) { Character::Good } else { self.character }
    }

    /// The loader's part, then the guard's: it keeps evidence and refills before anything else.
    fn power_on(&mut self) {
        loop {
            let slot = self.loader.boot_once().expect("a slot that may boot is always left");
            if let Some(trial) = self.loader.trial.filter(|trial| trial.slot == slot) {
                let boots = self.trial_boots.entry(trial.attempt).or_default();
                *boots += 1;
                assert_eq!(*boots, 1, "attempt {} was booted twice", trial.attempt);
            }
            if self.comes_up(slot) {
                return;
            }
        }
    }

    /// A loader that does not look at its own state: the good slot, and no try is burnt.
    fn power_on_ignoring_the_trial(&mut self) {
        let good = self.loader.order.iter().copied().filter(|slot| self.loader.is_confirmed(*slot));
        let came_up = good.collect::<Vec<_>>().into_iter().any(|slot| self.comes_up(slot));
        assert!(came_up, "no good slot is left");
    }

    fn comes_up(&mut self, slot: Slot) -> bool {
        let Medium::Whole(inside) = self.medium[&slot].clone() else { return false };
        let says = match self.character(&inside) {
            Character::NeverComesUp => return false,
            Character::OtherVersion => version("v1.30.0"),
            Character::Good | Character::NeverHealthy => inside,
        };
        self.boots += 1;
        self.booted = Booted { slot, version: says, boot_id: boot(&format!("boot-{}", self.boots)) };
        self.uptime = Duration::from_secs(20);
        self.loader = self.loader.marked_good(slot);
        self.restart_agent(None);
        true
    }

    fn restart_agent(&mut self, cache: Option<Order>) {
        self.token = None;
        self.api = if cache.is_some() { ApiView::Read } else { ApiView::NotRead };
        self.cache = cache;
    }

    fn facts(&self) -> NodeFacts {
        let well = self.character(&self.booted.version) != Character::NeverHealthy;
        NodeFacts {
            booted: self.booted.clone(),
            loader: self.loader.clone(),
            record: self.record.clone(),
            token: self.token,
            health: TrialHealth {
                version: Check::Holds,
                kubelet: if well { Check::Holds } else { Check::Fails("not well".to_owned()) },
                control_plane: Check::NotNeeded,
                configured: Vec::new(),
                node: if self.api_up { NodeView::ReadyInThisBoot } else { NodeView::ApiUnreachable },
            },
            time_in_trial: self.uptime,
            api: self.api,
        }
    }

    fn read_objects(&mut self, freshness: Freshness) {
        if self.api_up {
            self.cache = self.object.clone().map(|order| Order { freshness, ..order });
            self.api = ApiView::Read;
        }
    }

    /// The agent's watch: brings what changed.
    pub(super) fn watch(&mut self) {
        let version = |order: &Option<Order>| {
            order.as_ref().map(|order| (order.object.uid.clone(), order.resource_version.clone()))
        };
        if version(&self.cache) != version(&self.object) {
            self.read_objects(Freshness::Cached);
        }
    }

    /// One turn of the agent. Whether it came to rest.
    pub(super) fn turn(&mut self, cut: Option<Cut>) -> bool {
        if self.api == ApiView::NotRead {
            self.read_objects(Freshness::Cached);
        }
        let action = decide(&self.facts(), self.cache.as_ref(), now());
        self.assert_allowed(&action);
        if cut == Some(Cut::BeforeEffect) {
            if let Action::Write { slot, .. } = action {
                self.medium.insert(slot, Medium::Torn);
            }
            self.power_on();
            return false;
        }
        let outcome = self.carry_out(&action);
        if cut == Some(Cut::AfterEffect) {
            self.power_on();
            return false;
        }
        if let Some(step) = outcome {
            self.record = self.record.after(&step);
        }
        self.report(&action);
        action.is_rest() || matches!(action, Action::Reread | Action::Commit { .. }) && !self.api_up
    }

    /// The physical effect, and the step that records what it came to.
    fn carry_out(&mut self, action: &Action) -> Option<Step> {
        match action {
            Action::Record(step) => self.record = self.record.after(step),
            Action::Reread => self.read_objects(Freshness::Quorum),
            Action::Wait(WaitReason::OrderReplayed { .. }) => self.read_objects(Freshness::Cached),
            Action::MarkGood { slot } => self.loader = self.loader.marked_good(*slot),
            Action::Invalidate { slot } => self.loader = self.loader.invalidated(*slot),
            Action::Write { hop, slot, .. } => {
                self.token = None;
                self.medium.insert(*slot, Medium::Whole(hop.version.clone()));
                let image_digest = expanded(&hop.version.to_string());
                return Some(Step::Written { image_digest, image_len: 4096 });
            }
            Action::Verify { slot, digest, version, .. } => {
                if self.medium[slot] != Medium::Whole(version.clone()) {
                    return Some(Step::SlotForgotten { slot: *slot });
                }
                self.token = Some(HeldToken { slot: *slot, digest: *digest });
                return Some(Step::Verified);
            }
            Action::Commit { resource_version, .. } => return self.commit(resource_version),
            Action::Arm { slot, attempt, tries, .. } => {
                self.token = None;
                self.loader = self.loader.armed(*slot, *attempt, *tries);
            }
            Action::Disarm => self.loader = self.loader.disarmed(),
            Action::Confirm { .. } => self.loader = self.loader.confirmed(),
            Action::RevertTrial { .. } => self.loader = self.loader.reverted(Reverter::Agent),
            Action::Reboot { into } => {
                assert_eq!(self.loader.next_boot(), Some(*into));
                self.power_on();
            }
            Action::Wait(_) | Action::AwaitHealth { .. } | Action::Report(_) => {}
        }
        None
    }

    /// The API server's part of the commit.
    fn commit(&mut self, resource_version: &str) -> Option<Step> {
        let taken = self.api_up
            && self.object.as_ref().is_some_and(|object| object.resource_version == *resource_version);
        if !taken {
            self.read_objects(Freshness::Cached);
            return None;
        }
        let boot_id = self.booted.boot_id.clone();
        let attempt = self.record.attempt.as_ref().unwrap();
        let object = self.object.as_ref().unwrap();
        assert_eq!(object.standing, Standing::Current, "committed to what is not wanted");
        let granted = matches!(&object.pace, Pace::Granted { boot: Some(grant), .. } if grant.version == attempt.version);
        assert!(granted, "committed without leave");
        self.committed.insert(attempt.id);
        self.write(|object| {
            object.reported.phase = ProgressPhase::Rebooting;
            object.reported.boot_id = Some(boot_id.clone());
        });
        Some(Step::Committed { boot_id })
    }

    fn report(&mut self, action: &Action) {
        let Some(phase) = action.phase().filter(|_| self.api_up) else { return };
        let uid = self.cache.as_ref().map(|order| order.object.uid.clone());
        if uid.is_none() || self.object.as_ref().map(|object| &object.object.uid) != uid.as_ref() {
            return;
        }
        let seen = uid.and_then(|uid| self.record.seen(&uid)).cloned();
        let boot_id = Some(self.booted.boot_id.clone());
        let before = self.object.as_ref().map(|object| object.reported.clone());
        let said = Reported {
            phase,
            boot_id,
            retry_nonce: seen.as_ref().and_then(|seen| seen.retry_nonce.clone()),
            rollback_nonce: seen.and_then(|seen| seen.rollback_nonce),
        };
        if before.as_ref() != Some(&said) {
            self.write(|object| object.reported = said);
        }
        self.watch();
    }

    fn write(&mut self, change: impl FnOnce(&mut Order)) {
        if let Some(object) = &mut self.object {
            change(object);
            self.writes += 1;
            object.resource_version = self.writes.to_string();
            self.history.push(object.clone());
        }
    }

    fn write_spec(&mut self, change: impl FnOnce(&mut Order)) {
        self.write(|object| {
            change(object);
            object.generation += 1;
        });
    }

    fn replace(&mut self, two_hops: bool) {
        self.objects += 1;
        let mut next = order();
        next.object = ObjectIdentity::new("osupgrade", &format!("uid-{}", self.objects));
        next.generation = 1;
        next.hops = if two_hops { vec![image(NEW), image(THEN)] } else { vec![image(NEW)] };
        self.writes += 1;
        next.resource_version = self.writes.to_string();
        self.object = Some(next);
    }

    /// The operator: leave for whatever comes next. Whether there was anything to do.
    pub(super) fn grant(&mut self) -> bool {
        let Some(object) = self.object.clone().filter(|object| object.standing == Standing::Current) else {
            return false;
        };
        let rolling_back = self
            .record
            .attempt
            .as_ref()
            .filter(|attempt| attempt.kind == AttemptKind::Rollback)
            .map(|attempt| attempt.version.clone());
        let hop = object.next_hop(&self.booted.version).map(|hop| hop.version.clone());
        let Some(version) = rolling_back.or(hop) else { return false };
        // Every leave is another one than those that were used.
        let used = self.record.seen(&object.object.uid).map_or(0, |seen| seen.confirmed);
        let until = format!("2026-03-01T12:10:{used:02}Z");
        let not_after = super::super::fixture::grant(OLD, &until).not_after;
        let boot = Some(BootGrant { version: version.clone(), not_after });
        let pace = Pace::Granted { stage: Some(version), boot };
        let is_new = pace != object.pace && !object.reported.phase.is_committed();
        if is_new {
            self.write_spec(|object| object.pace = pace);
        }
        is_new
    }

    fn assert_allowed(&self, action: &Action) {
        let (booted, attempt) = (&self.booted, self.record.attempt.as_ref());
        match action {
            Action::Write { slot, .. } => {
                assert_ne!(*slot, booted.slot, "wrote the booted slot");
                assert!(self.loader.is_confirmed(booted.slot), "wrote the only way back");
                assert_eq!(self.loader.trial, None, "wrote while a trial was armed");
                assert!(!self.loader.may_boot(*slot), "wrote a slot that may boot");
                assert_eq!(self.record.slots.get(*slot), None, "the record still claims to know the slot");
            }
            Action::Arm { slot, attempt: id, by, .. } => {
                assert_ne!(*slot, booted.slot, "armed the booted slot");
                assert!(self.committed.contains(id), "armed without a commit");
                assert!(!self.trial_boots.contains_key(id), "armed what was booted already");
                if *by == ArmedBy::Verified {
                    assert_eq!(self.token.map(|token| token.slot), Some(*slot), "armed unverified");
                    let inside = Medium::Whole(attempt.unwrap().version.clone());
                    assert_eq!(self.medium[slot], inside, "armed other bytes");
                }
            }
            Action::Record(Step::RolledBack { .. }) => {
                assert!(self.trial_boots.contains_key(&attempt.unwrap().id), "rolled back without a boot");
                assert_ne!(booted.slot, attempt.unwrap().slot);
            }
            Action::Confirm { slot } => {
                assert_eq!((*slot, &booted.version), (booted.slot, &attempt.unwrap().version));
                assert_eq!(self.character(&booted.version), Character::Good, "confirmed a bad slot");
            }
            Action::Record(Step::Confirmed)
            | Action::Report(Report::Completed { .. } | Report::Held { .. }) => {
                assert!(self.loader.is_confirmed(booted.slot), "done before the confirm");
            }
            _ => {}
        }
    }

    pub(super) fn happen(&mut self, event: &Event) {
        match event {
            Event::Turns(turns) => {
                for _ in 0..*turns {
                    self.turn(None);
                }
            }
            Event::PowerCut => self.power_on(),
            Event::LoaderIgnoresTrial => self.power_on_ignoring_the_trial(),
            Event::CutInTurn(cut) => {
                self.turn(Some(*cut));
            }
            Event::AgentRestart { cache } => {
                let stale = self.history.get(usize::from(*cache)).cloned();
                self.restart_agent(stale.filter(|_| self.api_up));
            }
            Event::Guard
                if self.uptime >= Duration::from_secs(600) && !self.loader.is_confirmed(self.booted.slot) =>
            {
                self.loader = self.loader.reverted(Reverter::Guard);
                self.power_on();
            }
            Event::Time => self.uptime += Duration::from_secs(400),
            Event::Api(up) => self.api_up = *up,
            Event::Grant => {
                self.grant();
            }
            Event::Withdraw
                if self.object.as_ref().is_some_and(|object| !object.reported.phase.is_committed()) =>
            {
                self.write_spec(|object| object.pace = Pace::Granted { stage: None, boot: None });
            }
            Event::Supersede(yes) => {
                let standing = if *yes { Standing::Superseded } else { Standing::Current };
                self.write(|object| object.standing = standing);
            }
            Event::Delete => self.object = None,
            Event::Replace { hops } => self.replace(*hops),
            Event::Retry(nonce) => self.write_spec(|object| object.retry_nonce = Some(nonce.to_string())),
            Event::Rollback(nonce) => {
                self.write_spec(|object| object.rollback_nonce = Some(nonce.to_string()));
            }
            Event::Rot if self.token.is_none() && self.loader.trial.is_none() => {
                self.medium.insert(self.booted.slot.other(), Medium::Torn);
            }
            Event::Guard | Event::Withdraw | Event::Rot => {}
        }
    }

    /// The world is kind from now on; the node must come to an end.
    pub(super) fn settle(&mut self) -> Action {
        self.api_up = true;
        self.restart_agent(None);
        for _ in 0..300 {
            let rests = self.turn(None);
            self.watch();
            if !rests {
                continue;
            }
            let action = decide(&self.facts(), self.cache.as_ref(), now());
            if matches!(action, Action::AwaitHealth { .. }) {
                self.uptime += Duration::from_secs(200);
            } else if action.is_rest() && !self.grant() {
                return action;
            }
            self.watch();
        }
        panic!("goes on for ever: {:?}", decide(&self.facts(), self.cache.as_ref(), now()));
    }
}

//! A node whose disk, record and loader hang on one power supply, driven by `decide` through the
//! code that a real one runs.

use std::sync::Arc;
use std::time::Duration;

use super::super::fixture::{SOON, boot, grant, now, order, version};
use super::super::*;
use super::judge::{HEAD, OsImage};
use crate::api::{BootGrant, ProgressPhase};
use crate::boot::record_store::RecordStore;
use crate::boot::simulated::SimulatedLoader;
use crate::boot::{BootBackend as _, Reverter, Tries};
use crate::disk::fault::{CrashState, FaultDirectory, FaultDisk, Files, Medium, Moment, Power};
use crate::disk::{BlockTarget, Directory, InactiveSlot, VerifiedSlot, VerifyError, WrittenSlot};
use crate::image::{Cancel, Expected, Progress, write_body};
use crate::slot::Slot;
use crate::version::OsVersion;

/// How far the operator lets the node go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Leave {
    ToStage,
    ToBoot,
}

pub(super) struct Machine {
    pub(super) power: Power,
    pub(super) a: Arc<FaultDisk>,
    pub(super) b: Arc<FaultDisk>,
    pub(super) data: Arc<FaultDirectory>,
    pub(super) esp: Arc<FaultDirectory>,
    pub(super) images: Arc<Vec<OsImage>>,
    /// What slot B and the record are written through.
    pub(super) through: (Arc<dyn BlockTarget>, Arc<dyn Directory>),
    /// An image that does not come up, however whole it is.
    pub(super) broken: Option<OsVersion>,
    pub(super) object: Order,
    /// Each state of the API object, and since when.
    history: Vec<(Moment, Order)>,
    /// What was done, and when it was done.
    pub(super) done: Vec<(Moment, Action)>,
    /// How often a slot was entered that has its first bytes and holds no whole image.
    pub(super) torn_boots: u32,
    pub(super) booted: Booted,
    boots: u32,
    /// Just written, and most of it read back.
    written: Option<WrittenSlot>,
    token: Option<VerifiedSlot>,
    freshness: Freshness,
}

fn storage(slots: [Medium; 2], data: &Files, esp: &Files) -> Parts {
    let power = Power::new();
    let [a, b] = slots;
    Parts {
        a: Arc::new(FaultDisk::new(&power, "slot A", a)),
        b: Arc::new(FaultDisk::new(&power, "slot B", b)),
        data: Arc::new(FaultDirectory::new(&power, "/data", data)),
        esp: Arc::new(FaultDirectory::new(&power, "/esp", esp)),
        power,
    }
}

struct Parts {
    power: Power,
    a: Arc<FaultDisk>,
    b: Arc<FaultDisk>,
    data: Arc<FaultDirectory>,
    esp: Arc<FaultDirectory>,
}

impl Machine {
    /// A node that runs the first image from slot B.
    pub(super) fn installed(images: &Arc<Vec<OsImage>>, slot_size: usize) -> Self {
        let mut first = images[0].bytes.clone();
        first.resize(slot_size, 0xEE);
        let slots = [Medium::filled(slot_size, 0xAA), Medium::of(&first)];
        let parts = storage(slots, &Files::default(), &Files::default());
        let mut machine = Self::on(parts, images, order(), 0);
        machine.loader().reset(Slot::B, Tries::DEFAULT_FULL).unwrap();
        machine.power_on();
        machine
    }

    /// What is left of `before` after a power failure, not powered on yet.
    pub(super) fn left(before: &Self, state: &CrashState) -> Self {
        let slots = [state.disk(&before.a), state.disk(&before.b)];
        let parts = storage(slots, &state.directory(&before.data), &state.directory(&before.esp));
        let mut machine = Self::on(parts, &before.images, before.object_at(state.moment()), before.boots);
        machine.broken.clone_from(&before.broken);
        machine
    }

    fn on(parts: Parts, images: &Arc<Vec<OsImage>>, object: Order, boots: u32) -> Self {
        let Parts { power, a, b, data, esp } = parts;
        let through: (Arc<dyn BlockTarget>, Arc<dyn Directory>) =
            (Arc::clone(&b) as _, Arc::clone(&data) as _);
        Self {
            through,
            power,
            a,
            b,
            data,
            esp,
            images: Arc::clone(images),
            broken: None,
            history: vec![(Moment::default(), object.clone())],
            object,
            done: Vec::new(),
            torn_boots: 0,
            booted: Booted { slot: Slot::A, version: version("v0.0.0"), boot_id: boot("none") },
            boots,
            written: None,
            token: None,
            freshness: Freshness::Cached,
        }
    }

    pub(super) fn loader(&self) -> SimulatedLoader {
        SimulatedLoader::in_directory(Arc::clone(&self.esp) as Arc<dyn Directory>, "loader")
    }

    pub(super) fn store(&self) -> RecordStore {
        RecordStore::in_directory(Arc::clone(&self.through.1))
    }

    fn disk(&self, slot: Slot) -> &Arc<FaultDisk> {
        if slot == Slot::A { &self.a } else { &self.b }
    }

    fn inactive(&self, slot: Slot) -> InactiveSlot {
        let a: Arc<dyn BlockTarget> = Arc::clone(&self.a) as _;
        InactiveSlot::on_test_storage(slot, if slot == Slot::A { a } else { Arc::clone(&self.through.0) })
    }

    fn object_at(&self, moment: Moment) -> Order {
        let since = self.history.iter().rfind(|(since, _)| *since <= moment);
        since.unwrap_or(&self.history[0]).1.clone()
    }

    pub(super) fn power_on(&mut self) {
        let (loader, images) = (self.loader(), Arc::clone(&self.images));
        let mut came_up = None;
        let slot = loader.boot(|slot| {
            let content = self.disk(slot).content();
            let whole = images.iter().find(|image| image.is_in(&content)).map(|image| image.version.clone());
            if whole.is_none() && !content.is_zero(0, HEAD) {
                self.torn_boots += 1;
            }
            came_up = whole.filter(|version| self.broken.as_ref() != Some(version));
            came_up.is_some()
        });
        self.boots += 1;
        let (slot, version) = (slot.unwrap(), came_up.unwrap());
        self.booted = Booted { slot, version, boot_id: boot(&format!("boot-{}", self.boots)) };
        (self.written, self.token) = (None, None);
        self.freshness = Freshness::Cached;
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            booted: self.booted.clone(),
            loader: self.loader().status().unwrap(),
            record: self.store().load().unwrap(),
            token: self.token.as_ref().map(|token| HeldToken { slot: token.slot(), digest: token.image() }),
            health: TrialHealth {
                version: Check::Holds,
                kubelet: Check::Holds,
                control_plane: Check::NotNeeded,
                configured: Vec::new(),
                node: NodeView::ReadyInThisBoot,
            },
            time_in_trial: Duration::from_secs(60),
            api: ApiView::Read,
        }
    }

    fn next(&self) -> Action {
        let order = Order { freshness: self.freshness, ..self.object.clone() };
        decide(&self.facts(), Some(&order), now())
    }

    pub(super) fn is_next(&self, kind: impl Fn(&Action) -> bool) -> bool {
        kind(&self.next())
    }

    /// One turn of the agent, and of the operator if there is something to grant: what the agent
    /// did, and whether it goes on.
    pub(super) fn step(&mut self, leave: Leave) -> (Action, bool) {
        let action = self.next();
        self.carry_out(&action);
        self.report(&action);
        self.done.push((self.power.now(), action.clone()));
        let goes_on = !action.is_rest() || self.grant(leave, &action);
        (action, goes_on)
    }

    /// Until it rests with nothing left to grant: what it rests on.
    pub(super) fn run(&mut self, leave: Leave) -> Action {
        for _ in 0..200 {
            if let (action, false) = self.step(leave) {
                return action;
            }
        }
        panic!("goes on for ever: {:?}", self.done);
    }

    fn record(&self, step: &Step) {
        let record = self.store().load().unwrap();
        self.store().save(&record.after(step)).unwrap();
    }

    fn carry_out(&mut self, action: &Action) {
        let loader = self.loader();
        match action {
            Action::Record(step) => self.record(step),
            Action::Reread => self.freshness = Freshness::Quorum,
            Action::MarkGood { slot } => loader.mark_good(*slot).unwrap(),
            Action::Invalidate { slot } => loader.invalidate(*slot).unwrap(),
            Action::Write { hop, slot, .. } => self.write(&hop.version, *slot),
            Action::Verify { slot, digest, len, .. } => {
                self.token = None;
                let read_back = match self.written.take() {
                    Some(written) => written.verify(),
                    None => self.inactive(*slot).verify(*digest, *len),
                };
                match read_back {
                    Ok(token) => {
                        self.token = Some(token);
                        self.record(&Step::Verified);
                    }
                    Err(VerifyError::Mismatch { .. }) => self.record(&Step::SlotForgotten { slot: *slot }),
                    Err(VerifyError::PartDiffers { .. }) => self.record(&Step::ReadBackDiffers),
                    Err(error) => panic!("{error}"),
                }
            }
            Action::Commit { resource_version, .. } => {
                assert_eq!(*resource_version, self.object.resource_version);
                let boot_id = self.booted.boot_id.clone();
                self.put(|object| {
                    object.reported.phase = ProgressPhase::Rebooting;
                    object.reported.boot_id = Some(boot_id.clone());
                });
                self.record(&Step::Committed { boot_id });
            }
            Action::Arm { attempt, tries, .. } => {
                let token = self.token.take().expect("armed because the token is held");
                loader.arm_trial(token.into(), *attempt, *tries).unwrap();
            }
            Action::Disarm => loader.disarm().unwrap(),
            Action::Confirm { .. } => loader.confirm().unwrap(),
            Action::RevertTrial { .. } => loader.revert(Reverter::Agent).unwrap(),
            Action::Reboot { .. } => self.power_on(),
            Action::Wait(_) | Action::AwaitHealth { .. } | Action::Report(_) => {}
        }
    }

    /// As the agent does: first what the slot must read back as, then the bytes that make it boot.
    fn write(&mut self, version: &OsVersion, slot: Slot) {
        let image = self.images.iter().find(|image| image.version == *version).unwrap();
        let expected = Expected { checksum: Some(image.hop().checksum), ..Expected::default() };
        let artifact = image.artifact.as_slice();
        let slot = self.inactive(slot);
        let body = write_body(slot, artifact, &expected, &Progress::default(), &Cancel::default()).unwrap();
        self.record(&Step::Written { image_digest: body.image(), image_len: body.length() });
        self.written = Some(body.finish().unwrap());
    }

    fn put(&mut self, change: impl FnOnce(&mut Order)) {
        let mut next = self.object.clone();
        change(&mut next);
        if next != self.object {
            let written: u64 = next.resource_version.parse().unwrap();
            next.resource_version = (written + 1).to_string();
            self.history.push((self.power.mark(), next.clone()));
            self.object = next;
        }
    }

    /// The operator or a person changes what is wanted.
    pub(super) fn want(&mut self, change: impl FnOnce(&mut Order)) {
        self.put(|object| {
            change(object);
            object.generation += 1;
        });
    }

    fn grant(&mut self, leave: Leave, rests_on: &Action) -> bool {
        let pace = match rests_on {
            Action::Wait(WaitReason::StageGrant { version }) => {
                Pace::Granted { stage: Some(version.clone()), boot: None }
            }
            Action::Report(Report::Staged { version, .. }) if leave == Leave::ToBoot => {
                let boot = BootGrant { version: version.clone(), ..grant("v1.0.0", SOON) };
                Pace::Granted { stage: Some(version.clone()), boot: Some(boot) }
            }
            _ => return false,
        };
        self.want(|object| object.pace = pace);
        true
    }

    fn report(&mut self, action: &Action) {
        let Some(phase) = action.phase() else { return };
        let record = self.store().load().unwrap();
        let seen = record.seen(&self.object.object.uid).cloned();
        let boot_id = Some(self.booted.boot_id.clone());
        self.put(|object| {
            object.reported = Reported {
                phase,
                boot_id,
                retry_nonce: seen.as_ref().and_then(|seen| seen.retry_nonce.clone()),
                rollback_nonce: seen.and_then(|seen| seen.rollback_nonce),
            };
        });
    }

    /// A new order for one image.
    pub(super) fn order(&mut self, uid: &str, hop: &OsImage) {
        let mut next = order();
        next.object = ObjectIdentity::new("osupgrade", uid);
        next.generation = 1;
        next.hops = vec![hop.hop()];
        next.resource_version = self.object.resource_version.clone();
        self.put(|object| *object = next);
        self.freshness = Freshness::Cached;
    }
}

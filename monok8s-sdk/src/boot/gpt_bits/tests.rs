use std::collections::BTreeSet;

use super::*;
use crate::boot::changes_fixture::{ATTEMPT, STEPS, armed, both_good, fell_back, invalidated, token, tried};
use crate::boot::{AttemptId, Reverter, SlotHealth, TrialProgress, TrialState, Tries};
use crate::disk::fault::{Crashes, FaultDirectory, FaultDisk, Files, Medium, Power};
use crate::disk::fixture::{TestPartition, write_gpt};

/// A node that is off, or on: a disk with a table, and a directory for the notes.
struct Node {
    power: Power,
    disk: Arc<FaultDisk>,
    dir: Arc<FaultDirectory>,
    loader: GptBits,
}

fn guid(byte: &str) -> Guid {
    [4, 2, 2, 2, 6].map(|bytes| byte.repeat(bytes)).join("-").parse().unwrap()
}

impl Node {
    fn of(medium: Medium, files: &Files) -> Self {
        let power = Power::new();
        let disk = Arc::new(FaultDisk::new(&power, "disk", medium));
        let dir = Arc::new(FaultDirectory::new(&power, "/data", files));
        let region = Arc::clone(&disk) as Arc<dyn Region>;
        let loader =
            GptBits::in_region(region, [guid("a0"), guid("b0")], Arc::clone(&dir) as Arc<dyn Directory>);
        Self { power, disk, dir, loader }
    }

    /// As an image's installer leaves it, with these bits and no notes.
    fn installed(a: SlotBits, b: SlotBits) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(120 * 512).unwrap();
        let partition =
            |label, seed, sector: u64| TestPartition { label, seed, offset: sector * 512, length: 2048 };
        let others =
            [partition("boot", 0xC0, 36), partition("rootfs-a", 0xA0, 44), partition("rootfs-b", 0xB0, 50)];
        write_gpt(file.as_file(), &others).unwrap();
        let node = Self::of(Medium::of(&std::fs::read(file.path()).unwrap()), &Files::default());
        node.set(Bits { a, b });
        node
    }

    /// In this state, by a change of ours.
    fn in_state(status: &LoaderStatus) -> Self {
        let node = Self::installed(GOOD, NEVER);
        node.loader.write(status).unwrap();
        assert_eq!(node.loader.status().unwrap(), *status);
        node
    }

    /// Another process, which may not see the notes.
    fn without_notes(&self) -> GptBits {
        let region = Arc::clone(&self.disk) as Arc<dyn Region>;
        GptBits::in_region(region, [guid("a0"), guid("b0")], Arc::new(HostDirectory::new("/nonexistent")))
    }

    fn set(&self, bits: Bits) {
        let change = |index, bits: SlotBits| AttributeChange { index, mask: MASK, value: bits.attributes() };
        gpt_edit::set_attributes(&*self.disk, &[change(2, bits.a), change(3, bits.b)]).unwrap();
    }

    fn bits(&self) -> Bits {
        self.loader.bits().unwrap()
    }

    /// A power-on, as these loaders do it.
    fn boot(&self) -> Option<Slot> {
        let mut bits = self.bits();
        let can = |slot: &Slot| {
            let SlotBits { priority, tries, successful } = bits.of(*slot);
            priority > 0 && (successful || tries > 0)
        };
        let slot = Slot::BOTH.into_iter().filter(can).max_by_key(|slot| bits.of(*slot).priority)?;
        let of = if slot == Slot::A { &mut bits.a } else { &mut bits.b };
        if !of.successful {
            of.tries -= 1;
            self.set(bits);
        }
        Some(slot)
    }

    fn status(&self) -> LoaderStatus {
        self.loader.status().unwrap()
    }

    fn arm(&self) -> Result<(), BootError> {
        self.loader.arm_trial(token(), ATTEMPT, Tries::TRIAL)
    }
}

const fn bits(priority: u8, tries: u8, successful: bool) -> SlotBits {
    SlotBits { priority, tries, successful }
}

const GOOD: SlotBits = bits(1, 0, true);
const NEVER: SlotBits = bits(0, 0, false);

#[test]
fn the_bits_lie_where_cgpt_and_sgdisk_see_them() {
    assert_eq!(bits(2, 3, true).attributes(), 0x0132_0000_0000_0000);
    assert_eq!(SlotBits::of(0xFFFF_FFFF_FFFF_FFFF), bits(15, 15, true));
    assert_eq!(SlotBits::of(!MASK), NEVER);
}

#[test]
fn an_ordinary_boot_proves_that_tries_are_counted_however_the_slot_was_installed() {
    for installed in [GOOD, bits(1, 15, false), bits(1, 3, false), bits(15, 7, true), bits(14, 1, false)] {
        let node = Node::installed(installed, NEVER);
        assert_eq!(node.boot(), Some(Slot::A), "{installed:?}");
        assert_eq!(node.loader.canary().unwrap(), TryCounting::Unsupported, "{installed:?}");
        assert!(node.status().needs_marking(Slot::A), "{installed:?}");
        node.loader.mark_good(Slot::A).unwrap();
        assert_eq!((node.bits().a.tries, node.bits().a.successful), (15, false), "{installed:?}");
        assert_eq!(node.loader.canary().unwrap(), TryCounting::Unsupported, "{installed:?}");
        assert_eq!(node.boot(), Some(Slot::A));
        assert_eq!(node.loader.canary().unwrap(), TryCounting::Proven, "{installed:?}");
        node.loader.mark_good(Slot::A).unwrap();
        assert_eq!((node.bits().a.tries, node.bits().a.successful), (0, true), "{installed:?}");
        assert!(!node.status().needs_marking(Slot::A));
    }
}

#[test]
fn a_loader_that_does_not_count_is_never_taken_for_one_that_does() {
    for installed in [GOOD, bits(1, 15, false), bits(1, 3, false)] {
        let node = Node::installed(installed, installed);
        for _ in 0..3 {
            node.loader.mark_good(Slot::A).unwrap();
            assert_eq!(node.loader.canary().unwrap(), TryCounting::Unsupported, "{installed:?}");
            assert_eq!(node.status().trial, None, "{installed:?}");
        }
        let written = node.disk.log().len();
        node.loader.mark_good(Slot::A).unwrap();
        assert_eq!(node.disk.log().len(), written, "at rest nothing is written");
    }
}

#[test]
fn a_trial_falls_back_is_sent_back_or_is_confirmed() {
    let node = Node::in_state(&invalidated());
    node.arm().unwrap();
    let Bits { a, b } = node.bits();
    assert_eq!((a.successful, b.successful, b.tries), (true, false, 1));
    assert_eq!(node.status().trial_progress(ATTEMPT), TrialProgress::Armed);
    assert_eq!((node.boot(), node.boot()), (Some(Slot::B), Some(Slot::A)));
    assert_eq!(node.status().trial_progress(ATTEMPT), TrialProgress::Tried(TrialEvidence::None));
    node.loader.mark_good(Slot::A).unwrap();
    assert_eq!(node.status().trial_progress(ATTEMPT), TrialProgress::Tried(TrialEvidence::FellBack));
    assert_eq!(node.bits().b.priority, 0);
    node.loader.disarm().unwrap();
    assert_eq!((node.bits().b, node.status().trial), (NEVER, None));

    node.arm().unwrap();
    assert_eq!(node.boot(), Some(Slot::B));
    node.loader.revert(Reverter::Person).unwrap();
    assert_eq!(node.boot(), Some(Slot::A));
    node.loader.disarm().unwrap();

    node.arm().unwrap();
    assert_eq!(node.boot(), Some(Slot::B));
    node.loader.confirm().unwrap();
    for _ in 0..20 {
        assert_eq!(node.boot(), Some(Slot::B));
        node.loader.mark_good(Slot::B).unwrap();
    }
    assert_eq!(node.status().order, [Slot::B, Slot::A]);
}

#[test]
fn whatever_ended_a_trial_is_read_without_notes() {
    for evidence in TrialEvidence::ALL.into_iter().filter(|evidence| *evidence != TrialEvidence::None) {
        let mut status = tried().reverted(Reverter::Agent);
        status.trial.as_mut().unwrap().evidence = evidence;
        let node = Node::in_state(&status);
        let found = node.without_notes().status().unwrap().trial;
        assert_eq!(found.map(|trial| (trial.slot, trial.evidence)), Some((Slot::B, evidence)));
    }
}

#[test]
fn firmware_that_gives_up_a_slot_without_tries_has_tried_it() {
    let node = Node::in_state(&armed());
    assert_eq!(node.boot(), Some(Slot::B));
    node.set(Bits { a: node.bits().a, b: NEVER });
    assert_eq!(node.status().trial_progress(ATTEMPT), TrialProgress::Tried(TrialEvidence::None));
    node.loader.mark_good(Slot::A).unwrap();
    assert_eq!(node.status().trial_progress(ATTEMPT), TrialProgress::Tried(TrialEvidence::FellBack));
}

#[test]
fn a_guard_without_notes_sees_the_trial_and_sends_it_back() {
    let node = Node::in_state(&armed());
    assert_eq!(node.boot(), Some(Slot::B));
    let guard = node.without_notes();
    let unknown = TrialState {
        slot: Slot::B,
        attempt: AttemptId(0),
        tries_armed: Tries(1),
        evidence: TrialEvidence::None,
    };
    let status = guard.status().unwrap();
    assert_eq!((status.trial, status.is_confirmed(Slot::B)), (Some(unknown), false));
    assert_eq!(status.trial_progress(AttemptId(0)), TrialProgress::Tried(TrialEvidence::None));
    guard.revert(Reverter::Guard).unwrap();
    assert_eq!(node.boot(), Some(Slot::A));
    // Whoever looks next, without notes or with those of the arming, finds who ended it.
    let ended = TrialEvidence::RevertedByGuard;
    assert_eq!(node.without_notes().status().unwrap().trial, Some(TrialState { evidence: ended, ..unknown }));
    assert_eq!(node.status().trial_progress(ATTEMPT), TrialProgress::Tried(ended));
    assert_eq!(node.loader.canary().unwrap(), TryCounting::Proven);
    node.loader.mark_good(Slot::A).unwrap();
    assert_eq!(node.status().trial_progress(ATTEMPT), TrialProgress::Tried(ended));
    node.loader.disarm().unwrap();
    node.arm().unwrap();
}

#[test]
fn every_change_but_arming_is_made_without_notes_and_is_read_by_the_next_process() {
    for step in &STEPS {
        let node = Node::in_state(&(step.before)());
        let other = node.without_notes();
        let before = (node.bits(), other.status().unwrap());
        let outcome = (step.change)(&other);
        if step.name == "arm" || step.name == "go back to a slot that is good" {
            let error = crate::causes::chain(&outcome.unwrap_err());
            assert!(error.contains("cannot keep notes"), "{error}");
            assert_eq!((node.bits(), other.status().unwrap()), before, "{}", step.name);
            continue;
        }
        outcome.unwrap_or_else(|error| panic!("{}: {}", step.name, crate::causes::chain(&error)));
        let (mine, next) = (other.status().unwrap(), node.without_notes().status().unwrap());
        assert_eq!(
            (mine.order, mine.trial.map(|trial| trial.evidence)),
            (next.order, next.trial.map(|trial| trial.evidence)),
            "{}",
            step.name
        );
    }
}

#[test]
fn a_good_slot_stays_good_and_is_not_on_trial_without_notes() {
    for status in [both_good(), invalidated(), fell_back()] {
        let node = Node::in_state(&status);
        let other = node.without_notes();
        let before = node.bits();
        if status.trial.is_none() {
            assert_eq!(other.status().unwrap().trial, None);
            other.mark_good(Slot::A).unwrap();
            assert_eq!(node.bits(), before, "{status:?}");
        }
        other.mark_good(Slot::A).unwrap();
        for _ in 0..20 {
            assert_eq!(node.boot(), Some(Slot::A));
        }
    }
    // Not yet proven: the tries come back at every boot.
    let node = Node::installed(GOOD, NEVER);
    node.loader.mark_good(Slot::A).unwrap();
    for _ in 0..40 {
        assert_eq!(node.boot(), Some(Slot::A));
        node.without_notes().mark_good(Slot::A).unwrap();
    }
}

#[test]
fn notes_that_do_not_belong_to_the_bits_are_not_believed() {
    let node = Node::in_state(&armed());
    node.set(Bits { a: bits(9, 0, true), b: bits(8, 0, true) });
    let status = node.status();
    assert_eq!((status.order.as_slice(), status.trial), ([Slot::A, Slot::B].as_slice(), None));
    // Left behind by another program: never booted well, so nothing to fall back to.
    node.set(Bits { a: bits(9, 0, true), b: bits(8, 0, false) });
    assert!(!node.status().is_confirmed(Slot::B) && node.status().needs_marking(Slot::A));
    // That the loader counts is true of any bits.
    assert_eq!(status.counting_seen, TryCounting::Proven);
    node.set(Bits { a: NEVER, b: bits(1, 0, true) });
    assert_eq!((node.status().order, node.status().a.health), (vec![Slot::B], SlotHealth::Bad));
    assert!(matches!(node.loader.invalidate(Slot::B), Err(BootError::LastBootableSlot { .. })));
    node.set(Bits { a: NEVER, b: NEVER });
    assert_eq!(node.status().next_boot(), None);
    assert!(node.loader.write(&invalidated().invalidated(Slot::A)).is_err());
}

#[test]
fn every_power_cut_leaves_the_old_or_the_new_state() {
    for step in &STEPS {
        let node = Node::in_state(&(step.before)());
        let old = node.status();
        node.power.settle();
        (step.change)(&node.loader).unwrap();
        let new = node.status();
        assert_ne!(old, new, "{}", step.name);
        let mut seen = BTreeSet::new();
        let crashes = Crashes { subsets: 64, tears: 16, seed: 1 };
        for state in node.power.crash_states(&crashes) {
            let (medium, files) = (state.disk(&node.disk), state.directory(&node.dir));
            let left = Node::of(medium, &files);
            let status = left.status();
            assert!(status == old || status == new, "{}: {state:?}: {status:?}", step.name);
            if seen.insert((status == new, format!("{:?}", left.bits()), files)) {
                boots(&left, step.name);
                let again = Node::of(left.disk.content(), &left.dir.files());
                (step.change)(&again.loader).unwrap_or_else(|error| panic!("{}: {error}", step.name));
            }
        }
        let sides: BTreeSet<bool> = seen.iter().map(|(is_new, ..)| *is_new).collect();
        assert_eq!(sides.len(), 2, "{}", step.name);
    }
}

/// The loader takes a slot that may boot, and the state tells what it did.
fn boots(node: &Node, name: &str) {
    let before = node.status();
    let again = Node::of(node.disk.content(), &node.dir.files());
    let slot = again.boot().expect("a slot boots");
    assert!(before.may_boot(slot), "{name}");
    let expected = Some(slot) == before.next_boot() || before.is_confirmed(slot);
    assert!(expected, "{name}: {slot} of {before:?}");
    if let Some(trial) = before.trial.filter(|trial| trial.slot == slot) {
        assert!(matches!(again.status().trial_progress(trial.attempt), TrialProgress::Tried(_)), "{name}");
    }
}

#[test]
fn priorities_go_round_without_mixing_up_two_states() {
    let node = Node::in_state(&tried());
    let (mut now, mut seen) = (node.bits(), BTreeSet::new());
    for round in 0..30 {
        let status = if round % 2 == 0 { both_good() } else { armed() };
        let next = now.next(&status);
        let record = |bits| Record { status: status.clone(), bits };
        assert!(!record(next).belongs_to(now) && !record(now).belongs_to(next), "{now:?} {next:?}");
        seen.insert(next.a.priority.max(next.b.priority));
        now = next;
    }
    assert_eq!(seen, BTreeSet::from([3, 5, 7, 9, 11, 13, 15]));
}

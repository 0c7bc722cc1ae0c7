use std::fs;

use super::script::{Outcome, power_on};
use super::*;
use crate::boot::{ArmableSlot, AttemptId, Reverter, TrialEvidence, TrialProgress, TryCounting};
use crate::disk::KnownGoodSlot;
use crate::slot::Slot;

const ATTEMPT: AttemptId = AttemptId(7);

fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
}

/// A block as `grub-editenv` leaves it when these are set.
pub(super) fn block(variables: &str) -> Vec<u8> {
    let lines = variables.replace(", ", "\n");
    let mut bytes = format!("# GRUB Environment Block\n# WARNING: keep\n{lines}\n").into_bytes();
    bytes.resize(BLOCK_LEN, b'#');
    bytes
}

pub(super) const INSTALLED: &str =
    "ORDER=A, A_OK=1, A_TRY=0, B_OK=0, B_TRY=0, MONOK8S_TRIES=3, MONOK8S_REV=1, kept=by others";

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn with(files: &[(&str, Vec<u8>)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        Self { dir }
    }

    fn of_two() -> Self {
        Self::with(&FILES.map(|name| (name, block(INSTALLED))))
    }

    fn of_one() -> Self {
        Self::with(&[(FILE, block("ORDER=A, A_OK=1, A_TRY=0, B_OK=0, B_TRY=0, kept=by others"))])
    }

    fn loader(&self) -> GrubEnv {
        GrubEnv::in_directory(self.dir.path())
    }

    fn power_on(&self) -> Outcome {
        let files: &[&str] = if self.dir.path().join(FILE).exists() { &[FILE] } else { &FILES };
        let regions: Vec<_> = files.iter().map(|name| HostRegion::new(self.dir.path().join(name))).collect();
        let regions: Vec<&dyn Region> = regions.iter().map(|region| region as &dyn Region).collect();
        power_on(&regions, |_| true).unwrap()
    }

    fn read(&self, name: &str) -> EnvBlock {
        EnvBlock::parse(&fs::read(self.dir.path().join(name)).unwrap()).unwrap()
    }
}

#[test]
fn an_upgrade_goes_through_both_variants() {
    for node in [Node::of_two(), Node::of_one()] {
        let loader = node.loader();
        assert_eq!(loader.canary().unwrap(), TryCounting::Unsupported);
        assert_eq!(node.power_on(), Outcome::Entered(Slot::A));
        assert_eq!(loader.canary().unwrap(), TryCounting::Proven);
        loader.mark_good(Slot::A).unwrap();
        // That it counts is remembered when the counter is full again.
        assert_eq!(loader.canary().unwrap(), TryCounting::Proven);
        assert_eq!(loader.status().unwrap().trial_progress(ATTEMPT), TrialProgress::NotArmed);

        loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL).unwrap();
        assert_eq!(loader.status().unwrap().trial_progress(ATTEMPT), TrialProgress::Armed);
        assert_eq!(node.power_on(), Outcome::Entered(Slot::B));
        assert_eq!(node.power_on(), Outcome::Entered(Slot::A));
        loader.mark_good(Slot::A).unwrap();
        let fell_back = TrialProgress::Tried(TrialEvidence::FellBack);
        assert_eq!(loader.status().unwrap().trial_progress(ATTEMPT), fell_back);
        for _ in 0..5 {
            assert_eq!(node.power_on(), Outcome::Entered(Slot::A));
        }

        loader.mark_good(Slot::A).unwrap();
        loader.arm_trial(token(Slot::B), AttemptId(8), Tries::TRIAL).unwrap();
        assert_eq!(node.power_on(), Outcome::Entered(Slot::B));
        loader.confirm().unwrap();
        for _ in 0..5 {
            assert_eq!(node.power_on(), Outcome::Entered(Slot::B));
            loader.mark_good(Slot::B).unwrap();
        }

        loader.arm_trial(token(Slot::A), AttemptId(9), Tries::TRIAL).unwrap();
        assert_eq!(node.power_on(), Outcome::Entered(Slot::A));
        loader.revert(Reverter::Guard).unwrap();
        assert_eq!(node.power_on(), Outcome::Entered(Slot::B));
        let reverted = TrialProgress::Tried(TrialEvidence::RevertedByGuard);
        assert_eq!(loader.status().unwrap().trial_progress(AttemptId(9)), reverted);
    }
}

#[test]
fn both_files_say_the_same_after_every_change_and_keep_what_is_of_others() {
    let node = Node::of_two();
    let loader = node.loader();
    for slot in [Slot::B, Slot::B] {
        loader.arm_trial(token(slot), ATTEMPT, Tries(2)).unwrap();
    }
    let [first, second] = FILES.map(|name| fs::read(node.dir.path().join(name)).unwrap());
    assert_eq!(first, second);
    let block = node.read(FILES[0]);
    assert_eq!(block.get("kept"), Some(&b"by others"[..]));
    // The second call found everything as it was to be, and wrote nothing.
    assert_eq!(block.get("MONOK8S_REV"), Some(&b"2"[..]));
    assert_eq!(block.get("MONOK8S_TRIAL"), Some(&b"B:7:2:none"[..]));
    assert_eq!(block.get("B_TRY"), Some(&b"1"[..]));
}

#[test]
fn a_copy_that_is_damaged_is_passed_over_and_written_again() {
    let damage: [(&str, Vec<u8>); 4] = [
        ("empty sectors", vec![0; BLOCK_LEN]),
        ("no variables", block("x=1")),
        ("no revision", block("ORDER=B A, A_OK=1, A_TRY=0, B_OK=1, B_TRY=0")),
        ("an order of three", block(&INSTALLED.replace("ORDER=A", "ORDER=A B A"))),
    ];
    for (what, damaged) in damage {
        for (at, name) in FILES.into_iter().enumerate() {
            let node = Node::of_two();
            let loader = node.loader();
            loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL).unwrap();
            fs::write(node.dir.path().join(name), &damaged).unwrap();
            assert_eq!(loader.status().unwrap().next_boot(), Some(Slot::B), "{what} in {name}");
            loader.disarm().unwrap();
            assert_eq!(node.read(name), node.read(FILES[1 - at]), "{what} in {name}");
            assert_eq!(loader.status().unwrap().order, [Slot::A]);
        }
    }
}

#[test]
fn the_higher_revision_counts_and_the_first_of_two_equal_ones() {
    let newer = INSTALLED.replace("MONOK8S_REV=1", "MONOK8S_REV=10").replace("A_TRY=0", "A_TRY=2");
    let same = INSTALLED.replace("A_TRY=0", "A_TRY=1");
    for (first, second, left) in [
        (INSTALLED, newer.as_str(), 1),
        (newer.as_str(), INSTALLED, 1),
        (INSTALLED, same.as_str(), 3),
        (same.as_str(), INSTALLED, 2),
    ] {
        let node = Node::with(&[(FILES[0], block(first)), (FILES[1], block(second))]);
        assert_eq!(node.loader().status().unwrap().a.tries_left, Tries(left));
    }
}

#[test]
fn a_state_that_cannot_be_read_is_an_error_and_is_never_replaced() {
    let empty = vec![0; BLOCK_LEN];
    let nodes = [
        Node::with(&[]),
        Node::with(&[(FILE, empty.clone())]),
        Node::with(&[(FILE, block("saved_entry=0"))]),
        Node::with(&[(FILE, [block(INSTALLED), vec![b'#']].concat())]),
        Node::with(&FILES.map(|name| (name, empty.clone()))),
        Node::with(&[(FILES[1], empty)]),
    ];
    for node in nodes {
        let before: Vec<_> =
            [FILE, FILES[0], FILES[1]].map(|name| fs::read(node.dir.path().join(name)).ok()).into();
        let loader = node.loader();
        for error in
            [loader.status().unwrap_err(), loader.mark_good(Slot::A).map(|()| "nothing").unwrap_err()]
        {
            assert!(matches!(error, BootError::Read { .. } | BootError::Locked { .. }), "{error}");
        }
        let after: Vec<_> =
            [FILE, FILES[0], FILES[1]].map(|name| fs::read(node.dir.path().join(name)).ok()).into();
        assert_eq!(before, after);
    }
}

#[test]
fn what_is_missing_is_named_with_the_command_that_sets_it() {
    let node = Node::with(&[(FILE, block("saved_entry=0"))]);
    let error = node.loader().status().unwrap_err();
    let causes = crate::causes::chain(&error);
    assert!(causes.contains("ORDER") && causes.contains("grub-editenv FILE set"), "{causes}");
}

#[test]
fn it_is_found_where_it_keeps_slots_and_nowhere_else() {
    assert!(GrubEnv::detect(Node::of_two().dir.path()).is_some());
    assert!(GrubEnv::detect(Node::of_one().dir.path()).is_some());
    assert!(GrubEnv::detect(Node::with(&[]).dir.path()).is_none());
    assert!(GrubEnv::detect(Node::with(&[(FILE, block("saved_entry=0"))]).dir.path()).is_none());
}

#[test]
fn a_trial_has_no_more_tries_than_the_script_counts() {
    for (node, most) in [(Node::of_two(), 3), (Node::of_one(), 1)] {
        let loader = node.loader();
        assert_eq!(loader.capabilities().max_tries, Tries(most));
        loader.arm_trial(token(Slot::B), ATTEMPT, Tries(most)).unwrap();
        let more = loader.arm_trial(token(Slot::B), ATTEMPT, Tries(most + 1));
        assert!(matches!(more, Err(BootError::Tries { .. })));
    }
}

#[test]
fn an_old_copy_that_a_failed_write_left_is_replaced_by_whoever_repeats_it() {
    let node = Node::of_two();
    let loader = node.loader();
    let path = node.dir.path().join(FILES[1]);
    for change in [
        (|loader: &GrubEnv| loader.mark_good(Slot::A)) as fn(&GrubEnv) -> Result<(), BootError>,
        |loader| loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL),
        |loader| loader.disarm(),
    ] {
        node.power_on();
        let old = fs::read(&path).unwrap();
        change(&loader).unwrap();
        let after = loader.status().unwrap();
        fs::write(&path, &old).unwrap();
        assert!(!loader.is_settled());
        change(&loader).unwrap();
        assert!(loader.is_settled());
        assert_eq!(loader.status().unwrap(), after);
    }
}

#[test]
fn tries_are_refilled_with_one_file_gone_and_nothing_else_changes_then() {
    for gone in FILES {
        let node = Node::of_two();
        let loader = node.loader();
        for _ in 0..2 {
            node.power_on();
        }
        fs::remove_file(node.dir.path().join(gone)).unwrap();
        loader.mark_good(Slot::A).unwrap();
        let status = loader.status().unwrap();
        assert_eq!(status.slot(Slot::A).tries_left, status.tries_full, "without {gone}");
        let armed = loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL);
        assert!(matches!(armed, Err(BootError::Write { .. })), "{armed:?}");
        assert_eq!(loader.status().unwrap(), status);
    }
}

//! What the power failing at any moment leaves in the two files: every change of ours, and every
//! power-on, on a disk that loses whatever was not flushed.

use std::io;
use std::path::Path;

use super::script::{Outcome, power_on};
use super::tests::{INSTALLED, block};
use super::*;
use crate::boot::{ArmableSlot, AttemptId, LoaderStatus, Reverter};
use crate::disk::KnownGoodSlot;
use crate::disk::fault::{CrashState, Crashes, FaultDisk, Medium, Power};
use crate::slot::Slot;

/// The disk, written as GRUB does: through the firmware, and nothing is flushed.
#[derive(Debug)]
struct Unflushed<'a>(&'a FaultDisk);

impl Region for Unflushed<'_> {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn size(&self) -> io::Result<u64> {
        Region::size(self.0)
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.0.read(offset, length)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        crate::disk::BlockTarget::write_at(self.0, offset, bytes).map_err(io::Error::other)
    }

    fn lock(&self) -> io::Result<RegionLock> {
        Ok(RegionLock::of_nothing())
    }
}

struct Node {
    power: Power,
    disks: [Arc<FaultDisk>; 2],
}

impl Node {
    fn holding(copies: [&[u8]; 2]) -> Self {
        let power = Power::new();
        let disks = [0, 1].map(|at| Arc::new(FaultDisk::new(&power, FILES[at], Medium::of(copies[at]))));
        Self { power, disks }
    }

    fn loader(&self) -> GrubEnv {
        GrubEnv::redundant(self.disks.each_ref().map(|disk| Arc::clone(disk) as Arc<dyn Region>))
    }

    fn power_on(&self) -> Outcome {
        let [first, second] = self.disks.each_ref().map(|disk| Unflushed(disk));
        power_on(&[&first, &second], |_| true).unwrap()
    }

    fn content(&self) -> [Vec<u8>; 2] {
        self.disks.each_ref().map(|disk| disk.content().to_vec())
    }

    /// A node that holds what a power failure left of this one.
    fn after(&self, state: &CrashState) -> Self {
        let [first, second] = self.disks.each_ref().map(|disk| state.disk(disk).to_vec());
        Self::holding([&first, &second])
    }
}

fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
}

type Step = (&'static str, fn(&Node));

/// The lives of a node: an upgrade that holds, one that falls back, one that is sent back, and one
/// that is called off; each with power-ons in between.
const STEPS: [Step; 14] = [
    ("mark A good", |node| node.loader().mark_good(Slot::A).unwrap()),
    ("invalidate B", |node| node.loader().invalidate(Slot::B).unwrap()),
    ("arm B", |node| node.loader().arm_trial(token(Slot::B), AttemptId(9), Tries(1)).unwrap()),
    ("boot B", |node| assert_eq!(node.power_on(), Outcome::Entered(Slot::B))),
    ("fall back to A", |node| assert_eq!(node.power_on(), Outcome::Entered(Slot::A))),
    ("note it", |node| node.loader().mark_good(Slot::A).unwrap()),
    ("arm B again", |node| node.loader().arm_trial(token(Slot::B), AttemptId(10), Tries(2)).unwrap()),
    ("boot B again", |node| assert_eq!(node.power_on(), Outcome::Entered(Slot::B))),
    ("confirm B", |node| node.loader().confirm().unwrap()),
    ("arm A", |node| node.loader().arm_trial(token(Slot::A), AttemptId(11), Tries(1)).unwrap()),
    ("boot A", |node| assert_eq!(node.power_on(), Outcome::Entered(Slot::A))),
    ("send A back", |node| node.loader().revert(Reverter::Guard).unwrap()),
    ("boot B once more", |node| assert_eq!(node.power_on(), Outcome::Entered(Slot::B))),
    ("forget A", |node| node.loader().disarm().unwrap()),
];

/// The state, and the same if either copy is lost.
fn state(node: &Node, what: &str) -> LoaderStatus {
    node.loader().status().unwrap_or_else(|error| panic!("{what}: {}", crate::causes::chain(&error)))
}

fn without(content: &[Vec<u8>; 2], lost: usize) -> Node {
    let zeroes = vec![0; BLOCK_LEN];
    let mut copies = content.each_ref().map(Vec::as_slice);
    copies[lost] = &zeroes;
    Node::holding(copies)
}

#[test]
fn a_power_failure_leaves_the_old_state_or_the_new_one() {
    let (mut looked_at, mut old_seen, mut new_seen) = (0, 0, 0);
    let installed = block(INSTALLED);
    let node = Node::holding([&installed, &installed]);
    for (what, step) in STEPS {
        let before = state(&node, what);
        node.power.settle();
        step(&node);
        let after = state(&node, what);
        for crash in node.power.crash_states(&Crashes::default()) {
            looked_at += 1;
            let what = format!("{what}, {crash:?}");
            let found = node.after(&crash);
            let status = state(&found, &what);
            assert!(status == before || status == after, "{what}: {status:?}");
            old_seen += usize::from(status == before);
            new_seen += usize::from(status == after);
            // The variables of others are still there, whichever copy is read.
            for copy in found.content() {
                let block = EnvBlock::parse(&copy).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(block.get("kept"), Some(&b"by others"[..]), "{what}");
            }
            // What boots then may boot, and afterwards no loss of a copy brings an older state back.
            let Outcome::Entered(slot) = found.power_on() else { panic!("{what}: nothing boots") };
            assert!(status.may_boot(slot), "{what}");
            let booted = state(&found, &what);
            let mut expected = status.clone();
            assert_eq!(expected.boot_once(), Some(slot), "{what}");
            assert_eq!(booted, expected, "{what}");
            for lost in [0, 1] {
                assert_eq!(state(&without(&found.content(), lost), &what), booted, "{what}, {lost} lost");
            }
        }
        for lost in [0, 1] {
            assert_eq!(state(&without(&node.content(), lost), what), after, "{what}, copy {lost} lost");
        }
    }
    println!("{looked_at} states: {old_seen} old, {new_seen} new");
    assert!(looked_at >= 100 && old_seen > 30 && new_seen > 30, "{looked_at} {old_seen} {new_seen}");
}

/// With one copy lost from the start, every change writes it again, and never touches the other
/// before that is done.
#[test]
fn a_lost_copy_comes_back_without_a_moment_in_which_there_is_none() {
    let installed = block(INSTALLED);
    let zeroes = vec![0; BLOCK_LEN];
    for copies in [[&installed, &zeroes], [&zeroes, &installed]] {
        let node = Node::holding(copies.map(Vec::as_slice));
        node.power_on();
        node.power.settle();
        let before = state(&node, "before");
        node.loader().mark_good(Slot::A).unwrap();
        let after = state(&node, "after");
        for crash in node.power.crash_states(&Crashes::default()) {
            let status = state(&node.after(&crash), &format!("{crash:?}"));
            assert!(status == before || status == after, "{crash:?}: {status:?}");
        }
        let [first, second] = node.content();
        assert_eq!(first, second);
    }
}

/// One file has no second chance, but as the state is in one sector, it is never torn.
#[test]
fn the_one_file_is_old_or_new_too() {
    let power = Power::new();
    let content = block("ORDER=A, A_OK=1, A_TRY=1, B_OK=0, B_TRY=0, kept=by others");
    let disk = Arc::new(FaultDisk::new(&power, FILE, Medium::of(&content)));
    let loader = GrubEnv::single(Arc::clone(&disk) as Arc<dyn Region>);
    for step in 0..3 {
        power.settle();
        let before = loader.status().unwrap();
        match step {
            0 => loader.mark_good(Slot::A).unwrap(),
            1 => loader.arm_trial(token(Slot::B), AttemptId(u64::MAX), Tries(1)).unwrap(),
            _ => loader.invalidate(Slot::B).unwrap(),
        }
        let after = loader.status().unwrap();
        let mut seen = 0;
        for crash in power.crash_states(&Crashes::default()) {
            let left = FaultDisk::new(&Power::new(), FILE, crash.disk(&disk));
            let status = GrubEnv::single(Arc::new(left)).status().unwrap();
            assert!(status == before || status == after, "{crash:?}: {status:?}");
            let kept = EnvBlock::parse(&crash.disk(&disk).to_vec()).unwrap();
            assert_eq!(kept.get("kept"), Some(&b"by others"[..]), "{crash:?}");
            seen += 1;
        }
        assert!(seen > 2);
    }
}

#[test]
fn a_medium_that_fails_is_said_and_leaves_a_state() {
    use crate::disk::fault::Fault;
    let installed = block(INSTALLED);
    for fault in [Fault::Error, Fault::Short(100), Fault::Dropped, Fault::FlippedBit(300)] {
        for at in [0, 1] {
            let node = Node::holding([&installed, &installed]);
            node.power_on();
            node.disks[at].inject(1, fault);
            let marked = node.loader().mark_good(Slot::A);
            let expected_not_taken = matches!(fault, Fault::Dropped | Fault::FlippedBit(_));
            match marked {
                // The second is the one that is not read.
                Ok(()) => assert!(at == 1 && !expected_not_taken, "{fault:?}"),
                Err(error) => {
                    let not_taken = matches!(error, BootError::NotTaken { .. });
                    assert_eq!(not_taken, expected_not_taken, "{fault:?}: {error}");
                }
            }
            let [first, second] = node.content();
            let left = Node::holding([&first, &second]);
            assert_eq!(state(&left, "then").order, [Slot::A]);
            assert_eq!(left.power_on(), Outcome::Entered(Slot::A));
        }
    }
}

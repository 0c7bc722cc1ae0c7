//! The whole upgrade of a node under every power failure: the real writer, read-back, record store
//! and loader state, on storage that keeps what was flushed and any part of the rest.
//!
//! The slot, the record and the loader's state hang on one power supply, so a state is one instant
//! of all of them. That the check itself can fail is checked too: see the last tests.

#![cfg(all(feature = "boot", feature = "image"))]

mod judge;
mod machine;
mod mistakes;
mod rows;

use std::sync::Arc;

use self::judge::{Judge, OsImage};
use self::machine::{Leave, Machine};
use super::*;
use crate::api::FailureReason;
use crate::disk::fault::{CrashStates, Crashes, Medium};
use crate::slot::Slot;

const SLOT: usize = 2 << 20;
/// In units of 64 KiB.
const IMAGE: usize = 21;
/// What the test promises to look at.
const ENOUGH: usize = 100_000;

fn images() -> Arc<Vec<OsImage>> {
    Arc::new(vec![
        // So short that no byte behind the first 64 KiB is what the others have there.
        OsImage::new("v1.33.9", 0x11, 1),
        OsImage::new("v1.34.6", 0x51, 7),
        OsImage::new("v1.35.3", 0x91, IMAGE),
    ])
}

/// A node that went from slot B to slot A once and is about to go on, and what is in slot B.
fn about_to_upgrade() -> (Machine, Medium) {
    let mut machine = Machine::installed(&images(), SLOT);
    let images = Arc::clone(&machine.images);
    machine.order("uid-1", &images[1]);
    let done = Action::Report(Report::Completed { version: images[1].version.clone() });
    assert_eq!(machine.run(Leave::ToBoot), done);
    assert_eq!(machine.booted.slot, Slot::A);
    machine.order("uid-2", &images[2]);
    machine.power.settle();
    machine.done.clear();
    let old = machine.b.content();
    (machine, old)
}

fn completed(machine: &Machine) -> Action {
    Action::Report(Report::Completed { version: machine.images[2].version.clone() })
}

/// At least [`ENOUGH`] states, whatever the size of the writer's operations.
fn many_states(machine: &Machine) -> CrashStates {
    let with = |power: u32| Crashes { subsets: 1 << power, tears: 1 << (power / 2), seed: 1 };
    let enough = |power: &u32| machine.power.crash_states(&with(*power)).len() >= ENOUGH;
    let power = (10..20).find(enough).expect("the log has too few operations");
    machine.power.crash_states(&with(power))
}

/// The first state that must not be.
fn find_bad(machine: &Machine, old: Medium, states: CrashStates) -> Option<String> {
    let mut judge = Judge::new(machine, old, &machine.images[2]);
    let bad = |state| judge.judge(&state).err().map(|wrong| format!("{wrong}: {state:?}"));
    states.into_iter().find_map(bad)
}

#[test]
fn at_every_instant_the_old_slot_boots_or_the_new_one_whole_and_committed_to() {
    let (mut machine, old) = about_to_upgrade();
    let written_to_a = machine.a.log().len();
    assert_eq!(machine.run(Leave::ToBoot), completed(&machine));
    assert_eq!((machine.booted.slot, machine.torn_boots), (Slot::B, 0));
    assert_eq!(machine.a.log().len(), written_to_a, "the booted slot was written");
    let states = many_states(&machine);
    println!("{} crash states", states.len());
    assert!(states.len() >= ENOUGH);
    assert_eq!(find_bad(&machine, old, states), None);
}

#[test]
fn whatever_a_power_failure_leaves_the_upgrade_comes_to_its_end() {
    let (mut machine, _) = about_to_upgrade();
    assert_eq!(machine.run(Leave::ToBoot), completed(&machine));
    let crashes = Crashes { subsets: 3, tears: 2, seed: 5 };
    let (mut looked_at, mut gone_back) = (0, 0);
    for state in machine.power.crash_states(&crashes).step_by(3) {
        let mut left = Machine::left(&machine, &state);
        left.power_on();
        let mut end = left.run(Leave::ToBoot);
        if let Action::Report(Report::RolledBack { reason, .. }) = &end {
            // Its trial was cut. The image is remembered until somebody asks again.
            assert_eq!((reason, left.booted.slot), (&FailureReason::FellBack, Slot::A));
            gone_back += 1;
            left.want(|object| object.retry_nonce = Some("again".to_owned()));
            end = left.run(Leave::ToBoot);
        }
        assert_eq!((end, left.torn_boots), (completed(&left), 0), "{state:?}");
        looked_at += 1;
    }
    println!("{looked_at} states followed to their end, {gone_back} of them over a rollback");
    assert!(looked_at > 200, "{looked_at}");
}

#[test]
fn a_second_power_failure_on_the_way_is_survived_too() {
    let (mut machine, _) = about_to_upgrade();
    assert_eq!(machine.run(Leave::ToBoot), completed(&machine));
    let few = Crashes { subsets: 1, tears: 1, seed: 9 };
    let (mut arrived, mut gone_back) = (0, 0);
    for state in machine.power.crash_states(&few).step_by(29) {
        let mut first = Machine::left(&machine, &state);
        first.power_on();
        first.run(Leave::ToBoot);
        for state in first.power.crash_states(&few).step_by(97) {
            let mut second = Machine::left(&first, &state);
            second.power_on();
            match second.run(Leave::ToBoot) {
                end if end == completed(&machine) => arrived += 1,
                Action::Report(Report::RolledBack { reason: FailureReason::FellBack, .. }) => gone_back += 1,
                end => panic!("ended in {end:?} after {state:?}"),
            }
            assert_eq!(second.torn_boots, 0);
        }
    }
    println!("{arrived} nodes arrived after two power failures, {gone_back} went back");
    assert!(arrived > 150, "{arrived}");
}

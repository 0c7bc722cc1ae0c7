//! The table of power cuts, row by row: which slot boots, and what the agent does then.

use super::machine::{Leave, Machine};
use super::*;
use crate::api::FailureReason;
use crate::boot::BootBackend as _;
use crate::disk::fault::CrashState;

fn upgraded() -> Machine {
    let (mut machine, _) = about_to_upgrade();
    assert_eq!(machine.run(Leave::ToBoot), completed(&machine));
    machine
}

/// What a power failure leaves right after the first action of this kind, everything of which was
/// flushed.
fn cut_after(machine: &Machine, kind: impl Fn(&Action) -> bool) -> Machine {
    let (moment, _) = *machine.done.iter().find(|(_, action)| kind(action)).expect("it was done");
    let crashes = Crashes { subsets: 1, tears: 1, seed: 1 };
    let until = |state: &CrashState| state.moment() <= moment;
    let state = machine.power.crash_states(&crashes).take_while(until).last().unwrap();
    let mut left = Machine::left(machine, &state);
    left.power_on();
    left
}

/// The states between two actions, as far as `is_it` recognizes them.
fn cuts(machine: &Machine, is_it: impl Fn(&Machine) -> bool) -> Vec<Machine> {
    let crashes = Crashes { subsets: 4, tears: 2, seed: 3 };
    let states = machine.power.crash_states(&crashes).map(|state| Machine::left(machine, &state));
    states.filter(is_it).collect()
}

fn did(machine: &Machine, kind: impl Fn(&Action) -> bool) -> usize {
    machine.done.iter().filter(|(_, action)| kind(action)).count()
}

fn writes(action: &Action) -> bool {
    matches!(action, Action::Write { .. })
}

fn reads_back(action: &Action) -> bool {
    matches!(action, Action::Verify { .. })
}

fn records_rollback(action: &Action) -> bool {
    matches!(action, Action::Record(Step::RolledBack { .. }))
}

#[test]
fn cleared_and_invalidated_it_starts_the_write() {
    let machine = upgraded();
    let mut left = cut_after(&machine, |action| matches!(action, Action::Invalidate { slot: Slot::B }));
    assert_eq!(left.booted.slot, Slot::A);
    assert!(left.store().load().unwrap().slots.b.is_none());
    assert_eq!(left.run(Leave::ToBoot), completed(&machine));
    assert_eq!(did(&left, writes), 1);
}

#[test]
fn partly_written_it_starts_again() {
    let machine = upgraded();
    let head = |left: &Machine| left.b.content().is_zero(0, judge::HEAD);
    let lefts = cuts(&machine, |left| head(left) && left.store().load().unwrap().slots.b.is_none());
    assert!(lefts.len() > 20, "{}", lefts.len());
    for mut left in lefts {
        left.power_on();
        assert_eq!(left.booted.slot, Slot::A);
        assert_eq!(left.run(Leave::ToBoot), completed(&machine));
        assert_eq!(did(&left, writes), 1);
    }
}

#[test]
fn written_and_recorded_it_reads_back_and_fetches_nothing() {
    let machine = upgraded();
    let mut left = cut_after(&machine, writes);
    assert_eq!(left.booted.slot, Slot::A);
    assert_eq!(left.run(Leave::ToBoot), completed(&machine));
    assert_eq!(did(&left, writes), 0);
    assert!(did(&left, reads_back) > 0);
}

/// What is recorded as written, and lacks its first bytes.
fn is_recorded_without_head(left: &Machine) -> bool {
    let claim = left.store().load().unwrap().slots.b;
    claim.is_some_and(|claim| claim.state == SlotContentState::Written)
        && left.b.content().is_zero(0, judge::HEAD)
}

#[test]
fn recorded_before_the_first_bytes_it_reads_back_and_writes_again() {
    let machine = upgraded();
    let lefts = cuts(&machine, is_recorded_without_head);
    assert!(!lefts.is_empty());
    for mut left in lefts {
        left.power_on();
        assert_eq!(left.booted.slot, Slot::A);
        assert_eq!(left.run(Leave::ToBoot), completed(&machine));
        let order = left.done.iter().map(|(_, action)| action);
        let order: Vec<_> = order.filter(|action| writes(action) || reads_back(action)).collect();
        assert!(reads_back(order[0]) && writes(order[1]) && reads_back(order[2]), "{order:?}");
    }
}

/// Power cuts are not the disk's fault, however many there are.
#[test]
fn cut_there_twice_it_goes_on() {
    let machine = upgraded();
    let mut first = cuts(&machine, is_recorded_without_head).pop().unwrap();
    first.power_on();
    first.run(Leave::ToBoot);
    let seconds = cuts(&first, is_recorded_without_head);
    assert!(!seconds.is_empty());
    for mut second in seconds {
        second.power_on();
        assert_eq!(second.run(Leave::ToBoot), completed(&machine));
    }
}

#[test]
fn verified_it_is_staged() {
    let machine = upgraded();
    let mut left = cut_after(&machine, reads_back);
    assert_eq!(left.booted.slot, Slot::A);
    let version = machine.images[2].version.clone();
    assert_eq!(left.run(Leave::ToStage), Action::Report(Report::Staged { version, slot: Slot::B }));
    assert_eq!((did(&left, writes), did(&left, reads_back)), (0, 0));
    assert_eq!(left.run(Leave::ToBoot), completed(&machine));
    assert_eq!(did(&left, writes), 0);
}

#[test]
fn intended_or_committed_but_not_armed_it_goes_on_or_drops_the_intent() {
    let machine = upgraded();
    let intended = |action: &Action| matches!(action, Action::Record(Step::Intended { .. }));
    let committed = |action: &Action| matches!(action, Action::Commit { .. });
    for kind in [&intended as &dyn Fn(&Action) -> bool, &committed] {
        let mut left = cut_after(&machine, kind);
        assert_eq!(left.booted.slot, Slot::A);
        assert_eq!(left.run(Leave::ToBoot), completed(&machine));
        assert_eq!((did(&left, writes), did(&left, records_rollback)), (0, 0));

        let mut left = cut_after(&machine, kind);
        left.want(|object| object.standing = Standing::Superseded);
        assert_eq!(left.run(Leave::ToBoot), Action::Report(Report::Superseded));
        assert_eq!(did(&left, |action| *action == Action::Record(Step::IntentDropped)), 1);
        assert_eq!(did(&left, records_rollback), 0);
        assert!(left.store().load().unwrap().failed.is_empty());
        assert_eq!(left.loader().status().unwrap().order, [Slot::A]);
    }
}

fn arms(action: &Action) -> bool {
    matches!(action, Action::Arm { .. })
}

/// Back in the old slot, and the image is remembered.
fn assert_rolled_back(left: &mut Machine) {
    assert_eq!(left.booted.slot, Slot::A);
    let end = left.run(Leave::ToBoot);
    let fell_back =
        matches!(&end, Action::Report(Report::RolledBack { reason: FailureReason::FellBack, .. }));
    assert!(fell_back, "{end:?}");
    let record = left.store().load().unwrap();
    assert_eq!(record.failed.len(), 1);
    assert_eq!(record.failed[0].checksum, left.images[2].hop().checksum);
    assert_eq!(left.loader().status().unwrap().order, [Slot::A]);
}

#[test]
fn armed_it_confirms_or_lets_it_fall_back() {
    let mut machine = upgraded();
    let mut left = cut_after(&machine, arms);
    assert_eq!(left.booted.slot, Slot::B);
    assert_eq!(left.run(Leave::ToBoot), completed(&machine));
    assert_eq!(did(&left, |action| matches!(action, Action::Confirm { .. })), 1);

    machine.broken = Some(machine.images[2].version.clone());
    let mut left = cut_after(&machine, arms);
    assert_rolled_back(&mut left);
}

#[test]
fn booted_and_not_confirmed_it_is_rolled_back_and_remembered() {
    let machine = upgraded();
    let mut left = cut_after(&machine, |action| matches!(action, Action::Reboot { .. }));
    assert_rolled_back(&mut left);
}

#[test]
fn confirmed_and_not_recorded_it_is_completed() {
    let machine = upgraded();
    let mut left = cut_after(&machine, |action| matches!(action, Action::Confirm { .. }));
    assert_eq!(left.booted.slot, Slot::B);
    assert!(left.store().load().unwrap().attempt.is_some());
    assert_eq!(left.run(Leave::ToBoot), completed(&machine));
    assert_eq!(did(&left, |action| *action == Action::Record(Step::Confirmed)), 1);
    let touches = |action: &Action| writes(action) || arms(action) || matches!(action, Action::Reboot { .. });
    assert_eq!(did(&left, touches), 0);
}

//! The script in a real GRUB: which slot it boots, and what it leaves in the environment.

use std::process::Command;

use monok8s_sdk::boot::grub::script::Outcome;
use monok8s_sdk::boot::{
    ArmableSlot, AttemptId, BootBackend as _, Reverter, TrialEvidence, TrialProgress, Tries, TryCounting,
};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::slot::Slot;
use xtask::grub::GRUB_SCRIPT_CHECK;
use xtask::host::workspace_root;

use super::grub_editenv::block;
use super::grub_machine::{Firmware, Machine, ONE, TWO, obstacle};

const INSTALLED: &[&str] = &[
    "ORDER=A",
    "A_OK=1",
    "A_TRY=0",
    "B_OK=0",
    "B_TRY=0",
    "MONOK8S_TRIES=3",
    "MONOK8S_REV=1",
    "kept=by others",
];

fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
}

fn machine(files: &'static [&'static str], variables: &[&str]) -> Option<Machine> {
    machine_with(Firmware::Bios, files, variables)
}

fn machine_with(firmware: Firmware, files: &'static [&'static str], variables: &[&str]) -> Option<Machine> {
    if let Some(reason) = obstacle(firmware) {
        println!("SKIP: {reason}");
        return None;
    }
    Some(Machine::with(firmware, files, &block(variables)?))
}

#[test]
fn the_script_is_well_formed() {
    let check = match GRUB_SCRIPT_CHECK.locate() {
        Ok(check) => check,
        Err(missing) => return println!("SKIP: {missing}"),
    };
    let script = workspace_root().join("deploy/host/grub/grub.cfg");
    let output = Command::new(check).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_trial_that_does_not_hold_falls_back_and_one_that_holds_stays() {
    let Some(mut machine) = machine(TWO, INSTALLED) else { return };
    let loader = machine.loader();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::A));
    assert_eq!(loader.canary().unwrap(), TryCounting::Proven);
    loader.mark_good(Slot::A).unwrap();

    loader.arm_trial(token(Slot::B), AttemptId(1), Tries::TRIAL).unwrap();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::A));
    loader.mark_good(Slot::A).unwrap();
    let fell_back = TrialProgress::Tried(TrialEvidence::FellBack);
    assert_eq!(loader.status().unwrap().trial_progress(AttemptId(1)), fell_back);
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::A));

    loader.arm_trial(token(Slot::B), AttemptId(2), Tries::TRIAL).unwrap();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    loader.confirm().unwrap();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    loader.mark_good(Slot::B).unwrap();

    // A trial of a slot without a kernel ends within the same power-on, and counts as tried.
    machine.tear(Slot::A);
    loader.arm_trial(token(Slot::A), AttemptId(3), Tries::TRIAL).unwrap();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    loader.mark_good(Slot::B).unwrap();
    assert_eq!(loader.status().unwrap().trial_progress(AttemptId(3)), fell_back);
    loader.disarm().unwrap();
    machine.tear(Slot::B);
    assert_eq!(machine.power_on(), Outcome::NothingStarted);
}

#[test]
fn a_slot_that_nobody_marks_good_is_passed_over_until_nothing_else_is_left() {
    let variables =
        ["ORDER=B A", "A_OK=1", "A_TRY=2", "B_OK=1", "B_TRY=1", "MONOK8S_TRIES=3", "MONOK8S_REV=7"];
    let Some(mut machine) = machine(TWO, &variables) else { return };
    for slot in [Slot::B, Slot::B, Slot::A, Slot::B] {
        assert_eq!(machine.power_on(), Outcome::Entered(slot));
    }
    let status = machine.loader().status().unwrap();
    assert_eq!((status.a.tries_left, status.b.tries_left), (Tries(3), Tries(2)));

    // Unless it was on trial: nobody boots that again.
    let variables = [
        "ORDER=B A",
        "A_OK=1",
        "A_TRY=2",
        "B_OK=1",
        "B_TRY=2",
        "MONOK8S_TRIES=3",
        "MONOK8S_REV=8",
        "MONOK8S_TRIAL=B:1:1:none",
    ];
    for name in TWO {
        machine.put(name, &block(&variables).unwrap());
    }
    for slot in [Slot::B, Slot::A, Slot::A] {
        assert_eq!(machine.power_on(), Outcome::Entered(slot));
    }
}

#[test]
fn one_damaged_file_is_survived_and_two_are_told() {
    let Some(mut machine) = machine(TWO, INSTALLED) else { return };
    let loader = machine.loader();
    loader.arm_trial(token(Slot::B), AttemptId(1), Tries::TRIAL).unwrap();
    machine.zero("grubenv.0");
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    loader.revert(Reverter::Agent).unwrap();
    machine.zero("grubenv.1");
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::A));
    machine.zero("grubenv.0");
    assert_eq!(machine.power_on(), Outcome::NoEnvironment);
    assert!(loader.status().is_err());
}

/// As a power cut within a change of ours leaves them: the second file is ahead of the first.
#[test]
fn the_newer_file_counts_and_is_copied_to_the_older() {
    let Some(mut machine) = machine(TWO, INSTALLED) else { return };
    let newer = [
        "ORDER=B A",
        "A_OK=1",
        "A_TRY=0",
        "B_OK=1",
        "B_TRY=2",
        "MONOK8S_TRIES=3",
        "MONOK8S_TRIAL=B:4:1:none",
        "MONOK8S_REV=10",
    ];
    machine.put("grubenv.1", &block(&newer).unwrap());
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    machine.zero("grubenv.1");
    let progress = machine.loader().status().unwrap().trial_progress(AttemptId(4));
    assert_eq!(progress, TrialProgress::Tried(TrialEvidence::None));
}

#[test]
fn one_file_does_for_a_node_that_has_no_more() {
    let stock = ["ORDER=A", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0"];
    let Some(mut machine) = machine(ONE, &stock) else { return };
    let loader = machine.loader();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::A));
    loader.mark_good(Slot::A).unwrap();
    loader.arm_trial(token(Slot::B), AttemptId(1), Tries::TRIAL).unwrap();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::A));
    machine.put("grubenv", &block(&["ORDER=", "A_OK=0", "A_TRY=0", "B_OK=0", "B_TRY=0"]).unwrap());
    assert_eq!(machine.power_on(), Outcome::NothingMayBoot);
}

#[test]
fn the_script_is_the_same_for_uefi() {
    let Some(mut machine) = machine_with(Firmware::Uefi, TWO, INSTALLED) else { return };
    machine.loader().arm_trial(token(Slot::B), AttemptId(1), Tries::TRIAL).unwrap();
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::B));
    assert_eq!(machine.power_on(), Outcome::Entered(Slot::A));
}

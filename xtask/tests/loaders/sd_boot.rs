//! The names of entries in a real systemd-boot: which slot it boots, and how it counts.

use monok8s_sdk::boot::{
    ArmableSlot, AttemptId, BootBackend as _, TrialEvidence, TrialProgress, Tries, TryCounting,
};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::slot::Slot;

use super::sd_boot_machine::{Machine, obstacle};

const ENTRY_A: &str = "title A\nlinux /monok8s/a/vmlinuz\noptions root=x\nsort-key monok8s-500000000\n";

fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
}

#[test]
fn a_trial_is_counted_falls_back_and_stays_if_it_is_confirmed() {
    if let Some(reason) = obstacle() {
        println!("SKIP: {reason}");
        return;
    }
    let mut machine = Machine::with(&[("monok8s-a+3.conf", ENTRY_A)]);
    let loader = machine.loader();
    assert_eq!(loader.canary().unwrap(), TryCounting::Unsupported);
    assert_eq!(machine.power_on(), Slot::A);
    assert_eq!(loader.canary().unwrap(), TryCounting::Proven);
    loader.mark_good(Slot::A).unwrap();

    machine.stage("b");
    loader.arm_trial(token(Slot::B), AttemptId(1), Tries::TRIAL).unwrap();
    assert_eq!(machine.power_on(), Slot::B);
    assert_eq!(machine.power_on(), Slot::A);
    loader.mark_good(Slot::A).unwrap();
    let fell_back = TrialProgress::Tried(TrialEvidence::FellBack);
    assert_eq!(loader.status().unwrap().trial_progress(AttemptId(1)), fell_back);
    assert_eq!(machine.names(), ["monok8s-a.conf", "monok8s-b.ended-fell-back", "monok8s-counts"]);

    loader.arm_trial(token(Slot::B), AttemptId(2), Tries(2)).unwrap();
    assert_eq!(machine.power_on(), Slot::B);
    loader.confirm().unwrap();
    assert_eq!(machine.power_on(), Slot::B);
    assert_eq!(machine.names(), ["monok8s-a.conf", "monok8s-b.conf", "monok8s-counts"]);
}

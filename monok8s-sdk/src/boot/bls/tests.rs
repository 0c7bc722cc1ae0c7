use std::fs;

use super::*;
use crate::boot::{ArmableSlot, AttemptId, Reverter, TrialEvidence, TrialProgress, TryCounting};
use crate::disk::KnownGoodSlot;

pub(super) const ENTRY_A: &str = "title A\nversion v1.35.3\nlinux /monok8s/a/vmlinuz\n\
    options root=PARTUUID=aa ro panic=5\nsort-key monok8s-500000000\n";
pub(super) const STAGED_B: &str =
    "title B\nversion v1.35.4\nlinux /monok8s/b/vmlinuz\noptions root=PARTUUID=bb ro panic=5\n";

pub(super) fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
}

struct Esp(tempfile::TempDir);

impl Esp {
    /// A partition with these entries, and a staged kernel for slot B.
    fn with(entries: &[(&str, &str)]) -> Self {
        let esp = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(esp.0.path().join(ENTRIES)).unwrap();
        for slot in ["a", "b"] {
            fs::create_dir_all(esp.0.path().join("monok8s").join(slot)).unwrap();
        }
        fs::write(esp.0.path().join("monok8s/b/entry"), STAGED_B).unwrap();
        for (name, text) in entries {
            fs::write(esp.0.path().join(ENTRIES).join(name), text).unwrap();
        }
        esp
    }

    fn installed() -> Self {
        Self::with(&[("monok8s-a+3.conf", ENTRY_A), ("rescue.conf", "title rescue\n")])
    }

    fn loader(&self) -> BlsEntries {
        BlsEntries::on_partition(self.0.path())
    }

    fn power_on(&self) -> Slot {
        sd_boot::power_on(&HostDirectory::new(self.0.path().join(ENTRIES))).unwrap().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names = HostDirectory::new(self.0.path().join(ENTRIES)).names().unwrap();
        names.sort();
        names
    }
}

#[test]
fn the_names_tell_an_upgrade_that_falls_back_and_one_that_holds() {
    let esp = Esp::installed();
    let loader = esp.loader();
    assert_eq!(loader.canary().unwrap(), TryCounting::Unsupported);
    assert_eq!(esp.power_on(), Slot::A);
    assert_eq!(esp.names(), ["monok8s-a+2-1.conf", "rescue.conf"]);
    assert_eq!(loader.canary().unwrap(), TryCounting::Proven);
    loader.mark_good(Slot::A).unwrap();
    assert_eq!(esp.names(), ["monok8s-a.conf", COUNTS, "rescue.conf"]);
    assert_eq!(loader.canary().unwrap(), TryCounting::Proven);

    let (first, second) = (AttemptId(7), AttemptId(8));
    loader.arm_trial(token(Slot::B), first, Tries::TRIAL).unwrap();
    assert_eq!(esp.names(), ["monok8s-a.conf", "monok8s-b+1.conf", COUNTS, "rescue.conf"]);
    assert_eq!(loader.status().unwrap().trial_progress(first), TrialProgress::Armed);
    assert_eq!(esp.power_on(), Slot::B);
    assert_eq!(esp.power_on(), Slot::A);
    assert_eq!(esp.names(), ["monok8s-a.conf", "monok8s-b+0-1.conf", COUNTS, "rescue.conf"]);
    loader.mark_good(Slot::A).unwrap();
    assert_eq!(esp.names(), ["monok8s-a.conf", "monok8s-b.ended-fell-back", COUNTS, "rescue.conf"]);
    let fell_back = TrialProgress::Tried(TrialEvidence::FellBack);
    assert_eq!(loader.status().unwrap().trial_progress(first), fell_back);
    for _ in 0..5 {
        assert_eq!(esp.power_on(), Slot::A);
    }

    loader.arm_trial(token(Slot::B), second, Tries::TRIAL).unwrap();
    assert_eq!(esp.power_on(), Slot::B);
    loader.confirm().unwrap();
    assert_eq!(esp.names(), ["monok8s-a.conf", "monok8s-b.conf", COUNTS, "rescue.conf"]);
    assert_eq!(loader.status().unwrap().order, [Slot::B, Slot::A]);
    assert_eq!(loader.status().unwrap().trial, None);
    for _ in 0..5 {
        assert_eq!(esp.power_on(), Slot::B);
        loader.mark_good(Slot::B).unwrap();
    }

    // Back to A on purpose, and sent back by the guard.
    loader.arm_trial(token(Slot::A), AttemptId(9), Tries::TRIAL).unwrap();
    assert_eq!(esp.power_on(), Slot::A);
    loader.revert(Reverter::Guard).unwrap();
    assert_eq!(esp.names(), ["monok8s-a.ended-guard", "monok8s-b.conf", COUNTS, "rescue.conf"]);
    assert_eq!(esp.power_on(), Slot::B);
    loader.disarm().unwrap();
    assert_eq!(esp.names(), ["monok8s-b.conf", COUNTS, "rescue.conf"]);
}

#[test]
fn an_entry_that_is_armed_keeps_what_it_boots() {
    let esp = Esp::installed();
    let loader = esp.loader();
    loader.arm_trial(token(Slot::B), AttemptId(7), Tries(2)).unwrap();
    let read = |name: &str| fs::read_to_string(esp.0.path().join(ENTRIES).join(name)).unwrap();
    let told = STAGED_B.replace("panic=5", "panic=5 monok8s.trial=B:7:2:none");
    let lines = format!("{told}sort-key monok8s-499999999\n# monok8s-trial 7 2\n");
    assert_eq!(read("monok8s-b+2.conf"), lines);
    assert_eq!(esp.power_on(), Slot::B);
    loader.confirm().unwrap();
    assert_eq!(
        read("monok8s-b.conf"),
        format!("{STAGED_B}sort-key monok8s-499999999\n# monok8s-trial 7 2\n")
    );
    // Its own entry is the model for going back to A, which has no staged lines.
    loader.arm_trial(token(Slot::A), AttemptId(8), Tries(1)).unwrap();
    assert!(read("monok8s-a+1.conf").starts_with("title A\n"));
    assert!(read("monok8s-a+1.conf").contains("sort-key monok8s-499999998\n# monok8s-trial 8 1\n"));
}

#[test]
fn a_slot_that_was_not_staged_cannot_be_armed() {
    let esp = Esp::installed();
    fs::remove_file(esp.0.path().join("monok8s/b/entry")).unwrap();
    let error = esp.loader().arm_trial(token(Slot::B), AttemptId(1), Tries::TRIAL).unwrap_err();
    assert!(crate::causes::chain(&error).contains("slot B has no kernel"), "{error}");
    assert_eq!(esp.names(), ["monok8s-a+3.conf", "rescue.conf"]);
}

#[test]
fn what_cannot_be_told_is_an_error_and_changes_nothing() {
    let other_text = ENTRY_A.replace("panic=5", "panic=9");
    let same_key = ENTRY_A.replace("title A", "title B");
    let no_key = ENTRY_A.replace("sort-key", "#");
    let mut cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("no entry of a slot", vec![]),
        ("is no name for an entry", vec![("monok8s-a+x.conf", ENTRY_A)]),
        ("are of one slot", vec![("monok8s-a.conf", &other_text), ("monok8s-a+1.conf", ENTRY_A)]),
        ("are of one slot", vec![("monok8s-a+0-1.conf", ENTRY_A), ("monok8s-a+1.conf", ENTRY_A)]),
    ];
    cases.push(("sort-key", vec![("monok8s-a.conf", ENTRY_A), ("monok8s-b.conf", &same_key)]));
    cases.push(("no sort-key", vec![("monok8s-a.conf", &no_key)]));
    for (what, entries) in cases {
        let esp = Esp::with(&entries);
        let before = esp.names();
        let error = esp.loader().status().unwrap_err();
        let line = crate::causes::chain(&error);
        assert!(matches!(error, BootError::Read { .. }) && line.contains(what), "{what}: {line}");
        assert!(esp.loader().mark_good(Slot::A).is_err());
        assert_eq!(esp.names(), before);
    }
    let unmounted = BlsEntries::on_partition("/nonexistent");
    assert!(matches!(unmounted.status(), Err(BootError::Read { .. })));
}

#[test]
fn a_confirm_that_the_power_cut_short_is_one_and_is_not_told_as_a_trial_for_ever() {
    let esp = Esp::installed();
    let loader = esp.loader();
    loader.arm_trial(token(Slot::B), AttemptId(7), Tries(1)).unwrap();
    assert_eq!(esp.power_on(), Slot::B);
    let path = |name: &str| esp.0.path().join(ENTRIES).join(name);
    // After the new name was there, and before the old one was gone.
    fs::copy(path("monok8s-b+0-1.conf"), path("monok8s-b.conf")).unwrap();
    let twins = loader.status().unwrap();
    assert!(twins.is_confirmed(Slot::B) && twins.trial.is_none(), "{twins:?}");
    let before = esp.names();
    assert!(loader.arm_trial(token(Slot::A), AttemptId(8), Tries(1)).is_err());
    assert_eq!(esp.names(), before);
    // After the old one was gone, and before the text was changed.
    fs::remove_file(path("monok8s-b+0-1.conf")).unwrap();
    assert!(!loader.is_settled());
    loader.mark_good(Slot::B).unwrap();
    assert!(loader.is_settled());
    assert!(!fs::read_to_string(path("monok8s-b.conf")).unwrap().contains("monok8s.trial="));
}

#[test]
fn an_entry_that_was_taken_out_can_be_armed_again() {
    let esp = Esp::installed();
    let loader = esp.loader();
    loader.arm_trial(token(Slot::B), AttemptId(7), Tries(1)).unwrap();
    assert_eq!(esp.power_on(), Slot::B);
    loader.confirm().unwrap();
    // As a rollback does: out of the order first, armed after the commit. Nobody staged an installer's entry.
    loader.invalidate(Slot::A).unwrap();
    loader.arm_trial(token(Slot::A), AttemptId(8), Tries(1)).unwrap();
    assert_eq!(esp.power_on(), Slot::A);
}

#[test]
fn it_is_found_where_it_keeps_slots_and_nowhere_else() {
    assert!(BlsEntries::detect(Esp::installed().0.path()).is_some());
    assert!(BlsEntries::detect(Esp::with(&[("rescue.conf", "")]).0.path()).is_none());
    assert!(BlsEntries::detect("/nonexistent").is_none());
}

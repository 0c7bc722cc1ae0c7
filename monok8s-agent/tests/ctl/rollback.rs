use std::fs;

use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{AttemptId, BootBackend as _, TrialEvidence, Tries};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::node_upgrade::{AttemptKind, AttemptState};
use monok8s_sdk::slot::Slot;
use serde_json::json;

use super::program::{Machine, ctl};

struct Node {
    machine: Machine,
    loader: SimulatedLoader,
}

impl Node {
    /// Booted from A; B holds a version in this state.
    fn new(b: &str) -> Self {
        let machine = Machine::new();
        let boot_id = machine.path("host/proc/sys/kernel/random/boot_id");
        fs::create_dir_all(boot_id.parent().unwrap()).unwrap();
        fs::write(boot_id, "b-1\n").unwrap();
        let loader = SimulatedLoader::install(&machine.path("loader"), Slot::B, Tries(3)).unwrap();
        loader.boot(|_| true).unwrap();
        loader.mark_good(Slot::B).unwrap();
        let token = KnownGoodSlot::from_confirm_record(Slot::A, "v1.35.3".parse().unwrap(), None);
        loader.arm_trial(token.into(), AttemptId(4), Tries::TRIAL).unwrap();
        assert_eq!(loader.boot(|_| true).unwrap(), Slot::A);
        loader.confirm().unwrap();
        let record = json!({
            "format": 1,
            "nextAttempt": 5,
            "slots": { "B": { "version": "v1.34.6", "state": b } },
            "seen": [{ "uid": "u-1", "generation": 1 }],
        });
        let node = Self { machine, loader };
        node.store().save(&serde_json::from_value(record).unwrap()).unwrap();
        node
    }

    fn store(&self) -> RecordStore {
        RecordStore::in_dir(self.machine.path("data"))
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let backend = format!("--boot-backend=simulated:{}", self.machine.path("loader").display());
        self.machine.args("rollback", &[&[backend.as_str()], more].concat())
    }
}

#[test]
fn the_other_slot_is_armed_on_trial_and_the_node_is_held_there() {
    let node = Node::new("KnownGood");
    let mark = node.machine.path("rebooted");
    let command = format!("--reboot-command=touch {}", mark.display());
    let said = ctl(&node.args(&["--trial-timeout=60"])).good();
    assert_eq!(said, "slot B (v1.34.6) boots next, on trial; reboot the node, unless its agent does\n");
    let trial = node.loader.status().unwrap().trial.unwrap();
    assert_eq!((trial.slot, trial.attempt), (Slot::B, AttemptId(5)));
    let record = node.store().load().unwrap();
    let attempt = record.attempt.as_ref().unwrap();
    assert_eq!((&attempt.kind, &attempt.state), (&AttemptKind::Rollback, &AttemptState::Committed));
    assert_eq!(attempt.trial.timeout_seconds, Some(60));

    // It is under way now; once more is refused.
    assert!(ctl(&node.args(&["--reboot", &command])).bad(1).contains("past its commit"));
    assert!(!mark.exists(), "what was refused reboots nothing");
    let confirmed = record.after(&monok8s_sdk::node_upgrade::Step::Confirmed);
    assert_eq!(confirmed.seen("u-1").unwrap().held_on, Some("v1.34.6".parse().unwrap()));
}

#[test]
fn what_was_never_confirmed_is_not_gone_back_to() {
    for state in ["Verified", "Written"] {
        let node = Node::new(state);
        let error = ctl(&node.args(&["--reboot", "--reboot-command=false"])).bad(1);
        assert!(error.contains("nothing that is known to have run well"), "{error}");
        assert_eq!(node.loader.status().unwrap().trial, None);
    }
}

#[test]
fn a_slot_that_somebody_wrote_without_the_record_is_not_gone_back_to() {
    let node = Node::new("KnownGood");
    node.loader.invalidate(Slot::B).unwrap();
    let error = ctl(&node.args(&["--reboot", "--reboot-command=false"])).bad(1);
    assert!(error.contains("does not have slot B for good"), "{error}");
    assert_eq!(node.loader.status().unwrap().trial, None);
    assert!(node.store().load().unwrap().attempt.is_none());
}

#[test]
fn a_running_trial_is_sent_back() {
    let node = Node::new("KnownGood");
    // The machine runs A, which is what is on trial here.
    let b_is_good = SimulatedLoader::install(&node.machine.path("loader"), Slot::B, Tries(3)).unwrap();
    b_is_good.boot(|_| true).unwrap();
    b_is_good.mark_good(Slot::B).unwrap();
    let token = KnownGoodSlot::from_confirm_record(Slot::A, "v1.35.3".parse().unwrap(), None);
    b_is_good.arm_trial(token.into(), AttemptId(4), Tries::TRIAL).unwrap();
    assert_eq!(b_is_good.boot(|_| true).unwrap(), Slot::A);
    let mark = node.machine.path("rebooted");
    let command = format!("--reboot-command=touch {}", mark.display());
    let said = ctl(&node.args(&["--reboot", &command])).good();
    assert_eq!(said, "the running trial was sent back: slot B boots next; rebooting\n");
    assert!(mark.exists());
    let status = b_is_good.status().unwrap();
    assert_eq!(status.trial.unwrap().evidence, TrialEvidence::RevertedByPerson);
    assert_eq!(status.next_boot(), Some(Slot::B));
}

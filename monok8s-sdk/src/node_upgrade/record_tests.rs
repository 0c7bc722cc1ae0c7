use serde_json::Value;

use super::super::step::Step;
use super::*;
use crate::boot::AttemptId;

/// Frozen: written once, and what every later release must read.
const FIXTURES: [(&str, &str); 4] = [
    ("empty", include_str!("../../../testdata/records/format-1-empty.json")),
    ("staged", include_str!("../../../testdata/records/format-1-staged.json")),
    ("rolled back", include_str!("../../../testdata/records/format-1-rolled-back.json")),
    ("of a newer release", include_str!("../../../testdata/records/format-1-from-newer-release.json")),
];

fn fixture(name: &str) -> Record {
    let (_, text) = FIXTURES.iter().find(|(known, _)| *known == name).unwrap();
    serde_json::from_str(text).unwrap()
}

#[test]
fn every_format_ever_released_is_read_and_written_back_without_loss() {
    for (name, text) in FIXTURES {
        let record: Record = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let before: Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), before, "{name}");
    }
}

#[test]
fn the_fixtures_mean_what_they_say() {
    assert_eq!(fixture("empty"), Record::default());

    let staged = fixture("staged");
    let attempt = staged.attempt.as_ref().unwrap();
    assert_eq!((attempt.id, attempt.number, attempt.slot), (AttemptId(4), 2, Slot::B));
    assert_eq!((&attempt.kind, &attempt.state), (&AttemptKind::Upgrade, &AttemptState::Intended));
    assert_eq!(attempt.boot_id, Some(BootId("0b1f6a52-7f0e-4c1c-8f6e-3d6c1b8c5a01".to_owned())));
    assert_eq!(attempt.trial.timeout_seconds(), 300);
    let content = staged.slots.get(Slot::B).unwrap();
    assert_eq!((&content.state, content.image_len), (&SlotContentState::Verified, Some(1_858_076_672)));
    assert_eq!(staged.slots.get(Slot::A).unwrap().state, SlotContentState::KnownGood);
    let seen = staged.seen("5f0e7a86-3b1a-4c39-9a55-0e7f3a4b9c10").unwrap();
    assert_eq!((seen.generation, seen.retry_count, seen.retry_nonce.as_deref()), (7, 1, Some("retry-1")));
    assert_eq!(staged.pinned("5f0e7a86-3b1a-4c39-9a55-0e7f3a4b9c10").len(), 1);

    let rolled_back = fixture("rolled back");
    let failed = &rolled_back.failed[0];
    assert_eq!((&failed.reason, failed.attempt), (&FailureReason::TrialTimedOut, AttemptId(9)));
    assert!(rolled_back.attempt.as_ref().unwrap().has_ended());
}

#[test]
fn an_older_agent_reads_a_newer_record_and_keeps_what_it_does_not_know_through_every_step() {
    let record = fixture("of a newer release");
    assert_eq!(record.format, 2);
    let attempt = record.attempt.as_ref().unwrap();
    assert_eq!(attempt.state, AttemptState::Unknown("Measuring".to_owned()));
    // What the newer release says of the parts that are not touched survives; the format stays.
    let next = record
        .after(&Step::Accepted {
            object: attempt.object.clone(),
            generation: 99,
            retry_nonce: None,
            rollback_nonce: None,
        })
        .after(&Step::RolledBack {
            reason: FailureReason::FellBack,
            message: "it came back".to_owned(),
            evidence: super::super::fixture::evidence(),
        });
    let value = serde_json::to_value(&next).unwrap();
    for pointer in [
        "/measurements",
        "/slots/C",
        "/slots/A/dmVerity",
        "/attempt/pcr",
        "/attempt/object/namespace",
        "/failed/0/evidence",
        "/seen/0/lease",
        "/seen/0/pinned/0/signature",
    ] {
        assert!(value.pointer(pointer).is_some(), "{pointer} was lost");
    }
    assert_eq!(value.pointer("/format"), Some(&Value::from(2)));
    assert_eq!(value.pointer("/attempt/state"), Some(&Value::from("RolledBack")));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut record = Record::default();
    for number in 0..100 {
        record = record.after(&Step::Accepted {
            object: ObjectIdentity::new("object", &format!("uid-{number}")),
            generation: 1,
            retry_nonce: None,
            rollback_nonce: None,
        });
    }
    assert_eq!(record.seen.len(), 32);
    assert!(record.seen("uid-99").is_some() && record.seen("uid-67").is_none());
}

#[test]
fn nothing_is_begun_over_a_commit() {
    let uid = "uid-1".to_owned();
    let record = fixture("staged").after(&Step::Committed { boot_id: BootId("b".to_owned()) });
    assert_eq!(record.after(&Step::RetryBegun { uid, nonce: "new".to_owned() }), record);
}

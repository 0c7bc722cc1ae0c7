//! What the power failing at any moment leaves of the entries: every change of ours, and every
//! power-on, in a directory that loses what was not flushed.

use std::collections::BTreeMap;

use super::tests::{ENTRY_A, STAGED_B, token};
use super::*;
use crate::boot::{AttemptId, Reverter, TrialEvidence};
use crate::disk::fault::{CrashState, Crashes, FaultDirectory, Files, Power};

struct Node {
    power: Power,
    entries: Arc<FaultDirectory>,
    kernels: [Arc<FaultDirectory>; 2],
}

fn files(of: &[(&str, &str)]) -> Files {
    let file = |(name, text): &(&str, &str)| ((*name).to_owned(), Arc::from(text.as_bytes()));
    Files(of.iter().map(file).collect::<BTreeMap<_, _>>())
}

impl Node {
    fn holding(entries: &Files, kernels: &[Files; 2]) -> Self {
        let power = Power::new();
        let directory = |name: &str, files: &Files| Arc::new(FaultDirectory::new(&power, name, files));
        let kernels = kernels.each_ref().map(|files| directory("/kernel", files));
        let entries = directory("/entries", entries);
        Self { power, entries, kernels }
    }

    fn loader(&self) -> BlsEntries {
        let dynamic = |directory: &Arc<FaultDirectory>| Arc::clone(directory) as Arc<dyn Directory>;
        BlsEntries::in_directories(dynamic(&self.entries), self.kernels.each_ref().map(dynamic))
    }

    fn power_on(&self) -> Option<Slot> {
        sd_boot::power_on(self.entries.as_ref()).unwrap()
    }

    fn after(&self, state: &CrashState) -> Self {
        let kernels = self.kernels.each_ref().map(|kernel| state.directory(kernel));
        Self::holding(&state.directory(&self.entries), &kernels)
    }

    fn status(&self, what: &str) -> LoaderStatus {
        self.loader().status().unwrap_or_else(|error| panic!("{what}: {}", crate::causes::chain(&error)))
    }
}

type Step = (&'static str, fn(&Node));

const STEPS: [Step; 15] = [
    ("prove that it counts", |node| assert_eq!(node.power_on(), Some(Slot::A))),
    ("mark A good", |node| node.loader().mark_good(Slot::A).unwrap()),
    ("arm B", |node| node.loader().arm_trial(token(Slot::B), AttemptId(7), Tries(1)).unwrap()),
    ("boot B", |node| assert_eq!(node.power_on(), Some(Slot::B))),
    ("fall back to A", |node| assert_eq!(node.power_on(), Some(Slot::A))),
    ("note it", |node| node.loader().mark_good(Slot::A).unwrap()),
    ("arm B again", |node| node.loader().arm_trial(token(Slot::B), AttemptId(8), Tries(2)).unwrap()),
    ("boot B again", |node| assert_eq!(node.power_on(), Some(Slot::B))),
    ("confirm B", |node| node.loader().confirm().unwrap()),
    ("arm A, which has an entry", |node| {
        node.loader().arm_trial(token(Slot::A), AttemptId(9), Tries(2)).unwrap();
    }),
    ("boot A", |node| assert_eq!(node.power_on(), Some(Slot::A))),
    ("send A back", |node| node.loader().revert(Reverter::Guard).unwrap()),
    ("boot B once more", |node| assert_eq!(node.power_on(), Some(Slot::B))),
    ("forget A", |node| node.loader().disarm().unwrap()),
    ("arm A, which has none any more", |node| {
        node.loader().arm_trial(token(Slot::A), AttemptId(10), Tries(1)).unwrap();
    }),
];

/// Whether a node may be stopped in this state on the way from one to another.
fn is_between(found: &LoaderStatus, before: &LoaderStatus, after: &LoaderStatus) -> bool {
    let noted = LoaderStatus { counting_seen: before.try_counting(), ..before.clone() };
    let mut ways = vec![before.clone(), after.clone(), noted.clone()];
    // Its evidence is noted, the counter of the other slot is not full yet.
    ways.push(LoaderStatus { a: before.a, counting_seen: after.counting_seen, ..after.clone() });
    // What an ended trial left goes before the next is armed.
    ways.push(LoaderStatus { trial: None, ..noted.clone() });
    // A slot with an entry has none for a moment, before it is armed.
    if let Some(trial) = after.trial.filter(|trial| trial.evidence == TrialEvidence::None) {
        ways.push(noted.invalidated(trial.slot));
    }
    ways.contains(found)
}

#[test]
fn a_power_failure_leaves_a_state_that_is_safe_to_go_on_from() {
    let kernels = [Files::default(), files(&[(STAGED, STAGED_B)])];
    let node = Node::holding(&files(&[("monok8s-a+3.conf", ENTRY_A)]), &kernels);
    let (mut looked_at, mut old, mut new) = (0, 0, 0);
    for (what, step) in STEPS {
        let before = node.status(what);
        node.power.settle();
        step(&node);
        let after = node.status(what);
        for crash in node.power.crash_states(&Crashes::default()) {
            looked_at += 1;
            let what = format!("{what}, {crash:?}");
            let found = node.after(&crash);
            let status = found.status(&what);
            assert!(is_between(&status, &before, &after), "{what}: {status:?}");
            old += usize::from(status == before);
            new += usize::from(status == after);
            // A slot that boots without being counted is one that was confirmed before or after.
            let slot = found.power_on().unwrap_or_else(|| panic!("{what}: nothing boots"));
            assert!(status.may_boot(slot), "{what}: {slot}");
            assert!(
                before.is_confirmed(slot)
                    || after.is_confirmed(slot)
                    || status.trial.is_some_and(|trial| trial.slot == slot),
                "{what}: {slot} boots uncounted"
            );
            // Whatever was lost on the way, the slot can be armed again.
            if let Some(trial) =
                after.trial.filter(|trial| what.starts_with("arm") && before.trial != Some(*trial))
            {
                let again = node.after(&crash);
                again.loader().arm_trial(token(trial.slot), trial.attempt, trial.tries_armed).unwrap();
                assert_eq!(again.status(&what).trial, Some(trial), "{what}");
            }
            // Evidence is noted before the entry goes.
            let trial = before
                .trial
                .filter(|_| after.trial.is_some_and(|trial| trial.evidence != TrialEvidence::None));
            if let Some(trial) = trial {
                assert_eq!(status.trial.map(|trial| trial.attempt), Some(trial.attempt), "{what}");
            }
        }
    }
    println!("{looked_at} states: {old} old, {new} new");
    assert!(looked_at >= 60 && old >= 20 && new >= 20, "{looked_at} {old} {new}");
}

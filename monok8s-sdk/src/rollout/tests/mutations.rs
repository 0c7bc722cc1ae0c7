//! The stories of the simulation can tell: without any one of the gates, one of them breaks a rule.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::simulation::{live, story};
use crate::rollout::gates::{DRAIN, LEAVE_ENDS_WITH_WINDOW, STAGING_LIMIT, gate_names, without};

/// Stories that are told of a planner without a gate before it is said that they cannot tell.
const STORIES: u32 = 2_000;

#[test]
fn without_any_one_of_the_gates_a_story_breaks_a_rule() {
    let mut unnoticed = Vec::new();
    // The others would prove nothing if one broke a rule with every gate in its place.
    assert_eq!(told_apart_by("none"), None);
    for name in gate_names().chain([DRAIN, STAGING_LIMIT, LEAVE_ENDS_WITH_WINDOW]) {
        match told_apart_by(name) {
            Some(stories) => println!("without {name}: noticed after {} stories", stories + 1),
            None => unnoticed.push(name),
        }
    }
    assert!(unnoticed.is_empty(), "nobody would notice if these were gone: {unnoticed:?}");
}

/// The number of the first story that breaks a rule without this gate.
fn told_apart_by(gate: &'static str) -> Option<u32> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    without(gate, || {
        (0..STORIES).find(|_| {
            let story = story().new_tree(&mut runner).unwrap().current();
            catch_unwind(AssertUnwindSafe(|| live(&story))).is_err()
        })
    })
}

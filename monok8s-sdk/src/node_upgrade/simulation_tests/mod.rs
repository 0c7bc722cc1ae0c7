//! A node, its loader, its disk and its API object as plain values, driven by `decide` through
//! random orders, crashes and power cuts. What must never happen is asserted where it would.

mod node;

use proptest::prelude::*;

use self::node::{Character, Cut, Event, Node};
use super::fixture::{OLD, THEN, version};
use super::*;
use crate::api::FailureReason;
use crate::slot::Slot;

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1_u8..12).prop_map(Event::Turns),
        6 => Just(Event::Grant),
        2 => Just(Event::PowerCut),
        1 => Just(Event::LoaderIgnoresTrial),
        3 => prop_oneof![Just(Cut::BeforeEffect), Just(Cut::AfterEffect)].prop_map(Event::CutInTurn),
        2 => any::<u8>().prop_map(|cache| Event::AgentRestart { cache: cache % 16 }),
        1 => Just(Event::Guard),
        1 => Just(Event::Time),
        1 => any::<bool>().prop_map(Event::Api),
        1 => Just(Event::Withdraw),
        1 => any::<bool>().prop_map(Event::Supersede),
        1 => Just(Event::Delete),
        1 => any::<bool>().prop_map(|hops| Event::Replace { hops }),
        1 => (0_u8..3).prop_map(Event::Retry),
        1 => (0_u8..3).prop_map(Event::Rollback),
        1 => Just(Event::Rot),
    ]
}

fn character() -> impl Strategy<Value = Character> {
    prop_oneof![
        2 => Just(Character::Good),
        1 => Just(Character::NeverComesUp),
        1 => Just(Character::NeverHealthy),
        1 => Just(Character::OtherVersion),
    ]
}

fn is_an_end(node: &Node, action: &Action) -> bool {
    match action {
        Action::Report(Report::Completed { version }) => {
            node.object.as_ref().and_then(Order::target) == Some(version)
        }
        Action::Report(Report::Staged { .. }) => false,
        Action::Report(_) => true,
        Action::Wait(reason) => matches!(reason, WaitReason::NothingOrdered | WaitReason::EndedBefore { .. }),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens_a_node_keeps_its_rules_and_comes_to_an_end(
        character in character(),
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let mut node = Node::new(character);
        for event in &events {
            node.happen(event);
        }
        let end = node.settle();
        prop_assert!(is_an_end(&node, &end), "stuck in {end:?}");
    }

    /// A cut at every single step of an undisturbed upgrade: a good image gets there in the end,
    /// with no retry asked for unless its trial was cut, and a bad one always leaves the old version.
    #[test]
    fn one_cut_anywhere_is_survived(character in character(), at in 0_u8..40, after: bool) {
        let mut node = Node::new(character);
        for _ in 0..at {
            node.turn(None);
            node.grant();
            node.watch();
        }
        node.turn(Some(if after { Cut::AfterEffect } else { Cut::BeforeEffect }));
        let end = node.settle();
        let gone_back = matches!(end, Action::Report(Report::RolledBack { .. }));
        if character == Character::Good && !gone_back {
            prop_assert_eq!(&end, &Action::Report(Report::Completed { version: version(THEN) }));
        } else {
            prop_assert!(gone_back, "ended in {:?}", end);
            prop_assert!(node.loader.is_confirmed(node.booted.slot));
        }
    }
}

#[test]
fn an_undisturbed_upgrade_ends_and_a_bad_image_ends_where_it_began() {
    for (character, expected) in [
        (Character::Good, None),
        (Character::NeverComesUp, Some(FailureReason::FellBack)),
        (Character::NeverHealthy, Some(FailureReason::TrialTimedOut)),
        (Character::OtherVersion, Some(FailureReason::WrongVersionBooted)),
    ] {
        let mut node = Node::new(character);
        match (node.settle(), expected) {
            (Action::Report(Report::Completed { version: ended_on }), None) => {
                assert_eq!((ended_on, node.booted.slot), (version(THEN), Slot::A));
            }
            (Action::Report(Report::RolledBack { reason, .. }), Some(expected)) => {
                assert_eq!((reason, &node.booted.version), (expected, &version(OLD)));
            }
            (end, _) => panic!("{character:?} ended in {end:?}"),
        }
    }
}

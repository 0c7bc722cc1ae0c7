//! Health gates, through whole rollouts.

use k8s_openapi::jiff::SignedDuration;

use super::world::World;
use crate::api::{HealthCheck, NodeSelector, UpgradeReason};
use crate::rollout::fixtures::upgrade;
use crate::rollout::{Health, plan};

pub(super) fn check() -> HealthCheck {
    HealthCheck {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: None,
        label_selector: Some(NodeSelector::default()),
        namespace: None,
        expression: "true".to_owned(),
        timeout_seconds: None,
    }
}

fn world() -> World {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.apply(&upgrade("up").rollout(|rollout| rollout.health_checks = vec![check()]).object());
    world.health = vec![Health::Holds];
    world
}

fn step(world: &mut World) {
    world.operator(usize::MAX);
    for name in ["w-1", "w-2"] {
        world.agent(name);
    }
    world.now += SignedDuration::from_secs(10);
}

fn waits(world: &World, node: &str) -> Option<(UpgradeReason, String)> {
    let outlook = plan(&world.observe(), world.now).outlooks.into_values().next().unwrap();
    outlook.waits.get(node).map(|wait| (wait.reason.clone(), wait.message.clone()))
}

#[test]
fn nothing_is_begun_while_a_check_does_not_hold_or_is_not_known() {
    for shut in [
        vec![],
        vec![Health::Unknown("it was not evaluated yet".to_owned())],
        vec![Health::DoesNotHold("of Node w-2, \"true\" is false".to_owned())],
    ] {
        let mut world = world();
        world.health = shut;
        (0..100).for_each(|_| step(&mut world));
        assert!(world.machines.values().all(|machine| !machine.cordoned && machine.runs == "v1.35.1"));
        let (reason, message) = waits(&world, "w-1").unwrap();
        assert_eq!(reason, UpgradeReason::HealthGate);
        assert!(message.starts_with("waits for a health check: "), "{message}");
        assert_eq!(world.says("up"), ("Accepted".to_owned(), "HealthGate".to_owned()));
        world.health = vec![Health::Holds];
        (0..200).for_each(|_| step(&mut world));
        assert_eq!(world.says("up").0, "Completed");
    }
}

#[test]
fn a_node_that_is_cordoned_waits_with_its_cordon_and_one_with_leave_to_reboot_goes() {
    let mut world = world();
    while !world.machines["w-1"].cordoned {
        step(&mut world);
    }
    world.health = vec![Health::DoesNotHold("of Node w-1, \"true\" is false".to_owned())];
    (0..100).for_each(|_| step(&mut world));
    assert!(world.machines["w-1"].cordoned);
    assert_eq!(world.machines["w-1"].runs, "v1.35.1");
    assert_eq!(waits(&world, "w-1").unwrap().0, UpgradeReason::HealthGate);
    world.health = vec![Health::Holds];
    while world
        .progresses
        .values()
        .all(|progress| progress.spec.order.as_ref().is_none_or(|order| order.boot.is_none()))
    {
        world.operator(usize::MAX);
    }
    // What it was given is not taken back.
    world.health = vec![];
    (0..100).for_each(|_| step(&mut world));
    assert_eq!(world.machines["w-1"].runs, "v1.35.4");
    assert_eq!(world.machines["w-2"].runs, "v1.35.1");
}

//! Windows, canaries, groups and time to soak, through whole rollouts.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::world::{Mishap, World, pod};
use crate::api::{
    Canary, ConditionType, IntOrPercent, NodeSelector, OSUpgrade, ProgressPhase, RolloutSpec, Window,
    WindowKind, WindowScope, find_condition,
};
use crate::rollout::fixtures::{image, upgrade};
use crate::rollout::{Action, Plan, plan};

const ZONE: &str = "topology.kubernetes.io/zone";
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn allow(schedule: &str, minutes: i32) -> Window {
    Window {
        kind: WindowKind::Allow,
        schedule: schedule.to_owned(),
        duration_minutes: minutes,
        time_zone: None,
        applies_to: vec![],
    }
}

fn paced(change: impl FnOnce(&mut RolloutSpec)) -> OSUpgrade {
    upgrade("up").rollout(change).object()
}

/// Two of each zone, the names not in the order of the zones.
fn zones() -> World {
    World::new(&["v1.35.4"])
        .with_worker("w-1", (ZONE, "b"))
        .with_worker("w-2", (ZONE, "a"))
        .with_worker("w-3", (ZONE, "b"))
        .with_worker("w-4", (ZONE, "a"))
}

/// Lets everyone work for so many minutes; shows each plan before it is carried out.
fn work(world: &mut World, minutes: usize, mut look: impl FnMut(&World, &Plan)) {
    for _ in 0..minutes {
        let next = plan(&world.observe(), world.now);
        look(world, &next);
        world.execute(&next, usize::MAX);
        let names: Vec<_> = world.machines.keys().cloned().collect();
        for name in names {
            world.agent(&name);
        }
        world.now += MINUTE;
    }
}

/// The same until something holds, for so many minutes at most.
fn work_until(world: &mut World, minutes: usize, holds: impl Fn(&World) -> bool) {
    for _ in 0..minutes {
        if holds(world) {
            return;
        }
        work(world, 1, |_, _| {});
    }
    panic!("waited in vain: {:#?}", world.progresses);
}

fn cordons(next: &Plan) -> Vec<&str> {
    let cordons = next.actions.iter().filter_map(|action| match action {
        Action::Cordon { node, .. } => Some(node.name.as_str()),
        _ => None,
    });
    cordons.collect()
}

fn completed(world: &World) -> usize {
    world.runs().iter().filter(|(_, runs)| *runs == "v1.35.4").count()
}

#[test]
fn reboots_wait_for_their_window_and_staging_does_not() {
    let mut world = zones();
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * *", 60)]));
    world.settle(300);
    assert_eq!(world.says("up"), ("Accepted".to_owned(), "WaitingForWindow".to_owned()));
    let status = world.upgrade("up").status.clone().unwrap();
    assert_eq!(status.nodes.unwrap().staged, 4);
    let waiting = find_condition(&status.conditions, &ConditionType::WaitingForWindow).unwrap();
    assert!(waiting.message.contains("opens at 2026-11-25T02:00:00Z"), "{}", waiting.message);
    let next = plan(&world.observe(), world.now);
    assert_eq!(next.next_event, Some(at("2026-11-25T02:00:00Z")));

    world.now = at("2026-11-25T01:50:00Z");
    let (opens, closes) = (at("2026-11-25T02:00:00Z"), at("2026-11-25T03:00:00Z"));
    work(&mut world, 60 * 26, |world, next| {
        let inside = opens <= world.now && world.now < closes
            || at("2026-11-26T02:00:00Z") <= world.now && world.now < at("2026-11-26T03:00:00Z");
        for action in &next.actions {
            match action {
                Action::Cordon { .. } => assert!(inside, "cordoned at {}", world.now),
                Action::GrantBoot { grant, .. } => {
                    assert!(inside, "granted at {}", world.now);
                    assert!(world.now >= closes || grant.not_after.0 <= closes, "{grant:?}");
                }
                _ => {}
            }
        }
    });
    assert_eq!(world.says("up").0, "Completed");
    let conditions = world.upgrade("up").status.clone().unwrap().conditions;
    assert!(find_condition(&conditions, &ConditionType::WaitingForWindow).is_none());
}

#[test]
fn the_status_says_when_a_run_should_end_and_stays_with_it() {
    let ends = |world: &World| {
        let status = world.upgrade("up").status.clone().unwrap_or_default();
        status.expected_completion_at.map(|at| at.0)
    };
    let mut world = zones();
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * *", 240)]));
    world.settle(300);
    // Four nodes, one after the other, as long as nobody knows that they take less than ten minutes each.
    let told = Some(at("2026-11-25T02:40:00Z"));
    assert_eq!(ends(&world), told);
    work(&mut world, 30, |world, _| assert_eq!(ends(world), told));
    world.now = at("2026-11-25T02:00:00Z");
    let mut said = BTreeSet::new();
    work(&mut world, 60, |world, _| said.extend(ends(world)));
    // An estimate, and not a clock: it is written anew when it was wrong, and not with each minute.
    assert!((2..=7).contains(&said.len()), "{said:?}");
    assert_eq!((world.says("up").0.as_str(), ends(&world)), ("Completed", None));
}

#[test]
fn a_node_that_is_not_likely_to_be_back_in_time_is_not_started() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    world.now = at("2026-11-25T01:00:00Z");
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * *", 9)]));
    world.settle(300);
    let status = world.upgrade("up").status.clone().unwrap();
    assert_eq!(world.says("up").1, "WaitingForWindow");
    world.now = at("2026-11-26T02:00:00Z");
    let next = plan(&world.observe(), world.now);
    let wait = &next.outlooks.values().next().unwrap().waits["w-1"];
    assert!(wait.message.contains("10 minutes"), "{}", wait.message);
    assert!(cordons(&next).is_empty() && status.nodes.unwrap().staged == 1);
}

#[test]
fn a_canary_that_is_asked_for_and_not_there_is_waited_for_and_a_group_that_is_not_is_told_of() {
    let mut world = zones();
    world.apply(&paced(|rollout| {
        rollout.group_by = Some("topology.kubernetes.io/zones".to_owned());
        let node_selector = NodeSelector([("canry".to_owned(), "yes".into())].into_iter().collect());
        rollout.canary = Some(Canary { node_selector, soak_seconds: None });
    }));
    world.settle(300);
    assert_eq!(world.says("up").1, "WaitingForCanary");
    assert_eq!(completed(&world), 0);
    let status = world.upgrade("up").status.clone().unwrap();
    let ready = &find_condition(&status.conditions, &ConditionType::Ready).unwrap().message;
    assert!(
        ready.contains("rollout.canary.nodeSelector") && ready.contains("topology.kubernetes.io/zones"),
        "{ready}"
    );
    // The label comes to a node.
    world.touch("w-3", |machine| _ = machine.labels.insert("canry".to_owned(), "yes".to_owned()));
    world.settle(300);
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn a_drain_that_ends_too_late_for_the_window_gets_no_leave() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.touch("w-1", |machine| machine.pods = vec![pod("app")]);
    world.protected.insert("app".to_owned());
    let managed = crate::api::LABEL_MANAGED.to_owned();
    world.touch("w-2", |machine| _ = machine.labels.insert(managed, "false".to_owned()));
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * *", 60)]));
    world.settle(300);
    world.now = at("2026-11-25T02:40:00Z");
    work(&mut world, 15, |world, next| {
        let late = world.now > at("2026-11-25T02:50:00Z");
        let granted = next.actions.iter().any(|action| matches!(action, Action::GrantBoot { .. }));
        assert!(!late || !granted && cordons(next).is_empty(), "at {}", world.now);
        assert!(late || world.now == at("2026-11-25T02:40:00Z") || world.machines["w-1"].cordoned);
        if world.now == at("2026-11-25T02:53:00Z") {
            assert!(!world.machines["w-1"].cordoned, "it is of use meanwhile");
        }
    });
    assert_eq!(world.machines["w-1"].runs, "v1.35.1");
}

#[test]
fn a_turn_that_has_begun_is_taken_back_when_the_window_closes() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * *", 60)]));
    world.settle(300);
    world.now = at("2026-11-25T02:10:00Z");
    world.operator(usize::MAX);
    world.operator(usize::MAX);
    assert!(world.machines["w-1"].cordoned_for.is_some());
    // The agent is away, and the grant not used.
    world.now = at("2026-11-25T03:00:00Z");
    world.operator(usize::MAX);
    world.operator(usize::MAX);
    world.operator(usize::MAX);
    assert!(!world.machines["w-1"].cordoned);
    let order = world.progresses.values().next().unwrap().spec.order.clone().unwrap();
    assert_eq!(order.boot, None);
}

#[test]
fn windows_for_staging_hold_downloads_back() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    let staging = Window { applies_to: vec![WindowScope::Stage], ..allow("0 2 * * *", 60) };
    world.apply(&paced(|rollout| rollout.windows = vec![staging]));
    world.settle(300);
    assert_eq!(world.says("up").1, "WaitingForWindow");
    world.now = at("2026-11-25T02:00:00Z");
    world.settle(300);
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn a_window_that_cannot_be_obeyed_is_rejected() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * sat Europe/Berlin", 60)]));
    world.settle(300);
    assert_eq!(world.says("up"), ("Rejected".to_owned(), "InvalidWindow".to_owned()));
    assert_eq!(completed(&world), 0);
}

#[test]
fn a_node_soaks_before_the_next_one_is_started() {
    let mut world = zones();
    world.apply(&paced(|rollout| rollout.soak_seconds = Some(1800)));
    let (mut begun, mut done_at) = (Vec::new(), Vec::new());
    work(&mut world, 300, |world, next| {
        begun.extend(cordons(next).iter().map(|_| world.now));
        if done_at.len() < completed(world) {
            done_at.push(world.now);
        }
    });
    assert_eq!(world.says("up").0, "Completed");
    assert_eq!((begun.len(), done_at.len()), (4, 4));
    for (begun, done) in begun.iter().skip(1).zip(&done_at) {
        assert!(begun.duration_since(*done) >= SignedDuration::from_secs(1800), "{begun} after {done}");
    }
    // What is said of it ends with it, and nothing is written at rest.
    for progress in world.progresses.values() {
        let soaking = find_condition(progress.conditions(), &ConditionType::Soaking).unwrap();
        assert_eq!(soaking.status, "False");
    }
}

#[test]
fn a_node_that_is_not_ready_for_a_moment_does_not_soak_anew() {
    let mut world = zones();
    world.apply(&paced(|rollout| rollout.soak_seconds = Some(1800)));
    work_until(&mut world, 60, |world| completed(world) == 1);
    let done = world.now;
    work(&mut world, 10, |_, next| assert!(cordons(next).is_empty()));
    world.touch("w-1", |machine| machine.alive = false);
    work(&mut world, 5, |_, next| assert!(cordons(next).is_empty()));
    world.touch("w-1", |machine| machine.alive = true);
    let mut begun = None;
    work(&mut world, 30, |world, next| begun = begun.or((!cordons(next).is_empty()).then_some(world.now)));
    let took = begun.unwrap().duration_since(done).as_secs();
    assert!((1800..=1800 + 300).contains(&took), "{took} s");
}

#[test]
fn a_node_that_another_upgrade_moved_on_does_not_soak() {
    let mut world = World::new(&["v1.35.4", "v1.35.5"])
        .with_worker("w-1", ("pool", "first"))
        .with_worker("w-2", ("pool", "second"));
    world.apply(&paced(|rollout| rollout.soak_seconds = Some(36_000)));
    work_until(&mut world, 60, |world| completed(world) == 1);
    world.apply(&upgrade("other").to("v1.35.5").selecting("pool", "first").object());
    work_until(&mut world, 60, |world| completed(world) == 1 && world.machines["w-2"].runs == "v1.35.4");
    assert_eq!(world.machines["w-1"].runs, "v1.35.5");
}

#[test]
fn a_node_that_a_person_sent_back_does_not_soak() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.apply(&paced(|rollout| rollout.soak_seconds = Some(36_000)));
    work_until(&mut world, 60, |world| completed(world) == 1);
    world.send_back("w-1");
    work_until(&mut world, 60, |world| world.machines["w-2"].runs == "v1.35.4");
    assert_eq!(world.machines["w-1"].runs, "v1.35.1");
}

fn canary(soak_seconds: i32) -> Canary {
    let selector = json!({ "canary": "yes" }).as_object().cloned().unwrap();
    Canary { node_selector: NodeSelector(selector), soak_seconds: Some(soak_seconds) }
}

fn with_canary() -> World {
    World::new(&["v1.34.6", "v1.35.4"])
        .with("cp-1", true, "v1.35.1")
        .with("w-1", false, "v1.35.1")
        .with_worker("w-9", ("canary", "yes"))
}

#[test]
fn a_canary_goes_before_everyone_within_a_minor_release_and_soaks() {
    let mut world = with_canary();
    world.apply(&paced(|rollout| rollout.canary = Some(canary(3600))));
    let mut begun = Vec::new();
    work(&mut world, 300, |world, next| {
        begun.extend(cordons(next).iter().map(|name| ((*name).to_owned(), world.now)));
    });
    let order: Vec<_> = begun.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, ["w-9", "cp-1", "w-1"]);
    assert!(begun[1].1.duration_since(begun[0].1) > SignedDuration::from_secs(3600));
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn the_control_plane_goes_before_the_canaries_when_the_minor_release_rises() {
    let mut world = with_canary();
    for name in ["cp-1", "w-1", "w-9"] {
        world.touch(name, |machine| machine.runs = "v1.34.6".to_owned());
    }
    world.apply(&paced(|rollout| {
        rollout.canary = Some(canary(0));
        rollout.max_unavailable = Some(IntOrPercent::Int(3));
    }));
    let mut begun = Vec::new();
    work(&mut world, 300, |_, next| begun.extend(cordons(next).iter().map(|name| (*name).to_owned())));
    assert_eq!(begun, ["cp-1", "w-9", "w-1"]);
}

#[test]
fn a_canary_that_fails_holds_the_others_back_until_it_is_retried() {
    let mut world = with_canary();
    world.touch("w-9", |machine| machine.mishaps.push(Mishap::FallsBack));
    world.apply(&paced(|rollout| {
        rollout.canary = Some(canary(0));
        rollout.failure_threshold = Some(IntOrPercent::Int(100));
    }));
    world.settle(500);
    assert_eq!(completed(&world), 0);
    let next = plan(&world.observe(), world.now);
    let wait = &next.outlooks.values().next().unwrap().waits["cp-1"];
    assert!(wait.message.contains("w-9 which failed as canaries"), "{}", wait.message);
    let failed = world.progresses.iter().find(|(_, progress)| progress.spec.node_name == "w-9");
    let failed = failed.map(|(name, _)| name.clone()).unwrap();
    world.retry(&failed, "again");
    world.settle(500);
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn the_operators_own_node_is_no_canary() {
    let mut world = with_canary();
    world.operator_node = Some("w-9".to_owned());
    world.apply(&paced(|rollout| rollout.canary = Some(canary(0))));
    world.settle(500);
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn groups_take_turns_by_their_names() {
    let mut world = zones();
    world.apply(&paced(|rollout| {
        rollout.group_by = Some(ZONE.to_owned());
        rollout.max_unavailable = Some(IntOrPercent::Int(4));
    }));
    let mut begun = Vec::new();
    work(&mut world, 300, |world, next| {
        begun.extend(cordons(next).iter().map(|name| (*name).to_owned()));
        let in_work = world.machines.values().filter(|machine| machine.cordoned);
        let zones: BTreeSet<_> = in_work.map(|machine| machine.labels[ZONE].clone()).collect();
        assert!(zones.len() <= 1, "two zones at once: {zones:?}");
    });
    assert_eq!(begun, ["w-2", "w-4", "w-1", "w-3"]);
    assert_eq!(world.says("up").0, "Completed");
}

/// Both zones may go on without a node that never came back, in this run and in the next one.
#[test]
fn a_lost_node_does_not_hold_up_the_other_zone() {
    let mut world = zones();
    world.catalog.push(image("v1.35.5"));
    let spec = |rollout: &mut RolloutSpec| {
        rollout.group_by = Some(ZONE.to_owned());
        rollout.max_unavailable = Some(IntOrPercent::Int(4));
        rollout.failure_threshold = Some(IntOrPercent::Int(100));
    };
    world.apply(&paced(spec));
    work_until(&mut world, 60, |world| {
        world
            .progresses
            .values()
            .any(|order| order.spec.node_name == "w-2" && order.phase() == ProgressPhase::Rebooting)
    });
    world.touch("w-2", |machine| machine.alive = false);
    world.settle(300);
    assert_eq!(completed(&world), 3);
    world.apply(&upgrade("up").to("v1.35.5").rollout(spec).object());
    world.settle(300);
    let moved = world.runs().iter().filter(|(_, runs)| *runs == "v1.35.5").count();
    assert_eq!(moved, 3, "{:?}", world.runs());
}

/// Groups never turn around what the versions of the control plane demand.
#[test]
fn control_plane_nodes_of_different_versions_get_there_whatever_their_zones() {
    for (first, second) in [("v1.34.1", "v1.35.1"), ("v1.35.1", "v1.34.1")] {
        let mut world = World::new(&["v1.34.6", "v1.35.4"])
            .with("cp-1", true, first)
            .with("cp-2", true, second)
            .with("w-1", false, "v1.34.1");
        for (name, zone) in [("cp-1", "a"), ("cp-2", "b"), ("w-1", "a")] {
            world.touch(name, |machine| _ = machine.labels.insert(ZONE.to_owned(), zone.to_owned()));
        }
        world.apply(&paced(|rollout| rollout.group_by = Some(ZONE.to_owned())));
        world.settle(300);
        assert_eq!(completed(&world), 3, "{:?}", world.runs());
    }
}

#[test]
fn a_leave_that_outlives_an_edited_window_is_shortened() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * *", 120)]));
    world.settle(300);
    world.now = at("2026-11-26T02:10:00Z");
    // Cordoned, found to have no pods, granted.
    for _ in 0..3 {
        world.operator(usize::MAX);
    }
    let until = |world: &World| {
        let order = world.progresses.values().next().unwrap().spec.order.clone().unwrap();
        order.boot.map(|grant| grant.not_after.0)
    };
    assert_eq!(until(&world), Some(at("2026-11-26T02:20:00Z")));
    world.apply(&paced(|rollout| rollout.windows = vec![allow("0 2 * * *", 15)]));
    world.operator(usize::MAX);
    world.operator(usize::MAX);
    assert_eq!(until(&world), Some(at("2026-11-26T02:15:00Z")));
}

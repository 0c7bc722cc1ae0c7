//! Drains, through whole rollouts.

use k8s_openapi::jiff::SignedDuration;

use super::world::{World, pod};
use crate::api::{
    ConditionType, DrainOnTimeout, DrainPolicy, DrainSpec, IntOrPercent, OSUpgradeProgress, RolloutSpec,
    find_condition,
};
use crate::rollout::fixtures::upgrade;
use crate::rollout::{Action, Plan, PodController, PodView, plan};

/// Two machines; the pods are on the first one.
fn world(pods: &[PodView]) -> World {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.touch("w-1", |machine| machine.pods = pods.to_vec());
    world
}

fn with_drain(drain: DrainSpec) -> impl FnOnce(&mut RolloutSpec) {
    move |rollout| rollout.drain = Some(drain)
}

fn force_after_300_seconds() -> DrainSpec {
    DrainSpec { timeout_seconds: Some(300), on_timeout: Some(DrainOnTimeout::Force), ..DrainSpec::default() }
}

/// The operator and the agents work for so many seconds, in steps of ten.
fn work(world: &mut World, seconds: usize, mut look: impl FnMut(&World, &Plan)) {
    for _ in 0..seconds / 10 {
        let next = plan(&world.observe(), world.now);
        look(world, &next);
        world.execute(&next, usize::MAX);
        for name in ["w-1", "w-2"] {
            world.agent(name);
        }
        world.now += SignedDuration::from_secs(10);
    }
}

fn find_order<'w>(world: &'w World, node: &str) -> Option<&'w OSUpgradeProgress> {
    world.progresses.values().find(|order| order.spec.node_name == node)
}

fn order<'w>(world: &'w World, node: &str) -> &'w OSUpgradeProgress {
    find_order(world, node).unwrap()
}

/// Status and reason of a condition of a node's order.
fn says(world: &World, node: &str, kind: &ConditionType) -> Option<String> {
    let condition = find_condition(find_order(world, node)?.conditions(), kind)?;
    Some(format!("{} {}", condition.status, condition.reason))
}

fn evicted(plans: &[Plan]) -> Vec<&str> {
    let actions = plans.iter().flat_map(|plan| &plan.actions);
    let evicted = actions.filter_map(|action| match action {
        Action::Evict { pod, .. } => Some(pod.name.as_str()),
        _ => None,
    });
    evicted.collect()
}

#[test]
fn pods_leave_before_the_reboot_and_those_of_daemon_sets_stay() {
    let daemon = PodView { controller: PodController::DaemonSet, ..pod("ds") };
    let mut world = world(&[pod("app"), daemon]);
    world.apply(&upgrade("up").object());
    let mut plans = Vec::new();
    work(&mut world, 600, |world, next| {
        let rebooting = next.actions.iter().any(|action| matches!(action, Action::GrantBoot { .. }));
        let left = world.machines["w-1"].pods[0].ends.is_some_and(|ends| ends <= world.now);
        assert!(!rebooting || left, "granted before the pod had left");
        plans.push(next.clone());
    });
    assert_eq!(evicted(&plans), ["app"]);
    assert_eq!(world.says("up"), ("Completed".to_owned(), "UpToDate".to_owned()));
    assert_eq!(says(&world, "w-1", &ConditionType::Drained).as_deref(), Some("True Drained"));
}

#[test]
fn a_budget_that_refuses_is_named_and_asked_again() {
    let mut world = world(&[pod("app")]);
    world.protected.insert("app".to_owned());
    world.apply(&upgrade("up").object());
    let mut plans = Vec::new();
    work(&mut world, 300, |_, next| plans.push(next.clone()));
    assert!(evicted(&plans).len() > 5, "{:?}", evicted(&plans));
    assert_eq!(says(&world, "w-1", &ConditionType::Drained).as_deref(), Some("False Blocked"));
    let conditions = world.upgrade("up").status.clone().unwrap().conditions;
    let blocked = find_condition(&conditions, &ConditionType::DrainBlocked).unwrap();
    assert_eq!(blocked.message, "w-1 cannot be drained: default/web needs 2 has 2");
    assert_eq!(world.says("up").1, "DrainBlocked");
    world.protected.clear();
    work(&mut world, 600, |_, _| {});
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn a_drain_that_takes_too_long_is_given_up_and_the_node_is_free_again() {
    let mut world = world(&[pod("app")]);
    world.protected.insert("app".to_owned());
    world.apply(
        &upgrade("up").rollout(|rollout| rollout.max_failed_nodes = Some(IntOrPercent::Int(1))).object(),
    );
    work(&mut world, 1800 + 300, |_, _| {});
    assert!(!world.machines["w-1"].cordoned);
    assert_eq!(world.machines["w-1"].runs, "v1.35.1");
    assert_eq!(says(&world, "w-1", &ConditionType::TimedOut).as_deref(), Some("True DrainTimedOut"));
    assert_eq!(says(&world, "w-1", &ConditionType::Drained), None);
    let message = find_condition(order(&world, "w-1").conditions(), &ConditionType::TimedOut).unwrap();
    assert!(message.message.ends_with("default/web needs 2 has 2"), "{}", message.message);
    work(&mut world, 600, |_, _| {});
    assert_eq!(world.machines["w-2"].runs, "v1.35.4", "the other one goes on");
    // A person sees to the budget, and has the node try again; its agent is faster than the operator.
    world.protected.clear();
    let name = order(&world, "w-1").metadata.name.clone().unwrap();
    world.retry(&name, "again");
    for _ in 0..5 {
        world.agent("w-1");
    }
    work(&mut world, 600, |_, _| {});
    assert_eq!(world.says("up"), ("Completed".to_owned(), "UpToDate".to_owned()));
}

#[test]
fn pods_leave_for_another_node_of_their_own_pool_and_for_no_other() {
    let pools = [
        (Some("app"), Some("app"), "True Drained"),
        (Some("app"), None, "True Drained"),
        (None, Some("app"), "True Unneeded"),
        (Some("app"), Some("db"), "True Unneeded"),
    ];
    for (own, other, expected) in pools {
        let mut world = world(&[pod("app")]);
        for (name, taint) in [("w-1", own), ("w-2", other)] {
            world.touch(name, |machine| machine.taint = taint.map(str::to_owned));
        }
        world.apply(&upgrade("up").object());
        work(&mut world, 900, |_, _| {});
        assert_eq!(
            says(&world, "w-1", &ConditionType::Drained).as_deref(),
            Some(expected),
            "{own:?} {other:?}"
        );
    }
}

#[test]
fn a_drain_that_has_begun_goes_on_when_somebody_cordons_the_last_other_node() {
    let mut world = world(&[pod("app")]);
    world.protected.insert("app".to_owned());
    world.apply(
        &upgrade("up").rollout(|rollout| rollout.max_unavailable = Some(IntOrPercent::Int(2))).object(),
    );
    work(&mut world, 300, |_, _| {});
    assert!(says(&world, "w-1", &ConditionType::Drained).unwrap().starts_with("False"));
    world.touch("w-2", |machine| machine.cordoned = true);
    work(&mut world, 300, |_, _| {});
    assert!(says(&world, "w-1", &ConditionType::Drained).unwrap().starts_with("False"));
    assert_eq!(world.machines["w-1"].runs, "v1.35.1", "with its pod on it");
}

#[test]
fn a_drain_by_force_deletes_what_is_left_and_is_recorded_for_ever() {
    let mut world = world(&[pod("app"), pod("hangs")]);
    world.protected.insert("app".to_owned());
    world.stuck.insert("hangs".to_owned());
    world.apply(&upgrade("up").rollout(with_drain(force_after_300_seconds())).object());
    work(&mut world, 900, |_, _| {});
    assert_eq!(world.says("up").0, "Completed", "{:#?}", order(&world, "w-1"));
    assert_eq!(says(&world, "w-1", &ConditionType::Drained).as_deref(), Some("True Forced"));
    assert_eq!(says(&world, "w-2", &ConditionType::Drained), None);
}

#[test]
fn a_pod_that_never_ends_is_passed_over_by_force_and_that_is_recorded_too() {
    let mut world = world(&[pod("hangs")]);
    world.stuck.insert("hangs".to_owned());
    world.apply(&upgrade("up").rollout(with_drain(force_after_300_seconds())).object());
    work(&mut world, 900, |_, _| {});
    assert_eq!(world.says("up").0, "Completed");
    assert_eq!(says(&world, "w-1", &ConditionType::Drained).as_deref(), Some("True Forced"));
}

#[test]
fn a_pod_that_nobody_would_make_again_holds_the_drain_up() {
    let mut world = world(&[PodView { controller: PodController::Nobody, ..pod("bare") }]);
    world.apply(&upgrade("up").object());
    let mut plans = Vec::new();
    work(&mut world, 300, |_, next| plans.push(next.clone()));
    assert!(evicted(&plans).is_empty());
    let drained = find_condition(order(&world, "w-1").conditions(), &ConditionType::Drained).unwrap();
    assert!(drained.message.contains("default/bare would be made again by nobody"), "{}", drained.message);
    // Somebody looked after it.
    world.touch("w-1", |machine| machine.pods.clear());
    work(&mut world, 600, |_, _| {});
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn volumes_are_detached_before_the_reboot_unless_their_pods_stay() {
    let logs = PodView { controller: PodController::DaemonSet, claims: vec!["logs".to_owned()], ..pod("ds") };
    let mut world = world(&[pod("app"), logs]);
    world.claims.insert("default/logs".to_owned(), "pv-logs".to_owned());
    let attached = ["pv-app", "pv-logs"].map(str::to_owned).into();
    world.volumes.insert("w-1".to_owned(), attached);
    world.apply(&upgrade("up").object());
    work(&mut world, 300, |_, _| {});
    assert_eq!(world.machines["w-1"].runs, "v1.35.1");
    let drained = find_condition(order(&world, "w-1").conditions(), &ConditionType::Drained).unwrap();
    assert_eq!(drained.message, "waits for volumes to be detached: pv-app");
    world.volumes.get_mut("w-1").unwrap().remove("pv-app");
    work(&mut world, 600, |_, _| {});
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn nobody_is_evicted_where_there_is_no_other_node_or_it_is_not_wanted() {
    let mut alone = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    alone.touch("w-1", |machine| machine.pods = vec![pod("app")]);
    alone.apply(&upgrade("up").object());
    let mut unwanted = world(&[pod("app")]);
    let never = DrainSpec { policy: Some(DrainPolicy::Never), ..DrainSpec::default() };
    unwanted.apply(&upgrade("up").rollout(with_drain(never)).object());
    for mut world in [alone, unwanted] {
        world.settle(300);
        assert_eq!(world.says("up").0, "Completed");
        assert_eq!(world.machines["w-1"].pods[0].ends, None, "the pod was evicted");
    }
}

#[test]
fn the_clock_of_a_drain_survives_the_operator() {
    let mut world = world(&[pod("app")]);
    world.protected.insert("app".to_owned());
    world.apply(&upgrade("up").object());
    work(&mut world, 600, |_, _| {});
    let began = |world: &World| {
        let drained = find_condition(order(world, "w-1").conditions(), &ConditionType::Drained).unwrap();
        drained.last_transition_time.0
    };
    let before = began(&world);
    // The next one remembers no evictions, and knows no pods at first.
    world.forget_evictions();
    let mut blind = world.observe();
    blind.pods.clear();
    let next = plan(&blind, world.now);
    world.execute(&next, usize::MAX);
    work(&mut world, 300, |_, _| {});
    assert_eq!(began(&world), before);
}

#[test]
fn a_cordon_that_somebody_took_off_is_put_back_and_who_came_has_to_leave() {
    let mut world = world(&[pod("app")]);
    world.apply(&upgrade("up").object());
    while says(&world, "w-1", &ConditionType::Drained).as_deref() != Some("True Drained") {
        world.operator(usize::MAX);
        world.agent("w-1");
        world.now += SignedDuration::from_secs(1);
    }
    world.touch("w-1", |machine| {
        machine.cordoned = false;
        machine.pods.push(pod("late"));
    });
    let mut plans = Vec::new();
    work(&mut world, 600, |_, next| plans.push(next.clone()));
    assert_eq!(evicted(&plans), ["late"]);
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn the_operator_does_not_evict_itself() {
    let mut world = world(&[pod("app"), pod("controller")]);
    world.operator_pod = Some("default/controller".to_owned());
    world.apply(&upgrade("up").object());
    let mut plans = Vec::new();
    work(&mut world, 600, |_, next| plans.push(next.clone()));
    assert_eq!(evicted(&plans), ["app"]);
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn a_drain_by_force_that_was_broken_off_begins_anew_with_evictions() {
    let mut world = world(&[pod("hangs")]);
    world.stuck.insert("hangs".to_owned());
    world.protected.insert("hangs".to_owned());
    let wanted = upgrade("up").rollout(with_drain(force_after_300_seconds()));
    world.apply(&wanted.clone().object());
    for _ in 0..1000 {
        if says(&world, "w-1", &ConditionType::Drained).as_deref() == Some("False Forced") {
            break;
        }
        work(&mut world, 10, |_, _| {});
    }
    world.apply(&wanted.clone().spec(|spec| spec.paused = Some(true)).object());
    work(&mut world, 60, |_, _| {});
    assert!(!world.machines["w-1"].cordoned);
    assert_eq!(says(&world, "w-1", &ConditionType::Drained).as_deref(), Some("Unknown Forced"));
    world.touch("w-1", |machine| machine.pods = vec![pod("late")]);
    world.protected.insert("late".to_owned());
    world.apply(&wanted.object());
    let mut deleted = Vec::new();
    work(&mut world, 200, |_, next| {
        deleted
            .extend(next.actions.iter().filter(|action| matches!(action, Action::DeletePod { .. })).cloned());
    });
    assert!(deleted.is_empty(), "{deleted:?}");
    work(&mut world, 900, |_, _| {});
    assert_eq!(world.machines["w-1"].runs, "v1.35.4");
    assert_eq!(says(&world, "w-1", &ConditionType::Drained).as_deref(), Some("True Forced"));
}

#[test]
fn a_drain_of_pods_that_nobody_may_list_says_so_and_is_given_up() {
    let mut world = world(&[pod("app")]);
    world.blind = true;
    world.apply(
        &upgrade("up").rollout(|rollout| rollout.max_failed_nodes = Some(IntOrPercent::Int(2))).object(),
    );
    work(&mut world, 300, |_, _| {});
    assert_eq!(says(&world, "w-1", &ConditionType::Drained).as_deref(), Some("False Blocked"));
    let message = find_condition(order(&world, "w-1").conditions(), &ConditionType::Drained).unwrap();
    assert!(message.message.ends_with("is not known: pods are forbidden"), "{}", message.message);
    work(&mut world, 2400, |_, _| {});
    assert_eq!(says(&world, "w-1", &ConditionType::TimedOut).as_deref(), Some("True DrainTimedOut"));
    assert_eq!(world.machines["w-1"].runs, "v1.35.1");
    assert!(!world.machines["w-1"].cordoned);
}

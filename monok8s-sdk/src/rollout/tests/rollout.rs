//! Whole rollouts, from the first look to rest.

use k8s_openapi::jiff::SignedDuration;

use super::health::check as health_check;
use super::world::{Mishap, World};
use crate::api::{ConditionType, IntOrPercent, ProgressPhase, find_condition};
use crate::rollout::fixtures::upgrade;
use crate::rollout::{Action, Health};

fn three_nodes() -> World {
    World::new(&["v1.34.6", "v1.35.1", "v1.35.4"])
        .with("cp-1", true, "v1.35.1")
        .with("w-1", false, "v1.35.1")
        .with("w-2", false, "v1.35.1")
}

fn says(phase: &str, reason: &str) -> (String, String) {
    (phase.to_owned(), reason.to_owned())
}

fn assert_no_cordon_of_ours(world: &World) {
    for (name, machine) in &world.machines {
        assert_eq!(machine.cordoned_for, None, "{name}");
    }
}

#[test]
fn three_nodes_go_to_the_new_version() {
    let mut world = three_nodes();
    world.apply(&upgrade("up").object());
    world.settle(500);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
    assert_eq!(world.runs(), [("cp-1", "v1.35.4"), ("w-1", "v1.35.4"), ("w-2", "v1.35.4")]);
    assert_eq!(world.upgrade("up").status.as_ref().unwrap().run, Some(1));
    assert_eq!(world.progresses.len(), 3);
    assert_no_cordon_of_ours(&world);
}

#[test]
fn a_node_goes_through_each_minor_release() {
    let mut world = World::new(&["v1.33.2", "v1.34.1", "v1.34.6", "v1.35.4"])
        .with("cp-1", true, "v1.33.0")
        .with("cp-2", true, "v1.33.0")
        .with("cp-3", true, "v1.34.1")
        .with("w-1", false, "v1.33.0");
    world.operator_node = Some("cp-1".to_owned());
    world.apply(&upgrade("up").object());
    world.settle(900);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
}

#[test]
fn a_single_node_that_is_control_plane_and_operator_at_once_is_upgraded() {
    let mut world = World::new(&["v1.35.4"]).with("only", true, "v1.35.1");
    world.operator_node = Some("only".to_owned());
    world.apply(&upgrade("up").object());
    world.settle(500);
    assert_eq!(world.runs(), [("only", "v1.35.4")]);
}

#[test]
fn a_failed_download_waits_for_a_nonce_and_then_completes() {
    let mut world = three_nodes();
    world.touch("w-1", |machine| machine.mishaps.push(Mishap::FailsToStage));
    world.apply(&upgrade("up").object());
    world.settle(500);
    assert_eq!(world.says("up"), says("Accepted", "NodesFailed"));
    let failed = world.progresses.values().find(|progress| progress.spec.node_name == "w-1").unwrap();
    let name = failed.metadata.name.clone().unwrap();
    world.retry(&name, "retry-1");
    world.settle(500);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
    assert_no_cordon_of_ours(&world);
}

#[test]
fn a_rollback_halts_the_run_until_the_node_is_retried() {
    let mut world = three_nodes();
    world.touch("cp-1", |machine| machine.mishaps.push(Mishap::FallsBack));
    world.apply(&upgrade("up").object());
    world.settle(500);
    assert_eq!(world.says("up"), says("Failed", "FailureThresholdReached"));
    assert_eq!(world.runs(), [("cp-1", "v1.35.1"), ("w-1", "v1.35.1"), ("w-2", "v1.35.1")]);
    assert_no_cordon_of_ours(&world);
    let failed = world.progresses.values().find(|progress| progress.spec.node_name == "cp-1").unwrap();
    let name = failed.metadata.name.clone().unwrap();
    world.retry(&name, "again");
    world.settle(500);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
}

#[test]
fn a_run_that_halted_stays_halted_when_the_node_that_failed_is_taken_away() {
    let remove = |world: &mut World| _ = world.machines.remove("w-1");
    let make_again = |world: &mut World| world.add("w-1", false, "v1.35.1");
    let unlabel = |world: &mut World| {
        world.touch("w-1", |machine| {
            _ = machine.labels.insert(crate::api::LABEL_MANAGED.to_owned(), "false".to_owned());
        });
    };
    for (mishap, expected) in [
        (Mishap::FallsBack, says("Failed", "FailureThresholdReached")),
        (Mishap::FailsToStage, says("Failed", "TooManyFailedNodes")),
    ] {
        for take_away in [remove, make_again, unlabel] as [fn(&mut World); 3] {
            let mut world = three_nodes();
            world.touch("w-1", |machine| machine.mishaps.push(mishap));
            let strict = upgrade("up").rollout(|rollout| {
                rollout.max_failed_nodes = Some(IntOrPercent::Int(0));
                rollout.max_parallel_staging = Some(IntOrPercent::Int(1));
            });
            world.apply(&strict.object());
            world.settle(500);
            assert_eq!(world.says("up"), expected);
            take_away(&mut world);
            world.settle(500);
            assert_eq!(world.says("up"), expected);
            assert!(world.runs().contains(&("w-2", "v1.35.1")));
            assert_no_cordon_of_ours(&world);
            let spec = strict.spec(|spec| spec.retry_nonce = Some("again".to_owned()));
            world.apply(&spec.object());
            world.settle(500);
            assert_eq!(world.says("up"), says("Completed", "UpToDate"));
        }
    }
}

#[test]
fn a_run_halts_for_a_node_that_is_deleted_while_it_does_not_come_back() {
    let mut world = three_nodes().with("w-3", false, "v1.35.1");
    world.apply(&upgrade("up").object());
    let is_away = |world: &World| {
        let mut orders = world.progresses.values();
        orders.any(|order| order.spec.node_name == "w-1" && order.phase() == ProgressPhase::Rebooting)
    };
    while !is_away(&world) {
        world.operator(usize::MAX);
        for name in ["cp-1", "w-1"] {
            world.agent(name);
        }
    }
    world.machines.remove("w-1");
    world.operator(usize::MAX);
    assert_eq!(world.says("up").0, "Accepted", "it may only be a machine less");
    world.now += SignedDuration::from_secs(1801);
    world.settle(500);
    assert_eq!(world.says("up"), says("Failed", "FailureThresholdReached"));
}

#[test]
fn nodes_that_are_away_already_do_not_all_go_at_once() {
    for dead in [false, true] {
        let mut world = World::new(&["v1.35.4"]);
        for number in 1..=5 {
            world.add(&format!("w-{number}"), false, "v1.35.1");
        }
        world.apply(&upgrade("up").rollout(|rollout| rollout.health_checks = vec![health_check()]).object());
        world.health = vec![Health::DoesNotHold("ill".to_owned())];
        world.settle(50);
        for machine in world.machines.values_mut() {
            (machine.cordoned, machine.alive) = (!dead, !dead);
        }
        world.health = vec![Health::Holds];
        let mut at_once = 0;
        for _ in 0..10 {
            let (plan, _) = world.operator(usize::MAX);
            let begun = plan
                .actions
                .iter()
                .filter(|action| matches!(action, Action::GrantBoot { .. } | Action::Cordon { .. }));
            at_once = at_once.max(begun.count());
        }
        assert_eq!(at_once, 1, "dead: {dead}");
    }
}

#[test]
fn a_new_nonce_on_the_upgrade_begins_a_run_with_every_node_that_is_left() {
    let mut world = three_nodes();
    world.touch("w-1", |machine| machine.mishaps.push(Mishap::FallsBack));
    world.apply(&upgrade("up").object());
    world.settle(500);
    assert_eq!(world.says("up"), says("Failed", "FailureThresholdReached"));
    world.apply(&upgrade("up").spec(|spec| spec.retry_nonce = Some("again".to_owned())).object());
    world.settle(500);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
    let status = world.upgrade("up").status.clone().unwrap();
    assert_eq!((status.run, status.observed_retry_nonce.as_deref()), (Some(2), Some("again")));
    assert_eq!((status.history[0].run, status.history[0].phase.as_str()), (1, "Failed"));
    assert_eq!((status.history[0].up_to_date, status.history[0].failed), (1, 1));
    // Removing the nonce is not a new one.
    world.apply(&upgrade("up").object());
    world.settle(500);
    assert_eq!(world.upgrade("up").status.as_ref().unwrap().run, Some(2));
}

#[test]
fn there_and_back_and_there_again_is_three_runs() {
    let mut world = three_nodes();
    world.apply(&upgrade("up").object());
    world.settle(500);
    world.apply(&upgrade("up").to("v1.35.1").allowing_downgrades().object());
    world.settle(500);
    assert_eq!(world.runs(), [("cp-1", "v1.35.1"), ("w-1", "v1.35.1"), ("w-2", "v1.35.1")]);
    world.apply(&upgrade("up").object());
    world.settle(500);
    assert_eq!(world.runs(), [("cp-1", "v1.35.4"), ("w-1", "v1.35.4"), ("w-2", "v1.35.4")]);
    assert_eq!(world.upgrade("up").status.as_ref().unwrap().run, Some(3));
    assert_no_cordon_of_ours(&world);
}

#[test]
fn the_objects_of_the_last_five_runs_are_kept() {
    let mut world = three_nodes();
    for run in 0..7 {
        let to = if run % 2 == 0 { "v1.35.4" } else { "v1.35.1" };
        world.apply(&upgrade("up").to(to).allowing_downgrades().object());
        world.settle(500);
        assert_eq!(world.says("up"), says("Completed", "UpToDate"), "run {run}");
    }
    let runs: std::collections::BTreeSet<i64> =
        world.progresses.values().filter_map(|progress| Some(progress.spec.order.as_ref()?.run)).collect();
    assert_eq!(runs.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    assert_eq!(world.upgrade("up").status.as_ref().unwrap().history.len(), 5);
}

#[test]
fn the_order_of_a_node_that_went_away_in_its_reboot_holds_up_nothing_and_is_forgotten_with_its_run() {
    let mut world = three_nodes();
    world.apply(&upgrade("up").to("v1.35.4").allowing_downgrades().object());
    let name = loop {
        world.operator(usize::MAX);
        for node in ["cp-1", "w-1", "w-2"] {
            world.agent(node);
        }
        let left = world.progresses.values().find(|progress| {
            progress.spec.node_name == "w-1" && progress.phase() == ProgressPhase::Rebooting
        });
        if let Some(left) = left {
            break left.metadata.name.clone().unwrap();
        }
    };
    world.machines.remove("w-1");
    world.settle(500);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
    assert_eq!(world.progresses[&name].phase(), ProgressPhase::Rebooting);
    let superseded = find_condition(world.progresses[&name].conditions(), &ConditionType::Superseded);
    assert_eq!(superseded.unwrap().reason, "NodeGone");
    // Another machine under the name.
    world.add("w-1", false, "v1.35.1");
    for run in 1..=6 {
        let to = if run % 2 == 0 { "v1.35.4" } else { "v1.35.1" };
        assert_eq!(world.progresses.contains_key(&name), run < 6, "run {run}");
        world.apply(&upgrade("up").to(to).allowing_downgrades().object());
        world.settle(500);
        assert_eq!(world.says("up"), says("Completed", "UpToDate"), "run {run}");
    }
}

#[test]
fn a_node_that_joins_a_completed_upgrade_is_brought_along() {
    let mut world = three_nodes();
    world.apply(&upgrade("up").object());
    world.settle(500);
    world.add("w-3", false, "v1.35.1");
    world.operator(usize::MAX);
    assert_eq!(world.says("up").0, "Completed");
    world.settle(500);
    assert!(world.runs().contains(&("w-3", "v1.35.4")));
    // The same name, another machine.
    world.add("w-3", false, "v1.34.6");
    world.settle(500);
    assert!(world.runs().contains(&("w-3", "v1.35.4")));
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
}

#[test]
fn an_upgrade_deleted_in_the_middle_leaves_no_cordon() {
    for steps in 0..40 {
        let mut world = three_nodes();
        world.apply(&upgrade("up").object());
        for _ in 0..steps {
            world.operator(1);
            for name in ["cp-1", "w-1", "w-2"] {
                world.agent(name);
            }
        }
        world.delete("up");
        world.settle(500);
        assert_no_cordon_of_ours(&world);
        assert!(world.machines.values().all(|machine| !machine.cordoned), "after {steps} steps");
    }
}

#[test]
fn a_newer_upgrade_takes_over_in_the_middle_and_a_revert_of_it_changes_nothing() {
    let mut world = three_nodes();
    world.apply(&upgrade("old").to("v1.35.1").object());
    world.settle(500);
    world.apply(&upgrade("new").object());
    world.settle(500);
    assert_eq!(world.says("new"), says("Completed", "UpToDate"));
    assert_eq!(world.says("old"), says("Completed", "UpToDate"));
    world.delete("new");
    world.settle(500);
    assert_eq!(world.says("old"), says("Completed", "UpToDate"));
    assert_eq!(world.runs(), [("cp-1", "v1.35.4"), ("w-1", "v1.35.4"), ("w-2", "v1.35.4")]);
}

#[test]
fn a_downgrade_that_was_carried_out_is_not_undone_by_the_upgrade_before_it() {
    let mut world = three_nodes();
    world.apply(&upgrade("up").object());
    world.settle(500);
    world.apply(&upgrade("down").to("v1.35.1").allowing_downgrades().object());
    world.settle(500);
    assert_eq!(world.runs(), [("cp-1", "v1.35.1"), ("w-1", "v1.35.1"), ("w-2", "v1.35.1")]);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
    world.delete("down");
    world.settle(500);
    assert_eq!(world.runs(), [("cp-1", "v1.35.1"), ("w-1", "v1.35.1"), ("w-2", "v1.35.1")]);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
}

#[test]
fn unfinished_work_of_an_upgrade_that_is_governed_by_another_is_superseded() {
    let mut world =
        World::new(&["v1.35.2", "v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.apply(&upgrade("old").to("v1.35.2").object());
    for _ in 0..6 {
        world.operator(usize::MAX);
    }
    world.apply(&upgrade("new").object());
    world.settle(500);
    assert_eq!(world.says("old"), says("Superseded", "Superseded"));
    assert_eq!(world.says("new"), says("Completed", "UpToDate"));
    let old = world.progresses.values().filter(|progress| progress.spec.source_ref.name == "old");
    let phases: Vec<_> = old.map(|progress| progress.phase().to_string()).collect();
    assert_eq!(phases, ["Superseded", "Superseded"]);
    assert_no_cordon_of_ours(&world);
}

#[test]
fn an_upgrade_that_governs_again_makes_its_orders_anew() {
    let mut world =
        World::new(&["v1.35.2", "v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.apply(&upgrade("old").to("v1.35.2").object());
    for _ in 0..3 {
        world.operator(usize::MAX);
    }
    world.apply(&upgrade("new").spec(|spec| spec.paused = Some(true)).object());
    world.settle(500);
    assert_eq!(world.says("old"), says("Superseded", "Superseded"));
    world.delete("new");
    world.settle(500);
    assert_eq!(world.says("old"), says("Completed", "UpToDate"));
    assert_eq!(world.runs(), [("w-1", "v1.35.2"), ("w-2", "v1.35.2")]);
}

/// A node with leave to reboot, one step before its commit; and the upgrade is paused.
fn granted_and_then_paused() -> World {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    world.apply(&upgrade("up").object());
    let is_granted = |world: &World| {
        world
            .progresses
            .values()
            .any(|progress| progress.spec.order.as_ref().is_some_and(|order| order.boot.is_some()))
    };
    for _ in 0..20 {
        world.operator(usize::MAX);
        if is_granted(&world) {
            world.apply(&upgrade("up").spec(|spec| spec.paused = Some(true)).object());
            return world;
        }
        world.agent("w-1");
    }
    panic!("never granted");
}

fn phase(world: &World) -> String {
    world.progresses.values().next().unwrap().phase().to_string()
}

#[test]
fn a_withdrawal_that_comes_first_stops_the_commit_and_only_then_the_cordon_goes() {
    let mut world = granted_and_then_paused();
    let (plan, _) = world.operator(usize::MAX);
    assert!(matches!(plan.actions.first(), Some(Action::WithdrawBoot { .. })), "{:?}", plan.actions);
    assert!(!plan.actions.iter().any(|action| matches!(action, Action::Uncordon { .. })));
    assert!(world.machines["w-1"].cordoned);
    world.agent("w-1");
    assert_eq!(phase(&world), "Staged");
    world.operator(usize::MAX);
    assert!(!world.machines["w-1"].cordoned);
}

#[test]
fn a_commit_that_comes_first_makes_the_withdrawal_fail_and_keeps_the_cordon() {
    let mut world = granted_and_then_paused();
    let late = crate::rollout::plan(&world.observe(), world.now);
    world.agent("w-1");
    assert_eq!(phase(&world), "Rebooting");
    world.execute(&late, usize::MAX);
    assert!(world.progresses.values().all(|progress| progress.spec.order.as_ref().unwrap().boot.is_some()));
    world.operator(usize::MAX);
    assert!(world.machines["w-1"].cordoned, "a node in its reboot keeps its cordon, paused or not");
    world.settle(500);
    assert_eq!(world.runs(), [("w-1", "v1.35.4")]);
    assert_no_cordon_of_ours(&world);
}

#[test]
fn leave_that_was_used_is_not_taken_back_and_not_used_again() {
    let mut world = three_nodes();
    world.apply(&upgrade("up").object());
    let mut withdrawn = 0;
    for _ in 0..60 {
        let (plan, _) = world.operator(usize::MAX);
        withdrawn +=
            plan.actions.iter().filter(|action| matches!(action, Action::WithdrawBoot { .. })).count();
        for name in ["cp-1", "w-1", "w-2"] {
            world.agent(name);
        }
    }
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
    assert_eq!(withdrawn, 0);
    // A node falls back at once, and is told to try again. Nobody has cordoned it since.
    world.slot_rots("w-1");
    let fell_back = world.machines["w-1"].runs.clone();
    let order = world.progresses.values().find(|order| order.spec.node_name == "w-1").unwrap();
    let name = order.metadata.name.clone().unwrap();
    for nonce in ["again", "and again"] {
        world.retry(&name, nonce);
        world.agent("w-1");
    }
    for _ in 0..20 {
        world.agent("w-1");
    }
    let order = world.progresses.values().find(|order| order.spec.node_name == "w-1").unwrap();
    let still_granted = order.spec.order.as_ref().unwrap().boot.as_ref().unwrap().not_after.0 > world.now;
    assert!(still_granted, "{order:?}");
    assert_eq!((order.phase(), &world.machines["w-1"].runs), (ProgressPhase::Staged, &fell_back));
    world.settle(600);
    assert_eq!(world.says("up"), says("Completed", "UpToDate"));
    assert_no_cordon_of_ours(&world);
}

//! What one progress object means for its node and for the others.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::api::{
    BootGrant, ConditionType, OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase, find_condition,
};
use crate::rollout::fixtures::{NodeFixture, UpgradeFixture, node, upgrade};
use crate::rollout::{Action, Fleet, Plan, plan};

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn fleet(nodes: &[NodeFixture], upgrade: &UpgradeFixture) -> Fleet {
    Fleet {
        nodes: nodes.iter().map(NodeFixture::view).map(Arc::new).collect(),
        upgrades: vec![upgrade.view()],
        api_server: Some("v1.36.0".parse().unwrap()),
        ..Fleet::default()
    }
}

/// The object that a plan makes for the only node without one, staged by now.
fn staged(fleet: &Fleet) -> OSUpgradeProgress {
    let created = plan(fleet, now()).actions.into_iter().find_map(|action| match action {
        Action::CreateProgress(new) => Some(new),
        _ => None,
    });
    let new = created.unwrap();
    let mut progress = OSUpgradeProgress::new(&new.name, new.spec);
    progress.metadata.uid = Some("order-uid".to_owned());
    progress.metadata.resource_version = Some("7".to_owned());
    progress.metadata.owner_references =
        Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
            kind: "OSUpgrade".to_owned(),
            name: new.upgrade_name,
            uid: new.upgrade_uid,
            ..Default::default()
        }]);
    let order = progress.spec.order.as_mut().unwrap();
    order.stage = Some(order.hops[0].version.clone());
    progress.status = Some(OSUpgradeProgressStatus {
        phase: Some(ProgressPhase::Staged),
        hop: order.stage.as_ref().map(ToString::to_string),
        ..OSUpgradeProgressStatus::default()
    });
    progress
}

#[test]
fn a_node_that_is_given_up_for_its_time_stays_so_until_another_attempt_is_asked_for() {
    let fleet = fleet(&[node("a")], &upgrade("up"));
    let mut progress = staged(&fleet);
    progress.metadata.generation = Some(3);
    // The order was made with it, and the agent never answered.
    progress.spec.retry_nonce = Some("first".to_owned());
    progress.status = Some(OSUpgradeProgressStatus {
        conditions: vec![Condition {
            type_: ConditionType::TimedOut.to_string(),
            status: "True".to_owned(),
            reason: "StagingTimedOut".to_owned(),
            message: "the node had leave to stage and was not done within stagingTimeoutSeconds".to_owned(),
            last_transition_time: Time(now()),
            observed_generation: Some(3),
        }],
        ..OSUpgradeProgressStatus::default()
    });
    let told = |progress: &OSUpgradeProgress, hours| {
        let fleet = Fleet { progresses: vec![Arc::new(progress.clone())], ..fleet.clone() };
        let plan = plan(&fleet, now() + SignedDuration::from_hours(hours));
        let nodes = plan.outlooks["up-uid"].nodes.clone();
        (nodes.failed, nodes.staging, plan.actions)
    };
    for hours in 0..3 {
        assert_eq!(told(&progress, hours), (1, 0, vec![]), "after {hours} hours");
    }
    progress.spec.retry_nonce = Some("second".to_owned());
    progress.metadata.generation = Some(4);
    for hours in 0..3 {
        let (failed, staging, actions) = told(&progress, hours);
        assert_eq!((failed, staging), (0, 1), "after {hours} hours");
        let [Action::Report { conditions, .. }] = actions.as_slice() else { panic!("{actions:?}") };
        assert_eq!(conditions[0].status, "False", "its time begins anew: {conditions:?}");
    }
}

/// What a plan says of leave to reboot that was given before so long, and when it looks again.
fn told_of_leave(since: SignedDuration, phase: ProgressPhase) -> (Option<Vec<Condition>>, Option<Timestamp>) {
    let mut fleet = fleet(&[node("a").cordoned_for("order-uid")], &upgrade("up"));
    let mut progress = staged(&fleet);
    let order = progress.spec.order.as_mut().unwrap();
    let not_after = Time(now() - since + SignedDuration::from_mins(10));
    order.boot = Some(BootGrant { version: order.hops[0].version.clone(), not_after });
    progress.status.as_mut().unwrap().phase = Some(phase);
    fleet.progresses = vec![Arc::new(progress)];
    let plan = plan(&fleet, now());
    let told = plan.actions.into_iter().find_map(|action| match action {
        Action::Report { conditions, .. } => Some(conditions),
        _ => None,
    });
    (told, plan.next_event)
}

#[test]
fn of_leave_that_is_not_used_it_is_told_after_a_moment() {
    let seconds = SignedDuration::from_secs;
    let (told, wake) = told_of_leave(seconds(29), ProgressPhase::Staged);
    assert_eq!((told, wake), (None, Some(now() + seconds(1))));
    // The last one was given by a clock that is an hour ahead.
    for since in [30, 300, -3600] {
        let (told, _) = told_of_leave(seconds(since), ProgressPhase::Staged);
        let told = told.unwrap();
        let granted = find_condition(&told, &ConditionType::BootGranted).unwrap();
        assert_eq!((granted.status.as_str(), granted.last_transition_time.0), ("True", now()), "{since}");
    }
    // It was used, or is taken back.
    for phase in [ProgressPhase::Rebooting, ProgressPhase::Failed, ProgressPhase::Completed] {
        let (told, _) = told_of_leave(seconds(300), phase.clone());
        let told = told.unwrap_or_default();
        assert!(find_condition(&told, &ConditionType::BootGranted).is_none(), "{phase}: {told:?}");
    }
}

#[test]
fn a_node_that_does_not_use_its_leave_loses_it_after_the_time_of_a_reboot() {
    let up = upgrade("up");
    for (minutes, expected) in [(29, None), (31, Some("CommitTimedOut"))] {
        let mut fleet = fleet(&[node("a").cordoned_for("order-uid")], &up);
        let mut progress = staged(&fleet);
        let since = Time(now() - SignedDuration::from_mins(minutes));
        let order = progress.spec.order.as_mut().unwrap();
        let not_after = Time(now() + SignedDuration::from_mins(5));
        order.boot = Some(BootGrant { version: order.hops[0].version.clone(), not_after });
        progress.status.as_mut().unwrap().conditions = vec![Condition {
            type_: ConditionType::BootGranted.to_string(),
            status: "True".to_owned(),
            reason: "Granted".to_owned(),
            message: String::new(),
            last_transition_time: since,
            observed_generation: None,
        }];
        fleet.progresses = vec![Arc::new(progress)];
        let plan = plan(&fleet, now());
        let told = plan.actions.iter().find_map(|action| match action {
            Action::Report { conditions, .. } => find_condition(conditions, &ConditionType::TimedOut),
            _ => None,
        });
        assert_eq!(told.map(|told| told.reason.as_str()), expected, "after {minutes} minutes");
        let withdrawn = plan.actions.iter().any(|action| matches!(action, Action::WithdrawBoot { .. }));
        assert_eq!(withdrawn, expected.is_some(), "after {minutes} minutes");
        assert!(
            !plan.actions.iter().any(|action| matches!(action, Action::Uncordon { .. })),
            "only once the leave was seen to be gone"
        );
    }
}

#[test]
fn a_hand_made_object_in_its_reboot_takes_up_budget() {
    for (phase, goes) in [
        (ProgressPhase::Downloading, true),
        (ProgressPhase::Rebooting, false),
        (ProgressPhase::Confirming, false),
        (ProgressPhase::Completed, true),
    ] {
        let only_a = upgrade("up").rollout(|rollout| rollout.max_unavailable = None);
        let mut alone = fleet(&[node("a")], &only_a);
        let order = staged(&alone);
        let by_hand: OSUpgradeProgress = serde_json::from_value(serde_json::json!({
            "apiVersion": "monok8s.io/v1alpha1", "kind": "OSUpgradeProgress",
            "metadata": { "name": "by-hand", "uid": "by-hand-uid", "resourceVersion": "3" },
            "spec": { "sourceRef": { "name": "elsewhere" }, "nodeName": "b" },
            "status": { "phase": phase },
        }))
        .unwrap();
        alone.nodes.push(Arc::new(node("b").view()));
        alone.progresses = vec![order, by_hand].into_iter().map(Arc::new).collect();
        let plan = plan(&alone, now());
        let cordons = plan.actions.iter().any(|action| matches!(action, Action::Cordon { .. }));
        assert_eq!(cordons, goes, "while the hand-made one is {phase}");
    }
}

#[test]
fn a_kubelets_word_neither_proves_nor_denies_an_image_revision() {
    for (situation, nodes, ordered) in [
        ("the agent runs the revision", node("a").running("v1.35.4+r2"), false),
        ("the agent runs the plain image", node("a").running("v1.35.4"), true),
        ("only the kubelet speaks", node("a").running("v1.35.4").without_report(), true),
    ] {
        let revision = upgrade("up").to("v1.35.4+r2");
        let fleet = fleet(&[nodes], &revision);
        let actions = plan(&fleet, now()).actions;
        let created = actions.iter().any(|action| matches!(action, Action::CreateProgress(_)));
        assert_eq!(created, ordered, "{situation}");
    }

    // A node that says it is done with the revision is believed, whatever its kubelet cannot know.
    let silent = node("a").running("v1.35.1").without_report();
    let revision = upgrade("up").to("v1.35.4+r2");
    let mut order = staged(&fleet(&[silent], &revision));
    order.status.as_mut().unwrap().phase = Some(ProgressPhase::Completed);
    order.status.as_mut().unwrap().completed_at = Some(Time(now() - SignedDuration::from_mins(5)));
    for (runs, up_to_date) in [("v1.35.4", 1), ("v1.35.1", 0)] {
        let mut fleet = fleet(&[node("a").running(runs).without_report()], &revision);
        fleet.progresses = vec![Arc::new(order.clone())];
        let plan = plan(&fleet, now());
        assert_eq!(plan.outlooks["up-uid"].nodes.up_to_date, up_to_date, "the kubelet says {runs}");
    }
}

#[test]
fn a_node_that_has_arrived_gets_its_turn_to_go_back_and_not_without_being_asked() {
    use ProgressPhase::{Completed, Staged};
    // Nothing is done before the node has answered.
    let asked = Some("back-1");
    for (nonce, phase, goes) in [
        (None, Completed, false),
        (Some(""), Completed, false),
        (asked, Completed, false),
        (asked, Staged, true),
    ] {
        let up = upgrade("up");
        let mut order = staged(&fleet(&[node("a")], &up));
        order.spec.rollback_nonce = nonce.map(str::to_owned);
        order.status.as_mut().unwrap().phase = Some(phase.clone());
        let mut fleet = fleet(&[node("a").running("v1.35.4").with_good_other_slot("v1.35.1")], &up);
        fleet.progresses = vec![Arc::new(order)];
        let cordons =
            plan(&fleet, now()).actions.iter().any(|action| matches!(action, Action::Cordon { .. }));
        assert_eq!(cordons, goes, "{nonce:?} in {phase}");
    }
}

/// What an operator would write into the object, written.
fn told(progress: &mut OSUpgradeProgress, plan: &Plan) {
    let reported = plan.actions.iter().find_map(|action| match action {
        Action::Report { conditions, .. } => Some(conditions.clone()),
        _ => None,
    });
    if let Some(reported) = reported {
        progress.status.as_mut().unwrap().conditions = reported;
    }
}

fn degraded(progress: &OSUpgradeProgress) -> Option<(&str, &str)> {
    let told = find_condition(progress.conditions(), &ConditionType::Degraded)?;
    Some((told.status.as_str(), told.reason.as_str()))
}

/// The order of a node that says it is done, and its fleet, in which the Node runs `running`.
fn said_to_be_done(running: &str, completed_at: Option<Timestamp>) -> Fleet {
    let up = upgrade("up");
    let mut order = staged(&fleet(&[node("a")], &up));
    let status = order.status.as_mut().unwrap();
    status.phase = Some(ProgressPhase::Completed);
    status.completed_at = completed_at.map(Time);
    let mut fleet = fleet(&[node("a").running(running).cordoned_for("order-uid")], &up);
    fleet.progresses = vec![Arc::new(order)];
    fleet
}

#[test]
fn a_node_object_may_be_late_for_as_long_whatever_the_clock_of_its_node_says() {
    let hours = |hours| Some(now() + SignedDuration::from_hours(hours));
    for completed_at in [hours(0), hours(5), hours(-5), None, Some(Timestamp::MAX)] {
        let mut fleet = said_to_be_done("v1.35.1", completed_at);
        let after = |seconds| now() + SignedDuration::from_secs(seconds);
        for (seconds, expected, phase) in [
            (0, ("False", "Settling"), "Accepted"),
            (29, ("False", "Settling"), "Accepted"),
            (30, ("True", "UnexplainedRollback"), "Failed"),
            (31, ("True", "UnexplainedRollback"), "Failed"),
        ] {
            let plan = plan(&fleet, after(seconds));
            told(Arc::make_mut(&mut fleet.progresses[0]), &plan);
            assert_eq!(degraded(&fleet.progresses[0]), Some(expected), "{completed_at:?} {seconds}");
            assert_eq!(plan.outlooks["up-uid"].phase.as_str(), phase, "{completed_at:?} {seconds}");
            let uncordons = plan.actions.iter().any(|action| matches!(action, Action::Uncordon { .. }));
            assert_eq!(uncordons, phase == "Failed", "{completed_at:?} {seconds}");
        }

        // The Node object was only late.
        let mut fleet = said_to_be_done("v1.35.1", completed_at);
        let first = plan(&fleet, now());
        told(Arc::make_mut(&mut fleet.progresses[0]), &first);
        let second = plan(&fleet, now());
        assert_eq!((&second.actions[..], second.next_event), (&[][..], Some(after(30))));
        fleet.nodes = vec![Arc::new(node("a").running("v1.35.4").view())];
        let last = plan(&fleet, after(20));
        told(Arc::make_mut(&mut fleet.progresses[0]), &last);
        assert_eq!(degraded(&fleet.progresses[0]), None, "{completed_at:?}");
        assert_eq!(last.outlooks["up-uid"].phase.as_str(), "Completed", "{completed_at:?}");
    }
}

#[test]
fn a_time_that_an_operator_with_another_clock_wrote_is_written_anew() {
    let mut fleet = said_to_be_done("v1.35.1", None);
    let ahead = now() + SignedDuration::from_hours(5);
    let first = plan(&fleet, ahead);
    told(Arc::make_mut(&mut fleet.progresses[0]), &first);
    let second = plan(&fleet, now());
    told(Arc::make_mut(&mut fleet.progresses[0]), &second);
    let stamp = find_condition(fleet.progresses[0].conditions(), &ConditionType::Degraded).unwrap();
    assert_eq!((stamp.status.as_str(), stamp.last_transition_time.0), ("False", now()));
    assert_eq!(plan(&fleet, now()).actions, []);
}

#[test]
fn an_order_that_nobody_wants_any_more_keeps_no_cordon_for_a_node_that_contradicts_it() {
    let next_run = upgrade("up").run(2, now());
    let another = upgrade("other").to("v1.35.2").allowing_downgrades().run(1, now());
    for upgrades in [vec![next_run], vec![upgrade("up"), another]] {
        let mut fleet = said_to_be_done("v1.35.1", None);
        fleet.upgrades = upgrades.iter().map(UpgradeFixture::view).collect();
        let actions = plan(&fleet, now()).actions;
        let uncordons = actions.iter().any(|action| matches!(action, Action::Uncordon { .. }));
        assert!(uncordons, "{upgrades:?}: {actions:?}");
    }
}

//! One look at a cluster, and what is decided: named as an operator would say it.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::world::World;
use crate::api::{
    ANNOTATION_HOLD, ConditionType, IntOrPercent, Mode, OSUpgradeProgress, ProgressPhase, UpgradePhase,
    UpgradeReason, condition_is_true, find_condition,
};
use crate::rollout::fixtures::{NodeFixture, UpgradeFixture, node, upgrade};
use crate::rollout::{Action, Evaluation, Fleet, Outlook, Plan, plan};

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn fleet(nodes: &[NodeFixture], upgrades: &[UpgradeFixture]) -> Fleet {
    Fleet {
        nodes: nodes.iter().map(NodeFixture::view).map(Arc::new).collect(),
        upgrades: upgrades.iter().map(UpgradeFixture::view).collect(),
        api_server: Some("v1.36.0".parse().unwrap()),
        ..Fleet::default()
    }
}

fn outlook<'p>(plan: &'p Plan, name: &str) -> &'p Outlook {
    &plan.outlooks[&format!("{name}-uid")]
}

/// Phase, reason of Ready, and which of Ready, Reconciling and Stalled are True.
fn summary(outlook: &Outlook) -> (&str, &str, String) {
    let is_true = |(kind, truth, ..): &&(ConditionType, crate::api::Truth, UpgradeReason, String)| {
        *truth == crate::api::Truth::True
            && matches!(kind, ConditionType::Ready | ConditionType::Reconciling | ConditionType::Stalled)
    };
    let truths: Vec<_> =
        outlook.conditions.iter().filter(is_true).map(|(kind, ..)| kind.to_string()).collect();
    (outlook.phase.as_str(), outlook.conditions[0].2.as_str(), truths.join(" "))
}

fn ordered(plan: &Plan) -> Vec<(&str, Vec<String>)> {
    let created = plan.actions.iter().filter_map(|action| match action {
        Action::CreateProgress(new) => Some((
            new.spec.node_name.as_str(),
            new.spec.order.as_ref().unwrap().hops.iter().map(|hop| hop.version.to_string()).collect(),
        )),
        _ => None,
    });
    created.collect()
}

#[test]
fn an_upgrade_at_rest_or_in_trouble_says_so_the_way_kstatus_reads_it() {
    let old = || node("a").running("v1.35.1");
    let new = || node("a").running("v1.35.4");
    let empty = || upgrade("up").selecting("disktype", "sdd");
    for (situation, nodes, upgrade, expected) in [
        ("all nodes are there", vec![new()], upgrade("up"), ("Completed", "UpToDate", "Ready")),
        ("work to do", vec![old()], upgrade("up"), ("Accepted", "RollingOut", "Reconciling")),
        ("nobody matches", vec![old()], empty(), ("Pending", "NoMatchingNodes", "Reconciling")),
        (
            "nobody matches, and may",
            vec![old()],
            empty().spec(|spec| spec.allow_empty = Some(true)),
            ("Completed", "NoMatchingNodes", "Ready"),
        ),
        ("no node at all", vec![], upgrade("up"), ("Pending", "NoMatchingNodes", "Reconciling")),
        (
            "paused in Git",
            vec![old()],
            upgrade("up").spec(|spec| spec.paused = Some(true)),
            ("Accepted", "Paused", ""),
        ),
        ("held", vec![old()], upgrade("up").annotated(ANNOTATION_HOLD, ""), ("Accepted", "Paused", "")),
        (
            "a downgrade",
            vec![old()],
            upgrade("up").to("v1.34.6").unseen(),
            ("Rejected", "DowngradeRefused", "Stalled"),
        ),
        (
            "two minor releases, and none between",
            vec![node("a").running("v1.33.0")],
            upgrade("up").unseen(),
            ("Rejected", "NoUpgradePath", "Stalled"),
        ),
        (
            "one can go and one cannot",
            vec![new(), node("b").running("v1.36.0")],
            upgrade("up").unseen(),
            ("Accepted", "DowngradeRefused", "Stalled"),
        ),
        (
            "a node without a loader",
            vec![old().with_problem("no loader")],
            upgrade("up").unseen(),
            ("Rejected", "NodeProblem", "Stalled"),
        ),
        (
            "only a plan",
            vec![old()],
            upgrade("up").spec(|spec| spec.mode = Some(Mode::Plan)).unseen(),
            ("Planned", "Planned", "Ready"),
        ),
    ] {
        let plan = plan(&fleet(&nodes, &[upgrade]), now());
        let (phase, reason, truths) = summary(outlook(&plan, "up"));
        assert_eq!((phase, reason, truths.as_str()), expected, "{situation}");
    }
}

#[test]
fn what_the_catalog_says_decides_before_any_node_does() {
    let rejected = Evaluation::Rejected {
        reason: UpgradeReason::VersionNotInCatalog,
        message: "the nearest are v1.35.1 and v1.35.4".to_owned(),
        resolved: Some("v1.35.3".parse().unwrap()),
    };
    let pending = Evaluation::Pending {
        reason: UpgradeReason::CatalogUnavailable,
        message: "connection refused".to_owned(),
        resolved: None,
    };
    for (evaluation, expected, resolved) in [
        (rejected, ("Rejected", "VersionNotInCatalog", "Stalled"), Some("v1.35.3")),
        (pending, ("Pending", "CatalogUnavailable", "Reconciling"), None),
    ] {
        let mut fleet = fleet(&[node("a")], &[upgrade("up").unseen()]);
        fleet.upgrades[0].evaluation = evaluation;
        let plan = plan(&fleet, now());
        let outlook = outlook(&plan, "up");
        let (phase, reason, truths) = summary(outlook);
        assert_eq!((phase, reason, truths.as_str()), expected);
        assert_eq!(outlook.resolved_version.as_ref().map(ToString::to_string).as_deref(), resolved);
        assert_eq!((plan.actions.len(), &outlook.new_run), (0, &None));
    }
}

#[test]
fn a_downgrade_is_rejected_with_its_version_even_while_another_upgrade_governs() {
    let fleet = fleet(&[node("a")], &[upgrade("up"), upgrade("down").to("v1.34.6").unseen()]);
    let plan = plan(&fleet, now());
    let down = outlook(&plan, "down");
    assert_eq!(
        (down.phase.as_str(), down.resolved_version.as_ref().unwrap().to_string().as_str()),
        ("Rejected", "v1.34.6")
    );
    assert!(down.message.starts_with("a: v1.34.6 is older than v1.35.1"), "{}", down.message);
    assert_eq!(ordered(&plan), [("a", vec!["v1.35.4".to_owned()])]);
}

#[test]
fn nothing_of_a_run_is_written_before_its_number() {
    let plan = plan(&fleet(&[node("a")], &[upgrade("up").unseen()]), now());
    assert_eq!(plan.actions, []);
    let run = outlook(&plan, "up").new_run.as_ref().unwrap();
    assert_eq!((run.run, run.started_at), (1, now()));
}

#[test]
fn a_plan_changes_nothing() {
    let planned = upgrade("up").spec(|spec| spec.mode = Some(Mode::Plan)).unseen();
    let plan = plan(&fleet(&[node("a")], &[planned]), now());
    assert_eq!(plan.actions, []);
    let outlook = outlook(&plan, "up");
    assert_eq!(
        (outlook.message.as_str(), &outlook.new_run),
        ("would move a (v1.35.1 to v1.35.4); that would take about 15m", &None)
    );
}

#[test]
fn nobody_matches_names_the_labels_that_nodes_do_carry() {
    let nodes = [node("a").labelled("disktype", "ssd"), node("b").labelled("disktype", "hdd")];
    let plan = plan(&fleet(&nodes, &[upgrade("up").selecting("disktyp", "ssd")]), now());
    let message = &outlook(&plan, "up").message;
    assert!(message.ends_with("managed nodes carry disktype=hdd, disktype=ssd"), "{message}");
}

#[test]
fn excluded_and_unmanaged_nodes_are_left_alone() {
    let nodes = [node("a"), node("b").excluded().cordoned(), node("c").unmanaged().not_ready()];
    let plan = plan(&fleet(&nodes, &[upgrade("up")]), now());
    assert_eq!(ordered(&plan), [("a", vec!["v1.35.4".to_owned()])]);
    assert_eq!(outlook(&plan, "up").nodes.total, 1);
}

#[test]
fn the_highest_version_governs_and_one_that_allows_downgrades_overrides_what_came_before() {
    let at = |seconds| now() - SignedDuration::from_secs(1000) + SignedDuration::from_secs(seconds);
    let low = || upgrade("low").to("v1.35.2").run(1, at(1));
    let high = || upgrade("high").to("v1.35.4").run(1, at(2));
    let down = |since| upgrade("down").to("v1.35.0").allowing_downgrades().run(1, at(since));
    for (situation, upgrades, governs) in [
        ("two that rise", vec![low(), high()], "high"),
        ("a downgrade after both", vec![low(), high(), down(3)], "down"),
        ("a downgrade between", vec![low(), down(2), upgrade("late").to("v1.35.3").run(1, at(3))], "late"),
        ("a downgrade before all", vec![down(0), low(), high()], "high"),
        ("one that is paused still governs", vec![low(), high().spec(|spec| spec.paused = Some(true))], ""),
        ("one in mode Plan does not", vec![low(), high().spec(|spec| spec.mode = Some(Mode::Plan))], "low"),
    ] {
        let plan = plan(&fleet(&[node("a")], &upgrades), now());
        let governors: Vec<_> = plan
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::CreateProgress(new) => Some(new.upgrade_name.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(governors.join(","), governs, "{situation}");
    }
}

#[test]
fn a_version_that_failed_after_a_reboot_is_quarantined_until_a_new_nonce() {
    let failed_at = now() - SignedDuration::from_secs(100);
    let nodes = [node("a"), node("b").remembers_failure_of("v1.35.4", failed_at)];
    let grants = |upgrade: UpgradeFixture| {
        let mut world = World::new(&["v1.35.4"]);
        world.upgrades = vec![upgrade.object()];
        let mut fleet = fleet(&nodes, &[upgrade]);
        fleet.progresses = ordered_progresses(&fleet);
        let plan = plan(&fleet, now());
        let grants = plan.actions.iter().filter(|action| matches!(action, Action::GrantStage { .. })).count();
        (grants, outlook(&plan, "up").conditions[0].2.clone())
    };
    let before = failed_at - SignedDuration::from_secs(50);
    let after = failed_at + SignedDuration::from_secs(50);
    let with_nonce = |since| upgrade("up").spec(|spec| spec.retry_nonce = Some("r".to_owned())).run(1, since);
    assert_eq!(grants(upgrade("up").run(1, after)), (0, UpgradeReason::VersionQuarantined));
    assert_eq!(grants(with_nonce(before)), (0, UpgradeReason::VersionQuarantined));
    assert_eq!(grants(with_nonce(after)).0, 2);
}

#[test]
fn the_api_server_of_a_node_that_blinks_or_reboots_still_counts() {
    // The control plane is another upgrade's.
    let waits = |cp_2: NodeFixture, committed: bool| {
        let nodes = [node("cp-1").control_plane().running("v1.36.0"), cp_2.control_plane(), node("w-1")];
        let workers = upgrade("up").selecting("kubernetes.io/hostname", "w-1").to("v1.36.0");
        let mut fleet = fleet(&nodes, &[workers]);
        fleet.progresses = ordered_progresses(&fleet);
        let staged = Arc::get_mut(&mut fleet.progresses[0]).unwrap();
        staged.spec.order.as_mut().unwrap().stage = Some("v1.36.0".parse().unwrap());
        staged.status.get_or_insert_default().phase = Some(ProgressPhase::Staged);
        if committed {
            let mut order = fleet.progresses[0].as_ref().clone();
            let spec = order.spec.order.as_mut().unwrap();
            (order.spec.node_name, spec.node_uid) = ("cp-2".to_owned(), "cp-2-uid".to_owned());
            order.status.get_or_insert_default().phase = Some(ProgressPhase::Rebooting);
            fleet.progresses.push(Arc::new(order));
        }
        let plan = plan(&fleet, now());
        let wait = outlook(&plan, "up").waits.values().next().map(|wait| wait.reason.clone());
        (wait, plan.next_event)
    };
    let ago = |minutes| now() - SignedDuration::from_mins(minutes);
    assert_eq!(waits(node("cp-2").running("v1.36.0"), false).0, None);
    assert_eq!(waits(node("cp-2"), false).0, Some(UpgradeReason::KubeletSkew));
    let blinks = waits(node("cp-2").not_ready_since(ago(4)), false);
    assert_eq!(blinks, (Some(UpgradeReason::KubeletSkew), Some(now() + SignedDuration::from_mins(1))));
    assert_eq!(waits(node("cp-2").not_ready_since(ago(6)), false).0, None, "it is dead");
    assert_eq!(waits(node("cp-2").not_ready_since(ago(6)), true).0, Some(UpgradeReason::KubeletSkew));
}

/// The progress objects that a plan creates, as the API server would have them.
fn ordered_progresses(fleet: &Fleet) -> Vec<Arc<OSUpgradeProgress>> {
    let plan = plan(fleet, now());
    let created = plan.actions.into_iter().filter_map(|action| match action {
        Action::CreateProgress(new) => {
            let mut progress = OSUpgradeProgress::new(&new.name, new.spec);
            progress.metadata.uid = Some(format!("{}-uid", new.name));
            progress.metadata.resource_version = Some("1".to_owned());
            progress.metadata.generation = Some(1);
            progress.metadata.owner_references =
                Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
                    kind: "OSUpgrade".to_owned(),
                    name: new.upgrade_name,
                    uid: new.upgrade_uid,
                    ..Default::default()
                }]);
            Some(Arc::new(progress))
        }
        _ => None,
    });
    created.collect()
}

#[test]
fn nodes_of_several_upgrades_stand_in_one_line() {
    // The upgrade of the node `n2` is the older one.
    let next = |zones: [&str; 2]| {
        let nodes = [node("n1").labelled("of", "b"), node("n2").labelled("of", "a")];
        let nodes = [0, 1].map(|at| nodes[at].clone().labelled("zone", zones[at]));
        let by_zone = |name: &str| {
            upgrade(name).selecting("of", name).rollout(|rollout| rollout.group_by = Some("zone".to_owned()))
        };
        let mut fleet = fleet(&nodes, &[by_zone("a"), by_zone("b")]);
        fleet.max_unavailable = Some(IntOrPercent::Int(1));
        fleet.progresses = ordered_progresses(&fleet);
        for progress in fleet.progresses.iter_mut().map(Arc::make_mut) {
            progress.spec.order.as_mut().unwrap().stage = Some("v1.35.4".parse().unwrap());
            progress.status.get_or_insert_default().phase = Some(ProgressPhase::Staged);
        }
        let plan = plan(&fleet, now());
        let cordoned: Vec<_> =
            plan.actions.iter().filter(|action| action.kind() == "cordon").map(Action::object_name).collect();
        cordoned.join(" ")
    };
    assert_eq!(next(["z", "z"]), "n1");
    assert_eq!(next(["z2", "z1"]), "n2");
}

#[test]
fn a_version_that_the_catalog_blocks_by_now_is_granted_to_nobody() {
    let mut fleet = fleet(&[node("a")], &[upgrade("up").blocking("v1.35.4")]);
    fleet.progresses = ordered_progresses(&fleet);
    let plan = plan(&fleet, now());
    assert!(!plan.actions.iter().any(|action| matches!(action, Action::GrantStage { .. })));
    assert_eq!(summary(outlook(&plan, "up")), ("Accepted", "VersionBlocked", "Stalled".to_owned()));
}

#[test]
fn staging_is_paced() {
    let nodes: Vec<_> = (0..9).map(|number| node(&format!("w-{number}"))).collect();
    let paced = upgrade("up").rollout(|rollout| rollout.max_parallel_staging = Some(IntOrPercent::Int(3)));
    let mut fleet = fleet(&nodes, &[paced]);
    fleet.progresses = ordered_progresses(&fleet);
    let plan = plan(&fleet, now());
    let granted = plan.actions.iter().filter(|action| matches!(action, Action::GrantStage { .. }));
    assert_eq!(granted.count(), 3);
    assert_eq!(outlook(&plan, "up").waits["w-3"].reason, UpgradeReason::WaitingToStage);
}

#[test]
fn a_cordon_without_an_order_is_swept_and_a_persons_cordon_is_not() {
    let nodes =
        [node("a").cordoned_for("gone"), node("b").cordoned(), node("c").excluded().cordoned_for("gone")];
    let plan = plan(&fleet(&nodes, &[]), now());
    let swept: Vec<_> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Uncordon { node } => Some(node.name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(swept, ["a", "c"]);
}

#[test]
fn a_managed_node_gets_an_osnode() {
    let nodes = [node("a").without_report(), node("b"), node("c").unmanaged().without_report()];
    let plan = plan(&fleet(&nodes, &[]), now());
    assert!(matches!(&plan.actions[..], [Action::CreateOsNode { node }] if node.name == "a"));
}

#[test]
fn a_node_that_says_completed_and_runs_something_else_is_degraded_and_not_up_to_date() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.apply(&upgrade("up").object());
    world.settle(500);
    world.touch("w-1", |machine| "v1.35.1".clone_into(&mut machine.runs));
    world.settle(500);
    assert_eq!(world.says("up").0, "Failed");
    let progress = world.progresses.values().find(|progress| progress.spec.node_name == "w-1").unwrap();
    let degraded = find_condition(progress.conditions(), &ConditionType::Degraded).unwrap();
    assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "UnexplainedRollback"));
    let nodes = world.upgrade("up").status.as_ref().unwrap().nodes.clone().unwrap();
    assert_eq!((nodes.up_to_date, nodes.failed, nodes.failed_names), (1, 1, vec!["w-1".to_owned()]));
}

#[test]
fn a_node_that_does_not_come_back_keeps_its_place_in_the_budget() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    world.apply(
        &upgrade("up").rollout(|rollout| rollout.failure_threshold = Some(IntOrPercent::Int(5))).object(),
    );
    for _ in 0..40 {
        world.operator(usize::MAX);
        let rebooting =
            world.progresses.values().any(|progress| progress.phase() == ProgressPhase::Rebooting);
        if !rebooting {
            world.agent("w-1");
            world.agent("w-2");
        }
    }
    let rebooting = |world: &World| {
        let found = world.progresses.values().find(|progress| progress.phase() == ProgressPhase::Rebooting);
        found.unwrap().clone()
    };
    assert!(!condition_is_true(rebooting(&world).conditions(), &ConditionType::TimedOut));
    world.now += SignedDuration::from_secs(1801);
    let other = if rebooting(&world).spec.node_name == "w-1" { "w-2" } else { "w-1" };
    for _ in 0..5 {
        world.operator(usize::MAX);
        world.agent(other);
    }
    let lost = rebooting(&world);
    assert_eq!(find_condition(lost.conditions(), &ConditionType::TimedOut).unwrap().reason, "RebootTimedOut");
    assert!(world.machines[&lost.spec.node_name].cordoned);
    assert!(!world.machines[other].cordoned, "the budget of one is taken by the lost node");
    // It comes back after all.
    world.settle(900);
    assert_eq!(world.says("up").0, "Completed");
}

#[test]
fn an_agent_that_never_stages_times_out_and_frees_its_place() {
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1").with("w-2", false, "v1.35.1");
    let paced = upgrade("up").rollout(|rollout| rollout.max_parallel_staging = Some(IntOrPercent::Int(1)));
    world.apply(&paced.object());
    for _ in 0..8 {
        world.operator(usize::MAX);
    }
    world.now += SignedDuration::from_secs(3601);
    for _ in 0..60 {
        world.operator(usize::MAX);
        world.agent("w-2");
    }
    assert_eq!(world.runs(), [("w-1", "v1.35.1"), ("w-2", "v1.35.4")]);
    let slow = world.progresses.values().find(|progress| progress.spec.node_name == "w-1").unwrap();
    assert_eq!(
        find_condition(slow.conditions(), &ConditionType::TimedOut).unwrap().reason,
        "StagingTimedOut"
    );
    assert_eq!(world.says("up").1, "NodesFailed");
}

#[test]
fn a_completed_upgrade_stays_completed_when_its_nodes_were_moved_on() {
    let done = upgrade("old").to("v1.35.1").run(1, now()).in_phase(UpgradePhase::Completed);
    let plan = plan(&fleet(&[node("a").running("v1.35.4")], &[done]), now());
    assert_eq!(summary(outlook(&plan, "old")), ("Completed", "UpToDate", "Ready".to_owned()));
    assert_eq!(plan.actions, []);
}

#[test]
fn a_node_whose_clock_is_at_the_end_of_time_stops_nobody() {
    let end = Time(Timestamp::MAX);
    let mut world = World::new(&["v1.35.4"]).with("w-1", false, "v1.35.1");
    world.apply(&upgrade("up").object());
    for _ in 0..100 {
        world.operator(usize::MAX);
        world.agent("w-1");
        for progress in world.progresses.values_mut() {
            if let Some(status) = &mut progress.status {
                status.timeline.iter_mut().for_each(|entry| entry.since = end.clone());
                status.conditions.iter_mut().for_each(|known| known.last_transition_time = end.clone());
                status.completed_at.iter_mut().for_each(|at| *at = end.clone());
            }
            if let Some(grant) = progress.spec.order.as_mut().and_then(|order| order.boot.as_mut()) {
                grant.not_after = end.clone();
            }
        }
    }
    assert_eq!(world.says("up").0, "Completed");
}

//! Random fleets, upgrades and accidents. Whatever happens, the rules hold at every step; and when
//! the accidents end, the fleet comes to rest.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::world::{Mishap, World};
use crate::api::{
    Canary, IntOrPercent, NodeSelector, OSUpgrade, RolloutSpec, Window, WindowKind, WindowScope,
};
use crate::rollout::fixtures::upgrade;
use crate::rollout::{Action, Fleet, NodeView, Plan, Readiness, Role, Scheduling, UpgradeView};

const ZONE: &str = "topology.kubernetes.io/zone";

const CATALOG: [&str; 5] = ["v1.33.2", "v1.34.1", "v1.34.6", "v1.35.1", "v1.35.4"];

#[derive(Clone, Debug)]
enum Event {
    /// The operator works, and is killed after this many writes.
    Operator(usize),
    /// The operator plans, the agents work, and only then it writes what it had planned.
    SlowOperator(usize),
    Agent(usize),
    Agents,
    Kubelet(usize),
    PersonCordons(usize),
    PersonUncordons(usize),
    Mishap(usize, Mishap),
    Retarget {
        upgrade: usize,
        version: usize,
        downgrades: bool,
    },
    Pause {
        upgrade: usize,
    },
    Delete {
        upgrade: usize,
    },
    MachineIsMadeAgain {
        machine: usize,
        version: usize,
    },
    TimePasses(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0usize..6).prop_map(Event::Operator),
        6 => Just(Event::Operator(usize::MAX)),
        3 => (0usize..6).prop_map(Event::SlowOperator),
        6 => (0usize..8).prop_map(Event::Agent),
        6 => Just(Event::Agents),
        1 => (0usize..8).prop_map(Event::Kubelet),
        1 => (0usize..8).prop_map(Event::PersonCordons),
        1 => (0usize..8).prop_map(Event::PersonUncordons),
        1 => (0usize..8, prop_oneof![Just(Mishap::FailsToStage), Just(Mishap::FallsBack)])
            .prop_map(|(machine, mishap)| Event::Mishap(machine, mishap)),
        1 => (0usize..3, 0usize..5, any::<bool>()).prop_map(|(upgrade, version, downgrades)| {
            Event::Retarget { upgrade, version, downgrades }
        }),
        1 => (0usize..3).prop_map(|upgrade| Event::Pause { upgrade }),
        1 => (0usize..3).prop_map(|upgrade| Event::Delete { upgrade }),
        1 => (0usize..8, 0usize..5)
            .prop_map(|(machine, version)| Event::MachineIsMadeAgain { machine, version }),
        1 => (1i64..4000).prop_map(Event::TimePasses),
    ]
}

#[derive(Clone, Debug)]
struct Setting {
    control_plane: usize,
    workers: usize,
    versions: Vec<usize>,
    max_unavailable: i32,
    operator_limit: Option<i32>,
    operator_node: Option<usize>,
    paced: Paced,
}

/// What of the pace is set.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
struct Paced {
    /// Reboots in the first half of every hour.
    windows: bool,
    /// Each machine is in one of two zones.
    zones: bool,
    /// The last worker of the three first ones.
    canary: bool,
    soak: bool,
}

fn paced() -> impl Strategy<Value = Paced> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(windows, zones, canary, soak)| Paced { windows, zones, canary, soak })
}

fn setting() -> impl Strategy<Value = Setting> {
    (
        0usize..4,
        1usize..5,
        prop::collection::vec(0usize..5, 8),
        1i32..4,
        prop::option::of(1i32..4),
        prop::option::of(0usize..8),
        paced(),
    )
        .prop_map(
            |(control_plane, workers, versions, max_unavailable, operator_limit, operator_node, paced)| {
                Setting {
                    control_plane,
                    workers,
                    versions,
                    max_unavailable,
                    operator_limit,
                    operator_node,
                    paced,
                }
            },
        )
}

fn wanted(setting: &Setting, number: usize, version: usize, downgrades: bool) -> OSUpgrade {
    let mut wanted = upgrade(&format!("up-{number}")).to(CATALOG[version]).rollout(|rollout| {
        rollout.max_unavailable = Some(IntOrPercent::Int(setting.max_unavailable));
        // A halted run is a state of rest; these fleets are to arrive somewhere.
        rollout.failure_threshold = Some(IntOrPercent::Int(100));
        rollout.max_failed_nodes = Some(IntOrPercent::Int(100));
        pace(rollout, setting.paced);
    });
    if downgrades {
        wanted = wanted.allowing_downgrades();
    }
    wanted.object()
}

fn pace(rollout: &mut RolloutSpec, paced: Paced) {
    if paced.windows {
        rollout.windows.push(Window {
            kind: WindowKind::Allow,
            schedule: "0 * * * *".to_owned(),
            duration_minutes: 30,
            time_zone: None,
            applies_to: vec![WindowScope::Reboot],
        });
    }
    if paced.zones {
        rollout.group_by = Some(ZONE.to_owned());
    }
    if paced.canary {
        let node_selector = NodeSelector([("canary".to_owned(), "yes".into())].into_iter().collect());
        rollout.canary = Some(Canary { node_selector, soak_seconds: Some(300) });
    }
    rollout.soak_seconds = paced.soak.then_some(300);
}

fn world(setting: &Setting) -> World {
    let mut world = World::new(&CATALOG);
    let names = (0..setting.control_plane)
        .map(|number| (format!("cp-{number}"), true))
        .chain((0..setting.workers).map(|number| (format!("w-{number}"), false)));
    // The control plane starts together, and no kubelet is newer than it.
    let control_plane = setting.versions[0];
    for ((name, is_control_plane), version) in names.zip(&setting.versions) {
        let version = match is_control_plane {
            true => control_plane,
            false if setting.control_plane == 0 => *version,
            false => (*version).min(control_plane),
        };
        world.add(&name, is_control_plane, CATALOG[version]);
        world.touch(&name, |machine| {
            let zone = if name.ends_with(['0', '2']) { "b" } else { "a" };
            machine.labels.insert(ZONE.to_owned(), zone.to_owned());
            if name == "w-1" {
                machine.labels.insert("canary".to_owned(), "yes".to_owned());
            }
        });
    }
    world.max_unavailable = setting.operator_limit.map(IntOrPercent::Int);
    let names: Vec<_> = world.machines.keys().cloned().collect();
    world.operator_node = setting.operator_node.map(|number| names[number % names.len()].clone());
    world
}

fn happen(world: &mut World, setting: &Setting, event: &Event) {
    let names: Vec<_> = world.machines.keys().cloned().collect();
    let name = |number: usize| names[number % names.len()].clone();
    match *event {
        Event::Operator(writes) => check(world, writes, &[]),
        Event::SlowOperator(writes) => check(world, writes, &names),
        Event::Agent(number) => drop(world.agent(&name(number)).then_some(String::new())),
        Event::Agents => names.iter().for_each(|name| {
            world.agent(name);
        }),
        Event::Kubelet(number) => world.touch(&name(number), |machine| machine.alive = !machine.alive),
        Event::PersonCordons(number) => world.touch(&name(number), |machine| machine.cordoned = true),
        Event::PersonUncordons(number) => {
            // kubectl leaves annotations alone. A machine in a reboot is not uncordoned here: the
            // agents of this world check the cordon when they commit, which real ones cannot.
            let granted = world.progresses.values().any(|progress| {
                progress.spec.node_name == name(number)
                    && progress.spec.order.as_ref().is_some_and(|order| order.boot.is_some())
            });
            if !granted {
                world.touch(&name(number), |machine| machine.cordoned = false);
            }
        }
        Event::Mishap(number, mishap) => world.touch(&name(number), |machine| machine.mishaps.push(mishap)),
        Event::Retarget { upgrade, version, downgrades } => {
            world.apply(&wanted(setting, upgrade, version, downgrades));
        }
        Event::Pause { upgrade } => {
            let name = format!("up-{upgrade}");
            let known = world.upgrades.iter().find(|known| known.metadata.name.as_ref() == Some(&name));
            if let Some(mut paused) = known.cloned() {
                paused.spec.paused = Some(paused.spec.paused != Some(true));
                world.apply(&paused);
            }
        }
        Event::Delete { upgrade } => world.delete(&format!("up-{upgrade}")),
        Event::MachineIsMadeAgain { machine, version } => {
            let name = name(machine);
            let control_plane = world.machines[&name].control_plane;
            if !control_plane {
                world.add(&name, false, CATALOG[version]);
            }
        }
        Event::TimePasses(seconds) => {
            world.now += k8s_openapi::jiff::SignedDuration::from_secs(seconds);
        }
    }
}

/// The operator plans; the plan is judged; it is carried out as far as told, perhaps late.
fn check(world: &mut World, writes: usize, meanwhile: &[String]) {
    let fleet = world.observe();
    let plan = crate::rollout::plan(&fleet, world.now);
    judge(&fleet, &plan);
    judge_pace(&fleet, &plan, world.now);
    for name in meanwhile {
        world.agent(name);
    }
    world.execute(&plan, writes);
}

/// What must hold of every plan, whatever the fleet looks like.
fn judge(fleet: &Fleet, plan: &Plan) {
    let node = |name: &str| fleet.nodes.iter().find(|node| node.name == name).unwrap();
    let cordons = plan.actions.iter().filter_map(|action| match action {
        Action::Cordon { node: object, .. } => Some(node(&object.name)),
        _ => None,
    });
    let cordons: Vec<&NodeView> = cordons.collect();
    let grants = plan.actions.iter().filter_map(|action| match action {
        Action::GrantBoot { progress, .. } => {
            let found =
                fleet.progresses.iter().find(|known| known.metadata.uid.as_ref() == Some(&progress.uid));
            Some(node(&found.unwrap().spec.node_name))
        }
        _ => None,
    });
    let grants: Vec<&NodeView> = grants.collect();
    for granted in &grants {
        assert_eq!(granted.scheduling, Scheduling::Cordoned, "granted without a cordon: {granted:?}");
    }
    uncordons_follow_withdrawals(fleet, plan);
    let away = away(fleet);
    // Cordons add up; nodes that were away already cost nothing.
    let new: Vec<_> = cordons.iter().filter(|node| !away.contains(node.name.as_str())).collect();
    let after = |counted: &dyn Fn(&NodeView) -> bool| {
        fleet.nodes.iter().filter(|node| counted(node) && away.contains(node.name.as_str())).count()
            + new.iter().filter(|node| counted(node)).count()
    };
    if !new.is_empty() {
        if let Some(IntOrPercent::Int(limit)) = &fleet.max_unavailable {
            assert!(after(&|_| true) <= usize::try_from(*limit).unwrap(), "over the operator's limit");
        }
        // Every upgrade of these fleets selects all nodes and has the same budget.
        let budget = fleet.upgrades[0].upgrade.spec.rollout().max_unavailable(fleet.nodes.len());
        assert!(after(&|_| true) <= budget, "over budget: {new:?}");
    }
    for turn in cordons.iter().chain(&grants).filter(|node| node.role == Role::ControlPlane) {
        let others =
            fleet.nodes.iter().filter(|node| node.role == Role::ControlPlane && node.uid != turn.uid);
        let others = others.filter(|node| {
            away.contains(node.name.as_str()) || cordons.iter().any(|cordoned| cordoned.uid == node.uid)
        });
        assert_eq!(others.count(), 0, "two control-plane nodes at once: {turn:?}");
    }
    one_write_an_object(plan);
}

/// The same of the pace, which all upgrades of a fleet share.
fn judge_pace(fleet: &Fleet, plan: &Plan, now: Timestamp) {
    let Some(rollout) = fleet.upgrades.first().map(|view| view.upgrade.spec.rollout()) else { return };
    let closes = 1800 - now.as_second().rem_euclid(3600);
    for action in plan.actions.iter().filter(|_| !rollout.windows.is_empty()) {
        match action {
            Action::Cordon { node, .. } => assert!(closes > 0, "{node:?} is begun when it is closed"),
            Action::GrantBoot { grant, .. } => {
                assert!(closes > 0, "granted when it is closed");
                assert!(grant.not_after.0.duration_since(now).as_secs() <= closes, "{grant:?}");
            }
            _ => {}
        }
    }
    let zone = |node: &NodeView| node.labels.get(ZONE).cloned();
    for action in plan.actions.iter().filter(|_| rollout.group_by.is_some()) {
        let Action::Cordon { node, .. } = action else { continue };
        let begun = fleet.nodes.iter().find(|known| known.name == node.name).unwrap();
        let elsewhere =
            fleet.nodes.iter().find(|other| zone(other) != zone(begun) && in_work(fleet, other, now));
        assert!(elsewhere.is_none(), "{} is begun while {elsewhere:?} is in work", begun.name);
    }
}

/// Whether a node has a reboot that it may yet begin, or that is not overdue.
fn in_work(fleet: &Fleet, node: &NodeView, now: Timestamp) -> bool {
    fleet.progresses.iter().any(|progress| {
        let Some(order) = progress.spec.order.as_ref().filter(|order| order.node_uid == node.uid) else {
            return false;
        };
        let Some(grant) = &order.boot else { return false };
        let owned = |view: &UpgradeView| {
            progress.metadata.owner_references.iter().flatten().any(|owner| owner.uid == view.uid())
                && view.upgrade.status.as_ref().and_then(|status| status.run) == Some(order.run)
        };
        let overdue = now.duration_since(grant.not_after.0) > SignedDuration::from_secs(1200);
        progress.phase().is_committed() && !overdue && fleet.upgrades.iter().any(owned)
    })
}

/// An uncordon may only be planned once the withdrawal was seen: one of the same plan may yet fail.
fn uncordons_follow_withdrawals(fleet: &Fleet, plan: &Plan) {
    for action in &plan.actions {
        let Action::Uncordon { node } = action else { continue };
        let may_reboot = fleet.progresses.iter().find(|progress| {
            let order = progress.spec.order.as_ref().filter(|order| order.node_uid == node.uid);
            order.is_some_and(|order| order.boot.is_some() || progress.phase().is_committed())
        });
        assert!(may_reboot.is_none(), "uncordon of a node that may reboot: {may_reboot:?}");
    }
}

fn away(fleet: &Fleet) -> BTreeSet<&str> {
    let away = fleet.nodes.iter().filter(|node| {
        let committed = fleet.progresses.iter().any(|progress| {
            let order = progress.spec.order.as_ref();
            progress.spec.node_name == node.name
                && order.is_none_or(|order| order.node_uid == node.uid)
                && (progress.phase().is_committed() || order.is_some_and(|order| order.boot.is_some()))
        });
        committed || node.readiness == Readiness::NotReady || node.scheduling == Scheduling::Cordoned
    });
    away.map(|node| node.name.as_str()).collect()
}

/// A second write that is bound to the same resourceVersion could only fail.
fn one_write_an_object(plan: &Plan) {
    let mut written = BTreeSet::new();
    for action in &plan.actions {
        let uid = match action {
            Action::Report { .. } | Action::CreateProgress(_) | Action::CreateOsNode { .. } => continue,
            Action::WithdrawBoot { progress }
            | Action::Supersede { progress }
            | Action::DeleteProgress { progress }
            | Action::GrantStage { progress, .. }
            | Action::GrantBoot { progress, .. } => &progress.uid,
            Action::Cordon { node, .. } | Action::Uncordon { node } => &node.uid,
        };
        assert!(written.insert(uid), "written twice: {action:?}");
    }
}

/// The accidents are over: machines and people behave, and nothing is paused.
fn heal(world: &mut World) {
    let names: Vec<_> = world.machines.keys().cloned().collect();
    for name in names {
        world.touch(&name, |machine| {
            machine.alive = true;
            machine.mishaps.clear();
            if machine.cordoned_for.is_none() {
                machine.cordoned = false;
            }
        });
    }
    for upgrade in world.upgrades.clone() {
        let mut upgrade = upgrade;
        upgrade.spec.paused = None;
        upgrade.spec.retry_nonce = Some("healed".to_owned());
        world.apply(&upgrade);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_hold_through_every_accident_and_the_fleet_comes_to_rest(
        setting in setting(),
        first in (0usize..5, any::<bool>()),
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = world(&setting);
        world.apply(&wanted(&setting, 0, first.0, first.1));
        for event in &events {
            happen(&mut world, &setting, event);
        }
        heal(&mut world);
        world.settle(1200);
        for (name, machine) in &world.machines {
            prop_assert!(machine.cordoned_for.is_none() && !machine.cordoned, "{} is left cordoned", name);
        }
        prop_assert!(crate::rollout::plan(&world.observe(), world.now).actions.is_empty());
    }

    #[test]
    fn a_healthy_fleet_arrives(setting in setting(), version in 0usize..5, interruptions in prop::collection::vec(0usize..4, 0..60)) {
        let mut world = world(&setting);
        world.apply(&wanted(&setting, 0, version, true));
        for writes in interruptions {
            check(&mut world, writes, &[]);
            happen(&mut world, &setting, &Event::Agents);
        }
        world.settle(1200);
        for (name, runs) in world.runs() {
            prop_assert_eq!(runs, CATALOG[version], "{}", name);
        }
        prop_assert_eq!(world.says("up-0"), ("Completed".to_owned(), "UpToDate".to_owned()));
    }
}

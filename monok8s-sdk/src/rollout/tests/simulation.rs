//! Random fleets, upgrades and accidents. Whatever happens, the rules hold at every step; and when
//! the accidents end, the fleet comes to rest.

use proptest::prelude::*;

use super::health::check as health_check;
use super::rules::{SOAK_SECONDS, ZONE, judge, may_boot};
use super::world::{Mishap, World, pod};
use crate::api::{
    Canary, IntOrPercent, NodeSelector, OSUpgrade, OSUpgradeProgress, RolloutSpec, Window, WindowKind,
    WindowScope,
};
use crate::rollout::fixtures::upgrade;
use crate::rollout::{Health, PodController, PodView};

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
    /// An agent does nothing any more, or goes on.
    Hangs(usize),
    PersonCordons(usize),
    PersonUncordons(usize),
    Mishap(usize, Mishap),
    /// A machine's booted slot rots, and it starts from the other one, if that is good.
    SlotRots(usize),
    /// The catalog blocks a version, or does not any more.
    Block(usize),
    /// The catalog cannot be read, or can again.
    Catalog,
    /// What health checks look at falls ill, or is well again.
    Health,
    /// Somebody upgrades a machine by hand, which is in its reboot now, or was.
    ByHand(usize),
    /// A disruption budget protects a machine's pod, or does not any more.
    Budget(usize),
    Retarget {
        upgrade: usize,
        version: usize,
        downgrades: bool,
    },
    /// A person has a node go back to its other slot.
    SendBack(usize),
    /// A person has a node try again, whatever it does.
    Retry(usize),
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
        1 => (0usize..8).prop_map(Event::Hangs),
        1 => (0usize..8).prop_map(Event::PersonCordons),
        1 => (0usize..8).prop_map(Event::PersonUncordons),
        1 => (0usize..8, prop_oneof![Just(Mishap::FailsToStage), Just(Mishap::FallsBack)])
            .prop_map(|(machine, mishap)| Event::Mishap(machine, mishap)),
        1 => (0usize..8).prop_map(Event::SlotRots),
        1 => (0usize..8).prop_map(Event::Budget),
        1 => (0usize..5).prop_map(Event::Block),
        1 => (0usize..8).prop_map(Event::ByHand),
        1 => Just(Event::Health),
        1 => Just(Event::Catalog),
        1 => (0usize..3, 0usize..5, any::<bool>()).prop_map(|(upgrade, version, downgrades)| {
            Event::Retarget { upgrade, version, downgrades }
        }),
        1 => (0usize..8).prop_map(Event::SendBack),
        1 => (0usize..8).prop_map(Event::Retry),
        1 => (0usize..3).prop_map(|upgrade| Event::Pause { upgrade }),
        1 => (0usize..3).prop_map(|upgrade| Event::Delete { upgrade }),
        1 => (0usize..8, 0usize..5)
            .prop_map(|(machine, version)| Event::MachineIsMadeAgain { machine, version }),
        1 => (1i64..4000).prop_map(Event::TimePasses),
    ]
}

/// A fleet, and what happens to it.
#[derive(Clone, Debug)]
pub(super) struct Story {
    setting: Setting,
    /// What the first upgrade wants, and whether that may be a downgrade.
    first: (usize, bool),
    events: Vec<Event>,
}

pub(super) fn story() -> impl Strategy<Value = Story> {
    (setting(), (0usize..5, any::<bool>()), prop::collection::vec(event(), 0..120), any::<bool>()).prop_map(
        |(setting, first, mut events, is_alone)| {
            if is_alone {
                events.iter_mut().for_each(stay_with_one_upgrade);
            }
            Story { setting, first, events }
        },
    )
}

/// What several upgrades do to each other hides what one does alone.
fn stay_with_one_upgrade(event: &mut Event) {
    match event {
        Event::Retarget { upgrade, .. } | Event::Pause { upgrade } => *upgrade = 0,
        Event::Delete { .. } => *event = Event::Agents,
        _ => {}
    }
}

/// Lets a story happen. Panics where a rule does not hold.
pub(super) fn live(story: &Story) -> World {
    let mut world = world(&story.setting);
    world.apply(&wanted(&story.setting, 0, story.first.0, story.first.1));
    for event in &story.events {
        happen(&mut world, &story.setting, event);
    }
    for event in [Event::Operator(usize::MAX), Event::Agents, Event::TimePasses(60)].iter().cycle().take(180)
    {
        happen(&mut world, &story.setting, event);
    }
    world
}

/// Lets a story happen, and the fleet come to rest after it. Panics where a rule does not hold, or where it never
/// rests.
pub(super) fn live_to_the_end(story: &Story) {
    let mut world = live(story);
    heal(&mut world);
    world.settle(1200);
    for (name, machine) in &world.machines {
        assert!(machine.cordoned_for.is_none() && !machine.cordoned, "{name} is left cordoned");
    }
    let left = crate::rollout::plan(&world.observe(), world.now).actions;
    assert!(left.is_empty(), "{left:?}");
}

#[derive(Clone, Debug)]
struct Setting {
    control_plane: usize,
    workers: usize,
    versions: Vec<usize>,
    max_unavailable: i32,
    max_parallel_staging: i32,
    operator_limit: Option<i32>,
    operator_node: Option<usize>,
    /// The first node that falls back halts the run.
    halts: bool,
    /// So does the first one that fails before.
    is_strict: bool,
    has_health_check: bool,
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
        (1i32..4, 1i32..4),
        prop::option::of(1i32..4),
        prop::option::of(0usize..8),
        (any::<bool>(), any::<bool>(), any::<bool>()),
        paced(),
    )
        .prop_map(|(control_plane, workers, versions, limits, operator, node, flags, paced)| Setting {
            control_plane,
            workers,
            versions,
            max_unavailable: limits.0,
            max_parallel_staging: limits.1,
            operator_limit: operator,
            operator_node: node,
            halts: flags.0,
            has_health_check: flags.1,
            is_strict: flags.2,
            paced,
        })
}

fn wanted(setting: &Setting, number: usize, version: usize, downgrades: bool) -> OSUpgrade {
    let mut wanted = upgrade(&format!("up-{number}")).to(CATALOG[version]).rollout(|rollout| {
        rollout.max_unavailable = Some(IntOrPercent::Int(setting.max_unavailable));
        rollout.max_parallel_staging = Some(IntOrPercent::Int(setting.max_parallel_staging));
        rollout.failure_threshold = Some(IntOrPercent::Int(if setting.halts { 1 } else { 100 }));
        rollout.max_failed_nodes = Some(IntOrPercent::Int(if setting.is_strict { 0 } else { 100 }));
        rollout.health_checks = setting.has_health_check.then(health_check).into_iter().collect();
        // Only the second worker is one.
        pace(rollout, Paced { canary: setting.paced.canary && setting.workers > 1, ..setting.paced });
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
    rollout.soak_seconds = paced.soak.then_some(SOAK_SECONDS);
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
            let daemon = PodView { controller: PodController::DaemonSet, ..pod(&format!("ds-{name}")) };
            machine.pods = vec![pod(&format!("app-{name}")), daemon];
            if name == "w-1" {
                machine.labels.insert("canary".to_owned(), "yes".to_owned());
            }
        });
    }
    world.max_unavailable = setting.operator_limit.map(IntOrPercent::Int);
    let names: Vec<_> = world.machines.keys().cloned().collect();
    world.health = vec![Health::Holds];
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
        Event::Hangs(number) => world.touch(&name(number), |machine| machine.hangs = !machine.hangs),
        Event::PersonCordons(number) => world.touch(&name(number), |machine| machine.cordoned = true),
        Event::PersonUncordons(number) => {
            // kubectl leaves annotations alone. A machine in a reboot is not uncordoned here: the
            // agents of this world check the cordon when they commit, which real ones cannot.
            let of_it = |progress: &&OSUpgradeProgress| progress.spec.node_name == name(number);
            let granted = world.progresses.values().filter(of_it).any(may_boot);
            if !granted {
                world.touch(&name(number), |machine| machine.cordoned = false);
            }
        }
        Event::SlotRots(number) => world.slot_rots(&name(number)),
        Event::Budget(number) => {
            let pod = format!("app-{}", name(number));
            if !world.protected.remove(&pod) {
                world.protected.insert(pod);
            }
        }
        Event::Block(version) => {
            let version = CATALOG[version].parse().unwrap();
            if !world.blocked.remove(&version) {
                world.blocked.insert(version);
            }
        }
        Event::ByHand(number) => world.by_hand(&name(number)),
        Event::Health => {
            let ill = Health::DoesNotHold("of Thing it, \"object.well\" is false".to_owned());
            world.health = vec![if world.health == [Health::Holds] { ill } else { Health::Holds }];
        }
        Event::Catalog => {
            world.catalog_error = world.catalog_error.take().xor(Some("no answer".to_owned()));
        }
        Event::Mishap(number, mishap) => world.touch(&name(number), |machine| machine.mishaps.push(mishap)),
        Event::Retarget { upgrade, version, downgrades } => {
            world.apply(&wanted(setting, upgrade, version, downgrades));
        }
        Event::SendBack(number) => world.send_back(&name(number)),
        Event::Retry(number) => world.retry_node(&name(number)),
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
    judge(&fleet, &plan, world.now);
    for name in meanwhile {
        world.agent(name);
    }
    world.execute(&plan, writes);
}

/// The accidents are over: machines and people behave, and nothing is paused.
fn heal(world: &mut World) {
    let names: Vec<_> = world.machines.keys().cloned().collect();
    world.protected.clear();
    world.blocked.clear();
    world.catalog_error = None;
    world.progresses.retain(|_, progress| progress.spec.order.is_some());
    world.health = vec![Health::Holds];
    for name in names {
        world.touch(&name, |machine| {
            if name == "w-1" {
                // One that was made again has lost it, and the others wait for a canary.
                machine.labels.insert("canary".to_owned(), "yes".to_owned());
            }
            machine.alive = true;
            machine.hangs = false;
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
    fn the_rules_hold_through_every_accident_and_the_fleet_comes_to_rest(story in story()) {
        live_to_the_end(&story);
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

//! A cluster in memory: an API server that knows resourceVersions, machines whose agents do what the real decision
//! says, and an operator that carries plans out.

mod agents;
mod host;
mod people;
mod pods;
mod seen;

use super::rules;
use host::Host;
pub(super) use pods::pod;
use seen::Seen;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::core::ObjectMeta;

use crate::api::{
    ConditionType, ImageRef, IntOrPercent, OSUpgrade, OSUpgradeProgress, OSUpgradeStatus, ProgressPhase,
    Resolved, UpgradeReason,
};
use crate::digest::Sha256Digest;
use crate::rollout::fixtures::{image, node};
use crate::rollout::report::OURS;
use crate::rollout::{
    Action, Evaluation, Eviction, EvictionAnswer, Fleet, Health, NodeView, ObjectRef, Plan, PodView, Target,
    UpgradeView, frozen_target,
};
use crate::version::OsVersion;

/// One machine, and the Node object it has.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Machine {
    pub(super) uid: String,
    pub(super) control_plane: bool,
    pub(super) runs: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) taint: Option<String>,
    /// The machine under the Node object.
    host: Host,
    pub(super) alive: bool,
    /// Its kubelet answers, and its agent does nothing.
    pub(super) hangs: bool,
    pub(super) cordoned: bool,
    pub(super) cordoned_for: Option<String>,
    created: Timestamp,
    resource_version: u64,
    /// What the next attempts do; none left means that all goes well.
    pub(super) mishaps: Vec<Mishap>,
    has_os_node: bool,
    pub(super) pods: Vec<PodView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    FailsToStage,
    FallsBack,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) machines: BTreeMap<String, Machine>,
    pub(super) upgrades: Vec<OSUpgrade>,
    pub(super) progresses: BTreeMap<String, OSUpgradeProgress>,
    pub(super) catalog: Vec<ImageRef>,
    pub(super) operator_node: Option<String>,
    pub(super) operator_pod: Option<String>,
    /// Whether the operator may not list pods.
    pub(super) blind: bool,
    pub(super) max_unavailable: Option<IntOrPercent>,
    /// Names of pods that a disruption budget protects, and of those that never end.
    pub(super) protected: BTreeSet<String>,
    pub(super) stuck: BTreeSet<String>,
    /// Volumes by the name of the node that they are attached to, and by their claim.
    pub(super) volumes: BTreeMap<String, BTreeSet<String>>,
    pub(super) claims: BTreeMap<String, String>,
    /// Versions that the catalog blocks.
    pub(super) blocked: BTreeSet<OsVersion>,
    /// Why the catalog cannot be read, if it cannot.
    pub(super) catalog_error: Option<String>,
    /// What every upgrade's health checks come to.
    pub(super) health: Vec<Health>,
    evictions: BTreeMap<String, Eviction>,
    seen: Seen,
    clock: u64,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Done,
    Conflict,
}

impl World {
    pub(super) fn new(catalog: &[&str]) -> Self {
        Self {
            now: "2026-11-24T12:00:00Z".parse().unwrap(),
            machines: BTreeMap::new(),
            upgrades: Vec::new(),
            progresses: BTreeMap::new(),
            catalog: catalog.iter().map(|version| image(version)).collect(),
            operator_node: None,
            operator_pod: None,
            blind: false,
            max_unavailable: None,
            protected: BTreeSet::new(),
            stuck: BTreeSet::new(),
            volumes: BTreeMap::new(),
            claims: BTreeMap::new(),
            blocked: BTreeSet::new(),
            catalog_error: None,
            health: Vec::new(),
            evictions: BTreeMap::new(),
            seen: Seen::default(),
            clock: 1,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn add(&mut self, name: &str, control_plane: bool, runs: &str) {
        let stamp = self.tick();
        let machine = Machine {
            uid: format!("{name}-{stamp}"),
            control_plane,
            runs: runs.to_owned(),
            labels: BTreeMap::new(),
            taint: None,
            host: Host::new(runs),
            alive: true,
            hangs: false,
            cordoned: false,
            cordoned_for: None,
            created: self.now,
            resource_version: stamp,
            mishaps: Vec::new(),
            has_os_node: false,
            pods: Vec::new(),
        };
        self.machines.insert(name.to_owned(), machine);
    }

    pub(super) fn with(mut self, name: &str, control_plane: bool, runs: &str) -> Self {
        self.add(name, control_plane, runs);
        self
    }

    /// Adds a worker that runs v1.35.1, with a label.
    pub(super) fn with_worker(mut self, name: &str, (key, value): (&str, &str)) -> Self {
        self.add(name, false, "v1.35.1");
        self.touch(name, |machine| _ = machine.labels.insert(key.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn observe(&self) -> Fleet {
        Fleet {
            nodes: self.machines.iter().map(|(name, machine)| Arc::new(self.view(name, machine))).collect(),
            upgrades: self.upgrades.iter().map(|upgrade| self.evaluate(upgrade)).collect(),
            progresses: self.progresses.values().cloned().map(Arc::new).collect(),
            api_server: Some("v1.35.4".parse().unwrap()),
            operator_node: self.operator_node.clone(),
            max_unavailable: self.max_unavailable.clone(),
            operator_pod: self.operator_pod.clone(),
            pods: if self.blind { BTreeMap::new() } else { self.pods() },
            unseen: self.unseen(),
            volumes: Some(self.volumes.clone()),
            claims: self.claims.clone(),
            evictions: self.evictions.clone(),
        }
    }

    fn view(&self, name: &str, machine: &Machine) -> NodeView {
        let mut fixture = node(name).running(&machine.runs).made_again(&machine.uid, machine.created);
        fixture = fixture.version(machine.resource_version);
        if machine.control_plane {
            fixture = fixture.control_plane();
        }
        if let Some(version) = machine.host.good_other_version() {
            fixture = fixture.with_good_other_slot(&version.to_string());
        }
        for failed in machine.host.failures() {
            fixture = fixture.remembers_failure_of(&failed.version.to_string(), failed.at.0);
        }
        for (key, value) in &machine.labels {
            fixture = fixture.labelled(key, value);
        }
        if let Some(taint) = &machine.taint {
            fixture = fixture.tainted(taint);
        }
        let trial = self.progresses.values().any(|progress| {
            let order = progress.spec.order.as_ref();
            order.is_some_and(|order| order.node_uid == machine.uid)
                && progress.phase() == ProgressPhase::Rebooting
        });
        if !machine.alive || trial {
            fixture = fixture.not_ready();
        }
        if machine.cordoned {
            fixture = fixture.cordoned();
        }
        let mut view = fixture.view();
        view.cordoned_for.clone_from(&machine.cordoned_for);
        if !machine.has_os_node {
            view.report = crate::rollout::NodeReport::Missing;
        }
        view
    }

    fn evaluate(&self, upgrade: &OSUpgrade) -> UpgradeView {
        let resolved = frozen_target(upgrade).cloned().or_else(|| {
            let version = upgrade.spec.version.parse().unwrap();
            self.catalog.iter().any(|image| image.version == version).then(|| Resolved {
                version,
                catalog_digest: Sha256Digest::of(b"catalog"),
                images: self.catalog.clone(),
            })
        });
        let evaluation = match resolved {
            Some(resolved) => Evaluation::Accepted(Target { resolved, blocked: self.blocked.clone() }),
            None => Evaluation::Rejected {
                reason: UpgradeReason::VersionNotInCatalog,
                message: "not there".to_owned(),
                resolved: None,
            },
        };
        let health = self.health.clone();
        let catalog_error = self.catalog_error.clone();
        UpgradeView { upgrade: upgrade.clone(), evaluation, catalog_error, health }
    }

    /// The operator observes, plans, and writes the first `writes` of its plan, then the statuses
    /// if it got that far. Returns what it planned, and whether it wrote anything.
    pub(super) fn operator(&mut self, writes: usize) -> (Plan, bool) {
        let plan = self.seen.plan(self.observe(), self.now);
        let wrote = self.execute(&plan, writes);
        (plan, wrote)
    }

    pub(super) fn execute(&mut self, plan: &Plan, writes: usize) -> bool {
        for action in plan.actions.iter().take(writes) {
            self.write(action);
        }
        let mut wrote = !plan.actions.is_empty();
        let mut finished = Vec::new();
        if writes >= plan.actions.len() {
            for upgrade in &mut self.upgrades {
                let uid = upgrade.metadata.uid.clone().unwrap_or_default();
                let Some(outlook) = plan.outlooks.get(&uid) else { continue };
                let status = Some(outlook.status(upgrade, self.now));
                wrote |= differs(upgrade, upgrade.status.as_ref(), status.as_ref());
                upgrade.status = status;
                if outlook.nodes.up_to_date == outlook.nodes.total {
                    finished.push(uid);
                }
            }
        }
        for uid in finished {
            self.assert_no_cordon_of(&uid);
        }
        wrote
    }

    /// Whoever waits for an upgrade may count on its nodes.
    fn assert_no_cordon_of(&self, upgrade_uid: &str) {
        let cordons = self.machines.values().filter_map(|machine| machine.cordoned_for.as_deref());
        let orders: Vec<_> = cordons
            .filter_map(|uid| self.progresses.values().find(|it| it.metadata.uid.as_deref() == Some(uid)))
            .filter(|it| it.metadata.owner_references.iter().flatten().any(|owner| owner.uid == upgrade_uid))
            .collect();
        assert!(orders.is_empty(), "all nodes are up to date, and cordoned: {orders:?}");
    }

    fn write(&mut self, action: &Action) -> Written {
        let now = self.now;
        match action {
            // The operator reads the catalog before each.
            Action::GrantStage { .. } | Action::GrantBoot { .. } if self.catalog_error.is_some() => {
                Written::Conflict
            }
            Action::CreateOsNode { node } => self.machine(node).map_or(Written::Conflict, |machine| {
                machine.has_os_node = true;
                Written::Done
            }),
            Action::CreateProgress(new) => {
                if self.progresses.contains_key(&new.name) {
                    return Written::Conflict;
                }
                let stamp = self.tick();
                let owner = OwnerReference {
                    kind: "OSUpgrade".to_owned(),
                    name: new.upgrade_name.clone(),
                    uid: new.upgrade_uid.clone(),
                    ..OwnerReference::default()
                };
                let metadata = ObjectMeta {
                    name: Some(new.name.clone()),
                    uid: Some(format!("progress-{stamp}")),
                    resource_version: Some(stamp.to_string()),
                    generation: Some(1),
                    creation_timestamp: Some(Time(now)),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                };
                let progress = OSUpgradeProgress { metadata, spec: new.spec.clone(), status: None };
                self.progresses.insert(new.name.clone(), progress);
                Written::Done
            }
            Action::DeleteProgress { progress } => match self.order(progress, true) {
                Some(_) => {
                    self.progresses.remove(&progress.name);
                    Written::Done
                }
                None => Written::Conflict,
            },
            Action::Report { progress, conditions } => self.change(progress, false, |object| {
                let list = &mut object.status.get_or_insert_default().conditions;
                list.retain(|condition| OURS.iter().all(|kind| kind.as_str() != condition.type_));
                list.extend(conditions.iter().cloned());
            }),
            Action::GrantStage { progress, version, at } => self.change(progress, true, |object| {
                let order = object.spec.order.as_mut().unwrap();
                order.stage = Some(version.clone());
                order.stage_granted_at = Some(Time(*at));
                order.boot = None;
            }),
            Action::GrantBoot { progress, grant } => self.change(progress, true, |object| {
                object.spec.order.as_mut().unwrap().boot = Some(grant.clone());
            }),
            Action::WithdrawBoot { progress } => self.change(progress, true, |object| {
                object.spec.order.as_mut().unwrap().boot = None;
            }),
            Action::Supersede { progress } => self.change(progress, true, |object| {
                let order = object.spec.order.as_mut().unwrap();
                order.stage = None;
                order.stage_granted_at = None;
                order.boot = None;
            }),
            Action::Evict { pod, .. } if self.protected.contains(&pod.name) => {
                let (budgets, why) = (vec!["default/web".to_owned()], "default/web needs 2 has 2".to_owned());
                self.end(pod, EvictionAnswer::Refused { budgets, why })
            }
            Action::Evict { pod, .. } | Action::DeletePod { pod, .. } => {
                self.end(pod, EvictionAnswer::Accepted)
            }
            Action::Cordon { node, progress_uid } => self.schedule(node, Some(progress_uid)),
            Action::Uncordon { node } => {
                self.assert_uncordon_is_safe(node);
                self.schedule(node, None)
            }
        }
    }

    /// No node of ours may be on its way into a reboot when its cordon is taken off.
    fn assert_uncordon_is_safe(&self, node: &ObjectRef) {
        for progress in self.progresses.values().filter(|progress| progress.spec.node_name == node.name) {
            if progress.spec.order.as_ref().is_none_or(|order| order.node_uid != node.uid) {
                continue;
            }
            assert!(!rules::may_boot(progress), "uncordon before the withdrawal: {progress:?}");
            assert!(!progress.phase().is_committed(), "uncordon in a reboot: {progress:?}");
        }
    }

    fn machine(&mut self, node: &ObjectRef) -> Option<&mut Machine> {
        self.machines.get_mut(&node.name).filter(|machine| machine.uid == node.uid)
    }

    fn schedule(&mut self, node: &ObjectRef, cordon_for: Option<&String>) -> Written {
        let stamp = self.tick();
        let Some(machine) = self.machine(node) else { return Written::Conflict };
        if machine.resource_version.to_string() != node.resource_version {
            return Written::Conflict;
        }
        machine.resource_version = stamp;
        machine.cordoned = cordon_for.is_some();
        machine.cordoned_for = cordon_for.cloned();
        Written::Done
    }

    fn order(&mut self, object: &ObjectRef, bound: bool) -> Option<&mut OSUpgradeProgress> {
        self.progresses.get_mut(&object.name).filter(|progress| {
            progress.metadata.uid.as_ref() == Some(&object.uid)
                && (!bound || progress.metadata.resource_version.as_ref() == Some(&object.resource_version))
        })
    }

    fn change(
        &mut self,
        object: &ObjectRef,
        bound: bool,
        change: impl FnOnce(&mut OSUpgradeProgress),
    ) -> Written {
        let stamp = self.tick();
        let Some(progress) = self.order(object, bound) else { return Written::Conflict };
        progress.metadata.resource_version = Some(stamp.to_string());
        if bound {
            progress.metadata.generation = progress.metadata.generation.map(|generation| generation + 1);
        }
        change(progress);
        Written::Done
    }

    /// A machine falls back to its other slot, behind everybody's back.
    pub(super) fn slot_rots(&mut self, name: &str) {
        self.touch(name, |machine| {
            if machine.alive && !machine.hangs {
                machine.host.slot_rots();
                machine.runs = machine.host.booted.version.to_string();
            }
        });
    }

    /// A change to a machine's Node object.
    pub(super) fn touch(&mut self, name: &str, change: impl FnOnce(&mut Machine)) {
        let stamp = self.tick();
        if let Some(machine) = self.machines.get_mut(name) {
            machine.resource_version = stamp;
            change(machine);
        }
    }
}

/// Whether a status says something new. What is waited for changes with every window that opens or closes, for as
/// long as an upgrade waits.
fn differs(upgrade: &OSUpgrade, before: Option<&OSUpgradeStatus>, after: Option<&OSUpgradeStatus>) -> bool {
    let facts = |status: &OSUpgradeStatus| {
        (status.phase.clone(), status.run, status.nodes.clone(), status.expected_completion_at.clone())
    };
    match upgrade.spec.rollout().windows.as_slice() {
        [] => before != after,
        _ => before.map(facts) != after.map(facts),
    }
}

impl World {
    /// Lets everyone work until nothing changes any more, at most `rounds` times. Panics if it
    /// never ends, or if the operator still writes when all is quiet.
    pub(super) fn settle(&mut self, rounds: usize) {
        let mut quiet = 0;
        for _ in 0..rounds {
            let (_, wrote) = self.operator(usize::MAX);
            let names: Vec<_> = self.machines.keys().cloned().collect();
            let worked = names.iter().map(|name| self.agent(name)).fold(false, |any, one| any | one);
            let is_quiet = !wrote && !worked;
            // Where nothing happens nobody looks every minute.
            let minutes = if is_quiet { 5 } else { 1 };
            self.now += SignedDuration::from_mins(minutes);
            quiet = if is_quiet { quiet + minutes } else { 0 };
            if quiet > 70 {
                return;
            }
        }
        let (plan, _) = self.operator(0);
        panic!("still busy after {rounds} rounds: {:#?}\n{:#?}", plan.actions, plan.outlooks);
    }

    pub(super) fn upgrade(&self, name: &str) -> &OSUpgrade {
        self.upgrades.iter().find(|upgrade| upgrade.metadata.name.as_deref() == Some(name)).unwrap()
    }

    /// Phase of an upgrade, and the reason of its Ready condition.
    pub(super) fn says(&self, name: &str) -> (String, String) {
        let status = self.upgrade(name).status.clone().unwrap_or_default();
        let ready = crate::api::find_condition(&status.conditions, &ConditionType::Ready);
        (
            status.phase.map(|phase| phase.to_string()).unwrap_or_default(),
            ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
        )
    }

    pub(super) fn runs(&self) -> Vec<(&str, &str)> {
        self.machines.iter().map(|(name, machine)| (name.as_str(), machine.runs.as_str())).collect()
    }
}

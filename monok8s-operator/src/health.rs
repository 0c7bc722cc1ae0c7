//! Health checks: each one of an upgrade that has work left has a watch of what it selects, and is evaluated when
//! that changes, and now and then because time passes.

mod evaluate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use monok8s_sdk::api::{ConditionType, HealthCheck, OSUpgrade, UpgradePhase, condition_is_true};
use monok8s_sdk::causes::chain;
use monok8s_sdk::health::Expression;
use monok8s_sdk::rollout::Health;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use self::evaluate::{Evaluator, Object};
use crate::access::ApiError;
use crate::known::Known;
use crate::metrics::Metrics;
use crate::wake::Bell;
use crate::watch::Watch;

/// An expression may look at the time.
const AGAIN: Duration = Duration::from_secs(15);

/// The health checks that count now, and what each came to.
pub struct HealthChecks {
    client: Client,
    bell: Bell,
    metrics: Arc<Metrics>,
    /// By what they say: two upgrades may ask the same.
    understood: BTreeMap<String, Result<Arc<Understood>, String>>,
    running: BTreeMap<String, Running>,
}

/// A check that is evaluated for as long as this lives.
struct Running {
    shown: Arc<Mutex<Health>>,
    task: AbortHandle,
}

/// A health check that was understood.
struct Understood {
    kind: GroupVersionKind,
    namespace: Option<String>,
    selected: Config,
    expression: Arc<Expression>,
    lasts: Duration,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Understood {
    /// Understands a check, or says what is wrong with it.
    fn new(check: &HealthCheck) -> Result<Self, String> {
        let expression = Expression::parse(&check.expression).map_err(|error| chain(&error))?;
        let selected = match (&check.name, &check.label_selector) {
            (Some(name), None) => Config::default().fields(&format!("metadata.name={name}")),
            (None, Some(selector)) => {
                let selector =
                    selector.parse().map_err(|error| format!("its labelSelector {}", chain(&error)))?;
                Config::default().labels(&selector.to_string())
            }
            _ => return Err("exactly one of name and labelSelector is needed".to_owned()),
        };
        let (group, version) = check.api_version.split_once('/').unwrap_or(("", &check.api_version));
        Ok(Self {
            kind: GroupVersionKind::gvk(group, version, &check.kind),
            namespace: check.namespace.clone(),
            selected,
            expression: Arc::new(expression),
            lasts: Duration::from_secs(check.timeout_seconds.unwrap_or(30).try_into().unwrap_or(1)),
        })
    }

    /// Where the objects are.
    async fn find(&self, client: &Client) -> Result<(Api<DynamicObject>, ApiResource), String> {
        let found = pinned_kind(client, &self.kind).await;
        let (resource, capabilities) = found.map_err(|error| {
            let kind = format!("{} of {}", self.kind.kind, self.kind.api_version());
            chain(&ApiError::of("discover", kind, error))
        })?;
        let client = client.clone();
        let api = match (&capabilities.scope, &self.namespace) {
            (Scope::Cluster, Some(_)) => {
                return Err(format!("a {} has no namespace: leave namespace out", self.kind.kind));
            }
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client, namespace, &resource),
            (Scope::Cluster | Scope::Namespaced, None) => Api::all_with(client, &resource),
        };
        Ok((api, resource))
    }
}

impl HealthChecks {
    /// Nothing is watched yet.
    #[must_use]
    pub fn new(client: Client, bell: Bell, metrics: Arc<Metrics>) -> Self {
        Self { client, bell, metrics, understood: BTreeMap::new(), running: BTreeMap::new() }
    }

    /// Watches what the checks of these upgrades need, if they have work left, and nothing else any more.
    pub fn follow(&mut self, upgrades: &[Arc<OSUpgrade>]) {
        let (mut all, mut wanted) = (BTreeSet::new(), BTreeSet::new());
        for upgrade in upgrades {
            for check in upgrade.spec.rollout().health_checks {
                let key = key(&check);
                let understood = self.understood.entry(key.clone());
                understood.or_insert_with(|| Understood::new(&check).map(Arc::new));
                wanted.extend(has_work_left(upgrade).then(|| key.clone()));
                all.insert(key);
            }
        }
        self.understood.retain(|key, _| all.contains(key));
        self.running.retain(|key, _| wanted.contains(key));
        for key in wanted {
            // One that is not understood rejects its upgrade, which says why.
            let Some(Ok(check)) = self.understood.get(&key) else { continue };
            if !self.running.contains_key(&key) {
                let running = self.run(Arc::clone(check));
                self.running.insert(key, running);
            }
        }
    }

    /// What of an upgrade's health checks cannot be understood.
    #[must_use]
    pub fn problem(&self, upgrade: &OSUpgrade) -> Option<String> {
        let checks = upgrade.spec.rollout().health_checks;
        checks.iter().enumerate().find_map(|(at, check)| {
            let problem = self.understood.get(&key(check))?.as_ref().err()?;
            Some(format!("rollout.healthChecks[{at}]: {problem}"))
        })
    }

    fn run(&self, check: Arc<Understood>) -> Running {
        let shown = Arc::new(Mutex::new(Health::Unknown("it was not evaluated yet".to_owned())));
        let (client, bell, metrics) = (self.client.clone(), self.bell.clone(), Arc::clone(&self.metrics));
        let into = Arc::clone(&shown);
        let show = move |health: Health| {
            let mut shown = into.lock().unwrap_or_else(PoisonError::into_inner);
            if *shown != health {
                *shown = health;
                bell.ring();
            }
        };
        let task = tokio::spawn(async move {
            loop {
                let why = observe(&check, &client, &metrics, &show).await;
                show(Health::Unknown(why));
                sleep(AGAIN).await;
            }
        });
        Running { shown, task: task.abort_handle() }
    }

    /// What the checks of an upgrade came to, in their order.
    #[must_use]
    pub fn of(&self, upgrade: &OSUpgrade) -> Vec<Health> {
        let checks = upgrade.spec.rollout().health_checks;
        let came_to = |check: &HealthCheck| match self.running.get(&key(check)) {
            Some(running) => running.shown.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            None => Health::Unknown("it was not evaluated yet".to_owned()),
        };
        checks.iter().map(came_to).collect()
    }
}

fn has_work_left(upgrade: &OSUpgrade) -> bool {
    let Some(status) = &upgrade.status else { return true };
    match &status.phase {
        // A node that joins is brought along, and the phase stays.
        Some(UpgradePhase::Completed) => !condition_is_true(&status.conditions, &ConditionType::Ready),
        Some(UpgradePhase::Superseded | UpgradePhase::Rejected) => false,
        _ => true,
    }
}

fn key(check: &HealthCheck) -> String {
    serde_json::to_string(check).unwrap_or_default()
}

/// Shows what a check comes to, until its objects can be observed no longer: then says why.
async fn observe(
    check: &Understood,
    client: &Client,
    metrics: &Arc<Metrics>,
    show: &impl Fn(Health),
) -> String {
    let (api, resource) = match check.find(client).await {
        Ok(found) => found,
        Err(why) => return why,
    };
    let plural = match resource.group.as_str() {
        "" => resource.plural.clone(),
        group => format!("{}.{group}", resource.plural),
    };
    let mut watch = Watch::new(plural, api, check.selected.clone(), Arc::clone(metrics));
    let mut known = Known::default();
    let mut evaluator = Evaluator::new(&check.kind.kind, &check.expression, check.lasts);
    let mut again = Instant::now() + AGAIN;
    loop {
        tokio::select! {
            event = watch.try_next() => match event {
                Ok(event) => known.observe(event, Object::new),
                Err(why) => return why,
            },
            () = sleep_until(again) => {}
        }
        // What has come meanwhile belongs to the same look.
        while let Some(event) = watch.try_next().now_or_never() {
            match event {
                Ok(event) => known.observe(event, Object::new),
                Err(why) => return why,
            }
        }
        again = Instant::now() + AGAIN;
        if known.is_listing() {
            continue;
        }
        if let Some(objects) = known.all() {
            let takes_long = || show(Health::Unknown("it is being evaluated".to_owned()));
            show(evaluator.evaluate(objects.cloned().collect(), takes_long).await);
            again = Instant::now() + AGAIN;
        }
    }
}

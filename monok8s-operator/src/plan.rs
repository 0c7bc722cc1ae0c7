//! Stage three and the driver of all five: one loop for the whole fleet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use monok8s_sdk::api::{IntOrPercent, OSUpgrade};
use monok8s_sdk::causes::chain;
use monok8s_sdk::rollout::{Fleet, Management, NodeView, Plan, PlanMemory, UpgradeView, plan_with};
use monok8s_sdk::version::OsVersion;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admin::{Health, Readiness};
use crate::apply::{self, Applied, ApplyError, Executor, FirstWords};
use crate::catalogs::Catalogs;
use crate::events::{self, Events, NodeEdges};
use crate::health::HealthChecks;
use crate::leader::Leadership;
use crate::metrics::{Metrics, UpgradeGauges};
use crate::observe::{Caches, KnownNodes, Observed};
use crate::pods::Pods;
use crate::resolve;
use crate::status::{self, StatusError};
use crate::wake::{Bell, Debounce, Ear};

/// The planner looks at the fleet at least this often, whatever happens.
const IDLE: Duration = Duration::from_secs(60);
/// Pauses after a failed pass double from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What the operator was told about its surroundings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node it runs on.
    pub operator_node: Option<String>,
    /// Its pod, as `namespace/name`.
    pub operator_pod: Option<String>,
    /// The budget over all upgrades.
    pub max_unavailable: Option<IntOrPercent>,
}

/// The one loop that plans and acts.
pub struct Planner {
    /// The API server.
    pub client: Client,
    /// What is known of the cluster.
    pub caches: Caches,
    /// What was made of each Node for the plan before.
    pub nodes: KnownNodes,
    /// What is known of the pods of cordoned nodes.
    pub pods: Pods,
    /// What is known of catalogs.
    pub catalogs: Catalogs,
    /// What health checks come to.
    pub health_checks: HealthChecks,
    /// Whether it may act.
    pub leadership: Leadership,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Told of every look.
    pub health: Arc<Health>,
    /// Told of every edge.
    pub events: Events,
    /// The surroundings.
    pub settings: Settings,
    /// Rung when another look is due at once.
    pub bell: Bell,
    /// Hears the bell.
    pub ear: Ear,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// While carrying the plan out.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// While reporting.
    #[error(transparent)]
    Status(#[from] StatusError),
}

impl PassError {
    fn stage(&self) -> &'static str {
        match self {
            Self::Apply(_) => "apply",
            Self::Status(_) => "status",
        }
    }
}

/// What a pass leaves behind.
struct Passed {
    next_event: Option<Timestamp>,
    outcome: Result<(), PassError>,
}

impl Planner {
    /// Looks, plans and acts whenever something changes, until `stop`.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let _watches = self.caches.watch(&self.client, &self.bell, &self.metrics);
        let mut memory = Memory::default();
        let mut latest = Instant::now() + IDLE;
        let mut retry = FIRST_RETRY;
        while !*stop.borrow() {
            tokio::select! {
                () = self.ear.listen(latest, Debounce::default()) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            self.health.looked();
            if !self.is_synced() {
                latest = Instant::now() + Duration::from_secs(1);
                continue;
            }
            let passed = self.pass(&mut memory).await;
            latest = Instant::now() + until(passed.next_event, Timestamp::now());
            match passed.outcome {
                Ok(()) => retry = FIRST_RETRY,
                // What won the race is known by now.
                Err(PassError::Apply(ApplyError::Stale { what })) => {
                    tracing::debug!("{what} had changed; planning again");
                    self.bell.ring();
                }
                Err(error) => {
                    self.metrics.failed(error.stage());
                    tracing::warn!(retry_in = ?retry, "{}", chain(&error));
                    latest = latest.min(Instant::now() + retry);
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    fn is_synced(&self) -> bool {
        let unsynced = self.caches.unsynced();
        let readiness = if unsynced.is_empty() {
            Readiness::Ready
        } else {
            Readiness::Waiting(format!("listing {}", unsynced.join(", ")))
        };
        self.health.set(readiness);
        unsynced.is_empty()
    }

    /// Observe, resolve, plan, apply, status.
    async fn pass(&mut self, memory: &mut Memory) -> Passed {
        let (started, now) = (Instant::now(), Timestamp::now());
        let observed = self.caches.observe();
        self.tell_unreadable(&observed, memory);
        memory.api_server.refresh(&self.client).await;
        let fleet = self.resolve(&observed, memory);
        let (began, cpu) = (Instant::now(), cpu_time());
        let plan = plan_with(&mut memory.plan, &fleet, now);
        self.metrics.planned(began.elapsed(), cpu_time().saturating_sub(cpu));

        let words = apply::first_words(&fleet.progresses, &fleet.nodes, now);
        let (mut applied, acted) = self.apply(&plan, &words).await;
        let asked = !applied.evictions.is_empty();
        self.pods.remember(std::mem::take(&mut applied.evictions), Timestamp::now());
        self.metrics.show_refusing_budgets(self.pods.refusing_budgets());
        let reported = if is_over(&acted) { Ok(0) } else { self.report(&observed, &plan, now).await };

        let edges = memory.node_edges.since(&observed.progresses.objects);
        edges.ended.iter().for_each(|object| self.metrics.ended(object));
        self.events.publish(edges.told);
        if asked || applied.writes > 0 || matches!(reported, Ok(written) if written > 0) {
            // What comes next depends on what was just written.
            self.bell.ring();
        }
        self.metrics.passed(started.elapsed());
        let outcome = acted.map_err(PassError::from).and(reported.map(|_| ()).map_err(PassError::from));
        Passed { next_event: plan.next_event.into_iter().chain(words.next_due).min(), outcome }
    }

    fn resolve(&mut self, observed: &Observed, memory: &Memory) -> Fleet {
        let nodes = observed.node_views(&mut self.nodes);
        self.pods.follow(&nodes, &observed.progresses.objects);
        let running = running_versions(&nodes);
        self.catalogs.follow(&observed.upgrades.objects);
        self.health_checks.follow(&observed.upgrades.objects);
        let upgrades = observed.upgrades.objects.iter();
        let upgrades = upgrades
            .map(|upgrade| {
                let problem = self.health_checks.problem(upgrade);
                let view = resolve::view(upgrade, &self.catalogs.reading(upgrade), &running, problem);
                UpgradeView { health: self.health_checks.of(upgrade), ..view }
            })
            .collect();
        let mut fleet = Fleet {
            nodes,
            upgrades,
            progresses: observed.judged_progresses(),
            api_server: memory.api_server.version.clone(),
            operator_node: self.settings.operator_node.clone(),
            max_unavailable: self.settings.max_unavailable.clone(),
            operator_pod: self.settings.operator_pod.clone(),
            ..Fleet::default()
        };
        self.pods.show(&mut fleet);
        fleet
    }

    async fn apply(&self, plan: &Plan, words: &FirstWords) -> (Applied, Result<(), ApplyError>) {
        let executor = Executor {
            client: &self.client,
            caches: &self.caches,
            leadership: &self.leadership,
            metrics: &self.metrics,
            gate: &self.catalogs,
        };
        let (mut applied, acted) = executor.execute(&plan.actions).await;
        if is_over(&acted) {
            return (applied, acted);
        }
        let spoken = executor.say_first_words(words).await;
        applied.writes += spoken.as_ref().copied().unwrap_or(0);
        (applied, acted.and(spoken.map(|_| ())))
    }

    async fn report(&self, observed: &Observed, plan: &Plan, now: Timestamp) -> Result<usize, StatusError> {
        let upgrades: Vec<OSUpgrade> = observed.upgrades.objects.iter().map(|u| u.as_ref().clone()).collect();
        let (changes, written) =
            status::write(&upgrades, &plan.outlooks, now, &self.client, &self.caches, &self.leadership).await;
        self.events.publish(events::of_upgrades(&changes));
        self.metrics.show_upgrades(&gauges(&upgrades, plan));
        written.map(|()| changes.len())
    }

    fn tell_unreadable(&self, observed: &Observed, memory: &mut Memory) {
        let mut now = BTreeSet::new();
        for (kind, objects) in observed.unreadable() {
            self.metrics.unreadable(kind, objects.len());
            for object in objects {
                let key = format!("{kind}/{}: {}", object.name, object.error);
                if !memory.unreadable.contains(&key) {
                    tracing::warn!("{key}: this release cannot read it, so it is left alone");
                }
                now.insert(key);
            }
        }
        memory.unreadable = now;
    }
}

/// Whether nothing more may be written in this pass. A single action that failed is no reason.
fn is_over(acted: &Result<(), ApplyError>) -> bool {
    matches!(acted, Err(ApplyError::Stale { .. } | ApplyError::NotLeading))
}

/// What one pass tells the next one. It saves work and words, and decides nothing.
#[derive(Default)]
struct Memory {
    plan: PlanMemory,
    node_edges: NodeEdges,
    unreadable: BTreeSet<String>,
    api_server: ApiServer,
}

/// The API server's version, asked now and then: it may be upgraded under us.
#[derive(Default)]
struct ApiServer {
    version: Option<OsVersion>,
    asked: Option<Instant>,
}

impl ApiServer {
    async fn refresh(&mut self, client: &Client) {
        if self.asked.is_some_and(|asked| asked.elapsed() < IDLE) {
            return;
        }
        self.asked = Some(Instant::now());
        match tokio::time::timeout(Duration::from_secs(5), client.apiserver_version()).await {
            Ok(Ok(info)) => self.version = kubernetes_version(&info.git_version),
            Ok(Err(error)) => tracing::warn!(%error, "cannot ask the API server for its version"),
            Err(_) => tracing::warn!("cannot ask the API server for its version: no answer in 5s"),
        }
    }
}

/// `v1.35.4` of `v1.35.4+k3s1`, `v1.35.4-eks-1a2b3c` and the like.
fn kubernetes_version(text: &str) -> Option<OsVersion> {
    text.split(['+', '-']).next()?.parse().ok()
}

fn running_versions(nodes: &[Arc<NodeView>]) -> BTreeSet<OsVersion> {
    let managed = nodes.iter().filter(|node| node.management == Management::Managed);
    managed.filter_map(|node| node.version.clone()).collect()
}

fn gauges(upgrades: &[OSUpgrade], plan: &Plan) -> Vec<UpgradeGauges> {
    let outlook = |upgrade: &OSUpgrade| plan.outlooks.get(&upgrade.uid().unwrap_or_default());
    let gauges = upgrades.iter().filter_map(|upgrade| {
        let outlook = outlook(upgrade)?;
        Some(UpgradeGauges::new(&upgrade.name_any(), outlook))
    });
    gauges.collect()
}

/// What this thread has had of a processor.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

fn until(next: Option<Timestamp>, now: Timestamp) -> Duration {
    let left = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
    match next {
        // In the past: soon, but not at once, in case it stays there.
        Some(_) => left.unwrap_or_default().clamp(Duration::from_millis(100), IDLE),
        None => IDLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_understood() {
        for (text, expected) in [
            ("v1.35.4", Some("v1.35.4")),
            ("v1.35.4+k3s1", Some("v1.35.4")),
            ("v1.35.4-eks-1a2b3c", Some("v1.35.4")),
            ("unknown", None),
        ] {
            assert_eq!(kubernetes_version(text).map(|v| v.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_next_look_is_neither_at_once_nor_never() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        assert_eq!(until(None, now), IDLE);
        assert_eq!(until(at(1_000_007), now), Duration::from_secs(7));
        assert_eq!(until(at(9_000_000), now), IDLE);
        assert_eq!(until(at(999_000), now), Duration::from_millis(100));
    }
}

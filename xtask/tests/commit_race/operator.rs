//! The operator's stages for one node: observe, plan, apply.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use monok8s_operator::apply::{Applied, ApplyError, Executor, GrantGate};
use monok8s_operator::leader::Leadership;
use monok8s_operator::metrics::Metrics;
use monok8s_operator::observe::{Caches, KnownNodes};
use monok8s_sdk::api::{OSNode, OSUpgradeProgress};
use monok8s_sdk::rollout::fixtures::{UpgradeFixture, upgrade};
use monok8s_sdk::rollout::{Action, Fleet, plan};
use tokio::sync::watch;

/// Whether a person has paused the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    Runs,
    IsPaused,
}

impl Upgrade {
    fn fixture(self) -> UpgradeFixture {
        upgrade("up").spec(|spec| spec.paused = Some(self == Self::IsPaused))
    }
}

struct Open;

impl GrantGate for Open {
    fn may_grant(&self, _: &str) -> bool {
        true
    }
}

pub(super) struct Operator {
    client: Client,
    node: String,
    caches: Caches,
    leadership: Leadership,
    metrics: Metrics,
    // Dropped, it would be an order to stop.
    _stop: watch::Sender<bool>,
}

impl Operator {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self {
            client,
            node: node.to_owned(),
            caches: Caches::default(),
            leadership: Leadership::unconditional(stopped),
            metrics: Metrics::default(),
            _stop: stop,
        }
    }

    /// What it would do now, by what the API server holds.
    pub(super) async fn plan(&self, upgrade: Upgrade) -> Vec<Action> {
        self.caches.nodes.wrote(Api::<Node>::all(self.client.clone()).get(&self.node).await.unwrap());
        if let Some(report) = Api::<OSNode>::all(self.client.clone()).get_opt(&self.node).await.unwrap() {
            self.caches.os_nodes.wrote(report);
        }
        for known in self.caches.progresses.snapshot().objects {
            let name = known.metadata.name.as_deref().unwrap();
            let api = Api::<OSUpgradeProgress>::all(self.client.clone());
            self.caches.progresses.wrote(api.get(name).await.unwrap());
        }
        let observed = self.caches.observe();
        let fleet = Fleet {
            nodes: observed.node_views(&mut KnownNodes::default()),
            upgrades: vec![upgrade.fixture().view()],
            progresses: observed.judged_progresses(),
            ..Fleet::default()
        };
        plan(&fleet, Timestamp::now()).actions
    }

    pub(super) async fn execute(&self, actions: &[Action]) -> (Applied, Result<(), ApplyError>) {
        let executor = Executor {
            client: &self.client,
            caches: &self.caches,
            leadership: &self.leadership,
            metrics: &self.metrics,
            gate: &Open,
        };
        executor.execute(actions).await
    }

    /// Goes on until it has nothing left to do, and returns all that it did.
    pub(super) async fn settle(&self, upgrade: Upgrade) -> Vec<Action> {
        let mut done = Vec::new();
        for _ in 0..20 {
            let actions = self.plan(upgrade).await;
            if actions.is_empty() {
                return done;
            }
            self.execute(&actions).await.1.unwrap();
            done.extend(actions);
        }
        panic!("the operator does not come to rest: {done:#?}");
    }

    /// The one object it made.
    pub(super) async fn progress(&self) -> OSUpgradeProgress {
        let known = self.caches.progresses.snapshot().objects;
        let [known] = known.as_slice() else { panic!("not one object: {known:#?}") };
        let name = known.metadata.name.as_deref().unwrap();
        Api::<OSUpgradeProgress>::all(self.client.clone()).get(name).await.unwrap()
    }
}

//! The two writes against each other, a few hundred times, in both orders and at once.

use futures::future::{join, join_all};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt as _};
use monok8s_agent::agent::ClusterError;
use monok8s_operator::apply::ApplyError;
use monok8s_sdk::api::{ANNOTATION_CORDON, OSUpgradeProgress, ProgressPhase};
use monok8s_sdk::rollout::Action;
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use xtask::controlplane::{ControlPlane, Options};

use super::node::{DecidingNode, Halt, Resting};
use super::operator::{Operator, Upgrade};

const ROUNDS: usize = 120;
/// Nodes that race at the same time, each for itself.
const LANES: usize = 4;

/// Who reaches the API server first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    TheOperator,
    TheNode,
    Whoever,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Winner {
    TheOperator,
    TheNode,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_withdraws_first() {
    let winners = race(First::TheOperator).await;
    assert!(winners.iter().all(|winner| *winner == Winner::TheOperator), "{winners:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_commits_first() {
    let winners = race(First::TheNode).await;
    assert!(winners.iter().all(|winner| *winner == Winner::TheNode), "{winners:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_write_at_once() {
    let winners = race(First::Whoever).await;
    let nodes = winners.iter().filter(|winner| **winner == Winner::TheNode).count();
    println!("{} rounds: the node won {nodes}, the operator {}", winners.len(), winners.len() - nodes);
}

async fn race(first: First) -> Vec<Winner> {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    control_plane.install_crds().await.unwrap();
    let lanes = (0..LANES).map(|lane| {
        let client = control_plane.client();
        async move {
            let mut winners = Vec::new();
            for number in 0..ROUNDS / LANES {
                let round = Round::prepare(&client, &format!("node-{lane}-{number}")).await;
                winners.push(Box::pin(round.run(first)).await);
            }
            winners
        }
    });
    let winners: Vec<_> = join_all(lanes).await.into_iter().flatten().collect();
    assert_eq!(winners.len(), ROUNDS);
    winners
}

/// A node that is cordoned, has its grant, and is about to commit.
struct Round {
    client: Client,
    name: String,
    operator: Operator,
    node: DecidingNode,
    granted: OSUpgradeProgress,
    version: OsVersion,
    slot: Slot,
}

impl Round {
    /// By the operator's own plans, from a node that was never heard of.
    async fn prepare(client: &Client, name: &str) -> Self {
        let mut node = DecidingNode::join(client, name).await;
        let operator = Operator::new(client.clone(), name);
        // The first plan only asks for the node's OSNode.
        operator.execute(&operator.plan(Upgrade::Runs).await).await.1.unwrap();
        node.report().await;
        operator.settle(Upgrade::Runs).await;
        let progress = operator.progress().await;
        assert_eq!(node.follow(&progress), Halt::Rests(Resting::Staged));
        node.say_staged(&progress).await;
        operator.settle(Upgrade::Runs).await;
        let granted = operator.progress().await;
        let Halt::WouldCommit { version, slot } = node.follow(&granted) else {
            panic!("{name} does not use its grant: {granted:#?}");
        };
        Self { client: client.clone(), name: name.to_owned(), operator, node, granted, version, slot }
    }

    async fn run(mut self, first: First) -> Winner {
        let actions = self.operator.plan(Upgrade::IsPaused).await;
        let withdrawal = |action: &Action| matches!(action, Action::WithdrawBoot { .. });
        assert!(actions.iter().any(withdrawal), "{actions:#?}");
        assert!(!actions.iter().any(is_uncordon), "not in the same breath: {actions:#?}");

        let (withdrawn, committed) = match first {
            First::TheOperator => {
                let withdrawn = self.operator.execute(&actions).await.1;
                (withdrawn, self.node.commit(&self.granted, &self.version, self.slot).await)
            }
            First::TheNode => {
                let committed = self.node.commit(&self.granted, &self.version, self.slot).await;
                (self.operator.execute(&actions).await.1, committed)
            }
            First::Whoever => {
                let Self { operator, node, granted, version, slot, .. } = &mut self;
                let (withdrawn, committed) =
                    join(operator.execute(&actions), node.commit(granted, version, *slot)).await;
                (withdrawn.1, committed)
            }
        };
        match (withdrawn, committed) {
            (Ok(()), Err(ClusterError::Conflict { .. })) => self.operator_won().await,
            (Err(ApplyError::Stale { .. }), Ok(written)) => self.node_won(&written).await,
            (withdrawn, committed) => panic!(
                "{}: exactly one write has to lose, but the withdrawal came to {withdrawn:?} and the commit to {:?}",
                self.name,
                committed.map(|object| object.phase())
            ),
        }
    }

    /// The node goes on, and keeps its cordon whatever the operator plans.
    async fn node_won(mut self, written: &OSUpgradeProgress) -> Winner {
        assert_eq!(written.phase(), ProgressPhase::Rebooting);
        assert_eq!(self.node.follow(written), Halt::Armed);
        let done = self.operator.settle(Upgrade::IsPaused).await;
        let taken_back =
            |action: &Action| matches!(action, Action::WithdrawBoot { .. } | Action::Supersede { .. });
        assert!(!done.iter().any(|action| is_uncordon(action) || taken_back(action)), "{done:#?}");
        let cordoned_for = self.cordoned_for().await;
        assert_eq!(cordoned_for, self.granted.uid(), "an armed slot on a node without its cordon");
        Winner::TheNode
    }

    /// The node gets its pods back, and stays where it is.
    async fn operator_won(mut self) -> Winner {
        // Also by the old object, should the watch be slow: the write is refused again.
        if let Halt::WouldCommit { version, slot } = self.node.follow(&self.granted) {
            let again = self.node.commit(&self.granted, &version, slot).await;
            assert!(matches!(again, Err(ClusterError::Conflict { .. })), "{again:?}");
        }
        let done = self.operator.settle(Upgrade::IsPaused).await;
        assert!(done.iter().any(is_uncordon), "{done:#?}");
        assert_eq!(self.cordoned_for().await, None);
        let reread = self.operator.progress().await;
        assert!(reread.spec.order.as_ref().unwrap().boot.is_none());
        assert_eq!(self.node.follow(&reread), Halt::Rests(Resting::Staged));
        assert!(!self.node.is_armed() && !self.node.has_attempt_past_its_intent());
        Winner::TheOperator
    }

    /// The object that the node is cordoned for, if it is cordoned.
    async fn cordoned_for(&self) -> Option<String> {
        let node = Api::<Node>::all(self.client.clone()).get(&self.name).await.unwrap();
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        let annotation = node.annotations().get(ANNOTATION_CORDON).cloned();
        assert_eq!(unschedulable, annotation.is_some(), "{}", self.name);
        annotation
    }
}

fn is_uncordon(action: &Action) -> bool {
    matches!(action, Action::Uncordon { .. })
}

//! From an object to an order: the operator's as it is, a hand-made one after its upgrade was
//! resolved.

use std::time::Duration;

use monok8s_sdk::api::{ImageRef, OSUpgradeProgress, TrialSpec};
use monok8s_sdk::causes::chain;
use monok8s_sdk::node_upgrade::{Freshness, NodeFacts, ObjectIdentity, Order, Step};

use super::cluster::ClusterError;
use super::error::NodeError;
use super::node::Node;
use super::present;
use super::resolve::Unresolved;
use super::status::Report;

/// How soon a resolution is tried again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(15);

/// What an object comes to.
pub(super) enum Ordered {
    /// There is no object.
    Nothing,
    /// An order.
    Order(Box<Order>),
    /// An object that cannot be worked on, and what it is told.
    Held { report: Box<Report>, again: Duration },
}

impl Ordered {
    pub(super) fn order(&self) -> Option<&Order> {
        match self {
            Self::Order(order) => Some(order),
            Self::Nothing | Self::Held { .. } => None,
        }
    }
}

/// Why an object is not an order yet.
enum Obstacle {
    /// Something outside that may pass.
    Later { reason: &'static str, message: String },
    /// A mistake that takes a person.
    Never(Box<Report>),
}

impl Node {
    /// Reads the order in `object`.
    pub(super) async fn order(
        &mut self,
        object: &OSUpgradeProgress,
        node_uid: &str,
        facts: &NodeFacts,
    ) -> Result<Ordered, NodeError> {
        let freshness = self.known.freshness(object);
        let (hops, trial) = match &object.spec.order {
            Some(_) => (Vec::new(), TrialSpec::default()),
            None => match self.resolved(object, freshness, facts).await? {
                Ok(resolved) => resolved,
                Err(Obstacle::Never(report)) => return Ok(Ordered::Held { report, again: RESOLVE_AGAIN }),
                Err(Obstacle::Later { reason, message }) => {
                    let report = Box::new(present::holding(object, facts, reason, message));
                    return Ok(Ordered::Held { report, again: RESOLVE_AGAIN });
                }
            },
        };
        Ok(match Order::read(object, node_uid, freshness, &hops, &trial) {
            Ok(order) => Ordered::Order(Box::new(order)),
            Err(error) => {
                let report = Box::new(present::holding(object, facts, "OrderUnusable", error.to_string()));
                Ordered::Held { report, again: RESOLVE_AGAIN }
            }
        })
    }
}

type Resolved = Result<(Vec<ImageRef>, TrialSpec), Obstacle>;

impl Node {
    /// The images and the trial of a hand-made object. What it was resolved to stays until a new
    /// nonce, whatever becomes of its catalog meanwhile.
    async fn resolved(
        &mut self,
        object: &OSUpgradeProgress,
        freshness: Freshness,
        facts: &NodeFacts,
    ) -> Result<Resolved, NodeError> {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let pinned = self.record.pinned(&uid);
        if !pinned.is_empty() {
            return Ok(self.trial_of(object, &uid).await.map(|trial| (pinned, trial)));
        }
        // An order from a cache could be one that was taken back.
        if freshness == Freshness::Cached
            && let Err(obstacle) = self.read_again(object).await
        {
            return Ok(Err(obstacle));
        }
        self.take_note(object, &uid)?;
        let upgrade = match self.cluster.upgrade(&object.spec.source_ref.name).await {
            Ok(upgrade) => upgrade,
            Err(error) => return Ok(Err(upgrade_missing(&error))),
        };
        let hops = match self.resolver.resolve(&upgrade.spec, &facts.booted.version).await {
            Ok(hops) => hops,
            Err(Unresolved::Later(message)) => {
                return Ok(Err(Obstacle::Later { reason: "CatalogUnavailable", message }));
            }
            Err(Unresolved::Never { reason, message }) => {
                let facts = NodeFacts { record: self.record.clone(), ..facts.clone() };
                let report = present::refused(object, &facts, reason.as_str(), message);
                return Ok(Err(Obstacle::Never(Box::new(report))));
            }
        };
        self.record(&Step::Pinned { uid: uid.clone(), hops: hops.clone() })?;
        let trial = upgrade.spec.rollout().trial();
        self.trial = Some((uid, trial.clone()));
        Ok(Ok((hops, trial)))
    }

    /// The trial settings of a hand-made object's upgrade.
    async fn trial_of(&mut self, object: &OSUpgradeProgress, uid: &str) -> Result<TrialSpec, Obstacle> {
        if let Some(attempt) = self.record.attempt.as_ref().filter(|attempt| attempt.object.uid == uid) {
            return Ok(attempt.trial.clone());
        }
        if let Some((_, trial)) = self.trial.as_ref().filter(|(known, _)| known == uid) {
            return Ok(trial.clone());
        }
        let trial = match self.cluster.upgrade(&object.spec.source_ref.name).await {
            Ok(upgrade) => upgrade.spec.rollout().trial(),
            Err(ClusterError::Absent { .. }) => TrialSpec::default(),
            Err(error) => return Err(upgrade_missing(&error)),
        };
        self.trial = Some((uid.to_owned(), trial.clone()));
        Ok(trial)
    }

    async fn read_again(&mut self, object: &OSUpgradeProgress) -> Result<(), Obstacle> {
        match self.cluster.progress(object.metadata.name.as_deref().unwrap_or_default()).await {
            Ok(read) if read.metadata.uid == object.metadata.uid => {
                let is_same = read.spec == object.spec;
                self.known.learn(read);
                let message = "the object changed while it was read".to_owned();
                if is_same { Ok(()) } else { Err(Obstacle::Later { reason: "Reading", message }) }
            }
            Ok(_) | Err(ClusterError::Absent { .. }) => {
                self.known.miss(object);
                Err(Obstacle::Later { reason: "Reading", message: "the object is gone".to_owned() })
            }
            Err(error) => Err(Obstacle::Later { reason: "ApiUnavailable", message: chain(&error) }),
        }
    }

    /// Records that the object was seen, and a retry that its nonce asks for, before either is acted
    /// on: here, because without images there is no order that a decision could be made on.
    fn take_note(&mut self, object: &OSUpgradeProgress, uid: &str) -> Result<(), NodeError> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let generation = object.metadata.generation.unwrap_or_default();
        let asked = Some(object.retry_nonce()).filter(|nonce| !nonce.is_empty());
        let answered = object.status.as_ref().and_then(|status| status.observed_retry_nonce.as_deref());
        if self.record.seen(uid).is_none() {
            // A nonce on an object that has not failed has nothing to retry.
            let noted = if object.phase().is_final() { answered } else { asked };
            self.record(&Step::Accepted {
                object: ObjectIdentity::new(name, uid),
                generation,
                retry_nonce: noted.map(str::to_owned),
                rollback_nonce: None,
            })?;
        }
        let known = self.record.seen(uid).and_then(|seen| seen.retry_nonce.as_deref());
        match asked.filter(|asked| known != Some(asked)) {
            Some(nonce) => self.record(&Step::RetryBegun { uid: uid.to_owned(), nonce: nonce.to_owned() }),
            None => Ok(()),
        }
    }
}

fn upgrade_missing(error: &ClusterError) -> Obstacle {
    let reason = match error {
        ClusterError::Absent { .. } => "UpgradeMissing",
        _ => "ApiUnavailable",
    };
    Obstacle::Later { reason, message: chain(error) }
}

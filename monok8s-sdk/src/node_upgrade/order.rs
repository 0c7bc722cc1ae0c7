//! What is wanted of a node, as read from one `OSUpgradeProgress`.

use super::facts::BootId;
use super::record::ObjectIdentity;
use crate::api::{
    BootGrant, ConditionType, ImageRef, OSUpgradeProgress, ProgressPhase, TrialSpec, condition_is_true,
};
use crate::version::OsVersion;

/// How the object was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// From a watch or a list that may be served from a cache.
    Cached,
    /// By a read that the API server answered from its store (no resourceVersion).
    Quorum,
}

/// Whether the object still wants something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Current,
    /// Another upgrade governs the node, or the upgrade wants something else.
    Superseded,
    /// The object is being deleted.
    Deleted,
}

/// How far the node may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As far as the operator grants.
    Granted {
        /// The version that may be staged.
        stage: Option<OsVersion>,
        /// The reboot that may be committed to.
        boot: Option<BootGrant>,
    },
    /// All the way: the object was made by hand, and no operator paces it.
    Own,
}

/// What the object's status says, as read together with the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The phase.
    pub phase: ProgressPhase,
    /// The boot under which it was written.
    pub boot_id: Option<BootId>,
    /// The retry nonce that was acted on.
    pub retry_nonce: Option<String>,
    /// The rollback nonce that was acted on.
    pub rollback_nonce: Option<String>,
}

/// What is wanted of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The object.
    pub object: ObjectIdentity,
    /// The generation of its spec.
    pub generation: i64,
    /// The version of the object that was read; a commit is bound to it.
    pub resource_version: String,
    /// How it was read.
    pub freshness: Freshness,
    /// Whether it still wants something.
    pub standing: Standing,
    /// The images to go through, in order; the last is the target. Never empty.
    pub hops: Vec<ImageRef>,
    /// How far the node may go.
    pub pace: Pace,
    /// Retries what failed, when it is new. Never empty.
    pub retry_nonce: Option<String>,
    /// Boots the other slot, when it is new. Never empty.
    pub rollback_nonce: Option<String>,
    /// When a trial counts as good.
    pub trial: TrialSpec,
    /// What the status says.
    pub reported: Reported,
}

/// Why an object is not an order for this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// The API server sets these on every object.
    #[error("{object} has no {field}: it was not read from an API server; read it again")]
    NotFromAnApiServer {
        /// The object's name.
        object: String,
        /// The missing field.
        field: &'static str,
    },
    /// The order was made for an earlier node of this name.
    #[error(
        "{object} is an order for the node with UID {ordered}, but this node has {found}: an order outlives no reinstallation, delete the object"
    )]
    OtherNode {
        /// The object's name.
        object: String,
        /// The UID in the order.
        ordered: String,
        /// This node's UID.
        found: String,
    },
    /// No image to go to.
    #[error("{object} lists no image to go to; resolve its upgrade first, or correct order.hops")]
    NoHops {
        /// The object's name.
        object: String,
    },
}

impl Order {
    /// Reads an object. `resolved` are the images of a hand-made object, which carries none, and
    /// `trial` the trial settings of its upgrade; an order of the operator has its own of both.
    pub fn read(
        progress: &OSUpgradeProgress,
        node_uid: &str,
        freshness: Freshness,
        resolved: &[ImageRef],
        trial: &TrialSpec,
    ) -> Result<Self, OrderError> {
        let metadata = &progress.metadata;
        let object = metadata.name.clone().unwrap_or_default();
        let missing = |field| OrderError::NotFromAnApiServer { object: object.clone(), field };
        let ordered = progress.spec.order.as_ref();
        if let Some(other) = ordered.filter(|order| order.node_uid != node_uid) {
            let (ordered, found) = (other.node_uid.clone(), node_uid.to_owned());
            return Err(OrderError::OtherNode { object, ordered, found });
        }
        let hops = ordered.map_or(resolved, |order| &order.hops);
        if hops.is_empty() {
            return Err(OrderError::NoHops { object });
        }
        Ok(Self {
            object: ObjectIdentity::new(
                metadata.name.as_deref().ok_or_else(|| missing("name"))?,
                metadata.uid.as_deref().ok_or_else(|| missing("uid"))?,
            ),
            generation: metadata.generation.ok_or_else(|| missing("generation"))?,
            resource_version: metadata.resource_version.clone().ok_or_else(|| missing("resourceVersion"))?,
            freshness,
            standing: standing(progress),
            hops: hops.to_vec(),
            pace: ordered.map_or(Pace::Own, |order| Pace::Granted {
                stage: order.stage.clone(),
                boot: order.boot.clone(),
            }),
            retry_nonce: nonce(progress.spec.retry_nonce.as_ref()),
            rollback_nonce: nonce(progress.spec.rollback_nonce.as_ref()),
            trial: ordered.and_then(|order| order.trial.clone()).unwrap_or_else(|| trial.clone()),
            reported: reported(progress),
        })
    }

    /// The last image: where the node shall end.
    #[must_use]
    pub fn target(&self) -> Option<&OsVersion> {
        self.hops.last().map(|image| &image.version)
    }

    /// The image to take from `booted`, or `None` on the target.
    ///
    /// Hops that lie behind are passed over, so that a node which was moved by hand meanwhile is
    /// never led against the direction of its path.
    #[must_use]
    pub fn next_hop(&self, booted: &OsVersion) -> Option<&ImageRef> {
        let target = self.target()?;
        self.hops.iter().find(|image| match target.cmp(booted) {
            std::cmp::Ordering::Greater => image.version > *booted,
            std::cmp::Ordering::Less => image.version < *booted,
            std::cmp::Ordering::Equal => false,
        })
    }
}

fn standing(progress: &OSUpgradeProgress) -> Standing {
    if progress.metadata.deletion_timestamp.is_some() {
        Standing::Deleted
    } else if condition_is_true(progress.conditions(), &ConditionType::Superseded) {
        Standing::Superseded
    } else {
        Standing::Current
    }
}

fn reported(progress: &OSUpgradeProgress) -> Reported {
    let status = progress.status.as_ref();
    Reported {
        phase: progress.phase(),
        boot_id: status.and_then(|status| status.boot_id.clone()).map(BootId),
        retry_nonce: nonce(status.and_then(|status| status.observed_retry_nonce.as_ref())),
        rollback_nonce: nonce(status.and_then(|status| status.observed_rollback_nonce.as_ref())),
    }
}

/// An empty nonce is an absent one.
fn nonce(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

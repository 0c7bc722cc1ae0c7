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

/// What the operator says of the time that the node's attempt may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLimit {
    /// It is not over.
    Open,
    /// It is, and the attempt was given up. Only a new retry nonce begins another one, and the operator has to take
    /// back first what it said: it tells a new nonce by its being unanswered.
    Passed,
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
    /// Whether the operator gave the attempt up.
    pub time_limit: TimeLimit,
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
            time_limit: time_limit(progress),
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

fn time_limit(progress: &OSUpgradeProgress) -> TimeLimit {
    let passed = condition_is_true(progress.conditions(), &ConditionType::TimedOut);
    if passed { TimeLimit::Passed } else { TimeLimit::Open }
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

#[cfg(test)]
mod tests {
    use super::super::fixture::{NEW, OLD, THEN, image, order, version};
    use super::*;

    fn progress(spec: &str) -> OSUpgradeProgress {
        serde_json::from_str(&format!(
            r#"{{
                "apiVersion": "monok8s.io/v1alpha1", "kind": "OSUpgradeProgress",
                "metadata": {{ "name": "osupgrade-1", "uid": "uid-1", "generation": 5, "resourceVersion": "77" }},
                "spec": {{ "sourceRef": {{ "name": "up" }}, "nodeName": "node-1", {spec} }},
                "status": {{ "phase": "Staged", "bootID": "boot-1", "observedRetryNonce": "a" }}
            }}"#
        ))
        .unwrap()
    }

    fn read(progress: &OSUpgradeProgress, resolved: &[ImageRef]) -> Result<Order, OrderError> {
        Order::read(progress, "node-uid", Freshness::Quorum, resolved, &TrialSpec::default())
    }

    #[test]
    fn an_order_of_the_operator_carries_everything() {
        let hop = serde_json::to_string(&image(NEW)).unwrap();
        let made_for = |uid: &str| {
            progress(&format!(
                r#""retryNonce": "", "order": {{ "nodeUID": "{uid}", "run": 1, "hops": [{hop}], "stage": "{NEW}",
                   "trial": {{ "timeoutSeconds": 90 }} }}"#
            ))
        };
        let order = read(&made_for("node-uid"), &[image(OLD)]).unwrap();
        assert_eq!((order.generation, order.resource_version.as_str()), (5, "77"));
        assert_eq!(order.target(), Some(&version(NEW)));
        assert_eq!(order.pace, Pace::Granted { stage: Some(version(NEW)), boot: None });
        assert_eq!((order.retry_nonce, order.trial.timeout_seconds()), (None, 90));
        assert_eq!(order.reported.phase, ProgressPhase::Staged);
        assert_eq!(order.reported.retry_nonce.as_deref(), Some("a"));
        assert!(matches!(read(&made_for("reinstalled"), &[]), Err(OrderError::OtherNode { .. })));
    }

    #[test]
    fn a_hand_made_object_goes_where_its_upgrade_was_resolved_to() {
        let by_hand = progress(r#""retryNonce": "b", "rollbackNonce": """#);
        let order = read(&by_hand, &[image(NEW)]).unwrap();
        assert_eq!((order.pace.clone(), order.target()), (Pace::Own, Some(&version(NEW))));
        assert_eq!((order.retry_nonce.as_deref(), order.rollback_nonce), (Some("b"), None));
        assert!(matches!(read(&by_hand, &[]), Err(OrderError::NoHops { .. })));
    }

    #[test]
    fn deletion_comes_before_supersession() {
        let mut object = progress(r#""retryNonce": """#);
        let standing = |object: &OSUpgradeProgress| read(object, &[image(NEW)]).unwrap().standing;
        assert_eq!(standing(&object), Standing::Current);
        object.status.as_mut().unwrap().conditions = serde_json::from_str(
            r#"[{ "type": "Superseded", "status": "True", "reason": "Governed", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }]"#,
        )
        .unwrap();
        assert_eq!(standing(&object), Standing::Superseded);
        object.metadata.deletion_timestamp = serde_json::from_str(r#""2026-01-01T00:00:00Z""#).unwrap();
        assert_eq!(standing(&object), Standing::Deleted);
    }

    #[test]
    fn the_next_hop_never_leads_away_from_the_target() {
        let next = |hops: &[&str], booted: &str| {
            order().hops(hops).next_hop(&version(booted)).map(|hop| hop.version.to_string())
        };
        assert_eq!(next(&[NEW, THEN], OLD).as_deref(), Some(NEW));
        assert_eq!(next(&[NEW, THEN], NEW).as_deref(), Some(THEN));
        assert_eq!(next(&[NEW, THEN], THEN), None);
        assert_eq!(next(&[NEW, THEN], "v1.35.9").as_deref(), Some(THEN), "moved by hand past a hop");
        assert_eq!(next(&[NEW, OLD], THEN).as_deref(), Some(NEW), "downwards");
        assert_eq!(next(&[NEW, OLD], "v1.35.1").as_deref(), Some(OLD));
    }
}

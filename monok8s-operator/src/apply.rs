//! Stage four: carries a plan out. It decides nothing; it only refuses to write on old facts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource};
use monok8s_sdk::api::{
    ANNOTATION_CORDON, GROUP, OPERATOR_FIELD_MANAGER, OSNode, OSNodeSpec, OSUpgradeProgress, VERSION,
    upgrade_name_of,
};
use monok8s_sdk::causes::chain;
use monok8s_sdk::rollout::{Action, EvictionAnswer, NewProgress, ObjectRef};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::access::ApiError;
use crate::cache::{Cache, Kept};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::observe::Caches;

mod cordon;
mod evict;
mod first_words;

use cordon::{Cordon, cordon};
pub use first_words::{FirstWords, first_words};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a plan was not carried out to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// An object had changed since the plan was made. Observe and plan again.
    #[error("{what} had changed since it was looked at")]
    Stale {
        /// The object, as kind and name.
        what: String,
    },
    /// The Lease is not held any more.
    #[error("the Lease is not held any more")]
    NotLeading,
    /// A request failed; the actions after it were tried nevertheless.
    #[error("{action} {name}")]
    Failed {
        /// The kind of action.
        action: &'static str,
        /// The object.
        name: String,
        /// What happened.
        #[source]
        source: ApiError,
    },
}

/// Whether the catalog of an upgrade was read a moment ago, so that a grant cannot be for a
/// version that was blocked meanwhile.
pub trait GrantGate {
    /// Whether a grant for an object of this upgrade may be given now. If not, the catalog is read
    /// again, and the planner woken when that is done.
    fn may_grant(&self, upgrade: &str) -> bool;
}

/// Requests of a plan in flight at once.
const AT_ONCE: usize = 8;
/// So long a plan is carried out: then the fleet is looked at again. What it decided may be wrong by then, and what
/// has to be taken back waits meanwhile.
const PLAN_LASTS: Duration = Duration::from_secs(10);

/// Carries plans out.
pub struct Executor<'a> {
    /// The API server.
    pub client: &'a Client,
    /// Where the answers go.
    pub caches: &'a Caches,
    /// Whether writing is allowed.
    pub leadership: &'a Leadership,
    /// Counts what is done.
    pub metrics: &'a Metrics,
    /// Asked before every grant.
    pub gate: &'a dyn GrantGate,
}

/// What became of the actions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Writes made.
    pub writes: usize,
    /// Grants that wait for their catalog to be read, and deletions of what is gone.
    pub held_back: usize,
    /// What was answered to evictions, by the pod's UID.
    pub evictions: Vec<(String, EvictionAnswer)>,
}

enum Done {
    Written,
    HeldBack,
    Asked(String, EvictionAnswer),
}

impl Executor<'_> {
    /// Does the actions in their order, those of a kind beside each other. A lost race ends it, since the rest of the
    /// plan was made on the same facts; another failure does not, since no action needs another one of its plan. What
    /// is not begun in time is left for the next plan.
    pub async fn execute(&self, actions: &[Action]) -> (Applied, Result<(), ApplyError>) {
        let mut applied = Applied::default();
        let mut first_failure = Ok(());
        let ends = Instant::now() + PLAN_LASTS;
        for beside in actions.chunk_by(|a, b| a.kind() == b.kind()) {
            let lost = AtomicBool::new(false);
            let may_begin = || !lost.load(Ordering::Relaxed) && Instant::now() < ends;
            let begun = beside.iter().take_while(|_| may_begin());
            let acts = begun.map(|action| async move { (action, self.act_if_leading(action).await) });
            let mut acts = stream::iter(acts).buffer_unordered(AT_ONCE);
            let mut end = Ok(());
            // What was begun comes to its end, so that its answers are kept.
            while let Some((action, done)) = acts.next().await {
                match done {
                    Ok(done) => self.count(action, done, &mut applied),
                    Err(over @ (ApplyError::Stale { .. } | ApplyError::NotLeading)) => {
                        lost.store(true, Ordering::Relaxed);
                        end = end.and(Err(over));
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "an action failed");
                        first_failure = first_failure.and(Err(error));
                    }
                }
            }
            if end.is_err() {
                return (applied, end);
            }
        }
        (applied, first_failure)
    }

    fn count(&self, action: &Action, done: Done, applied: &mut Applied) {
        match done {
            Done::Written => {
                applied.writes += 1;
                self.metrics.acted(action.kind());
                tracing::info!(action = action.kind(), object = action.object_name(), "done");
            }
            Done::HeldBack => applied.held_back += 1,
            Done::Asked(pod, answer) => {
                if answer == EvictionAnswer::Accepted {
                    self.metrics.acted(action.kind());
                    tracing::info!(action = action.kind(), object = action.object_name(), "done");
                } else {
                    tracing::debug!(object = action.object_name(), ?answer, "an eviction was refused");
                }
                applied.evictions.push((pod, answer));
            }
        }
    }

    async fn act_if_leading(&self, action: &Action) -> Result<Done, ApplyError> {
        if !self.leadership.may_act() {
            return Err(ApplyError::NotLeading);
        }
        self.act(action).await
    }

    async fn act(&self, action: &Action) -> Result<Done, ApplyError> {
        match action {
            Action::WithdrawBoot { progress } => {
                self.patch_progress(action, progress, json!({ "order": { "boot": null } })).await
            }
            Action::Supersede { progress } => {
                self.patch_progress(
                    action,
                    progress,
                    json!({ "order": { "stage": null, "stageGrantedAt": null, "boot": null } }),
                )
                .await
            }
            Action::GrantStage { progress, version, at } => {
                if !self.gate_opens(progress) {
                    return Ok(Done::HeldBack);
                }
                let order =
                    json!({ "order": { "stage": version, "stageGrantedAt": Time(*at), "boot": null } });
                self.patch_progress(action, progress, order).await
            }
            Action::GrantBoot { progress, grant } => {
                if !self.gate_opens(progress) {
                    return Ok(Done::HeldBack);
                }
                match self.look_at_cordon(action, progress).await? {
                    // The look may have taken its time.
                    Cordon::Holds if !self.leadership.may_act() => Err(ApplyError::NotLeading),
                    Cordon::Holds => {
                        self.patch_progress(action, progress, json!({ "order": { "boot": grant } })).await
                    }
                    // A new plan would come to the same, and hold up all other nodes.
                    Cordon::OfAnotherOrder => Ok(Done::HeldBack),
                    Cordon::Missing => {
                        Err(ApplyError::Stale { what: format!("the cordon for {}", progress.name) })
                    }
                }
            }
            Action::Cordon { node, progress_uid } => {
                self.patch_node(action, node, json!(true), json!(progress_uid)).await
            }
            Action::Uncordon { node } => self.patch_node(action, node, Value::Null, Value::Null).await,
            Action::Report { progress, conditions } => {
                let conditions = json!({ "conditions": conditions });
                self.apply_status(action, progress, conditions).await
            }
            Action::DeleteProgress { progress } => self.delete(action, progress).await,
            Action::CreateOsNode { node } => self.create_os_node(action, node).await,
            Action::CreateProgress(new) => self.create_progress(action, new).await,
            Action::Evict { pod, grace_period_seconds } => Ok(self.evict(pod, *grace_period_seconds).await),
            Action::DeletePod { pod, grace_period_seconds } => {
                self.delete_pod(action, pod, *grace_period_seconds).await
            }
        }
    }

    /// A person who sends a node back waits for no catalog: it goes to what is there.
    fn gate_opens(&self, progress: &ObjectRef) -> bool {
        let object = self.caches.progresses.get(&progress.name);
        object.is_some_and(|object| {
            object.rollback_is_wanted() || self.gate.may_grant(upgrade_name_of(&object))
        })
    }

    /// The last look before the point of no return: the cordon is read from the API server itself,
    /// since somebody may have lifted it a moment ago.
    async fn look_at_cordon(&self, action: &Action, progress: &ObjectRef) -> Result<Cordon, ApplyError> {
        let stale = || ApplyError::Stale { what: format!("the cordon for {}", progress.name) };
        let object = self.caches.progresses.get(&progress.name).ok_or_else(stale)?;
        let api: Api<Node> = Api::all(self.client.clone());
        let read = request(
            action.kind(),
            &object.spec.node_name,
            "get",
            "nodes",
            api.get_opt(&object.spec.node_name),
        );
        let node = read.await?.ok_or_else(stale)?;
        let found = cordon(&node, &object);
        self.caches.nodes.wrote(node);
        Ok(found)
    }

    async fn patch_progress(&self, action: &Action, of: &ObjectRef, spec: Value) -> Result<Done, ApplyError> {
        let patch = json!({ "metadata": { "resourceVersion": of.resource_version }, "spec": spec });
        let api: Api<OSUpgradeProgress> = Api::all(self.client.clone());
        let written =
            request(action.kind(), &of.name, "patch", PROGRESSES, merge(&api, &of.name, &patch)).await;
        self.keep(&api, &self.caches.progresses, of, written).await
    }

    async fn patch_node(
        &self,
        action: &Action,
        of: &ObjectRef,
        unschedulable: Value,
        cordoned_for: Value,
    ) -> Result<Done, ApplyError> {
        let patch = json!({
            "metadata": {
                "resourceVersion": of.resource_version,
                "annotations": { ANNOTATION_CORDON: cordoned_for },
            },
            "spec": { "unschedulable": unschedulable },
        });
        let api: Api<Node> = Api::all(self.client.clone());
        let written = request(action.kind(), &of.name, "patch", "nodes", merge(&api, &of.name, &patch)).await;
        self.keep(&api, &self.caches.nodes, of, written).await
    }

    async fn apply_status(&self, action: &Action, of: &ObjectRef, status: Value) -> Result<Done, ApplyError> {
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "OSUpgradeProgress",
            "metadata": { "name": of.name, "uid": of.uid },
            "status": status,
        });
        let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
        let patch = Patch::Apply(&object);
        let api: Api<OSUpgradeProgress> = Api::all(self.client.clone());
        let written = api.patch_status(&of.name, &params, &patch);
        let written = request(action.kind(), &of.name, "patch", PROGRESS_STATUS, written).await;
        self.keep(&api, &self.caches.progresses, of, written).await
    }

    async fn delete(&self, action: &Action, of: &ObjectRef) -> Result<Done, ApplyError> {
        let preconditions =
            Preconditions { resource_version: Some(of.resource_version.clone()), uid: Some(of.uid.clone()) };
        let params = DeleteParams::background().preconditions(preconditions);
        let api: Api<OSUpgradeProgress> = Api::all(self.client.clone());
        match request(action.kind(), &of.name, "delete", PROGRESSES, api.delete(&of.name, &params)).await {
            Ok(answer) => {
                let progresses = &self.caches.progresses;
                // Somebody's finalizer may keep it for a while.
                match answer.left().filter(|object| object.metadata.deletion_timestamp.is_some()) {
                    Some(going) => progresses.wrote(going),
                    None => progresses.gone(&of.name, &of.uid),
                }
                Ok(Done::Written)
            }
            Err(error) => Err(self.stale_or(error, &api, &self.caches.progresses, of).await),
        }
    }

    async fn create_os_node(&self, action: &Action, node: &ObjectRef) -> Result<Done, ApplyError> {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.name.clone(),
            uid: node.uid.clone(),
            ..OwnerReference::default()
        };
        let mut object = OSNode::new(&node.name, OSNodeSpec {});
        object.metadata = owned(&node.name, owner);
        let api: Api<OSNode> = Api::all(self.client.clone());
        let created = create(&api, &object);
        let created = request(action.kind(), &node.name, "create", "osnodes.monok8s.io", created).await;
        self.keep(&api, &self.caches.os_nodes, node, created).await
    }

    async fn create_progress(&self, action: &Action, new: &NewProgress) -> Result<Done, ApplyError> {
        let owner = OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "OSUpgrade".to_owned(),
            name: new.upgrade_name.clone(),
            uid: new.upgrade_uid.clone(),
            controller: Some(true),
            // A deletion need not wait for the children: agents see the order go, whenever it goes.
            block_owner_deletion: None,
        };
        let mut object = OSUpgradeProgress::new(&new.name, new.spec.clone());
        object.metadata = owned(&new.name, owner);
        let api: Api<OSUpgradeProgress> = Api::all(self.client.clone());
        let created = create(&api, &object);
        let created = request(action.kind(), &new.name, "create", PROGRESSES, created).await;
        let of = ObjectRef { name: new.name.clone(), uid: String::new(), resource_version: String::new() };
        self.keep(&api, &self.caches.progresses, &of, created).await
    }

    /// Keeps a write's answer for the next plan, or says that the plan was made on old facts.
    async fn keep<K>(
        &self,
        api: &Api<K>,
        cache: &Cache<K>,
        of: &ObjectRef,
        written: Result<K, ApplyError>,
    ) -> Result<Done, ApplyError>
    where
        K: Kept + DeserializeOwned + Clone + std::fmt::Debug,
    {
        match written {
            Ok(object) => {
                cache.wrote(object);
                Ok(Done::Written)
            }
            Err(error) => Err(self.stale_or(error, api, cache, of).await),
        }
    }

    /// Turns a lost race into [`ApplyError::Stale`], and takes in what won it: the watch may be
    /// slow, and the next plan must not lose the same race again.
    async fn stale_or<K>(
        &self,
        error: ApplyError,
        api: &Api<K>,
        cache: &Cache<K>,
        of: &ObjectRef,
    ) -> ApplyError
    where
        K: Kept + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let lost = match &error {
            ApplyError::Failed { source, .. } => {
                source.is_conflict() || source.is_not_found() || source.is_other_uid()
            }
            ApplyError::Stale { .. } | ApplyError::NotLeading => false,
        };
        if !lost {
            return error;
        }
        self.metrics.conflicted();
        match tokio::time::timeout(REQUEST_TIMEOUT, api.get_opt(&of.name)).await {
            Ok(Ok(Some(object))) => cache.wrote(object),
            Ok(Ok(None)) => cache.gone(&of.name, &of.uid),
            // Another look will not resolve it: an object that this release cannot read is in the
            // way of this one action, and must not be in the way of the others.
            Ok(Err(kube::Error::SerdeError(_))) => return error,
            // Whatever is wrong, the watch will tell.
            Ok(Err(_)) | Err(_) => {}
        }
        ApplyError::Stale { what: format!("{} {}", K::kind(&()), of.name) }
    }
}

const PROGRESSES: &str = "osupgradeprogresses.monok8s.io";
const PROGRESS_STATUS: &str = "osupgradeprogresses/status.monok8s.io";

async fn merge<K>(api: &Api<K>, name: &str, patch: &Value) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let params =
        PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Merge(patch)).await
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let params =
        PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..PostParams::default() };
    api.create(&params, object).await
}

fn owned(name: &str, owner: OwnerReference) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), owner_references: Some(vec![owner]), ..ObjectMeta::default() }
}

async fn request<T>(
    action: &'static str,
    name: &str,
    verb: &'static str,
    resource: &'static str,
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApplyError> {
    let source = match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
        Ok(Ok(object)) => return Ok(object),
        Ok(Err(error)) => ApiError::of(verb, resource, error),
        Err(_) => ApiError::TimedOut { verb, resource: resource.into(), after: REQUEST_TIMEOUT },
    };
    Err(ApplyError::Failed { action, name: name.to_owned(), source })
}

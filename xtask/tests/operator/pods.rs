//! Pods on nodes that stand-ins keep, and what a kubelet would do with them: run them, and end them when asked to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const NAMESPACE: &str = "default";
/// Its value is how many seconds a pod takes to end.
const TAKES: &str = "test/takes-seconds";

/// A pod on a node. As made, something would make it again elsewhere.
pub(super) struct PodSpec(Value);

impl PodSpec {
    pub(super) fn new(name: &str, node: &str) -> Self {
        // Of a kind that the garbage collector does not know, or it would look for the owner.
        let owner = json!({
            "apiVersion": "example.com/v1", "kind": "App", "name": "app", "uid": "app-uid", "controller": true,
        });
        Self(json!({
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": { "app": name },
                "annotations": {},
                "ownerReferences": [owner],
            },
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 30,
                "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "localhost/none:1" }],
            },
        }))
    }

    pub(super) fn set(mut self, path: &str, value: Value) -> Self {
        *self.0.pointer_mut(path).unwrap() = value;
        self
    }

    /// Nobody would make it again.
    pub(super) fn bare(self) -> Self {
        self.set("/metadata/ownerReferences", json!([]))
    }

    pub(super) fn of_daemon_set(self, name: &str, uid: &str) -> Self {
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": uid, "controller": true,
        });
        self.set("/metadata/ownerReferences", json!([owner]))
    }

    /// As the kubelet makes of a file.
    pub(super) fn mirror(mut self) -> Self {
        self.0["spec"].as_object_mut().unwrap().remove("automountServiceAccountToken");
        self.bare().set("/metadata/annotations", json!({ "kubernetes.io/config.mirror": "x" }))
    }

    pub(super) fn with_empty_dir(mut self) -> Self {
        self.0["spec"]["volumes"] = json!([{ "name": "cache", "emptyDir": {} }]);
        self
    }

    pub(super) fn with_claim(mut self, claim: &str) -> Self {
        self.0["spec"]["volumes"] =
            json!([{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }]);
        self
    }

    pub(super) fn with_grace(self, seconds: u32) -> Self {
        self.set("/spec/terminationGracePeriodSeconds", json!(seconds))
    }

    /// It is never quite gone.
    pub(super) fn with_finalizer(mut self) -> Self {
        self.0["metadata"]["finalizers"] = json!(["example.com/never"]);
        self
    }

    pub(super) fn takes(self, seconds: u32) -> Self {
        self.set("/metadata/annotations", json!({ TAKES: seconds.to_string() }))
    }

    pub(super) async fn create(self, client: &Client) {
        let pod: Pod = serde_json::from_value(self.0).unwrap();
        let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        api.create(&PostParams::default(), &pod).await.unwrap();
    }
}

/// The names of the pods on a node, sorted.
pub(super) async fn pods_on(client: &Client, node: &str) -> Vec<String> {
    let on = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE).list(&on).await.unwrap();
    let mut names: Vec<_> = pods.iter().map(kube::ResourceExt::name_any).collect();
    names.sort();
    names
}

/// Says that a pod has run to its end, once the runtime has said that it runs.
pub(super) async fn finish(client: &Client, name: &str) {
    let status = json!({ "status": { "phase": "Succeeded" } });
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let phase = async || api.get(name).await.unwrap().status.and_then(|status| status.phase);
    while phase().await.as_deref() != Some("Running") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
}

/// What kubelets do with pods. Dropped, they do nothing any more.
pub(super) struct Runtime(JoinHandle<()>);

impl Runtime {
    pub(super) fn start(client: Client) -> Self {
        Self(tokio::spawn(async move {
            let mut ending = BTreeMap::new();
            loop {
                let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
                if let Ok(pods) = api.list(&ListParams::default()).await {
                    for pod in &pods {
                        // What fails is tried again; it may be gone.
                        let _ = attend(&api, pod, &mut ending).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn attend(
    api: &Api<Pod>,
    pod: &Pod,
    ending: &mut BTreeMap<String, Instant>,
) -> Result<(), kube::Error> {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap());
    if pod.metadata.deletion_timestamp.is_some() {
        let takes = pod.annotations().get(TAKES).map_or(0, |seconds| seconds.parse().unwrap());
        let began = *ending.entry(uid.clone()).or_insert_with(Instant::now);
        if began.elapsed() < Duration::from_secs(takes) {
            return Ok(());
        }
        let preconditions = Some(Preconditions { uid: Some(uid), resource_version: None });
        let now = DeleteParams { grace_period_seconds: Some(0), preconditions, ..DeleteParams::default() };
        return api.delete(&name, &now).await.map(drop);
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase.is_none_or(|phase| phase == "Pending") {
        let ready = json!({ "type": "Ready", "status": "True" });
        let status = json!({ "status": { "phase": "Running", "conditions": [ready] } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    }
    Ok(())
}

use std::path::Path;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use monok8s_sdk::api::crds;
use serde_json::{Value, json};
use xtask::controlplane::{ControlPlane, Kubectl, Options};
use xtask::host::workspace_root;

/// A control plane with the CRDs, established.
pub(super) async fn control_plane() -> ControlPlane {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    apply_crds(&control_plane.kubectl()).await;
    control_plane
}

/// Applies the shipped CRDs as a person does; a warning of the API server fails the test.
pub(super) async fn apply_crds(kubectl: &Kubectl) {
    let output = kubectl.run(&["apply", "-f", &shipped("crds")]).await.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", output.stderr);
    kubectl.wait_for_crds().await.unwrap();
}

/// The path of something in the repository, for a command line.
pub(super) fn shipped(path: impl AsRef<Path>) -> String {
    workspace_root().join(path).display().to_string()
}

/// An object of `testdata/compat`.
pub(super) fn sample(name: &str) -> Value {
    let path = workspace_root().join("testdata/compat/v0.1.0").join(name);
    serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The generated schema of a kind.
pub(super) fn schema_of(kind: &str) -> Value {
    let crds = crds();
    let crd = crds.iter().find(|crd| crd["spec"]["names"]["kind"] == kind).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// `patch` merged into `object` (RFC 7386).
pub(super) fn merged(mut object: Value, patch: &Value) -> Value {
    let (Some(fields), Some(patch)) = (object.as_object_mut(), patch.as_object()) else {
        return patch.clone();
    };
    for (key, change) in patch {
        if change.is_null() {
            fields.remove(key);
        } else {
            let before = fields.remove(key).unwrap_or_else(|| json!({}));
            fields.insert(key.clone(), merged(before, change));
        }
    }
    object
}

/// What the API server says to objects, without keeping them.
pub(super) struct Judge(Client);

impl Judge {
    pub(super) fn new(control_plane: &ControlPlane) -> Self {
        Self(control_plane.client())
    }

    pub(super) fn api(&self, object: &Value) -> Api<DynamicObject> {
        let kind = object["kind"].as_str().unwrap();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("monok8s.io", "v1alpha1", kind));
        Api::all_with(self.0.clone(), &resource)
    }

    /// Creates it for good.
    pub(super) async fn create(&self, object: &Value) -> Result<(), String> {
        self.post(object, false).await
    }

    /// Whether it could be created.
    pub(super) async fn judge(&self, object: &Value) -> Result<(), String> {
        self.post(object, true).await
    }

    /// Whether the object of this name could be changed by a merge patch, of itself or of its status.
    pub(super) async fn judge_change(&self, object: &Value, patch: &Value) -> Result<(), String> {
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let name = object["metadata"]["name"].as_str().unwrap();
        let api = self.api(object);
        let answer = match patch.get("status") {
            Some(_) => api.patch_status(name, &params, &Patch::Merge(patch)).await,
            None => api.patch(name, &params, &Patch::Merge(patch)).await,
        };
        refusal(answer)
    }

    async fn post(&self, object: &Value, dry_run: bool) -> Result<(), String> {
        let typed = serde_json::from_value(object.clone()).unwrap();
        refusal(self.api(object).create(&PostParams { dry_run, ..PostParams::default() }, &typed).await)
    }
}

fn refusal<T>(answer: kube::Result<T>) -> Result<(), String> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => Err(status.message.clone()),
        Err(error) => panic!("{error}"),
    }
}

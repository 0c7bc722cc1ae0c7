//! Kubeconfig documents that hold everything they need, so that they can be copied anywhere.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::pki::Identity;

/// How a user proves who it is.
#[derive(Debug, Clone)]
pub(super) enum Credential {
    Certificate(Identity),
    Token(String),
}

/// Address and authority of the API server.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    pub(super) server: String,
    pub(super) authority: String,
}

/// Writes the kubeconfig of a user that presents `credential`.
pub(super) fn write(path: &Path, cluster: &Cluster, credential: &Credential) -> Result<()> {
    let text = serde_yaml::to_string(&document(cluster, credential))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn document(cluster: &Cluster, credential: &Credential) -> Value {
    let base64 = |pem: &str| ByteString(pem.as_bytes().to_vec());
    let user = match credential {
        Credential::Token(token) => json!({"token": token}),
        Credential::Certificate(Identity { certificate, key }) => {
            json!({"client-certificate-data": base64(certificate), "client-key-data": base64(key)})
        }
    };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "monok8s", "cluster": {
            "server": cluster.server,
            "certificate-authority-data": base64(&cluster.authority),
        }}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "monok8s", "context": {"cluster": "monok8s", "user": "user"}}],
        "current-context": "monok8s",
    })
}

/// Configuration of a client for the kubeconfig at `path`. No proxy: the server is on loopback.
pub(super) async fn config(path: &Path) -> Result<Config> {
    let document = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config = Config::from_custom_kubeconfig(document, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(config)
}

/// A client for the kubeconfig at `path`.
pub(super) async fn client(path: &Path) -> Result<Client> {
    Ok(Client::try_from(config(path).await?)?)
}

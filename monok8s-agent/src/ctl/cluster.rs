//! The cluster, for the commands of people who are not at a node.

use anyhow::{Context as _, Result};
use clap::Args;
use kube::Client;
use kube::config::KubeConfigOptions;
use monok8s_sdk::api::OSUpgrade;
use monok8s_sdk::status::Cluster;

/// Which cluster: as kubectl finds it.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    /// Context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArgs {
    /// Does something with the cluster, and waits for it.
    pub(super) fn with<T>(&self, work: impl AsyncFnOnce(Client) -> Result<T>) -> Result<T> {
        // Clients built before a provider is chosen fail; somebody may have chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(async {
            let client = self.client().await?;
            work(client).await
        })
    }

    async fn client(&self) -> Result<Client> {
        let mut config = match &self.context {
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
                kube::Config::from_kubeconfig(&options).await.context("cannot use this context")?
            }
            None => kube::Config::infer()
                .await
                .context("no cluster: set KUBECONFIG, or run this where kubectl works")?,
        };
        // To an eviction a 429 is the answer.
        config.default_retry = false;
        Client::try_from(config).context("cannot make a client for the cluster")
    }
}

/// Reads what the reports are made of.
pub(super) async fn read(client: &Client) -> Result<Cluster> {
    Cluster::read(client).await.context("cannot read the cluster")
}

/// Names of upgrades that a command is about: the one that was named, or all.
pub(super) fn names(cluster: &Cluster, name: Option<&str>) -> Result<Vec<String>> {
    let all: Vec<String> =
        cluster.upgrades.iter().filter_map(|upgrade: &OSUpgrade| upgrade.metadata.name.clone()).collect();
    match name {
        Some(name) if all.iter().any(|known| known == name) => Ok(vec![name.to_owned()]),
        Some(name) if all.is_empty() => anyhow::bail!("there is no OSUpgrade {name}, and no other one"),
        Some(name) => anyhow::bail!("there is no OSUpgrade {name}: there are {}", all.join(", ")),
        None => Ok(all),
    }
}

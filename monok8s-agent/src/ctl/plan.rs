//! `ctl plan`: what an upgrade would do, before anybody applies it.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, EvictParams, ListParams, PostParams};
use kube::{Api, Client};
use monok8s_sdk::api::{DrainPolicy, ImageRef, OSUpgrade, Resolved};
use monok8s_sdk::catalog::source::{CatalogFetcher, ConfigMaps, FetchLimits, Fetched};
use monok8s_sdk::catalog::{Catalog, Limits, hop_candidates};
use monok8s_sdk::health::Expression;
use monok8s_sdk::http::{HttpOptions, http_client};
use monok8s_sdk::manifests::DEFAULT_NAMESPACE;
use monok8s_sdk::rollout::{PodView, Target};
use monok8s_sdk::status::{Cluster, Preview};
use monok8s_sdk::version::OsVersion;

use super::Outcome;
use super::cluster::{ClusterArgs, read};
use super::output::Format;

/// Says what an upgrade would do: which nodes would go which way, in which order and until when, what would hold up
/// their drains, and which APIs in use the new version does not have any more. Changes nothing.
#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The manifest of an OSUpgrade, or - for standard input.
    file: PathBuf,

    /// Namespace of the controller, where a catalog in a ConfigMap is.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAMESPACE)]
    namespace: String,

    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Plan {
    pub(super) fn run(&self) -> Result<Outcome> {
        let upgrade = manifest(&self.file)?;
        let preview = self.cluster.with(async |client| self.preview(&client, &upgrade).await)?;
        self.output.print(&preview, || preview.text())?;
        Ok(if preview.rejected.is_some() { Outcome::Bad } else { Outcome::Good })
    }

    async fn preview(&self, client: &Client, upgrade: &OSUpgrade) -> Result<Preview> {
        upgrade.selector().context("spec")?;
        for (at, check) in upgrade.spec.rollout().health_checks.iter().enumerate() {
            Expression::parse(&check.expression).with_context(|| format!("rollout.healthChecks[{at}]"))?;
        }
        let cluster = read(client).await?;
        let catalog = self.catalog(client, upgrade).await?;
        let target = target(&cluster, &catalog, upgrade)?;
        let mut preview = Preview::of(&cluster, upgrade, &target, &BTreeMap::new());
        let spec = upgrade.spec.rollout().drain.unwrap_or_default();
        if spec.policy.unwrap_or_default() != DrainPolicy::Never {
            let pods = pods(client, preview.moves.iter().map(|node| node.node.as_str())).await?;
            preview = Preview::of(&cluster, upgrade, &target, &pods);
            for node in &mut preview.moves {
                let leaving = pods.get(&node.node).into_iter().flatten().filter(|pod| pod.leaves(&spec));
                for pod in leaving {
                    node.drain.extend(refusal(client, pod).await);
                }
                node.drain.sort();
                node.drain.dedup();
            }
        }
        preview.warnings = removed_apis(client, &preview.version).await;
        Ok(preview)
    }

    async fn catalog(&self, client: &Client, upgrade: &OSUpgrade) -> Result<Catalog> {
        let config_maps = Some(ConfigMaps { client: client.clone(), namespace: self.namespace.clone() });
        let http = http_client(&HttpOptions::default()).context("cannot make an HTTP client")?;
        let fetcher = CatalogFetcher { http, config_maps, limits: FetchLimits::default() };
        match fetcher.fetch(&upgrade.spec.catalog, None).await.context("cannot read the catalog")? {
            Fetched::Document { bytes, .. } => {
                Catalog::parse(&bytes, &Limits::default()).context("the catalog cannot be used")
            }
            Fetched::NotModified => {
                bail!("the catalog's server says that it did not change, and was not asked")
            }
        }
    }
}

fn manifest(file: &Path) -> Result<OSUpgrade> {
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    serde_yaml::from_str(&text).with_context(|| format!("{} is no OSUpgrade", file.display()))
}

/// What the operator would resolve it to.
fn target(cluster: &Cluster, catalog: &Catalog, upgrade: &OSUpgrade) -> Result<Target> {
    let found = catalog.resolve(&upgrade.spec.version, None)?;
    let running: BTreeSet<OsVersion> =
        cluster.fleet().nodes.iter().filter_map(|node| node.version.clone()).collect();
    let images = hop_candidates(catalog, &running, &found.version)?;
    let images = images.into_iter().map(ImageRef::from).collect();
    let resolved = Resolved { version: found.version, catalog_digest: catalog.digest(), images };
    Ok(Target { resolved, blocked: catalog.blocked().keys().cloned().collect() })
}

/// The pods of each of these nodes.
async fn pods(client: &Client, nodes: impl Iterator<Item = &str>) -> Result<BTreeMap<String, Vec<PodView>>> {
    let api: Api<Pod> = Api::all(client.clone());
    let mut all = BTreeMap::new();
    for node in nodes {
        let on = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = api.list(&on).await.with_context(|| format!("cannot list the pods of {node}"))?;
        all.insert(node.to_owned(), pods.iter().map(PodView::new).collect());
    }
    Ok(all)
}

/// What the API server has against an eviction now, asked by a dry run.
async fn refusal(client: &Client, pod: &PodView) -> Option<String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let dry = EvictParams {
        post_options: PostParams { dry_run: true, ..PostParams::default() },
        delete_options: Some(DeleteParams { dry_run: true, ..DeleteParams::default() }),
    };
    match api.evict(&pod.name, &dry).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) if status.is_not_found() => None,
        Err(kube::Error::Api(status)) => {
            let mut why =
                status.details.iter().flat_map(|details| &details.causes).map(|cause| cause.message.clone());
            let why = why.next_back().unwrap_or(status.message.clone());
            Some(format!("{}/{}: {why}", pod.namespace, pod.name))
        }
        Err(error) => Some(format!("{}/{} could not be asked about: {error}", pod.namespace, pod.name)),
    }
}

/// APIs that somebody asked this API server for since it started, and that the target does not have any more
/// (<https://kubernetes.io/docs/reference/using-api/deprecation-guide/>).
async fn removed_apis(client: &Client, target: &OsVersion) -> Vec<String> {
    let Ok(request) = http::Request::get("/metrics").body(Vec::new()) else { return Vec::new() };
    match client.request_text(request).await {
        Ok(metrics) => removed(&metrics, target),
        Err(error) => {
            vec![format!("the API server's metrics could not be read, which name APIs that go away: {error}")]
        }
    }
}

fn removed(metrics: &str, target: &OsVersion) -> Vec<String> {
    let minor = target.minor();
    let asked = metrics.lines().filter_map(|line| line.strip_prefix("apiserver_requested_deprecated_apis{"));
    let mut gone: Vec<String> = asked
        .filter_map(|labels| {
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            let release = label("removed_release")?;
            let (major, removed) = release.split_once('.')?;
            let removed = (major.parse::<u64>().ok()?, removed.parse::<u64>().ok()?);
            ((minor.major, minor.minor) >= removed).then(|| {
                let group = label("group").filter(|group| !group.is_empty()).map(|group| format!(".{group}"));
                let (resource, version) =
                    (label("resource").unwrap_or_default(), label("version").unwrap_or_default());
                format!(
                    "{resource}{}/{version} was asked for, and is gone from {release} on",
                    group.unwrap_or_default()
                )
            })
        })
        .collect();
    gone.sort();
    gone.dedup();
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apis_that_the_target_does_not_have_are_named() {
        let metrics = concat!(
            "apiserver_requested_deprecated_apis{group=\"flowcontrol.apiserver.k8s.io\",removed_release=\"1.35\",",
            "resource=\"flowschemas\",subresource=\"\",version=\"v1beta3\"} 1\n",
            "apiserver_requested_deprecated_apis{group=\"\",removed_release=\"\",resource=\"endpoints\",",
            "subresource=\"\",version=\"v1\"} 1\n",
            "apiserver_requested_deprecated_apis{group=\"a.example\",removed_release=\"1.36\",resource=\"as\",",
            "subresource=\"\",version=\"v1\"} 1\n",
        );
        let gone = removed(metrics, &"v1.35.4".parse().unwrap());
        assert_eq!(
            gone,
            ["flowschemas.flowcontrol.apiserver.k8s.io/v1beta3 was asked for, and is gone from 1.35 on"]
        );
        assert!(removed(metrics, &"v1.34.6".parse().unwrap()).is_empty());
    }
}

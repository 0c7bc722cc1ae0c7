//! `ctl pause`, `ctl resume` and `ctl retry`.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use anyhow::{Context as _, Result, bail};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use monok8s_sdk::api::{ANNOTATION_HOLD, OSUpgrade, OSUpgradeProgress};
use monok8s_sdk::rollout::Assessment;
use monok8s_sdk::status::{Cluster, Course, Report};
use serde_json::{Value, json};

use super::Outcome;
use super::cluster::{ClusterArgs, names, read};
use super::output;

const FIELD_MANAGER: &str = "monok8s-ctl";

/// Begins no further node, until ctl resume. It sets the annotation monok8s.io/hold, which no GitOps engine takes
/// back.
#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    which: Which,
}

/// Goes on where ctl pause stopped.
#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    which: Which,
}

/// Tries failed nodes again. It begins a new run of the upgrade, which also answers for a version that is in
/// quarantine; with --node, only that node is tried again, in the run that there is.
#[derive(Debug, Args)]
pub(super) struct Retry {
    #[command(flatten)]
    which: Which,

    /// Only this node.
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    node: Option<String>,
}

#[derive(Debug, Args)]
struct Which {
    /// The upgrade.
    #[arg(required_unless_present = "all")]
    name: Option<String>,

    /// Every upgrade.
    #[arg(long, conflicts_with = "name")]
    all: bool,

    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Which {
    /// Does the same to each upgrade, and prints what was done.
    fn each(&self, work: &impl AsyncFn(&Client, &Cluster, &str) -> Result<String>) -> Result<Outcome> {
        let done = self.cluster.with(async |client| {
            let cluster = read(&client).await?;
            let mut done = Vec::new();
            for name in names(&cluster, self.name.as_deref())? {
                done.push(work(&client, &cluster, &name).await?);
            }
            Ok(done)
        })?;
        output::print(&output::lines(done))?;
        Ok(Outcome::Good)
    }
}

impl Pause {
    pub(super) fn run(&self) -> Result<Outcome> {
        self.which.each(&async |client, _, name| {
            patch(client, name, json!({ "metadata": { "annotations": { ANNOTATION_HOLD: "true" } } }))
                .await?;
            Ok(format!("{name} is paused; a node that is past its commit finishes"))
        })
    }
}

impl Resume {
    pub(super) fn run(&self) -> Result<Outcome> {
        self.which.each(&async |client, cluster, name| {
            patch(client, name, json!({ "metadata": { "annotations": { ANNOTATION_HOLD: null } } })).await?;
            let upgrade = find(cluster, name);
            Ok(match upgrade.and_then(|upgrade| upgrade.spec.paused) {
                Some(true) => format!(
                    "{name} stays paused: its spec.paused is true, which is for its manifest to change"
                ),
                _ => format!("{name} goes on"),
            })
        })
    }
}

impl Retry {
    pub(super) fn run(&self) -> Result<Outcome> {
        let node = &self.node;
        self.which.each(&async |client, cluster, name| {
            let report = Report::of(cluster, name).with_context(|| format!("{name} is being deleted"))?;
            let failed = report.nodes.iter().filter(|node| node.assessment == Assessment::Degraded);
            let failed: Vec<_> =
                failed.filter(|line| node.as_ref().is_none_or(|node| *node == line.node)).collect();
            let nonce = json!({ "spec": { "retryNonce": format!("ctl-{}", Timestamp::now().as_second()) } });
            match (node, failed.as_slice()) {
                (None, []) if report.upgrade.course != Course::Stalled => {
                    Ok(format!("{name} has no failed node"))
                }
                (Some(node), []) => bail!("{node} has not failed in {name}"),
                (Some(node), [line, ..]) => {
                    let progress = line.progress.as_deref().context("it has no progress object")?;
                    let api: Api<OSUpgradeProgress> = Api::all(client.clone());
                    api.patch(progress, &params(), &Patch::Merge(nonce))
                        .await
                        .with_context(|| format!("cannot retry {node}"))?;
                    Ok(format!("{node} tries again"))
                }
                (None, _) => {
                    patch(client, name, nonce).await?;
                    Ok(format!("{name} begins a new run: {} failed nodes try again", failed.len()))
                }
            }
        })
    }
}

fn find<'c>(cluster: &'c Cluster, name: &str) -> Option<&'c OSUpgrade> {
    cluster.upgrades.iter().find(|upgrade| upgrade.metadata.name.as_deref() == Some(name))
}

pub(super) fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

async fn patch(client: &Client, name: &str, patch: Value) -> Result<()> {
    let api: Api<OSUpgrade> = Api::all(client.clone());
    api.patch(name, &params(), &Patch::Merge(patch))
        .await
        .map(drop)
        .with_context(|| format!("cannot change {name}"))
}

//! The node agent: observe, decide, act, report.
//!
//! One loop drives everything (`node`): it looks at the kernel, the disk, the loader, the record
//! and the API objects, asks `monok8s_sdk::node_upgrade::decide` for the one next step, and carries
//! it out. It makes no choice of its own about what a node does next. Downloads and read-backs run
//! beside it and end when the decision asks for something else.

mod act;
pub(crate) mod checks;
mod cluster;
mod commit;
mod config;
mod error;
mod failure;
pub(crate) mod health;
mod known;
mod node;
mod observe;
mod ordering;
mod orders;
mod osnode;
mod present;
mod report;
mod resolve;
mod spread;
mod status;
mod undeclared;
mod work;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use monok8s_sdk::catalog::source::{CatalogFetcher, ConfigMaps, FetchLimits};
use monok8s_sdk::http::{HttpOptions, http_client};
use monok8s_sdk::image::GuardFiles;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use cluster::{Cluster, ClusterError};
pub use commit::Commitment;
pub use config::{ArgumentError, Endpoint, HealthArgs, RunArgs};

use health::HealthProbe;
use known::Known;
use node::{Node, Parts};
use orders::{Orders, watch_orders};
use resolve::Resolver;
use work::{Effort, Workshop};

use crate::machine::Loader;
use crate::politeness::PressureLimit;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What cannot get better by itself: no configuration that leads to an API server.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let work = async {
        let (node, watching) = start(args).await?;
        tokio::select! {
            () = node.run() => {}
            () = watching => {}
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = work => ended,
        // Nothing to tidy up: whatever was under way goes on after the next start.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// An empty list is written as one empty name.
fn named(paths: Vec<String>) -> Vec<String> {
    paths.into_iter().filter(|path| !path.is_empty()).collect()
}

async fn start(args: RunArgs) -> anyhow::Result<(Node, impl Future<Output = ()>)> {
    let RunArgs {
        node_name,
        machine,
        reboot_command,
        health,
        guard_paths,
        guard_services,
        namespace,
        patience_seconds,
        politeness,
    } = args;
    let client = Client::try_default().await.context("cannot configure access to an API server")?;
    let http = http_client(&HttpOptions::default())?;
    let (sender, orders) = watch::channel(Orders::default());
    let watching = watch_orders(client.clone(), node_name.clone(), sender);
    let workshop = Workshop {
        host: machine.host(),
        layout: machine.layout(),
        http: http.clone(),
        politeness: politeness.with_default(PressureLimit::OF_A_NODE),
        guard: Arc::new(GuardFiles { programs: guard_paths, services: named(guard_services) }),
        kept: machine.kept_indexes(),
    };
    if let Some(missing) = workshop.politeness.missing(&workshop.host) {
        tracing::warn!("{missing}");
    }
    // Looked for in the first turn, and in every one until it is found.
    let loader = Loader::unknown(&machine);
    let config_maps = Some(ConfigMaps { client: client.clone(), namespace });
    let node = Node::new(Parts {
        cluster: Cluster::new(client, node_name),
        known: Known::new(orders),
        workshop,
        machine,
        loader,
        probe: HealthProbe::new(health)?,
        reboot_command,
        resolver: Resolver {
            fetcher: CatalogFetcher { http, config_maps, limits: FetchLimits::default() },
            arch: osnode::architecture(),
        },
        effort: Effort::new(Duration::from_secs(patience_seconds.into())),
    });
    Ok((node, watching))
}

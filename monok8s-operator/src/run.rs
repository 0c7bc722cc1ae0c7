//! The life of the operator: wait for the CRDs, get the Lease, watch, plan until stopped.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use monok8s_sdk::http::HttpError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{Admin, AdminError, Health, Readiness};
use crate::args::{LeaseMode, RunArgs};
use crate::catalogs::Catalogs;
use crate::events::Events;
use crate::health::HealthChecks;
use crate::leader::{Elector, Leadership, LeaseLost, identity};
use crate::metrics::Metrics;
use crate::observe::{Caches, KnownNodes};
use crate::plan::{Planner, Settings};
use crate::pods::Pods;
use crate::{crds, wake};

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The runtime or a signal handler could not be set up.
    #[error("cannot start")]
    Start(#[source] std::io::Error),
    /// The admin server cannot listen.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// No cluster is configured.
    #[error("no cluster to work on: run in a pod with a service account, or set KUBECONFIG")]
    NoCluster(#[source] Box<kube::config::InferConfigError>),
    /// The client could not be made from the configuration.
    #[error("cannot make a client of the cluster's configuration")]
    Client(#[source] Box<kube::Error>),
    /// There is no HTTP client for catalogs.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The Lease was lost.
    #[error(transparent)]
    Lease(Arc<LeaseLost>),
    /// A part of the operator ended though nothing asked it to.
    #[error("the {0} ended unexpectedly; this is a bug")]
    Ended(&'static str),
}

/// Runs until SIGTERM or SIGINT, in a runtime of its own.
///
/// # Errors
///
/// If it cannot start, and when the Lease is lost.
pub fn blocking(args: &RunArgs) -> Result<(), RunError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(RunError::Start)?;
    let done = runtime.block_on(run(args));
    // A connection that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn run(args: &RunArgs) -> Result<(), RunError> {
    let (metrics, health) = (Arc::new(Metrics::default()), Arc::new(Health::default()));
    let admin = Admin::bind(args.metrics_addr, Arc::clone(&health), Arc::clone(&metrics)).await?;
    if let Ok(address) = admin.address() {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, "started");
    }
    tokio::spawn(admin.serve());
    let mut stop = stop_signals().map_err(RunError::Start)?;
    let mut config = kube::Config::infer().await.map_err(|error| RunError::NoCluster(Box::new(error)))?;
    // Whoever asks decides what a 429 means: to an eviction it is the answer.
    config.default_retry = false;
    let client = Client::try_from(config).map_err(|error| RunError::Client(Box::new(error)))?;
    tokio::select! {
        () = crds::wait(&client, &health) => {}
        () = stopped(&mut stop) => return Ok(()),
    }
    let mut post = Post::take(args, &client, stop.clone());
    health.set(Readiness::StandingBy);
    tokio::select! {
        held = post.leadership.acquired() => if !held { return Err(post.lost().await) },
        () = stopped(&mut stop) => return post.leave().await,
    }
    metrics.leading(true);
    let planner = planner(args, &client, &post.leadership, &metrics, &health)?;
    tokio::select! {
        () = planner.run(stop.clone()) => {}
        error = post.lost() => {
            metrics.leading(false);
            return Err(error);
        }
    }
    metrics.leading(false);
    if *stop.borrow() { post.leave().await } else { Err(RunError::Ended("planner")) }
}

fn planner(
    args: &RunArgs,
    client: &Client,
    leadership: &Leadership,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> Result<Planner, RunError> {
    let (bell, ear) = wake::bell();
    let refresh = Duration::from_secs(u64::from(args.catalog_refresh_seconds));
    let catalogs =
        Catalogs::new(client.clone(), args.namespace(), refresh, bell.clone(), Arc::clone(metrics))?;
    let settings = Settings {
        operator_node: args.node_name(),
        operator_pod: args.pod(),
        max_unavailable: args.max_unavailable.clone(),
    };
    Ok(Planner {
        client: client.clone(),
        caches: Caches::default(),
        nodes: KnownNodes::default(),
        pods: Pods::new(client.clone(), bell.clone(), Arc::clone(metrics)),
        catalogs,
        health_checks: HealthChecks::new(client.clone(), bell.clone(), Arc::clone(metrics)),
        leadership: leadership.clone(),
        metrics: Arc::clone(metrics),
        health: Arc::clone(health),
        events: Events::start(client.clone()),
        settings,
        bell,
        ear,
    })
}

/// The right to act, and the task that keeps it.
struct Post {
    leadership: Leadership,
    release: watch::Sender<bool>,
    election: Option<JoinHandle<Result<(), Arc<LeaseLost>>>>,
}

impl Post {
    fn take(args: &RunArgs, client: &Client, stop: watch::Receiver<bool>) -> Self {
        let (release, released) = watch::channel(false);
        if args.lease_mode() == LeaseMode::None {
            return Self { leadership: Leadership::unconditional(stop), release, election: None };
        }
        let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace());
        let duration = Duration::from_secs(u64::from(args.lease_duration_seconds));
        let (elector, leadership) = Elector::new(leases, identity(), duration, stop);
        Self { leadership, release, election: Some(tokio::spawn(elector.run(released))) }
    }

    /// Waits until the Lease is lost; for ever if none is needed.
    async fn lost(&mut self) -> RunError {
        match &mut self.election {
            None => std::future::pending().await,
            Some(election) => match election.await {
                Ok(Err(lost)) => RunError::Lease(lost),
                Ok(Ok(())) | Err(_) => RunError::Ended("election"),
            },
        }
    }

    /// Gives the Lease up.
    async fn leave(self) -> Result<(), RunError> {
        let Self { leadership: _, release, election } = self;
        release.send_replace(true);
        match election {
            None => Ok(()),
            Some(election) => match election.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(lost)) => Err(RunError::Lease(lost)),
                Err(_) => Err(RunError::Ended("election")),
            },
        }
    }
}

fn stop_signals() -> std::io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        sender.send_replace(true);
        // A second signal ends a stop that hangs.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(receiver)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = stop.wait_for(|stop| *stop).await;
}

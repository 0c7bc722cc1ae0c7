//! The race between the programs themselves: an upgrade is held and let go at random moments around
//! the grant, while someone watches the loader and the cordon.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use monok8s_sdk::api::{ANNOTATION_HOLD, OSUpgrade, OSUpgradeProgress, ProgressPhase};
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{BootBackend as _, TrialState};
use serde_json::json;
use tokio::task::JoinHandle;
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;
use xtask::rootfs::RootfsSpec;
use xtask::testbed::Testbed;

const MIB: u64 = 1 << 20;
const VERSIONS: [&str; 2] = ["v1.35.1", "v1.35.4"];
const NODE: &str = "node-1";
const LONG: Duration = Duration::from_secs(60);
const PLAYED: Duration = Duration::from_secs(30);

/// How often the loader was seen armed, and each time it was so on a node without a cordon.
#[derive(Debug, Default)]
struct Watched {
    armed: usize,
    violations: Vec<TrialState>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_at_any_moment_never_leaves_an_armed_node_without_its_cordon() -> Result<()> {
    let mut testbed = Testbed::start(ControllerManager::Running).await?;
    for version in VERSIONS {
        testbed.publish(version, &RootfsSpec::of(version).sized(16 * MIB, 4 * MIB))?;
    }
    testbed.add_machine(NodeSpec::worker(NODE, VERSIONS[0]), VERSIONS[0]).await?;
    testbed.start_operator().await?;
    let watching = watch(testbed.client(), testbed.machine(NODE)?.loader_path().to_owned());

    let (mut withdrawn, mut committed) = (0, 0);
    let began = Instant::now();
    // A stride that shares no factor with its range, so that the moments spread over the way from
    // the cordon to the commit.
    let mut delay = 0;
    let mut hop = 0;
    while began.elapsed() < PLAYED {
        hop += 1;
        let version = VERSIONS[hop % 2];
        hold(&testbed, false).await?;
        aim(&testbed, version).await?;
        reach(&testbed, version, |order| order.phase() != ProgressPhase::Pending).await?;
        // What may be staged is staged under a hold too.
        hold(&testbed, true).await?;
        reach(&testbed, version, |order| order.phase() == ProgressPhase::Staged || has_left(order)).await?;
        while began.elapsed() < PLAYED {
            delay = (delay + 37) % 251;
            hold(&testbed, false).await?;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            hold(&testbed, true).await?;
            let outcome = reach(&testbed, version, |order| has_left(order) || !is_granted(order)).await?;
            if has_left(&outcome) {
                committed += 1;
                break;
            }
            withdrawn += 1;
        }
        hold(&testbed, false).await?;
        reach(&testbed, version, |order| order.phase() == ProgressPhase::Completed).await?;
    }
    let watched = watching.await?;
    println!("{withdrawn} holds came in time, {committed} too late; {watched:?}");
    ensure!(watched.violations.is_empty(), "armed without a cordon: {watched:?}");
    ensure!(withdrawn > 0 && committed > 1 && watched.armed > 0, "nothing was raced: {watched:?}");
    let free = || async { Ok((!is_cordoned(&testbed.client()).await?).then_some(())) };
    testbed.wait_for("the cordon to be gone", LONG, free).await
}

/// Looks at the loader, the Node, and the loader again: what was armed both times was so between.
fn watch(client: Client, loader: PathBuf) -> JoinHandle<Watched> {
    tokio::spawn(async move {
        let mut watched = Watched::default();
        let until = Instant::now() + PLAYED;
        let trial = || SimulatedLoader::open(&loader).status().ok().and_then(|status| status.trial);
        while Instant::now() < until {
            if let Some(before) = trial() {
                watched.armed += 1;
                let cordoned = is_cordoned(&client).await.unwrap_or(true);
                if !cordoned && trial() == Some(before) {
                    watched.violations.push(before);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        watched
    })
}

async fn is_cordoned(client: &Client) -> Result<bool> {
    let node = Api::<Node>::all(client.clone()).get(NODE).await?;
    Ok(node.spec.and_then(|spec| spec.unschedulable) == Some(true))
}

/// Points the upgrade somewhere else.
async fn aim(testbed: &Testbed, version: &str) -> Result<()> {
    let catalog = testbed.catalog(VERSIONS[0]);
    let object = json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": "OSUpgrade",
        "metadata": { "name": "up" },
        "spec": {
            "version": version,
            "nodeSelector": {},
            "downgradePolicy": "Allow",
            "catalog": { "inline": catalog },
        },
    });
    testbed.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &object.to_string()).await.map(drop)
}

/// Holds the upgrade, as a person does beside Git.
async fn hold(testbed: &Testbed, on: bool) -> Result<()> {
    let api: Api<OSUpgrade> = Api::all(testbed.client());
    let held = on.then_some("true");
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { ANNOTATION_HOLD: held } } }));
    if api.get_opt("up").await?.is_some() {
        api.patch("up", &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

/// The order of the latest run, once it leads to `version` and is as wanted.
async fn reach(
    testbed: &Testbed,
    version: &str,
    wanted: impl Fn(&OSUpgradeProgress) -> bool,
) -> Result<OSUpgradeProgress> {
    testbed
        .wait_for(&format!("the order of {version}"), LONG, || async {
            let all = testbed.progresses().await?.into_values();
            let latest = all.max_by_key(|order| order.spec.order.as_ref().map(|order| order.run));
            Ok(latest.filter(|order| leads_to(order, version) && wanted(order)))
        })
        .await
}

fn leads_to(order: &OSUpgradeProgress, version: &str) -> bool {
    let hops = order.spec.order.as_ref().map(|order| order.hops.as_slice()).unwrap_or_default();
    hops.last().is_some_and(|hop| hop.version.to_string() == version)
}

/// Whether the node committed.
fn has_left(order: &OSUpgradeProgress) -> bool {
    order.phase().is_committed() || order.phase() == ProgressPhase::Completed
}

fn is_granted(order: &OSUpgradeProgress) -> bool {
    order.spec.order.as_ref().is_some_and(|order| order.boot.is_some())
}

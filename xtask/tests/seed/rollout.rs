//! "Monitor upgrades": the guide's three upgrades on two machines, both of its tables, and what
//! comes of them when one is changed to overlap another.

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _};
use monok8s_sdk::api::{OSUpgradeProgress, ProgressPhase, UpgradePhase};
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::controlplane::ControllerManager;
use xtask::http::{Fault, Times};
use xtask::kubelet::NodeSpec;
use xtask::rootfs::RootfsSpec;
use xtask::testbed::{Testbed, artifact_path};

use super::guide::{apply, upgrade};
use super::look::{described, get, kstatus, phase, progress_in, progress_until, told};
use super::requests::DIGEST;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_upgraded_watched_governed_and_retried() {
    let mut testbed = Testbed::start(ControllerManager::Running).await.unwrap();
    for version in ["v1.34.1", "v1.35.3", "v1.35.4", "v1.35.5"] {
        testbed.publish(version, &RootfsSpec::of(version).sized(24 * MIB, 4 * MIB)).unwrap();
    }
    for node in ["node-1", "node-2"] {
        testbed.add_machine(NodeSpec::worker(node, "v1.34.1"), "v1.34.1").await.unwrap();
    }
    testbed.start_operator().await.unwrap();

    let (slow, quick) = one_node_is_done_while_the_other_one_downloads(&testbed).await;
    the_tables_are_those_of_the_guide(&testbed, &slow, &quick).await;
    describe_shows_the_fields_of_the_guide(&testbed, &slow).await;
    a_higher_version_governs_and_the_lower_one_lets_go(&testbed, &slow, &quick).await;
    a_failed_node_is_retried_under_the_operator(&testbed).await;
}

/// The guide's three upgrades. Of the two nodes that `my-upgrade-2` selects, the first one to
/// download finds a slow server. Returns the progress objects of the slow and of the quick node.
async fn one_node_is_done_while_the_other_one_downloads(
    testbed: &Testbed,
) -> (OSUpgradeProgress, OSUpgradeProgress) {
    let slow = Fault::Throttle { bytes_per_second: 40_000 };
    testbed.server().inject(&artifact_path("v1.35.3"), slow, Times::First(1));
    let mut catalog = testbed.catalog("v1.35.4");
    let older = format!("  - {{version: v1.33.2, url: 'http://localhost:8000/x', checksum: '{DIGEST}'}}\n");
    catalog.push_str(&older);
    let catalog = json!({"inline": catalog});
    for object in [
        upgrade("my-upgrade-3", "stable", &json!({"disktype": "ssd"}), &catalog),
        upgrade("my-upgrade-2", "v1.35.3", &json!({}), &catalog),
        upgrade("my-downgrade-1", "v1.33.2", &json!({}), &catalog),
    ] {
        apply(testbed, &object).await;
    }
    told(testbed, "my-upgrade-3", &UpgradePhase::Pending, "NoMatchingNodes").await;
    told(testbed, "my-downgrade-1", &UpgradePhase::Rejected, "DowngradeRefused").await;
    let quick =
        progress_until(testbed, "one of two nodes", |it| it.phase() == ProgressPhase::Completed).await;
    let slow =
        progress_until(testbed, "the other node", |it| it.spec.node_name != quick.spec.node_name).await;
    (slow, quick)
}

async fn the_tables_are_those_of_the_guide(
    testbed: &Testbed,
    slow: &OSUpgradeProgress,
    quick: &OSUpgradeProgress,
) {
    let table = get(testbed, "osupgrades").await;
    assert_eq!(table.columns, ["NAME", "DESIRED", "RESOLVED", "PHASE"]);
    assert_eq!(table.row("my-upgrade-3"), ["stable", "v1.35.4", "Pending"]);
    assert_eq!(table.row("my-upgrade-2"), ["v1.35.3", "v1.35.3", "Accepted"]);
    assert_eq!(table.row("my-downgrade-1"), ["v1.33.2", "v1.33.2", "Rejected"]);

    let table = get(testbed, "osupgradeprogresses").await;
    assert_eq!(table.columns, ["NAME", "NODE", "SOURCE", "CURRENT", "TARGET", "STATUS"]);
    let (slow_node, quick_node) = (&slow.spec.node_name, &quick.spec.node_name);
    assert_eq!(table.row(&slow.name_any()), [slow_node, "my-upgrade-2", "v1.34.1", "v1.35.3", "Downloading"]);
    assert_eq!(table.row(&quick.name_any()), [quick_node, "my-upgrade-2", "v1.35.3", "v1.35.3", "Completed"]);
    assert_eq!(table.rows.len(), 2);
}

async fn describe_shows_the_fields_of_the_guide(testbed: &Testbed, slow: &OSUpgradeProgress) {
    let name = slow.name_any();
    let description = testbed.kubectl().succeed(&["describe", "osupgradeprogress", &name]).await.unwrap();
    for (field, value) in [
        ("Current Version", Some("v1.34.1")),
        ("Target Version", Some("v1.35.3")),
        ("Phase", Some("Downloading")),
        ("Completed At", None),
        ("Retry Count", Some("0")),
        ("Inactive Partition", Some("B")),
        ("Failure Reason", Some("")),
    ] {
        assert_eq!(described(&description, field), value, "{field}\n{description}");
    }
    for field in ["Started At", "Last Updated At", "Message"] {
        assert!(described(&description, field).is_some(), "{field}\n{description}");
    }
}

/// `my-upgrade-3` is changed to select every node.
async fn a_higher_version_governs_and_the_lower_one_lets_go(
    testbed: &Testbed,
    slow: &OSUpgradeProgress,
    quick: &OSUpgradeProgress,
) {
    let selector = r#"[{"op": "replace", "path": "/spec/nodeSelector", "value": {}}]"#;
    let command = ["patch", "osupgrade", "my-upgrade-3", "--type", "json", "-p", selector];
    testbed.kubectl().succeed(&command).await.unwrap();
    progress_in(testbed, &slow.name_any(), &ProgressPhase::Superseded).await;
    let overruled = phase(testbed, "my-upgrade-2", &UpgradePhase::Superseded).await;
    assert_eq!(kstatus(&overruled), ["True", "False", "False"]);
    let done = phase(testbed, "my-upgrade-3", &UpgradePhase::Completed).await;
    assert_eq!(kstatus(&done), ["True", "False", "False"]);
    assert_eq!(done.nodes.unwrap().up_to_date, 2);

    assert_eq!(versions(testbed, &slow.spec.node_name), [(Slot::A, "v1.34.1"), (Slot::B, "v1.35.4")]);
    let quick_ran = [(Slot::A, "v1.34.1"), (Slot::B, "v1.35.3"), (Slot::A, "v1.35.4")];
    assert_eq!(versions(testbed, &quick.spec.node_name), quick_ran);
    for machine in testbed.machines() {
        let image = &testbed.artifact("v1.35.4").unwrap().image;
        assert_eq!(machine.slot_digest(machine.booted().unwrap(), image.bytes).unwrap(), image.digest);
    }
    assert_eq!(phase_of(testbed, quick).await, ProgressPhase::Completed);
    assert_eq!(phase_of(testbed, slow).await, ProgressPhase::Superseded);
    nobody_is_cordoned(testbed).await;
}

async fn a_failed_node_is_retried_under_the_operator(testbed: &Testbed) {
    testbed.server().inject(&artifact_path("v1.35.5"), Fault::Status(404), Times::Always);
    let selector = json!({"kubernetes.io/hostname": "node-1"});
    let catalog = json!({"inline": testbed.catalog("v1.35.4")});
    apply(testbed, &upgrade("my-upgrade-4", "v1.35.5", &selector, &catalog)).await;
    let of_upgrade = |phase: ProgressPhase| {
        move |it: &OSUpgradeProgress| it.spec.source_ref.name == "my-upgrade-4" && it.phase() == phase
    };
    let failed = progress_until(testbed, "a failed download", of_upgrade(ProgressPhase::Failed)).await;
    assert_eq!(failed.status.as_ref().unwrap().failure_reason.as_deref(), Some("ArtifactNotFound"));
    nobody_is_cordoned(testbed).await;

    testbed.server().heal(&artifact_path("v1.35.5"));
    let nonce = r#"{"spec":{"retryNonce":"retry-1"}}"#;
    let command = ["patch", "osupgradeprogress", &failed.name_any(), "--type", "merge", "-p", nonce];
    testbed.kubectl().succeed(&command).await.unwrap();
    let done = progress_until(testbed, "the retry", of_upgrade(ProgressPhase::Completed)).await;
    let status = done.status.unwrap();
    assert_eq!((status.retry_count, status.failure_reason.as_deref()), (Some(1), Some("")));
    phase(testbed, "my-upgrade-4", &UpgradePhase::Completed).await;
    nobody_is_cordoned(testbed).await;
}

/// What a machine has booted, in order.
fn versions(testbed: &Testbed, node: &str) -> Vec<(Slot, &'static str)> {
    let known = ["v1.34.1", "v1.35.3", "v1.35.4"];
    let boots = testbed.machine(node).unwrap().boots();
    let known = |version: &str| *known.iter().find(|known| **known == version).unwrap();
    boots.iter().map(|boot| (boot.slot, known(&boot.version))).collect()
}

async fn phase_of(testbed: &Testbed, progress: &OSUpgradeProgress) -> ProgressPhase {
    testbed.progresses().await.unwrap()[&progress.name_any()].phase()
}

async fn nobody_is_cordoned(testbed: &Testbed) {
    let nodes = Api::<Node>::all(testbed.client()).list(&kube::api::ListParams::default()).await.unwrap();
    for node in nodes {
        let spec: Value = serde_json::to_value(&node.spec).unwrap();
        assert_ne!(spec["unschedulable"], true, "{} is cordoned", node.name_any());
    }
}

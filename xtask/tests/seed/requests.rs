//! The chapters that ask for upgrades and need no machine: two Nodes, and an operator that judges.

use monok8s_sdk::api::UpgradePhase::{Accepted, Pending, Rejected};
use serde_json::json;
use xtask::controlplane::ControllerManager;
use xtask::kubelet::{Kubelet, NodeSpec};
use xtask::testbed::Testbed;

use super::guide::{self, apply, asking_for};
use super::look::{get, kstatus, phase, told};
use super::{catalogs, controller, selectors};

/// A digest that is one.
pub(super) const DIGEST: &str = "sha256:99af82a263deca44ad91d21d684f0fa944d5d0456a1da540f1c644f8aa59b14b";

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guide_asks_for_is_judged_as_it_says() {
    let mut testbed = Testbed::start(ControllerManager::Running).await.unwrap();
    let ssd = NodeSpec::worker("node-1", "v1.34.1").label("disktype", "ssd");
    let _node_1 = Kubelet::start(testbed.client(), &ssd).await.unwrap();
    let _node_2 = Kubelet::start(testbed.client(), &NodeSpec::worker("node-2", "v1.34.1")).await.unwrap();

    controller::the_agents_have_the_name_that_the_guide_uses(&testbed).await;
    controller::without_an_image_it_runs_on_managed_nodes_from_what_they_have(&testbed).await;
    controller::with_an_image_it_runs_that_one(&testbed).await;
    testbed.start_operator().await.unwrap();

    the_upgrade_as_written_is_rejected(&testbed).await;
    bad_entries_have_a_reason_and_hide_nothing(&testbed).await;
    a_downgrade_is_rejected_with_its_version_shown(&testbed).await;
    catalogs::one_that_cannot_be_reached_is_waited_for(&testbed).await;
    catalogs::a_url_is_read(&testbed).await;
    catalogs::a_config_map_takes_one_more_rule(&testbed).await;
    selectors::select_what_they_say_and_mistakes_select_nothing(&testbed).await;
}

async fn the_upgrade_as_written_is_rejected(testbed: &Testbed) {
    let file = guide::file("upgrade.yaml");
    testbed.kubectl().succeed(&["apply", "-f", &file.to_string_lossy()]).await.unwrap();
    let message = told(testbed, "my-upgrade-2", &Rejected, "VersionNotInCatalog").await;
    for version in ["v1.35.3", "v1.35.1", "v1.35.4"] {
        assert!(message.contains(version), "{version}: {message}");
    }
    let status = phase(testbed, "my-upgrade-2", &Rejected).await;
    assert_eq!(kstatus(&status), ["False", "False", "True"]);
}

async fn bad_entries_have_a_reason_and_hide_nothing(testbed: &Testbed) {
    for (name, version, checksum) in [
        ("asks-for-abc", "v1.34.6", "sha256:abc"),
        ("asks-for-ghi", "v1.35.0", "sha256:ghi"),
        ("asks-for-jkl", "v1.35.4", "sha256:jkl"),
    ] {
        apply(testbed, &asking_for(name, version)).await;
        let message = told(testbed, name, &Rejected, "ImageUnusable").await;
        assert!(message.contains(version) && message.contains(checksum), "{message}");
    }
    apply(testbed, &asking_for("asks-for-blocked", "v1.34.0")).await;
    told(testbed, "asks-for-blocked", &Rejected, "VersionBlocked").await;

    apply(testbed, &asking_for("asks-for-stable", "stable")).await;
    let status = phase(testbed, "asks-for-stable", &Accepted).await;
    assert_eq!(get(testbed, "osupgrades").await.row("asks-for-stable"), ["stable", "v1.35.1", "Accepted"]);
    assert_eq!(kstatus(&status), ["Unknown", "True", "False"]);
    assert_eq!(status.nodes.unwrap().total, 2);
    forget(testbed, "asks-for-stable").await;
}

async fn a_downgrade_is_rejected_with_its_version_shown(testbed: &Testbed) {
    let image =
        |version: &str| json!({"version": version, "url": "http://localhost:8000/x", "checksum": DIGEST});
    let catalog = json!({"images": [image("v1.33.2"), image("v1.35.3")]}).to_string();
    let downgrade = guide::upgrade("my-downgrade-1", "v1.33.2", &json!({}), &json!({"inline": catalog}));
    apply(testbed, &downgrade).await;
    let message = told(testbed, "my-downgrade-1", &Rejected, "DowngradeRefused").await;
    assert!(message.contains("v1.34.1") && message.contains("v1.33.2"), "{message}");
    let table = get(testbed, "osupgrades").await;
    assert_eq!(table.columns, ["NAME", "DESIRED", "RESOLVED", "PHASE"]);
    assert_eq!(table.row("my-downgrade-1"), ["v1.33.2", "v1.33.2", "Rejected"]);
}

/// Deletes an accepted upgrade, so that it does not govern the nodes of the next chapter. Its
/// progress objects go later: the garbage collector looks for new kinds every 30 seconds only.
pub(super) async fn forget(testbed: &Testbed, name: &str) {
    testbed.kubectl().succeed(&["delete", "osupgrade", name]).await.unwrap();
}

/// Waits until an upgrade without a usable catalog says so.
pub(super) async fn waits_for_its_catalog(testbed: &Testbed, name: &str) -> String {
    told(testbed, name, &Pending, "CatalogUnavailable").await
}

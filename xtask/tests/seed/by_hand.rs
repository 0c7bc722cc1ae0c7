//! A hand-made `OSUpgradeProgress` with no operator, and "Retry a failed upgrade" on it.

use monok8s_sdk::api::{FailureReason, OSUpgradeProgress, ProgressPhase};
use monok8s_sdk::slot::Slot;
use serde_json::json;
use xtask::controlplane::ControllerManager;
use xtask::http::{Fault, Times};
use xtask::kubelet::NodeSpec;
use xtask::rootfs::RootfsSpec;
use xtask::testbed::{Testbed, artifact_path};

use super::guide::{self, apply};
use super::look::{described, get, progress_in, progress_until};

const OLD: &str = "v1.34.1";
const NEW: &str = "v1.35.3";
/// The guide's name for it.
const PROGRESS: &str = "osupgrade-abc123f";
const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_a_hand_made_object_fails_is_retried_and_goes_all_the_way() {
    let mut testbed = Testbed::start(ControllerManager::Absent).await.unwrap();
    for version in [OLD, NEW] {
        testbed.publish(version, &RootfsSpec::of(version).sized(24 * MIB, 4 * MIB)).unwrap();
    }
    testbed.add_machine(NodeSpec::worker("node-1", OLD), OLD).await.unwrap();
    testbed.server().inject(&artifact_path(NEW), Fault::Status(404), Times::Always);

    let catalog = json!({"inline": testbed.catalog(OLD)});
    apply(&testbed, &guide::upgrade("my-upgrade-2", NEW, &json!({}), &catalog)).await;
    let file = guide::file("progress.yaml");
    testbed.kubectl().succeed(&["apply", "-f", &file.to_string_lossy()]).await.unwrap();

    the_download_fails(&testbed).await;
    the_first_retry_fails_too(&testbed).await;
    a_nonce_that_is_not_new_does_nothing(&testbed).await;
    testbed.server().heal(&artifact_path(NEW));
    the_second_retry_goes_all_the_way(&testbed).await;
}

async fn the_download_fails(testbed: &Testbed) {
    progress_in(testbed, PROGRESS, &ProgressPhase::Failed).await;
    let table = get(testbed, "osupgradeprogresses").await;
    assert_eq!(table.columns, ["NAME", "NODE", "SOURCE", "CURRENT", "TARGET", "STATUS"]);
    assert_eq!(table.row(PROGRESS), ["node-1", "my-upgrade-2", OLD, NEW, "Failed"]);

    let description = testbed.kubectl().succeed(&["describe", "osupgradeprogress", PROGRESS]).await.unwrap();
    let shown = |field| described(&description, field);
    assert_eq!(shown("Current Version"), Some(OLD));
    assert_eq!(shown("Target Version"), Some(NEW));
    assert_eq!(shown("Phase"), Some("Failed"));
    assert_eq!(shown("Completed At"), None);
    assert_eq!(shown("Retry Count"), Some("0"));
    assert_eq!(shown("Inactive Partition"), Some("B"));
    assert_eq!(shown("Failure Reason"), Some(FailureReason::ArtifactNotFound.as_str()));
    assert!(shown("Message").is_some_and(|message| message.contains("404")), "{description}");
    for time in ["Started At", "Last Updated At"] {
        assert!(shown(time).is_some_and(|value| value.ends_with('Z')), "{time}: {description}");
    }
}

async fn the_first_retry_fails_too(testbed: &Testbed) {
    let before = downloads(testbed);
    patch(testbed, r#"{"spec":{"retryNonce":"retry-1"}}"#).await;
    let progress = ended(testbed, 1, &ProgressPhase::Failed).await;
    assert_eq!(progress.status.unwrap().observed_retry_nonce.as_deref(), Some("retry-1"));
    assert!(downloads(testbed) > before, "nothing was asked of the server");
}

async fn a_nonce_that_is_not_new_does_nothing(testbed: &Testbed) {
    let before = downloads(testbed);
    for nonce in [r#""retry-1""#, r#""""#, "null", r#""retry-1""#] {
        patch(testbed, &format!(r#"{{"spec":{{"retryNonce":{nonce}}}}}"#)).await;
        // The agent has seen this spec, and has made nothing of it.
        let status = progress_in(testbed, PROGRESS, &ProgressPhase::Failed).await.status.unwrap();
        assert_eq!((status.retry_count, status.attempt), (Some(1), Some(2)), "{nonce}");
        assert_eq!(status.observed_retry_nonce.as_deref(), Some("retry-1"), "{nonce}");
    }
    assert_eq!(downloads(testbed), before);
}

async fn the_second_retry_goes_all_the_way(testbed: &Testbed) {
    patch(testbed, r#"{"spec":{"retryNonce":"retry-2"}}"#).await;
    let status = ended(testbed, 2, &ProgressPhase::Completed).await.status.unwrap();
    assert_eq!(status.failure_reason.as_deref(), Some(""));
    assert!(status.completed_at.is_some());
    let table = get(testbed, "osupgradeprogresses").await;
    assert_eq!(table.row(PROGRESS), ["node-1", "my-upgrade-2", NEW, NEW, "Completed"]);

    let machine = testbed.machine("node-1").unwrap();
    let booted: Vec<_> = machine.boots().into_iter().map(|boot| (boot.slot, boot.version)).collect();
    assert_eq!(booted, [(Slot::A, OLD.to_owned()), (Slot::B, NEW.to_owned())]);
    assert_eq!(machine.next_boot().unwrap(), Some(Slot::B));
    for (slot, version) in [(Slot::A, OLD), (Slot::B, NEW)] {
        let image = &testbed.artifact(version).unwrap().image;
        assert_eq!(machine.slot_digest(slot, image.bytes).unwrap(), image.digest, "slot {slot}");
    }
}

/// The guide's command.
async fn patch(testbed: &Testbed, spec: &str) {
    let command = ["patch", "osupgradeprogress", PROGRESS, "--type", "merge", "-p", spec];
    testbed.kubectl().succeed(&command).await.unwrap();
}

async fn ended(testbed: &Testbed, retries: i32, phase: &ProgressPhase) -> OSUpgradeProgress {
    progress_until(testbed, &format!("{phase} after {retries} retries"), |progress| {
        let count = progress.status.as_ref().and_then(|status| status.retry_count);
        count == Some(retries) && progress.phase() == *phase
    })
    .await
}

/// How often the new image was asked for.
fn downloads(testbed: &Testbed) -> usize {
    let path = artifact_path(NEW);
    testbed.server().requests().iter().filter(|request| request.path == path).count()
}

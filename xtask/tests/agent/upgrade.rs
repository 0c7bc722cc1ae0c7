//! One object, made by hand, on one machine.

use std::time::{Duration, Instant};

use kube::Api;
use monok8s_sdk::api::{ConditionType, OSNode, ProgressPhase, condition_is_true};
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::http::{Fault, Times};
use xtask::rootfs::RootfsSpec;

use crate::bench::{Bench, NEW, OLD, booted, small};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_made_object_goes_all_the_way() {
    let bench = Bench::start().await;
    let machine = bench.machine("node-1", &[]).await;
    // A network that breaks off now and then is not worth a word.
    bench.files.inject("/new", Fault::CutAfter { bytes: 200_000 }, Times::First(2));
    bench.upgrade("my-upgrade-2", NEW, &[bench.entry("new", NEW)]).await;
    bench.hand_made("osupgrade-abc123f", "my-upgrade-2", "node-1").await;
    let status = bench.wait_for_phase(&machine, "osupgrade-abc123f", ProgressPhase::Completed).await;

    let image = &bench.artifact("new").image;
    assert_eq!(machine.slot_digest(Slot::B, image.bytes).unwrap(), image.digest, "byte for byte");
    let old = &bench.artifact("old").image;
    assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest);
    assert_eq!(booted(&machine), [Slot::A, Slot::B], "one boot for one hop");

    assert_eq!(status.current_version.as_deref(), Some(NEW));
    assert_eq!(status.target_version.as_deref(), Some(NEW));
    assert_eq!((status.retry_count, status.failure_reason.as_deref()), (Some(0), Some("")));
    assert_eq!(status.inactive_partition, Some(Slot::A));
    assert!(status.started_at.unwrap() <= status.completed_at.unwrap());
    let installed = status.installed.unwrap();
    assert_eq!((installed.slot, installed.image_digest), (Slot::B, Some(image.digest)));
    assert!(condition_is_true(&status.conditions, &ConditionType::Ready));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.boot_id, Some(machine.boots()[1].boot_id.clone()));
    let phases: Vec<_> = status.timeline.iter().map(|entry| entry.phase.as_str().to_owned()).collect();
    for phase in ["Downloading", "Rebooting", "Completed"] {
        assert!(phases.contains(&phase.to_owned()), "{phase} in {phases:?}");
    }

    let tables = bench.kubectl().succeed(&["get", "osupgradeprogresses"]).await.unwrap();
    let row: Vec<_> = tables.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["osupgrade-abc123f", "node-1", "my-upgrade-2", NEW, NEW, "Completed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_keeps_to_the_disks_rate() {
    let bench = Bench::start().await;
    let machine = bench.machine("node-1", &["--disk-rate=2MiB"]).await;
    bench.upgrade("up", NEW, &[bench.entry("new", NEW)]).await;
    let began = Instant::now();
    bench.hand_made("progress", "up", "node-1").await;
    bench.wait_for_phase(&machine, "progress", ProgressPhase::Completed).await;
    // Every byte is compared, or else written and read back; what was right already needs no more.
    let least = Duration::from_secs(bench.artifact("new").image.bytes / (2 << 20) - 1);
    assert!(began.elapsed() >= least, "{:?}, not {least:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_whose_kernel_panics_falls_back_and_is_not_tried_again_without_a_nonce() {
    let mut bench = Bench::start().await;
    bench.build("panics", &small(NEW).panicking());
    let machine = bench.machine("node-1", &[]).await;
    bench.upgrade("up", NEW, &[bench.entry("panics", NEW)]).await;
    bench.hand_made("progress", "up", "node-1").await;
    let status = bench.wait_for_phase(&machine, "progress", ProgressPhase::RolledBack).await;
    assert_eq!(status.failure_reason.as_deref(), Some("FellBack"));
    assert!(status.message.unwrap().contains("the loader tried v1.35.4 in slot B"));
    assert_eq!((status.current_version.as_deref(), status.completed_at), (Some(OLD), None));
    assert_eq!(booted(&machine), [Slot::A, Slot::A]);

    let is_listed = |node: &OSNode| {
        let failed = node.status.as_ref().map(|status| status.failed_images.as_slice()).unwrap_or_default();
        failed.iter().any(|failed| failed.checksum == bench.artifact("panics").digest)
    };
    let nodes: Api<OSNode> = Api::all(bench.client());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_listed(&nodes.get("node-1").await.unwrap()) {
        assert!(Instant::now() < deadline, "the failed image is in the inventory");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Neither time nor a restart is a reason to try again.
    machine.kill_agent().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.progress("progress").await.phase(), ProgressPhase::RolledBack);
    assert_eq!(booted(&machine), [Slot::A, Slot::A]);

    bench.recatalog("up", &[bench.entry("new", NEW)]).await;
    bench.retry("progress", "retry-1").await;
    bench.wait_for_phase(&machine, "progress", ProgressPhase::Completed).await;
    assert_eq!(booted(&machine), [Slot::A, Slot::A, Slot::B]);
    // The inventory is written after the object.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let node = nodes.get("node-1").await.unwrap().status.unwrap();
        if (node.booted_slot, node.booted_version.as_deref()) == (Some(Slot::B), Some(NEW)) {
            break;
        }
        assert!(Instant::now() < deadline, "{node:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_that_nobody_confirms_goes_back_with_the_api_server_away() {
    goes_back_without_an_api_server(&small(NEW), &json!({"timeoutSeconds": 30}), "tried").await;
}

/// Only the API server could have told that it is the ordered version that runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_nobody_states_is_not_confirmed_locally() {
    let trial = json!({"timeoutSeconds": 30, "apiUnavailable": "ConfirmLocally"});
    goes_back_without_an_api_server(&small(NEW).claiming_nothing(), &trial, "new").await;
}

/// The artifact `then` is good enough for another attempt.
async fn goes_back_without_an_api_server(image: &RootfsSpec, trial: &Value, then: &str) {
    let mut bench = Bench::start().await;
    bench.build("tried", image);
    let machine = bench.machine("node-1", &[]).await;
    bench.upgrade_with("up", NEW, &[bench.entry("tried", NEW)], &json!({"trial": trial})).await;
    bench.hand_made("progress", "up", "node-1").await;
    bench.wait_for_phase(&machine, "progress", ProgressPhase::Rebooting).await;
    bench.control_plane.kill_apiserver().unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    while booted(&machine).len() < 3 {
        assert!(Instant::now() < deadline, "{:?}", machine.boots());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(booted(&machine), [Slot::A, Slot::B, Slot::A]);
    bench.control_plane.start_apiserver().await.unwrap();
    let status = bench.wait_for_phase(&machine, "progress", ProgressPhase::RolledBack).await;
    println!("{:?}: {:?}", status.failure_reason, status.message);
    assert_eq!(status.failure_reason.as_deref(), Some("ApiUnavailable"));
    // A dead API server says nothing against an image.
    bench.recatalog("up", &[bench.entry(then, NEW)]).await;
    bench.retry("progress", "retry-1").await;
    bench.wait_for_phase(&machine, "progress", ProgressPhase::Completed).await;
}

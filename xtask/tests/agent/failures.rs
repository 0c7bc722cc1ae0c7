//! Everything that can be wrong with an artifact, for real: each ends in the object with its own
//! reason, the booted slot is not touched, and a new nonce with a good image goes all the way.

use monok8s_sdk::api::{ConditionType, OSUpgradeProgressStatus, ProgressPhase, condition_is_true};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::http::{Fault, Times};
use xtask::machine::Machine;

use crate::bench::{Bench, IMAGE_BYTES, MIB, NEW, OLD, SLOT_BYTES, booted, small};

/// A failure on a machine of its own: `entry` is what the catalog says at first.
struct Case {
    name: &'static str,
    reason: &'static str,
    /// What the message must say, so that a person knows what to do.
    words: &'static str,
    entry: Value,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_has_its_reason_and_a_new_nonce_with_a_good_image_ends_completed() {
    let mut bench = Bench::start().await;
    let machine = bench.machine("node-1", &["--patience-seconds", "2"]).await;
    let old = bench.artifact("old").image.clone();
    let cases = cases(&mut bench);
    bench.upgrade("up", NEW, &[cases[0].entry.clone()]).await;
    bench.hand_made("osupgrade-abc123f", "up", "node-1").await;
    let mut retries = 0;
    for Case { name, reason, words, entry } in cases {
        if retries > 0 {
            bench.recatalog("up", std::slice::from_ref(&entry)).await;
            bench.retry("osupgrade-abc123f", &format!("retry-{retries}")).await;
        }
        let nonce = (retries > 0).then(|| format!("retry-{retries}"));
        let status = failed(&bench, &machine, nonce.as_deref()).await;
        println!("{name}: {:?} {:?}", status.failure_reason, status.message);
        assert_eq!(status.failure_reason.as_deref(), Some(reason), "{name}: {:?}", status.message);
        assert!(status.message.as_ref().unwrap().contains(words), "{name}: {:?}", status.message);
        assert_eq!(status.retry_count, Some(retries), "{name}");
        assert!(condition_is_true(&status.conditions, &ConditionType::Stalled), "{name}");
        assert_eq!(status.completed_at, None, "{name}");
        assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest, "{name}: slot A");
        retries += 1;
    }
    assert_eq!(booted(&machine), [Slot::A], "no failure costs a reboot");

    // Nothing of all that is in the way of a good image.
    bench.recatalog("up", &[bench.entry("new", NEW)]).await;
    bench.retry("osupgrade-abc123f", "retry-last").await;
    let status = bench.wait_for_phase(&machine, "osupgrade-abc123f", ProgressPhase::Completed).await;
    assert_eq!(status.observed_retry_nonce.as_deref(), Some("retry-last"));
    assert_eq!(status.retry_count, Some(retries));
    assert_eq!((status.failure_reason.as_deref(), status.current_version.as_deref()), (Some(""), Some(NEW)));
    let new = &bench.artifact("new").image;
    assert_eq!(machine.slot_digest(Slot::B, new.bytes).unwrap(), new.digest);
    assert_eq!(booted(&machine), [Slot::A, Slot::B]);
}

/// Waits for `Failed` in answer to this nonce.
async fn failed(bench: &Bench, machine: &Machine, nonce: Option<&str>) -> OSUpgradeProgressStatus {
    let is_answer = |status: &OSUpgradeProgressStatus| {
        status.phase == Some(ProgressPhase::Failed) && status.observed_retry_nonce.as_deref() == nonce
    };
    bench.wait(machine, "osupgrade-abc123f", is_answer).await
}

/// Serves these bytes under a name, and lists them with their own checksum.
fn listed(bench: &Bench, name: &str, bytes: Vec<u8>, size: Option<u64>) -> Value {
    let path = format!("/{name}");
    let checksum = Sha256Digest::of(&bytes).to_string();
    bench.files.serve_bytes(&path, bytes);
    let mut entry = json!({"version": NEW, "url": bench.files.url(&path), "checksum": checksum});
    if let Some(size) = size {
        entry["size"] = json!(size);
    }
    entry
}

/// The good artifact under another name, with a fault.
fn faulty(bench: &Bench, name: &str, fault: Fault) -> Value {
    let path = format!("/{name}");
    bench.files.serve_file(&path, &bench.artifact("new").path);
    bench.files.inject(&path, fault, Times::Always);
    with(bench, "url", json!(bench.files.url(&path)))
}

/// The good artifact's entry with another value.
fn with(bench: &Bench, field: &str, value: Value) -> Value {
    let mut entry = bench.entry("new", NEW);
    entry[field] = value;
    entry
}

fn zeroes(bytes: u64) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

fn case(name: &'static str, reason: &'static str, words: &'static str, entry: Value) -> Case {
    Case { name, reason, words, entry }
}

fn cases(bench: &mut Bench) -> Vec<Case> {
    bench.build("liar", &small(NEW).claiming(OLD));
    bench.build("unguarded", &small(NEW).without_guard());
    let mut cases = of_servers(bench);
    cases.extend(of_artifacts(bench));
    cases.extend(of_images(bench));
    cases
}

fn of_servers(bench: &Bench) -> Vec<Case> {
    let absent = with(bench, "url", json!(bench.files.url("/absent")));
    let cut = faulty(bench, "cut", Fault::CutAfter { bytes: 0 });
    let long = faulty(bench, "long", Fault::WrongLength { off_by: 1000 });
    let other = faulty(bench, "other", Fault::ServeInstead { path: "/old".to_owned() });
    let checksum = with(bench, "checksum", json!(format!("sha256:{}", "0".repeat(64))));
    vec![
        case("a 404", "ArtifactNotFound", "404", absent),
        case("a connection that is cut, again and again", "DownloadInterrupted", "attempts", cut),
        case("a server that announces too much", "UnusableAnswer", "it announced more than", long),
        case("another file", "ChecksumMismatch", "another file is served there", other),
        case("a bad checksum in the catalog", "ChecksumMismatch", "was ordered", checksum),
    ]
}

fn of_artifacts(bench: &Bench) -> Vec<Case> {
    let packed = std::fs::read(&bench.artifact("new").path).unwrap();
    let middle = packed.len() / 2;
    let mut damaged = packed.clone();
    // Longer than a block of zstd can be, so that a block's header is hit.
    damaged[middle..middle + 200_000].fill(0xff);
    let damaged = listed(bench, "damaged", damaged, Some(IMAGE_BYTES));
    let truncated = listed(bench, "truncated", packed[..middle].to_vec(), None);
    let page = listed(bench, "page", b"<html>sign in</html>".repeat(100), None);
    let bomb = listed(bench, "bomb", zeroes(1 << 30), Some(IMAGE_BYTES));
    vec![
        case("damaged compression", "CorruptArtifact", "upload it again", damaged),
        case(
            "an artifact that was listed when it was cut already",
            "TruncatedArtifact",
            "cut off",
            truncated,
        ),
        case("no zstd at all", "NotZstd", "not zstd", page),
        case("a bomb", "ExpandsBeyondSize", "stopped there", bomb),
    ]
}

fn of_images(bench: &Bench) -> Vec<Case> {
    let large = SLOT_BYTES + MIB;
    let said = listed(bench, "large", zeroes(large), Some(large));
    let unsaid = listed(bench, "unsaid", zeroes(large), None);
    let size = with(bench, "size", json!(IMAGE_BYTES + MIB));
    let liar = bench.entry("liar", NEW);
    let unguarded = bench.entry("unguarded", NEW);
    let empty = listed(bench, "empty", zeroes(MIB), Some(MIB));
    let elsewhere = bench.entry("old", OLD);
    vec![
        case("an image that the slot cannot hold", "ImageTooLarge", "slot B", said),
        case("one that does not say so", "ImageTooLarge", "stopped there", unsaid),
        case("a wrong size", "SizeMismatch", "declared size", size),
        case("another version inside", "WrongVersion", "v1.35.1, but v1.35.4 was ordered", liar),
        case("no guard", "GuardMissing", "no guard", unguarded),
        case("no file system", "UnreadableImage", "ext4", empty),
        case("no such version", "NotResolvable", "is not in the catalog", elsewhere),
    ]
}

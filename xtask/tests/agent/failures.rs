//! Everything that can be wrong with an artifact, for real: each ends in the object with its own
//! reason, the booted slot is not touched, and a new nonce with a good image goes all the way, after
//! which nothing tells of the failure any more.

use futures::{StreamExt as _, stream};
use monok8s_sdk::api::{ConditionType, OSUpgradeProgressStatus, ProgressPhase, condition_is_true};
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{BootBackend as _, LoaderStatus};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::node_upgrade::Record;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::http::{Fault, Times};
use xtask::machine::Machine;

use crate::bench::{Bench, IMAGE_BYTES, MIB, NEW, OLD, SLOT_BYTES, booted, small};

/// How many machines are in work at once.
const AT_ONCE: usize = 3;

/// What goes wrong: `entry` is what the catalog says at first.
#[derive(Clone)]
struct Case {
    name: &'static str,
    reason: &'static str,
    /// What the message must say, so that a person knows what to do.
    words: &'static str,
    entry: Value,
}

/// A machine with an upgrade and a hand-made object of its own.
struct Subject<'a> {
    bench: &'a Bench,
    machine: Machine,
    upgrade: String,
    object: String,
    /// How often it was retried.
    retries: i32,
}

/// What a machine remembers of its upgrades.
struct Memory {
    record: Record,
    loader: LoaderStatus,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_has_its_reason_and_a_new_nonce_with_a_good_image_ends_completed() {
    let mut bench = Bench::start().await;
    let cases = cases(&mut bench);
    let untroubled = Subject::start(&bench, "0", &bench.entry("new", NEW)).await;
    untroubled.completes().await;
    let wanted = untroubled.memory();
    drop(untroubled);

    let (bench, wanted) = (&bench, &wanted);
    let fail_then_succeed = |(number, case): (usize, Case)| async move {
        let mut subject = Subject::start(bench, &(number + 1).to_string(), &case.entry).await;
        subject.fails(&case).await;
        subject.goes_on_with(&bench.entry("new", NEW)).await;
        subject.completes().await;
        subject.remembers_no_more_than(wanted, &case);
    };
    let number = cases.len();
    let done = stream::iter(cases.into_iter().enumerate()).map(fail_then_succeed).buffer_unordered(AT_ONCE);
    assert_eq!(done.count().await, number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_failures_in_a_row_are_not_in_the_way_of_a_good_image() {
    let mut bench = Bench::start().await;
    let in_a_row = ["a 404", "damaged compression", "another version inside", "no file system"];
    let cases = cases(&mut bench).into_iter().filter(|case| in_a_row.contains(&case.name));
    let cases: Vec<_> = cases.collect();
    assert_eq!(cases.len(), in_a_row.len());
    let mut subject = Subject::start(&bench, "1", &cases[0].entry).await;
    for case in &cases {
        if case.name != cases[0].name {
            subject.goes_on_with(&case.entry).await;
        }
        subject.fails(case).await;
    }
    subject.goes_on_with(&bench.entry("new", NEW)).await;
    subject.completes().await;
    assert_eq!(subject.retries, 4);
}

impl<'a> Subject<'a> {
    async fn start(bench: &'a Bench, number: &str, entry: &Value) -> Self {
        let node = format!("node-{number}");
        let (upgrade, object) = (format!("up-{number}"), format!("osupgrade-{number}"));
        let machine = bench.machine(&node, &["--patience-seconds", "2"]).await;
        bench.upgrade(&upgrade, NEW, std::slice::from_ref(entry)).await;
        bench.hand_made(&object, &upgrade, &node).await;
        Self { bench, machine, upgrade, object, retries: 0 }
    }

    fn nonce(&self) -> Option<String> {
        (self.retries > 0).then(|| format!("retry-{}", self.retries))
    }

    /// Another entry in the catalog, and a new nonce.
    async fn goes_on_with(&mut self, entry: &Value) {
        self.bench.recatalog(&self.upgrade, std::slice::from_ref(entry)).await;
        self.retries += 1;
        self.bench.retry(&self.object, &self.nonce().unwrap()).await;
    }

    /// Waits for the end of the attempt that the last nonce asked for.
    async fn ends(&self, phase: ProgressPhase) -> OSUpgradeProgressStatus {
        let nonce = self.nonce();
        let is_answer = |status: &OSUpgradeProgressStatus| {
            status.phase.as_ref() == Some(&phase) && status.observed_retry_nonce == nonce
        };
        self.bench.wait(&self.machine, &self.object, is_answer).await
    }

    async fn fails(&self, case: &Case) {
        let Case { name, reason, words, .. } = case;
        let status = self.ends(ProgressPhase::Failed).await;
        println!("{name}: {:?} {:?}", status.failure_reason, status.message);
        assert_eq!(status.failure_reason.as_deref(), Some(*reason), "{name}: {:?}", status.message);
        assert!(status.message.as_ref().unwrap().contains(words), "{name}: {:?}", status.message);
        assert_eq!(status.retry_count, Some(self.retries), "{name}");
        assert!(condition_is_true(&status.conditions, &ConditionType::Stalled), "{name}");
        assert_eq!(status.completed_at, None, "{name}");
        let old = &self.bench.artifact("old").image;
        assert_eq!(self.machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest, "{name}: slot A");
        assert_eq!(booted(&self.machine), [Slot::A], "{name}: no failure costs a reboot");
    }

    async fn completes(&self) {
        let status = self.ends(ProgressPhase::Completed).await;
        let object = &self.object;
        assert_eq!(status.retry_count, Some(self.retries), "{object}");
        assert_eq!(status.failure_reason.as_deref(), Some(""), "{object}: {:?}", status.message);
        assert_eq!(status.current_version.as_deref(), Some(NEW), "{object}");
        assert!(!condition_is_true(&status.conditions, &ConditionType::Stalled), "{object}");
        for (slot, name) in [(Slot::A, "old"), (Slot::B, "new")] {
            let image = &self.bench.artifact(name).image;
            let found = self.machine.slot_digest(slot, image.bytes).unwrap();
            assert_eq!(found, image.digest, "{object}: slot {slot}");
        }
        assert_eq!(booted(&self.machine), [Slot::A, Slot::B], "{object}");
    }

    fn memory(&self) -> Memory {
        let record = RecordStore::in_dir(self.machine.data_dir()).load().unwrap();
        let loader = SimulatedLoader::open(self.machine.loader_path()).status().unwrap();
        Memory { record, loader }
    }

    /// Apart from counters and nonces the machine is like one that nothing ever went wrong on.
    fn remembers_no_more_than(&self, wanted: &Memory, case: &Case) {
        let name = case.name;
        let Memory { record, loader } = self.memory();
        assert_eq!(loader, wanted.loader, "{name}: the loader");
        assert_eq!(loader.trial, None, "{name}");
        assert_eq!(record.slots, wanted.record.slots, "{name}: what the slots hold");
        assert_eq!((&record.attempt, record.failed.as_slice()), (&None, [].as_slice()), "{name}");
        let ([seen], [other]) = (record.seen.as_slice(), wanted.record.seen.as_slice()) else {
            panic!("{name}: {record:?}");
        };
        assert_eq!((seen.retry_nonce.as_deref(), seen.retry_count), (Some("retry-1"), 1), "{name}");
        assert_eq!((seen.attempts, seen.confirmed, seen.steps), (0, 1, 0), "{name}");
        assert_eq!(seen.pinned, other.pinned, "{name}: what the order was resolved to");
    }
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

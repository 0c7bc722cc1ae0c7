//! Images with a block index: a node fetches what it does not have, and never needs the index.

use monok8s_sdk::api::ProgressPhase;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::http::{Fault, Times};
use xtask::machine::Machine;

use crate::bench::{Bench, NEW, booted, small};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_an_index_a_node_fetches_what_differs_and_without_one_everything() {
    let mut bench = Bench::start().await;
    for name in ["good", "no-ranges", "wrong-index"] {
        bench.build_indexed(name, &small(NEW));
    }

    // Three MiB in four of the content are in the booted slot already.
    let entry = bench.entry("good", NEW);
    completes(&bench, "node-1", "good", entry).await;
    let whole = bench.artifact("good").bytes;
    let fetched = bench.files.bytes_served("/good");
    println!("good: {fetched} of {whole} bytes, index {}", bench.files.bytes_served("/good.idx"));
    assert!(fetched > 0 && fetched < whole / 2, "{fetched} of {whole} bytes");
    let requests = bench.files.requests();
    let mut of_artifact = requests.iter().filter(|request| request.path == "/good");
    assert!(of_artifact.all(|request| request.status == 206 && request.range.is_some()), "{requests:#?}");

    bench.files.inject("/no-ranges", Fault::IgnoreRange, Times::Always);
    let entry = bench.entry("no-ranges", NEW);
    let machine = completes(&bench, "node-2", "no-ranges", entry).await;
    assert!(bench.files.bytes_served("/no-ranges") >= bench.artifact("no-ranges").bytes);
    assert!(log(&machine).contains("WholeInstead"), "{}", log(&machine));

    let mut entry = bench.entry("wrong-index", NEW);
    entry["index"]["checksum"] = json!(Sha256Digest::of(b"another index").to_string());
    let machine = completes(&bench, "node-3", "wrong-index", entry).await;
    assert_eq!(bench.files.bytes_served("/wrong-index"), bench.artifact("wrong-index").bytes);
    let log = log(&machine);
    assert!(log.contains("WholeInstead") && log.contains("the index's checksum is sha256:"), "{log}");
}

/// A hand-made object goes all the way on a new machine, and slot B is the image byte for byte.
async fn completes(bench: &Bench, node: &str, name: &str, entry: Value) -> Machine {
    let machine = bench.machine(node, &[]).await;
    bench.upgrade(name, NEW, &[entry]).await;
    bench.hand_made(name, name, node).await;
    let status = bench.wait_for_phase(&machine, name, ProgressPhase::Completed).await;
    assert_eq!(status.failure_reason.as_deref(), Some(""));
    let image = &bench.artifact(name).image;
    assert_eq!(machine.slot_digest(Slot::B, image.bytes).unwrap(), image.digest, "{name}");
    let old = &bench.artifact("old").image;
    assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest, "{name}: slot A");
    assert_eq!(booted(&machine), [Slot::A, Slot::B]);
    machine
}

fn log(machine: &Machine) -> String {
    std::fs::read_to_string(machine.log()).unwrap()
}

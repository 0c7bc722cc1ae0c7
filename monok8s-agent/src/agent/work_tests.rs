use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::http::{HttpOptions, http_client};

use super::*;

#[tokio::test]
async fn work_that_panics_has_failed_and_is_not_begun_again() {
    let task = tokio::spawn(async {
        let done: Result<Outcome, Outcome> = blocking(|| panic!("a hostile image")).await;
        done.unwrap_or_else(|ended| ended)
    });
    let job = Job::Verify {
        slot: Slot::B,
        digest: Sha256Digest::of(b"image"),
        len: 5,
        version: "v1.35.4".parse().unwrap(),
    };
    let mut work =
        Work { job, progress: Progress::default(), cancel: Cancel::default(), task, outcome: None };
    assert!(matches!(work.finished().await, Outcome::Failed(failure) if failure.retry == Retry::Never));
}

fn workshop(machine: &FileMachine, directory: &std::path::Path) -> Workshop {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Workshop {
        host: machine.host(),
        layout: machine.layout(),
        http: http_client(&HttpOptions::default()).unwrap(),
        politeness: Politeness::default(),
        guard: Arc::default(),
        kept: KeptIndexes::new(directory),
    }
}

async fn outcome(effort: &mut Effort, workshop: &Workshop, job: &Job) -> Outcome {
    loop {
        match effort.drive(workshop, job).await {
            Standing::Ended(outcome) => return outcome,
            Standing::UnderWay => effort.ended().await,
            Standing::Paused(wait) => tokio::time::sleep(wait).await,
        }
    }
}

/// A slot that reads back wrong after it was let go of, as after a read error, and why.
#[tokio::test]
async fn other_bytes_than_this_process_wrote_are_the_mediums_and_no_power_cuts() {
    let directory = tempfile::tempdir().unwrap();
    let machine = FileMachine::create(directory.path(), 4 << 20).unwrap();
    let workshop = workshop(&machine, directory.path());
    let image = vec![7; 300_000];
    let source = Source::Reader(Box::new(std::io::Cursor::new(zstd::encode_all(&image[..], 1).unwrap())));
    let slot = SlotMap::discover(&machine.host(), &machine.layout())
        .unwrap()
        .open_inactive(&machine.host())
        .unwrap();
    let (progress, cancel) = (Progress::default(), Cancel::default());
    let body = image::write(slot, source, Expected::default(), &progress, &cancel).await.unwrap();
    let written = body.finish().unwrap();
    let verify = Job::Verify {
        slot: Slot::B,
        digest: written.image(),
        len: written.length(),
        version: "v1.35.4".parse().unwrap(),
    };
    let mut effort = Effort::new(Duration::ZERO);
    effort.keep(written);
    effort.stop().await;
    let mut rotten = image.clone();
    rotten[200_000] ^= 1;
    machine.write(Slot::B, &rotten).unwrap();

    let own = outcome(&mut effort, &workshop, &verify).await;
    assert!(matches!(own, Outcome::ReadBackDiffers(_)), "this process wrote it");
    let restarted = outcome(&mut Effort::new(Duration::ZERO), &workshop, &verify).await;
    assert!(matches!(restarted, Outcome::NotAsRecorded(Slot::B, _)), "an earlier one wrote it");

    // From the begin of a write on, what was there before is nobody's.
    let hop = serde_json::from_value(serde_json::json!({
        "version": "v1.35.4", "urls": [], "checksum": Sha256Digest::of(b"artifact").to_string(),
    }));
    let write = Job::Write { hop: Box::new(hop.unwrap()), slot: Slot::B, attempt: 1 };
    assert!(matches!(effort.writer_of(&verify), Writer::ThisProcess(None)));
    assert!(matches!(effort.writer_of(&write), Writer::AnEarlierOne));
    assert!(matches!(effort.writer_of(&verify), Writer::AnEarlierOne));
}

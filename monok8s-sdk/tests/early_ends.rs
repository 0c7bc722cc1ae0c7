//! The end of the writing side is the end of the download, however silent the server is at that time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::release::{FRAME, Release, image};
use common::{LIMITS, Reply, Server, download};
use monok8s_sdk::api::FailureReason;
use monok8s_sdk::disk::fault::{Fault, FaultDisk, Medium, Power};
use monok8s_sdk::disk::{BlockTarget, InactiveSlot};
use monok8s_sdk::image::{Cancel, DownloadLimits, Expected, ImageError, Indexed, Progress, Source, write};
use monok8s_sdk::slot::Slot;

/// How long a server is silent, and how long that is put up with.
const SILENCE: Duration = Duration::from_secs(50);
/// When a failure must be told at the latest; on a machine without other work it takes milliseconds.
const AT_ONCE: Duration = Duration::from_secs(10);
const PATIENT: DownloadLimits =
    DownloadLimits { total: Duration::from_secs(120), stall: Duration::from_secs(100), ..LIMITS };

/// Sends so many bytes of the artifact for each request, and then nothing.
fn falls_silent(release: &Release, after: usize) -> Server {
    let (artifact, index) = (release.artifact.clone(), release.index.as_bytes().to_vec());
    Server::start(move |_, request| match request.path.as_str() {
        "/index" => Reply::file(request, &index, "\"i\""),
        _ => Reply::file(request, &artifact, "\"a\"").cut(after).hang(SILENCE),
    })
}

fn whole(server: &Server) -> Source {
    Source::Http(download([server.url("/rootfs.ext4.zst")]).with_limits(PATIENT))
}

fn indexed(server: &Server, release: &Release) -> Source {
    let [artifact, index] =
        ["/rootfs.ext4.zst", "/index"].map(|path| download([server.url(path)]).with_limits(PATIENT));
    Indexed::new(artifact, index, release.checksum()).into()
}

/// The error of a write to this disk, which comes at once, and cancels nothing of the caller's.
async fn fails_at_once(disk: &Arc<FaultDisk>, source: Source, expected: Expected) -> ImageError {
    let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(disk) as Arc<dyn BlockTarget>);
    let (began, cancel) = (Instant::now(), Cancel::default());
    let error = write(slot, source, expected, &Progress::default(), &cancel).await.map(|_| ()).unwrap_err();
    assert!(began.elapsed() < AT_ONCE, "{:?}: {error}", began.elapsed());
    assert!(!cancel.is_cancelled());
    error
}

fn disk(frames: usize) -> Arc<FaultDisk> {
    Arc::new(FaultDisk::new(&Power::new(), "slot B", Medium::filled(frames * FRAME, 0xEE)))
}

fn release(frames: u64) -> Release {
    Release::of(image(1..=frames * (FRAME / 4096) as u64))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_while_the_server_is_silent_is_told_at_once() {
    let release = release(64);
    for (name, fault, reason) in [
        ("a write fails", Fault::Error, FailureReason::DiskWriteFailed),
        ("what backs it is full", Fault::NoSpace, FailureReason::NoSpaceLeft),
    ] {
        // Four frames come, and the slot is zeroed and flushed before the third step.
        let server = falls_silent(&release, 4 * (FRAME + 100) + 500);
        for source in [whole(&server), indexed(&server, &release)] {
            let disk = disk(64);
            disk.inject(2, fault);
            let error = fails_at_once(&disk, source, release.expected()).await;
            assert_eq!(error.reason(), reason, "{name}: {error:?}");
            assert!(disk.content().is_zero(0, FRAME), "{name}: the slot could be booted");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_too_small_is_told_at_once() {
    let release = release(64);
    let server = falls_silent(&release, 40 * (FRAME + 100));
    // Stated beforehand, and found out on the way.
    for expected in [release.expected(), Expected::default()] {
        let error = fails_at_once(&disk(32), whole(&server), expected).await;
        assert_eq!(error.reason(), FailureReason::ImageTooLarge, "{error:?}");
    }
    let error = fails_at_once(&disk(32), indexed(&server, &release), Expected::default()).await;
    assert_eq!(error.reason(), FailureReason::ImageTooLarge, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_is_damaged_is_told_at_once() {
    let mut damaged = release(64);
    damaged.artifact[0] ^= 1;
    let server = falls_silent(&damaged, 4 * (FRAME + 100));
    let error = fails_at_once(&disk(64), whole(&server), Expected::default()).await;
    assert_eq!(error.reason(), FailureReason::NotZstd, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_stops_waits_for_no_server() {
    let release = release(64);
    let server = falls_silent(&release, 4 * (FRAME + 100));
    for source in [whole(&server), indexed(&server, &release)] {
        let disk = disk(64);
        let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(&disk) as Arc<dyn BlockTarget>);
        let (progress, cancel) = (Progress::default(), Cancel::default());
        let stop = async {
            while progress.snapshot().bytes_done < 2 * FRAME as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            cancel.cancel();
            Instant::now()
        };
        let write = write(slot, source, Expected::default(), &progress, &cancel);
        let (ended, stopped) = tokio::join!(write, stop);
        assert!(stopped.elapsed() < AT_ONCE, "{:?}", stopped.elapsed());
        assert!(ended.map(|_| ()).unwrap_err().is_cancelled());
    }
}

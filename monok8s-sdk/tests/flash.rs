//! Artifacts from servers that misbehave, into the slots of a disk image.
//!
//! After each case the booted slot must hold what it held, and after each failure the other slot
//! must not be bootable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::num::NonZeroU64;
use std::time::Duration;

use common::machine::Machine;
use common::{Reply, Request, Server, download};
use monok8s_sdk::api::FailureReason;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::SlotMap;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::image::{Cancel, DownloadLimits, Expected, Progress, Retry, Source, flash};
use monok8s_sdk::slot::Slot;

const SLOT_SIZE: u64 = 4 << 20;

/// A machine that runs from slot A, with an old image in slot B.
fn machine() -> Machine {
    Machine::sized(SLOT_SIZE, &noise(1, 3 << 20), &noise(2, 3 << 20))
}

/// Bytes that do not compress, different for each seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| step()).collect()
}

fn zstd(image: &[u8]) -> Vec<u8> {
    zstd::encode_all(image, 1).unwrap()
}

fn image() -> Vec<u8> {
    let mut image = noise(3, 2 << 20);
    image[500_000..900_000].fill(0);
    image
}

fn ordered(artifact: &[u8]) -> Expected {
    Expected { checksum: Some(Sha256Digest::of(artifact)), ..Expected::default() }
}

fn http(server: &Server) -> Source {
    Source::Http(download([server.url("/rootfs.ext4.zst")]))
}

#[tokio::test]
async fn a_good_image_arrives_byte_for_byte() {
    let (machine, image) = (machine(), image());
    let artifact = zstd(&image);
    let file = artifact.clone();
    let server = Server::start(move |_, request| Reply::file(request, &file, "\"1\""));
    let expected = Expected {
        size: Some(image.len() as u64),
        image_checksum: Some(Sha256Digest::of(&image)),
        ..ordered(&artifact)
    };
    let progress = Progress::default();
    machine.flash_until(http(&server), expected, &progress, &Cancel::default()).await.unwrap();
    machine.holds(&image);
    let counted = progress.snapshot();
    assert_eq!(counted.bytes_total, Some(artifact.len() as u64));
    assert_eq!(counted.bytes_done, artifact.len() as u64);
    assert_eq!((counted.bytes_written, counted.bytes_verified), (2 << 20, 2 << 20));
    let request = &server.requests()[0];
    assert_eq!(
        (request.path.as_str(), request.accept_encoding.as_deref()),
        ("/rootfs.ext4.zst", Some("identity"))
    );
}

#[tokio::test]
async fn a_rate_is_kept() {
    let (machine, image) = (machine(), noise(9, 600_000));
    let artifact = zstd(&image);
    let file = artifact.clone();
    let server = Server::start(move |_, request| Reply::file(request, &file, "\"1\""));
    let limits = DownloadLimits { rate: NonZeroU64::new(1_000_000), ..DownloadLimits::default() };
    let source = Source::Http(download([server.url("/rootfs.ext4.zst")]).with_limits(limits));
    let began = std::time::Instant::now();
    machine.flash(source, ordered(&artifact)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    machine.holds(&image);
}

#[tokio::test]
async fn a_download_that_is_cut_again_and_again_is_resumed() {
    let (machine, image) = (machine(), image());
    let artifact = zstd(&image);
    let file = artifact.clone();
    // Far more cuts than attempts in a row: each brings some bytes.
    let server = Server::start(move |_, request| Reply::file(request, &file, "\"1\"").cut(150_000));
    machine.flash(http(&server), ordered(&artifact)).await.unwrap();
    machine.holds(&image);
    let requests = server.requests();
    assert!(requests.len() > 8, "{}", requests.len());
    let starts: Vec<usize> = requests.iter().filter_map(|request| request.range_from).collect();
    assert_eq!(starts.len(), requests.len() - 1);
    assert!(
        starts.is_sorted()
            && requests[1..].iter().all(|request| request.if_range.as_deref() == Some("\"1\""))
    );
}

#[tokio::test]
async fn a_server_without_ranges_is_read_over_again() {
    let (machine, image) = (machine(), image());
    let artifact = zstd(&image);
    let file = artifact.clone();
    let server = Server::start(move |number, _| {
        let whole = Reply::file(&Request::default(), &file, "\"1\"");
        if number == 0 { whole.cut(700_000) } else { whole }
    });
    machine.flash(http(&server), ordered(&artifact)).await.unwrap();
    machine.holds(&image);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_stalled_connection_is_given_up_and_resumed() {
    let (machine, image) = (machine(), image());
    let artifact = zstd(&image);
    let file = artifact.clone();
    let server = Server::start(move |number, request| {
        let reply = Reply::file(request, &file, "\"1\"");
        if number == 0 { reply.cut(300_000).hang(Duration::from_secs(2)) } else { reply }
    });
    machine.flash(http(&server), ordered(&artifact)).await.unwrap();
    machine.holds(&image);
}

#[tokio::test]
async fn a_file_replaced_during_the_download_is_noticed() {
    let machine = machine();
    let (first, second) = (zstd(&image()), zstd(&noise(9, 2 << 20)));
    let expected = ordered(&first);
    let server = Server::start(move |number, request| match number {
        0 => Reply::file(request, &first, "\"1\"").cut(300_000),
        _ => Reply::file(request, &second, "\"2\""),
    });
    let error = machine.refuses(http(&server), expected, FailureReason::ArtifactChanged).await;
    assert_eq!(error.retry(), Retry::Later);
}

#[tokio::test]
async fn a_server_that_announces_too_much_is_refused() {
    let machine = machine();
    let artifact = zstd(&image());
    let expected = ordered(&artifact);
    let server = Server::start(move |_, request| match request.range_from {
        None => {
            let length = (artifact.len() + 1000).to_string();
            Reply::new("200 OK", &[("Content-Length", length.as_str()), ("ETag", "\"1\"")], &artifact)
        }
        Some(_) => Reply::file(request, &artifact, "\"1\""),
    });
    let error = machine.refuses(http(&server), expected, FailureReason::UnusableAnswer).await;
    assert!(error.to_string().contains("announced more"), "{error}");
}

#[tokio::test]
async fn a_server_that_announces_too_little_gives_a_truncated_artifact() {
    let machine = machine();
    let artifact = zstd(&image());
    let expected = ordered(&artifact);
    let server = Server::start(move |_, _| {
        let length = (artifact.len() - 1000).to_string();
        Reply::new("200 OK", &[("Content-Length", length.as_str())], &artifact)
    });
    let error = machine.refuses(http(&server), expected, FailureReason::TruncatedArtifact).await;
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test]
async fn a_truncated_upload_is_told_from_a_cut_connection() {
    let machine = machine();
    let artifact = zstd(&image());
    let cut = artifact[..artifact.len() / 2].to_vec();
    let server = Server::start(move |_, request| Reply::file(request, &cut, "\"1\""));
    machine.refuses(http(&server), ordered(&artifact), FailureReason::TruncatedArtifact).await;
}

#[tokio::test]
async fn another_file_is_refused_by_its_checksum() {
    let machine = machine();
    let (wanted, file) = (zstd(&image()), zstd(&noise(9, 1 << 20)));
    let found = Sha256Digest::of(&file);
    let server = Server::start(move |_, request| Reply::file(request, &file, "\"1\""));
    let error = machine.refuses(http(&server), ordered(&wanted), FailureReason::ChecksumMismatch).await;
    let text = error.to_string();
    assert!(
        text.contains(&found.to_string()) && text.contains(&Sha256Digest::of(&wanted).to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn a_login_page_is_not_an_image() {
    let machine = machine();
    let server =
        Server::start(|_, request| Reply::file(request, b"<!DOCTYPE html><p>Please log in", "\"1\""));
    let error = machine.refuses(http(&server), Expected::default(), FailureReason::NotZstd).await;
    assert!(error.to_string().contains("<!DO"), "{error}");
}

#[tokio::test]
async fn a_bomb_is_stopped() {
    let machine = machine();
    let bomb = zstd(&vec![0; 300 << 20]);
    let expected = Expected { size: Some(1 << 20), ..ordered(&bomb) };
    let file = bomb.clone();
    let server = Server::start(move |_, request| Reply::file(request, &file, "\"1\""));
    machine.refuses(http(&server), expected, FailureReason::ExpandsBeyondSize).await;
    machine.refuses(http(&server), ordered(&bomb), FailureReason::ImageTooLarge).await;
}

#[tokio::test]
async fn an_image_that_cannot_fit_is_refused_before_the_slot_is_touched() {
    let machine = machine();
    let before = machine.files.read_all(Slot::B).unwrap();
    let expected = Expected { size: Some(SLOT_SIZE + 1), ..Expected::default() };
    let server = Server::start(|_, _| Reply::status("500 Oops"));
    let error = machine.flash(http(&server), expected).await.map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), FailureReason::ImageTooLarge);
    assert!(machine.files.read_all(Slot::B).unwrap() == before);
}

#[tokio::test]
async fn absent_and_forbidden_files_are_final_and_name_the_url() {
    let machine = machine();
    let before = machine.files.read_all(Slot::B).unwrap();
    for (status, reason) in [
        ("404 Not Found", FailureReason::ArtifactNotFound),
        ("410 Gone", FailureReason::ArtifactNotFound),
        ("403 Forbidden", FailureReason::ArtifactForbidden),
        ("418 I am a teapot", FailureReason::UnusableAnswer),
    ] {
        let server = Server::start(move |_, _| Reply::status(status));
        let error = machine.refuses(http(&server), Expected::default(), reason).await;
        assert_eq!((error.retry(), server.requests().len()), (Retry::Never, 1), "{status}");
        assert!(error.to_string().contains("/rootfs.ext4.zst"), "{error}");
    }
    assert!(machine.files.read_all(Slot::B).unwrap() == before, "nothing came, so nothing was to be written");
}

#[tokio::test]
async fn a_server_that_never_recovers_is_given_up() {
    let machine = machine();
    let server = Server::start(|_, _| Reply::status("503 Service Unavailable"));
    let error = machine.refuses(http(&server), Expected::default(), FailureReason::DownloadInterrupted).await;
    assert_eq!((error.retry(), server.requests().len()), (Retry::Later, 4));
}

#[tokio::test]
async fn mirrors_are_tried_in_turn_and_share_one_download() {
    let (machine, image) = (machine(), image());
    let artifact = zstd(&image);
    let (left, right) = (artifact.clone(), artifact.clone());
    let gone = Server::start(|_, _| Reply::status("404 Not Found"));
    let cutting = Server::start(move |_, request| Reply::file(request, &left, "\"left\"").cut(400_000));
    let honest = Server::start(move |_, request| Reply::file(request, &right, "\"right\""));
    let urls = [gone.url("/a"), cutting.url("/b"), honest.url("/c")];
    machine.flash(Source::Http(download(urls)), ordered(&artifact)).await.unwrap();
    machine.holds(&image);
    let resumed = &honest.requests()[0];
    assert!(resumed.range_from.is_some_and(|from| from > 300_000), "{resumed:?}");
    assert_eq!(resumed.if_range, None, "one mirror's ETag means nothing to another");
}

#[tokio::test]
async fn parts_at_the_wrong_place_are_refused() {
    let machine = machine();
    let artifact = zstd(&image());
    let expected = ordered(&artifact);
    let server = Server::start(move |_, request| match request.range_from {
        None => Reply::file(request, &artifact, "\"1\"").cut(300_000),
        Some(from) => {
            Reply::file(&Request { range_from: Some(from - 7), ..request.clone() }, &artifact, "\"1\"")
        }
    });
    machine.refuses(http(&server), expected, FailureReason::UnusableAnswer).await;
}

#[tokio::test]
async fn redirects_end() {
    let machine = machine();
    let server = Server::start(|_, _| Reply::new("302 Found", &[("Location", "/again")], b""));
    let error = machine.refuses(http(&server), Expected::default(), FailureReason::UnusableAnswer).await;
    assert!(error.to_string().contains("redirects"), "{error}");
}

#[tokio::test]
async fn compressed_transfer_is_refused() {
    let machine = machine();
    let server = Server::start(|_, _| {
        Reply::new("200 OK", &[("Content-Encoding", "gzip"), ("Content-Length", "3")], b"abc")
    });
    machine.refuses(http(&server), Expected::default(), FailureReason::UnusableAnswer).await;
}

#[tokio::test]
async fn a_cancelled_download_lets_go_of_the_slot() {
    let machine = machine();
    let artifact = zstd(&image());
    let file = artifact.clone();
    let server = Server::start(move |_, request| {
        Reply::file(request, &file, "\"1\"").cut(300_000).hang(Duration::from_millis(400))
    });
    let cancel = Cancel::default();
    let stop = cancel.clone();
    let stopper = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.cancel();
    });
    let ended = machine.flash_until(http(&server), ordered(&artifact), &Progress::default(), &cancel).await;
    stopper.await.unwrap();
    assert!(ended.map(|_| ()).unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_failure_is_followed_by_success() {
    let (machine, image) = (machine(), image());
    let artifact = zstd(&image);
    let bad = Source::Reader(Box::new(std::io::Cursor::new(artifact[..1000].to_vec())));
    machine.refuses(bad, Expected::default(), FailureReason::TruncatedArtifact).await;
    let good = Source::Reader(Box::new(std::io::Cursor::new(artifact.clone())));
    machine.flash(good, ordered(&artifact)).await.unwrap();
    machine.holds(&image);
}

#[tokio::test]
async fn an_absent_file_is_named_and_leaves_the_slot_alone() {
    let machine = machine();
    let before = machine.files.read_all(Slot::B).unwrap();
    let absent = Source::File("/nonexistent/x.zst".into());
    let error = machine.flash(absent, Expected::default()).await.map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), FailureReason::ArtifactUnreadable);
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("/nonexistent/x.zst"), "{source}");
    assert!(machine.files.read_all(Slot::B).unwrap() == before);
}

/// A small file system that goes away with this value.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(dir.path())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_device_is_told_from_a_bad_image() {
    let Some(full) = SmallFileSystem::mount() else {
        println!("SKIP: needs root to mount a small tmpfs");
        return;
    };
    let files = FileMachine::create(full.0.path(), SLOT_SIZE).unwrap();
    let host = files.host();
    let slot = SlotMap::discover(&host, &files.layout()).unwrap().open_inactive(&host).unwrap();
    let source = Source::Reader(Box::new(std::io::Cursor::new(zstd(&image()))));
    let ended = flash(slot, source, Expected::default(), &Progress::default(), &Cancel::default()).await;
    let error = ended.unwrap_err();
    assert_eq!((error.reason(), error.retry()), (FailureReason::NoSpaceLeft, Retry::Never), "{error:?}");
    assert_eq!(files.read(Slot::B, 1024).unwrap(), [0; 1024]);
}

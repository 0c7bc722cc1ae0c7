//! Images by their index: what a node has is not fetched, and what is fetched is checked first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::machine::Machine;
use common::release::{BLOCK, FRAME, Release, asked, bytes, image};
use common::{Reply, Request, Server, download};
use monok8s_sdk::api::FailureReason;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::image::{
    BuildOptions, Cancel, Delivery, Expected, Indexed, KnownBlocks, Progress, build_after,
};
use monok8s_sdk::slot::Slot;

/// 16 MiB, a quarter of it zeroes.
fn old() -> Vec<u64> {
    (1..=4096).map(|number| if (1000..2024).contains(&number) { 0 } else { number }).collect()
}

/// The same blocks after a rebuild: some files moved, some changed, some were added.
fn rebuilt() -> Vec<u64> {
    let mut blocks = old();
    blocks.splice(500..500, 10_000..10_037);
    blocks.drain(3000..3100);
    blocks.splice(3500..3520, 20_000..20_020);
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_install_fetches_the_frames_and_no_more() {
    let release = Release::of(image(old()));
    let server = release.serve();
    let machine = Machine::new(&[], &image(5000..6000));
    let done = machine.flash(release.source(&machine, &server), release.expected()).await.unwrap();
    assert_eq!(done.delivery, Delivery::Indexed);
    machine.holds(&release.image);
    let fetched = bytes(&asked(&server));
    assert!(fetched <= release.artifact.len(), "{fetched} of {}", release.artifact.len());
    assert_eq!(done.counted.bytes_total, Some(done.counted.bytes_done));
    assert_eq!(done.counted.bytes_verified, release.image.len() as u64, "{:?}", done.counted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_image_is_put_together_from_the_booted_slot() {
    let release = Release::of(image(rebuilt()));
    let server = release.serve();
    let machine = Machine::new(&image(old()), &image(7000..8000));
    let done = machine.flash(release.source(&machine, &server), release.expected()).await.unwrap();
    assert_eq!(done.delivery, Delivery::Indexed);
    machine.holds(&release.image);
    // 57 new blocks in at most 8 frames, and the first frame of the image is in the old slot too.
    let fetched = bytes(&asked(&server));
    assert!((57 * BLOCK..=9 * FRAME).contains(&fetched), "{fetched} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_slot_is_not_written_again() {
    let release = Release::of(image(old()));
    let mut stale = old();
    stale[2500] = 9999;
    let server = release.serve();
    let machine = Machine::new(&[], &image(stale));
    let done = machine.flash(release.source(&machine, &server), release.expected()).await.unwrap();
    machine.holds(&release.image);
    // The frame that changed. The first one, whose superblock is zeroed meanwhile, was kept.
    assert!(bytes(&asked(&server)) <= FRAME + 100, "{:?}", asked(&server));
    // 4 MiB are zeroes, which were right as well.
    assert!(done.counted.bytes_reused >= (11 << 20), "{:?}", done.counted);

    // A run that is started again after it came to its end has nothing to fetch.
    let before = asked(&server).len();
    machine.flash(release.source(&machine, &server), release.expected()).await.unwrap();
    machine.holds(&release.image);
    assert_eq!(asked(&server).len(), before);
}

/// A machine that upgraded from `before` to `booted` by an index, and booted it.
async fn upgraded(before: &[u8], booted: &Release) -> Machine {
    let server = booted.serve();
    let machine = Machine::new(&[], before);
    machine.flash(booted.source(&machine, &server), booted.expected()).await.unwrap();
    // The slots change their names here, instead of the machine its slot.
    machine.files.write(Slot::A, &booted.image).unwrap();
    machine.files.write(Slot::B, before).unwrap();
    let kept = |slot| machine.dir.path().join(format!("slot-{slot}.index"));
    std::fs::rename(kept("b"), kept("a")).unwrap();
    machine
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_index_finds_what_no_sample_would_have_found() {
    // One frame in 64 comes from the booted slot, where it begins at no frame.
    let next: Vec<u64> = (30_000..34_000).chain(2500..2564).collect();
    let next = Release::of(image(next));
    let booted = Release::of(image(old()));
    for is_kept in [true, false] {
        let machine = upgraded(&[], &booted).await;
        if !is_kept {
            std::fs::remove_file(machine.dir.path().join("slot-a.index")).unwrap();
        }
        let server = next.serve();
        let done = machine.flash(next.source(&machine, &server), next.expected()).await.unwrap();
        assert_eq!(done.delivery, Delivery::Indexed);
        machine.holds(&next.image);
        let saved = next.artifact.len() - bytes(&asked(&server));
        assert_eq!(saved >= 4 * FRAME, is_kept, "{saved} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_index_of_something_else_is_seen_through() {
    let release = Release::of(image(rebuilt()));
    let booted = Release::of(image(old()));
    let other = Release::of(image(old().into_iter().rev()));
    let damaged: Vec<u8> = {
        // The hashes are those of the blocks, each one block further on.
        let mut raw = booted.index.as_bytes().to_vec();
        let hashes = raw.len() - 3072 * 8;
        raw[hashes..].rotate_right(8);
        raw
    };
    let cut = &booted.index.as_bytes()[..20_000];
    for kept in [other.index.as_bytes(), &damaged, cut, &[], b"not an index"] {
        let machine = upgraded(&[], &booted).await;
        std::fs::write(machine.dir.path().join("slot-a.index"), kept).unwrap();
        let server = release.serve();
        machine.flash(release.source(&machine, &server), release.expected()).await.unwrap();
        machine.holds(&release.image);
        let fetched = bytes(&asked(&server));
        assert!(fetched <= 9 * FRAME, "{fetched} bytes");
    }
}

/// How a file is served.
type Serve = fn(&Request, &[u8]) -> Reply;

/// The head is zeroed before anything else changes, so nothing in it may count as right before.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_the_head_is_taken_as_right_before_it_is_zeroed() {
    // Without zeroes, which would be put first and zero the head.
    let image = image(1..=512);
    let mut earlier = image.clone();
    earlier[..BLOCK].fill(9);
    let whole = Release::of(image.clone());
    // Frames of one block and of the rest of the head, as they are cut after an earlier release.
    let mut known = KnownBlocks::default();
    known.add(&mut earlier.as_slice()).unwrap();
    let mut artifact = Vec::new();
    let options = BuildOptions { frame_log: 16, level: 1 };
    let index = build_after(&known, &mut image.as_slice(), &mut artifact, options).unwrap();
    let cut = Release { image: image.clone(), artifact, index };
    for (release, before) in [(&whole, &image), (&cut, &image), (&cut, &earlier)] {
        let server = release.serve();
        let machine = Machine::new(&[], before);
        machine.flash(release.source(&machine, &server), release.expected()).await.unwrap();
        machine.holds(&image);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_without_the_file_does_not_hide_one_without_ranges() {
    let release = Release::of(image(1..=512));
    let (artifact, index) = (release.artifact.clone(), release.index.as_bytes().to_vec());
    let server = Server::start(move |_, request| match request.path.as_str() {
        "/index" => Reply::file(request, &index, "\"i\""),
        "/absent" => Reply::status("404 Not Found"),
        _ => Reply::file(&request.of_all(), &artifact, "\"a\""),
    });
    // The first half is there, so that a part is asked for that is not the start.
    let machine = Machine::new(&[], &image(1..=256));
    let artifact = download(["/rootfs.ext4.zst", "/absent"].map(|path| server.url(path)));
    let checksum = Sha256Digest::of(release.index.as_bytes());
    let source = Indexed::new(artifact, download([server.url("/index")]), checksum);
    let done = machine.flash(source.into(), release.expected()).await.unwrap();
    assert!(matches!(done.delivery, Delivery::WholeInstead { .. }), "{:?}", done.delivery);
    machine.holds(&release.image);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_ranges_or_a_usable_index_the_artifact_is_fetched_whole() {
    let release = Release::of(image(rebuilt()));
    let (artifact, index) = (release.artifact.clone(), release.index.as_bytes().to_vec());
    let other = Release::of(image(1..100));
    // What the server does with (the artifact, the index), and the checksum that was ordered.
    let good = Sha256Digest::of(&index);
    let honest: Serve = |request, file| Reply::file(request, file, "\"x\"");
    let whole: Serve = |request, file| Reply::file(&request.of_all(), file, "\"x\"");
    let absent: Serve = |_, _| Reply::status("404 Not Found");
    for (name, serve_artifact, serve_index, listed, served) in [
        ("no ranges", whole, honest, good, index.clone()),
        ("no index", honest, absent, good, index.clone()),
        ("a damaged index", honest, honest, good, index[1..].to_vec()),
        ("garbage that is listed", honest, honest, Sha256Digest::of(&index[1..]), index[1..].to_vec()),
        (
            "the index of another artifact",
            honest,
            honest,
            Sha256Digest::of(other.index.as_bytes()),
            other.index.as_bytes().to_vec(),
        ),
    ] {
        let file = artifact.clone();
        let server = Server::start(move |_, request| match request.path.as_str() {
            "/index" => serve_index(request, &served),
            _ => serve_artifact(request, &file),
        });
        let machine = Machine::new(&image(old()), &[]);
        let done = machine.flash(machine.source(&server, listed), release.expected()).await.unwrap();
        println!("{name}: {:?}", done.delivery);
        assert!(matches!(done.delivery, Delivery::WholeInstead { .. }), "{name}: {:?}", done.delivery);
        machine.holds(&release.image);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_artifact_is_noticed_before_it_reaches_the_slot() {
    let release = Release::of(image(old()));
    let mut artifact = release.artifact.clone();
    let middle = artifact.len() / 2;
    artifact[middle] ^= 1;
    let index = release.index.as_bytes().to_vec();
    let server = Server::start(move |_, request| match request.path.as_str() {
        "/index" => Reply::file(request, &index, "\"i\""),
        _ => Reply::file(request, &artifact, "\"a\""),
    });
    let machine = Machine::new(&[], &[]);
    let ended = machine.flash(release.source(&machine, &server), release.expected()).await;
    let error = ended.map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), FailureReason::ChecksumMismatch, "{error}");
    machine.cannot_boot();
    let frame = usize::try_from(release.index.artifact_length()).unwrap();
    assert!(error.to_string().contains("frame"), "{error} {frame}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_fit_is_refused_before_a_frame_is_fetched() {
    let release = Release::of(image(1..=6145));
    let server = release.serve();
    let machine = Machine::new(&[], &image(5000..6000));
    let before = machine.files.read_all(Slot::B).unwrap();
    let expected = Expected::default();
    let ended = machine.flash(release.source(&machine, &server), expected).await.map(|_| ());
    assert_eq!(ended.unwrap_err().reason(), FailureReason::ImageTooLarge);
    assert!(asked(&server).is_empty());
    assert!(machine.files.read_all(Slot::B).unwrap() == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_cost_the_rest_of_their_range() {
    let release = Release::of(image(old()));
    let (artifact, index) = (release.artifact.clone(), release.index.as_bytes().to_vec());
    let cuts = AtomicUsize::new(0);
    let server = Server::start(move |_, request| {
        if request.path == "/index" {
            return Reply::file(request, &index, "\"i\"");
        }
        let reply = Reply::file(request, &artifact, "\"a\"");
        // Two of three break, at places that are no frame's end.
        if cuts.fetch_add(1, Ordering::Relaxed) % 3 == 2 { reply } else { reply.cut(1_234_567) }
    });
    let machine = Machine::new(&[], &[]);
    let done = machine.flash(release.source(&machine, &server), release.expected()).await.unwrap();
    assert_eq!(done.delivery, Delivery::Indexed);
    machine.holds(&release.image);
}

/// The frames that stand in slot B.
fn standing(machine: &Machine, release: &Release) -> Vec<usize> {
    let slot = machine.files.read(Slot::B, release.image.len()).unwrap();
    let same = |(_, (found, wanted)): &(usize, (&[u8], &[u8]))| found == wanted;
    let frames = slot.chunks(FRAME).zip(release.image.chunks(FRAME)).enumerate();
    frames.filter(same).map(|(number, _)| number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_cut_off_is_gone_on_with() {
    let release = Release::of(image(1..=2048));
    let mut resumed = 0;
    for delay in 0..40 {
        let machine = Machine::new(&[], &[]);
        let server = release.serve();
        let (progress, cancel) = (Progress::default(), Cancel::default());
        let stop = async {
            // At a different amount each time.
            while progress.snapshot().bytes_written < delay * 200_000 {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            cancel.cancel();
            std::future::pending::<()>().await;
        };
        let source = release.source(&machine, &server);
        let ended = tokio::select! {
            ended = machine.flash_until(source, release.expected(), &progress, &cancel) => ended,
            () = stop => unreachable!(),
        };
        if ended.is_ok() {
            continue;
        }
        machine.cannot_boot();
        let there = standing(&machine, &release);
        let again = release.serve();
        let done = machine.flash(release.source(&machine, &again), release.expected()).await.unwrap();
        assert_eq!(done.delivery, Delivery::Indexed);
        machine.holds(&release.image);
        let wanted: Vec<Range<usize>> = asked(&again);
        for (number, frame) in release.frames().into_iter().enumerate() {
            let fetched = wanted.iter().any(|range| range.start < frame.end && frame.start < range.end);
            assert!(!fetched || !there.contains(&number), "{delay}: frame {number} was there");
        }
        resumed += 1;
    }
    assert!(resumed >= 20, "only {resumed} runs were cut off");
}

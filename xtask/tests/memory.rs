//! The most memory that the real `ctl flash` ever has resident, in every way an image can come: for
//! sparse images, so that 16 GiB are written in seconds.
//!
//! The figure is `VmHWM` of the child, which the kernel only ever raises, without what is resident of the program's
//! own file: more than 10 MiB of a debug build, which is not what writing takes, and which the kernel drops when it
//! needs room. (`wait4` would tell it exactly, but counts what the parent had resident when it forked.)

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "memory/frames.rs"]
mod frames;
#[path = "memory/rig.rs"]
mod rig;
#[path = "memory/sparse.rs"]
mod sparse;

use monok8s_sdk::slot::Slot;
use xtask::http::{Fault, Times};

use rig::{By, Rig};
use sparse::Sparse;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_16_gib_takes_64_mib_at_most_however_it_comes() {
    every_way(16 * GIB, 64 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_2_gib_takes_64_mib_at_most_however_it_comes() {
    every_way(2 * GIB, 64 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_as_many_frames_as_can_be_takes_64_mib_at_most() {
    let peak = frames::peak().await;
    println!("{} MiB", peak.div_ceil(KIB));
    assert!(peak * KIB <= 64 * MIB, "more than 64 MiB: {peak} KiB");
}

/// Writes an image of this size in every way, and compares each peak with the limit.
async fn every_way(bytes: u64, limit: u64) {
    let image = Sparse::new(bytes);
    let mut rig = Rig::start(&image).await;

    let one_frame = rig.flash(By::OneFrame).await;
    assert_eq!((one_frame.delivery(), one_frame.fetched()), ("Whole", rig.artifact_bytes(By::OneFrame)));
    rig.empty();
    let widest = rig.flash(By::WidestWindow).await;
    assert!(widest.kib * KIB > 32 * MIB, "the window was not filled: {widest}");
    rig.empty();
    let many_frames = rig.flash(By::ManyFrames).await;

    // Nothing is there yet.
    rig.empty();
    let first = rig.flash(By::Index("nothing in either slot")).await;
    assert!(first.fetched() > image.data_bytes(), "{first}");

    // The image of before, one extent of which was another one.
    rig.spoil(Slot::B, image.extents.len() / 2);
    let update = rig.flash(By::Index("the image of before in its place")).await;
    assert!((MIB..8 * MIB + update.index_bytes).contains(&update.fetched()), "{update}");

    // The same blocks in the other slot, at other places.
    rig.empty();
    rig.put_elsewhere(Slot::A, 5 * MIB + 4 * KIB);
    let moved = rig.flash(By::Index("its blocks elsewhere in the other slot")).await;
    assert!(moved.fetched() < 8 * MIB + moved.index_bytes, "{moved}");

    // Killed in the middle, and started again.
    rig.empty();
    let slow = Fault::Throttle { bytes_per_second: 24 * MIB };
    rig.server.inject("/many-frames", slow, Times::Always);
    rig.kill_in_the_middle(By::Index("")).await;
    rig.server.heal("/many-frames");
    let resumed = rig.flash(By::Index("killed in the middle, and started again")).await;
    assert!(resumed.fetched() < first.fetched() * 9 / 10, "{resumed}");

    println!("{} MiB, {} MiB of them not zero:", bytes / MIB, image.data_bytes() / MIB);
    let peaks = [one_frame, widest, many_frames, first, update, moved, resumed];
    for peak in &peaks {
        println!("  {peak}");
    }
    for peak in peaks {
        let expected = if matches!(peak.by, By::Index(_)) { "Indexed" } else { "Whole" };
        assert_eq!(peak.delivery(), expected, "{peak}");
        assert!(peak.kib * KIB <= limit, "more than {} MiB: {peak}", limit / MIB);
    }
}

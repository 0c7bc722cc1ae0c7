//! Power failures while a slot is written by an index: what is left is resumed from, and nothing
//! that was left boots before it is whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::sync::Arc;

use common::release::{FRAME, Release};
use common::{Server, download};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::fault::{Crashes, FaultDisk, Medium, Power};
use monok8s_sdk::disk::{BlockTarget, InactiveSlot};
use monok8s_sdk::image::{Cancel, Delivery, Expected, Indexed, Progress, ProgressSnapshot, verify, write};
use monok8s_sdk::slot::Slot;

const HEAD: usize = 64 * 1024;
const FRAMES: usize = 12;
const SLOT: usize = 1 << 20;

/// Some frames are zeroes; all others have bytes of their own.
fn image() -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..FRAMES * FRAME).map(|at| u8::try_from((at / 4096 * 7 + at % 251) % 251).unwrap() + 1).collect();
    for zero in [3, 5, 8] {
        bytes[zero * FRAME..][..FRAME].fill(0);
    }
    bytes
}

/// A release, and where it is served.
struct Served {
    release: Release,
    server: Server,
}

impl Served {
    fn new() -> Self {
        let release = Release::of(image());
        Self { server: release.serve(), release }
    }

    /// Writes and reads back: what was counted.
    async fn flash(&self, disk: &Arc<FaultDisk>) -> ProgressSnapshot {
        let url = |path| self.server.url(path);
        let (artifact, index) = (download([url("/rootfs.ext4.zst")]), download([url("/index")]));
        let source = Indexed::new(artifact, index, self.release.checksum()).into();
        let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(disk) as Arc<dyn BlockTarget>);
        let progress = Progress::default();
        let body = write(slot, source, Expected::default(), &progress, &Cancel::default()).await.unwrap();
        assert_eq!(*body.delivery(), Delivery::Indexed);
        let verified = verify(body.finish().unwrap(), &progress).await.unwrap();
        assert_eq!(verified.image(), Sha256Digest::of(&self.release.image));
        assert!(disk.content().holds(0, &self.release.image), "verified, and not the image");
        progress.snapshot()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_power_failure_leaves_is_resumed_from_and_does_not_boot() {
    let served = Served::new();
    let release = &served.release;
    let power = Power::new();
    let disk = Arc::new(FaultDisk::new(&power, "slot B", Medium::filled(SLOT, 0xEE)));
    served.flash(&disk).await;

    let states = power.crash_states(&Crashes { subsets: 512, tears: 16, seed: 1 });
    let judged = states.len();
    let untouched = vec![0xEE; SLOT - HEAD];
    let is_sound = |medium: &Medium| {
        // Either it has no first bytes, or they are going and nothing else was changed, or they are
        // coming and everything else is there.
        medium.is_zero(0, HEAD)
            || medium.holds(HEAD, &untouched)
            || medium.holds(HEAD, &release.image[HEAD..])
    };
    let (mut most_reused, mut resumed) = (0, 0);
    for (number, state) in states.enumerate() {
        let medium = state.disk(&disk);
        assert!(is_sound(&medium), "{state:?}");
        if number % 29 > 0 {
            continue;
        }
        let left = Arc::new(FaultDisk::new(&Power::new(), "slot B", medium));
        most_reused = served.flash(&left).await.bytes_reused.max(most_reused);
        resumed += 1;
    }
    println!("{judged} states judged, {resumed} resumed from, of which one reused {most_reused} bytes");
    assert!(judged > 1000 && resumed > 40, "{judged}, {resumed}");
    // All but the first frame, which is written again with the first bytes; zeroes cost nothing.
    assert!(most_reused >= ((FRAMES - 4) * FRAME) as u64, "{most_reused}");
}

//! Memory while an image is written does not depend on its size. Alone in its process, because the
//! kernel counts by process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::io::{self, Read, Write as _};

use monok8s_sdk::disk::SlotMap;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::image::{Cancel, Expected, Progress, Source, flash};
use monok8s_sdk::slot::Slot;

const MIB: usize = 1 << 20;
/// The size of the first frame in MiB: more than its window.
const FIRST: usize = 40;
/// How often the frame of 1 MiB is repeated after it.
const FRAMES: usize = 384;

/// The same bytes, over and over.
struct Repeat {
    bytes: Vec<u8>,
    left: usize,
    at: usize,
}

impl Read for Repeat {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes.len() {
            (self.at, self.left) = (0, self.left - 1);
        }
        if self.left == 0 {
            return Ok(0);
        }
        let read = (&self.bytes[self.at..]).read(buf)?;
        self.at += read;
        Ok(read)
    }
}

/// Forgets the peak so far: making the artifact takes memory too.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// The most memory this process had resident since, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

fn frame(bytes: &[u8], times: usize, window_log: u32) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window_log).unwrap();
    for _ in 0..times {
        encoder.write_all(bytes).unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn writing_a_large_image_takes_less_than_64_mib() {
    let noise: Vec<u8> =
        (0..MIB as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40).to_le_bytes()[0]).collect();
    let dir = tempfile::tempdir().unwrap();
    let files = FileMachine::create(dir.path(), 900 * MIB as u64).unwrap();
    let host = files.host();
    let slot = SlotMap::discover(&host, &files.layout()).unwrap().open_inactive(&host).unwrap();
    // The largest window that is accepted, filled; the decoder keeps it for all frames that follow.
    let first = io::Cursor::new(frame(&noise, FIRST, 25));
    let artifact = first.chain(Repeat { bytes: frame(&noise, 1, 20), left: FRAMES, at: 0 });
    let source = Source::Reader(Box::new(artifact));
    reset_peak();
    let (verified, _) =
        flash(slot, source, Expected::default(), &Progress::default(), &Cancel::default()).await.unwrap();
    assert_eq!(verified.length(), ((FIRST + FRAMES) * MIB) as u64);
    assert!(files.read(Slot::B, MIB).unwrap() == noise);
    let peak = peak() / MIB;
    println!("peak: {peak} MiB");
    assert!((32..64).contains(&peak), "peak {peak} MiB; below 32 the window was not filled");
}

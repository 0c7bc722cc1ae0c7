//! An index that lists as many frames as it may, each of one block: what is kept of every frame counts.

use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::image::{Index, MAX_INDEX_BYTES, index_artifact};
use xtask::http::FileServer;
use xtask::scratch::Scratch;

use crate::rig::{start_ctl, watch};
use crate::{KIB, MIB};

const BLOCK: u64 = 4 * KIB;
const FRAMES: u64 = 300_000;

fn artifact() -> (Vec<u8>, Index) {
    let block = |number: u64| number.to_le_bytes().repeat(usize::try_from(BLOCK / 8).unwrap());
    let mut artifact = Vec::new();
    for number in 1..=FRAMES {
        artifact.extend(zstd::bulk::compress(&block(number), 1).unwrap());
    }
    let index = index_artifact(&mut artifact.as_slice()).unwrap();
    (artifact, index)
}

/// The most that `ctl` had resident, in KiB.
pub(crate) async fn peak() -> u64 {
    let scratch = Scratch::new("frames").unwrap();
    let server = FileServer::start().await.unwrap();
    let (artifact, index) = tokio::task::spawn_blocking(artifact).await.unwrap();
    let index_bytes = index.as_bytes().len() as u64;
    assert!(index_bytes > MAX_INDEX_BYTES * 95 / 100, "{index_bytes}");
    FileMachine::create(scratch.path(), FRAMES * BLOCK + MIB).unwrap();
    server.serve_bytes("/artifact", artifact);
    server.serve_bytes("/index", index.as_bytes());
    let arguments = [
        "flash".to_owned(),
        "--slot=B".to_owned(),
        server.url("/artifact"),
        format!("--index={}", server.url("/index")),
        format!("--index-checksum={}", Sha256Digest::of(index.as_bytes())),
        format!("--image-checksum={}", index.image()),
    ];
    let watched = watch(start_ctl(scratch.path(), &arguments)).await;
    assert!(watched.success, "{}", watched.stderr);
    assert!(watched.stdout.contains("\"delivery\": \"Indexed\""), "{}", watched.stdout);
    watched.kib
}

//! SIGKILL in the middle of a write by an index, by the real `ctl flash`: what stands on the medium
//! is never fetched again, and nothing else is needed to go on.

use std::ops::Range;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::image::{BuildOptions, build, parse_seek_table};
use monok8s_sdk::slot::Slot;
use xtask::controlplane::install_tls_provider;
use xtask::http::{Fault, FileServer, Times};
use xtask::programs::Program;

use crate::bench::MIB;
use crate::kills::Moments;

const KILLS: usize = 200;
const FRAME: usize = 64 * 1024;
const FRAMES: usize = 128;
const SLOT_BYTES: u64 = 12 * MIB;
/// At this speed a write takes most of a second.
const SPEED: u64 = 8_000_000;
/// Kills come within so many milliseconds of the first request. Before that there is nothing to see, and
/// it takes long on a machine that is busy.
const WITHIN: u64 = 300;
/// One in so many comes within that time of the start instead.
const EARLY: u64 = 8;

/// An image, and how it is served.
struct Release {
    name: &'static str,
    image: Vec<u8>,
    artifact: Sha256Digest,
    index: Sha256Digest,
    /// Where each frame is in the artifact.
    frames: Vec<Range<u64>>,
}

impl Release {
    /// Noise, so that nothing is small in the artifact, with zeroes at its end.
    fn publish(name: &'static str, seed: u64, server: &FileServer) -> Self {
        let mut noise = Moments(seed);
        let mut image: Vec<u8> =
            (0..FRAMES * FRAME / 8).flat_map(|_| noise.next(u64::MAX).to_le_bytes()).collect();
        image[112 * FRAME..].fill(0);
        let mut artifact = Vec::new();
        let options = BuildOptions { level: 1, frame_log: 16 };
        let index = build(&mut image.as_slice(), &mut artifact, options).unwrap();
        let frames = parse_seek_table(&artifact).unwrap().into_iter().scan(0, |end, entry| {
            let start = *end;
            *end += u64::from(entry.compressed);
            Some(start..*end)
        });
        let (frames, digest) = (frames.collect(), Sha256Digest::of(&artifact));
        server.serve_bytes(&format!("/{name}"), artifact);
        server.serve_bytes(&format!("/{name}.idx"), index.as_bytes());
        server.inject(&format!("/{name}"), Fault::Throttle { bytes_per_second: SPEED }, Times::Always);
        Self { name, image, artifact: digest, index: Sha256Digest::of(index.as_bytes()), frames }
    }

    /// Which frames stand in the slot. The first never counts: it is what the slot lacks until the end.
    fn standing(&self, slot: &[u8]) -> Vec<usize> {
        let frames = self.image.chunks(FRAME).zip(slot.chunks(FRAME)).enumerate();
        frames.skip(1).filter(|(_, (wanted, found))| wanted == found).map(|(number, _)| number).collect()
    }

    fn start(&self, machine: &FileMachine, server: &FileServer) -> Child {
        let directory = machine.disk().parent().unwrap().to_owned();
        let url = |path: String| server.url(&path);
        Command::new(Program::Ctl.locate().unwrap())
            .args(["flash", "--slot=B", &url(format!("/{}", self.name))])
            .arg(format!("--checksum={}", self.artifact))
            .arg(format!("--index={}", url(format!("/{}.idx", self.name))))
            .arg(format!("--index-checksum={}", self.index))
            .arg(format!("--disk={}", machine.disk().display()))
            .arg(format!("--host-root={}", directory.join("host").display()))
            .arg(format!("--data-dir={}", directory.join("data").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The frames that were asked for since the log had `from` entries.
    fn asked_for(&self, server: &FileServer, from: usize) -> Vec<usize> {
        let path = format!("/{}", self.name);
        let mut asked = Vec::new();
        for request in server.requests().iter().skip(from).filter(|request| request.path == path) {
            let range = request.range.as_deref().expect("only parts are asked for");
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let overlaps = |frame: &Range<u64>| frame.start <= last && first < frame.end;
            asked.extend(
                (0..).zip(&self.frames).filter(|(_, frame)| overlaps(frame)).map(|(number, _)| number),
            );
        }
        asked
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_indexed_write_that_was_killed_fetches_again_what_stands() {
    install_tls_provider();
    let seed = u64::from(std::process::id()) << 16 | 5;
    println!("seed {seed}");
    let mut moments = Moments(seed);
    let server = FileServer::start().await.unwrap();
    let releases = [Release::publish("one", 11, &server), Release::publish("two", 22, &server)];
    let directory = tempfile::tempdir().unwrap();
    let machine = FileMachine::create(directory.path(), SLOT_BYTES).unwrap();
    // What runs has a quarter of each.
    let quarter = 32 * FRAME;
    let shared = releases.each_ref().map(|release| &release.image[FRAME..FRAME + quarter]).concat();
    machine.write(Slot::A, &shared).unwrap();
    Program::Ctl.locate().unwrap();

    let started = Instant::now();
    let (mut kills, mut in_the_middle, mut ended, mut kept) = (0, 0, 0, 0);
    // Some kills come before the first byte; they are not what this is about.
    while kills < KILLS || in_the_middle < KILLS / 2 {
        assert!(kills < 3 * KILLS, "only {in_the_middle} of {kills} kills hit a write");
        let release = &releases[ended % 2];
        let before = machine.read_all(Slot::B).unwrap();
        let standing = release.standing(&before);
        let from = server.requests().len();
        let mut ctl = release.start(&machine, &server);
        let is_early = moments.next(EARLY) == 0;
        while !is_early && server.requests().len() == from && ctl.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(moments.next(WITHIN))).await;
        ctl.kill().unwrap();
        let status = ctl.wait().unwrap();
        let after = machine.read_all(Slot::B).unwrap();

        let asked = release.asked_for(&server, from);
        let again: Vec<_> = asked.iter().filter(|frame| standing.contains(frame)).collect();
        assert!(again.is_empty(), "kill {kills}: frames {again:?} stood and were fetched again");
        kept += standing.len();
        let is_whole = after.starts_with(&release.image);
        let cannot_boot = after[..FRAME].iter().all(|byte| *byte == 0);
        assert!(is_whole || cannot_boot || after == before, "kill {kills}: a torn slot could boot");
        if status.signal() == Some(9) {
            kills += 1;
            in_the_middle += usize::from(!is_whole && after != before);
        } else {
            assert!(status.success() && is_whole, "kill {kills}: {status}");
        }
        if is_whole {
            ended += 1;
        }
    }
    // The last one is let go to its end.
    let release = &releases[ended % 2];
    assert!(release.start(&machine, &server).wait().unwrap().success());
    assert!(machine.read_all(Slot::B).unwrap().starts_with(&release.image));
    println!(
        "{kills} kills, {in_the_middle} in the middle of a write, {ended} writes ended, {kept} frames were not \
         fetched again, {:.0?}",
        started.elapsed()
    );
}

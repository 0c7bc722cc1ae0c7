//! A machine, its image in several artifacts on a server, and `ctl flash` as it is watched.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::image::{BuildOptions, build};
use monok8s_sdk::slot::Slot;
use serde_json::Value;
use xtask::http::FileServer;
use xtask::programs::Program;
use xtask::scratch::Scratch;

use crate::sparse::Sparse;
use crate::{KIB, MIB};

/// The largest window that is accepted.
const WIDEST: u32 = 25;
/// How often the peak is looked at. It only rises, so that this loses the very last moment at most.
const LOOK: Duration = Duration::from_millis(2);

/// How an image comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// As `zstd -3` makes it of a pipe.
    OneFrame,
    /// The same with the largest window that is accepted.
    WidestWindow,
    /// As `ctl image build` makes it, without its index.
    ManyFrames,
    /// The same with its index; and what the slots hold.
    Index(&'static str),
}

impl By {
    fn path(self) -> &'static str {
        match self {
            Self::OneFrame => "/one-frame",
            Self::WidestWindow => "/widest-window",
            Self::ManyFrames | Self::Index(_) => "/many-frames",
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneFrame => f.write_str("whole, one frame of zstd -3"),
            Self::WidestWindow => f.write_str("whole, one frame with a window of 32 MiB"),
            Self::ManyFrames => f.write_str("whole, many frames"),
            Self::Index(slots) => write!(f, "by index, {slots}"),
        }
    }
}

/// A write, and the most memory that it had resident.
#[derive(Clone)]
pub(crate) struct Peak {
    pub(crate) by: By,
    pub(crate) kib: u64,
    pub(crate) took: Duration,
    pub(crate) said: Value,
    pub(crate) index_bytes: u64,
}

impl Peak {
    pub(crate) fn delivery(&self) -> &str {
        self.said["delivery"].as_str().unwrap()
    }

    pub(crate) fn fetched(&self) -> u64 {
        self.said["bytesFetched"].as_u64().unwrap()
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (peak, fetched) = (self.kib.div_ceil(KIB), self.fetched() / MIB);
        write!(f, "{:<52} {peak:>3} MiB  {fetched:>4} MiB fetched  {:>5.1?}", self.by.to_string(), self.took)
    }
}

/// What `ctl` left, and its peak.
pub(crate) struct Watched {
    pub(crate) kib: u64,
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Waits for the end of a child that says little.
pub(crate) async fn watch(mut child: Child) -> Watched {
    let mut kib = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        kib = kib.max(peak_of(&child).unwrap_or(0));
        tokio::time::sleep(LOOK).await;
    };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Watched { kib, success: status.success(), stdout, stderr }
}

/// `None` once it has ended.
fn peak_of(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(field("VmHWM:")?.saturating_sub(field("RssFile:")?))
}

/// A sparse file system image, published, and a machine to write it to.
pub(crate) struct Rig {
    pub(crate) server: FileServer,
    image: Sparse,
    machine: FileMachine,
    index: Sha256Digest,
    index_bytes: u64,
    scratch: Scratch,
}

impl Rig {
    pub(crate) async fn start(image: &Sparse) -> Self {
        let scratch = Scratch::new("memory").unwrap();
        let server = FileServer::start().await.unwrap();
        let path = |by: By| scratch.path().join(&by.path()[1..]);
        let index = {
            let mut many = BufWriter::new(File::create(path(By::ManyFrames)).unwrap());
            let mut reader = image.reader();
            let built = tokio::task::spawn_blocking(move || {
                build(&mut reader, &mut many, BuildOptions::default()).unwrap()
            });
            for (by, window) in [(By::OneFrame, None), (By::WidestWindow, Some(WIDEST))] {
                compress(image, &path(by), window).unwrap();
            }
            built.await.unwrap()
        };
        for by in [By::OneFrame, By::WidestWindow, By::ManyFrames] {
            server.serve_file(by.path(), &path(by));
        }
        server.serve_bytes("/index", index.as_bytes());
        let machine = FileMachine::create(scratch.path(), image.bytes).unwrap();
        Self {
            server,
            image: image.clone(),
            machine,
            index: Sha256Digest::of(index.as_bytes()),
            index_bytes: index.as_bytes().len() as u64,
            scratch,
        }
    }

    fn artifact(&self, by: By) -> PathBuf {
        self.scratch.path().join(&by.path()[1..])
    }

    pub(crate) fn artifact_bytes(&self, by: By) -> u64 {
        std::fs::metadata(self.artifact(by)).unwrap().len()
    }

    /// Empties both slots.
    pub(crate) fn empty(&mut self) {
        self.machine = FileMachine::create(self.scratch.path(), self.image.bytes).unwrap();
    }

    fn disk(&self) -> File {
        File::options().read(true).write(true).open(self.machine.disk()).unwrap()
    }

    /// Makes an extent of the image in a slot a different one, but for its first block.
    pub(crate) fn spoil(&self, slot: Slot, number: usize) {
        let extent = &self.image.extents[number];
        let other: Vec<u8> = extent.bytes[4096..].iter().map(|byte| byte ^ 0x5A).collect();
        self.disk().write_all_at(&other, self.machine.offset(slot) + extent.offset + 4096).unwrap();
    }

    /// Puts all extents but the last into a slot, so far behind their places.
    pub(crate) fn put_elsewhere(&self, slot: Slot, by: u64) {
        let (_, extents) = self.image.extents.split_last().unwrap();
        for extent in extents {
            let offset = self.machine.offset(slot) + extent.offset + by;
            self.disk().write_all_at(&extent.bytes, offset).unwrap();
        }
    }

    /// Writes the image to slot B.
    pub(crate) async fn flash(&self, by: By) -> Peak {
        let began = Instant::now();
        let watched = watch(self.ctl(by)).await;
        let took = began.elapsed();
        assert!(watched.success, "{by}: {}", watched.stderr);
        let said: Value = serde_json::from_str(&watched.stdout).unwrap();
        assert_eq!(said["bytes"], self.image.bytes, "{by}");
        self.assert_written(by);
        Peak { by, kib: watched.kib, took, said, index_bytes: self.index_bytes }
    }

    /// Writes, and ends that with SIGKILL when half of the data came.
    pub(crate) async fn kill_in_the_middle(&self, by: By) {
        let before = self.server.bytes_served(by.path());
        let mut ctl = self.ctl(by);
        while self.server.bytes_served(by.path()) - before < self.image.data_bytes() / 2 {
            assert!(ctl.try_wait().unwrap().is_none(), "it ended before it was killed");
            tokio::time::sleep(LOOK).await;
        }
        ctl.kill().unwrap();
        ctl.wait().unwrap();
    }

    fn ctl(&self, by: By) -> Child {
        let mut arguments = vec!["flash".to_owned(), "--slot=B".to_owned(), self.server.url(by.path())];
        if let By::Index(_) = by {
            arguments.push(format!("--index={}", self.server.url("/index")));
            arguments.push(format!("--index-checksum={}", self.index));
        }
        start_ctl(self.scratch.path(), &arguments)
    }

    /// Every extent, and the zeroes around it.
    fn assert_written(&self, by: By) {
        let (disk, slot) = (self.disk(), self.machine.offset(Slot::B));
        for extent in self.image.extents.iter() {
            let mut found = vec![1; extent.bytes.len() + 8192];
            let before = extent.offset.min(4096);
            disk.read_exact_at(&mut found, slot + extent.offset - before).unwrap();
            let (zeroes, found) = found.split_at(usize::try_from(before).unwrap());
            let (found, behind) = found.split_at(extent.bytes.len());
            assert!(found == extent.bytes, "{by}: the extent at {} is wrong", extent.offset);
            assert!(zeroes.iter().all(|byte| *byte == 0), "{by}: no zeroes before {}", extent.offset);
            let is_last = extent.end() == self.image.bytes;
            assert!(is_last || behind[..4096].iter().all(|byte| *byte == 0), "{by}: none behind it");
        }
    }
}

/// Starts `ctl` for the [`FileMachine`] in a directory.
pub(crate) fn start_ctl(directory: &Path, arguments: &[String]) -> Child {
    Command::new(Program::Ctl.locate().unwrap())
        .args(arguments)
        .arg(format!("--disk={}", directory.join("disk.img").display()))
        .arg(format!("--host-root={}", directory.join("host").display()))
        .arg(format!("--data-dir={}", directory.join("data").display()))
        .arg("--output=json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn compress(image: &Sparse, path: &Path, window_log: Option<u32>) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(BufWriter::new(File::create(path)?), 3)?;
    if let Some(window_log) = window_log {
        encoder.window_log(window_log)?;
    }
    let (mut reader, mut buf) = (image.reader(), vec![0; 1 << 20]);
    loop {
        match reader.read(&mut buf)? {
            0 => return encoder.finish()?.flush(),
            length => encoder.write_all(&buf[..length])?,
        }
    }
}

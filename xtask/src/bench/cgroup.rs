//! A control group of its own for each run: who belongs to it, what it used, how fast it may be.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A control group. Dropping it kills what is in it and removes it.
pub(super) struct Group {
    /// In the unified hierarchy, for accounting.
    unified: PathBuf,
    /// In the hierarchy of version 1 that can throttle loop devices.
    blkio: Option<PathBuf>,
}

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) write: u64,
    pub(super) read: u64,
}

impl Group {
    /// A new, empty group.
    pub(super) fn new() -> Result<Self> {
        let name = format!("monok8s-bench-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let create = |parent: PathBuf| -> Result<PathBuf> {
            let path = parent.join(&name);
            fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
            Ok(path)
        };
        let unified = hierarchy("cgroup2", None).context("no cgroup2 hierarchy is mounted")?;
        let mut group = Self { unified: create(unified)?, blkio: None };
        if let Some(parent) = hierarchy("cgroup", Some("blkio")) {
            group.blkio = Some(create(parent)?);
        }
        Ok(group)
    }

    /// Why devices cannot be throttled here, if they cannot.
    pub(super) fn throttle_obstacle() -> Option<String> {
        let file = hierarchy("cgroup", Some("blkio"))?.join("blkio.throttle.write_bps_device");
        (!file.exists()).then(|| format!("{} does not exist", file.display()))
    }

    /// Limits the direct I/O of the group on a device, given as `7:0`.
    pub(super) fn throttle(&self, device: &str, limits: Limits) -> Result<()> {
        let blkio = self.blkio.as_ref().context("the blkio hierarchy of cgroup v1 is not mounted")?;
        for (what, rate) in [("write", limits.write), ("read", limits.read)] {
            let file = blkio.join(format!("blkio.throttle.{what}_bps_device"));
            fs::write(&file, format!("{device} {rate}"))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// Shell commands by which a shell joins the group.
    pub(super) fn join_script(&self) -> String {
        let join = |group: &Path| format!("echo 0 > {}/cgroup.procs || exit 97\n", group.display());
        std::iter::once(&self.unified).chain(&self.blkio).map(|group| join(group)).collect()
    }

    /// Peak resident sets of the processes in the group now, added up; bytes.
    pub(super) fn resident(&self) -> u64 {
        self.sum(peak_resident)
    }

    /// Data that the processes in the group now have handed to block devices, in bytes.
    pub(super) fn written(&self) -> u64 {
        self.sum(write_bytes)
    }

    fn sum(&self, of: fn(&str) -> Option<u64>) -> u64 {
        let processes = fs::read_to_string(self.unified.join("cgroup.procs")).unwrap_or_default();
        processes.lines().filter_map(of).sum()
    }

    /// Processor time of the group so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let file = self.unified.join("cpu.stat");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Ok(Duration::from_micros(micros.with_context(|| format!("{} has no usage_usec", file.display()))?))
    }

    /// Kills every process in the group and waits until they are gone.
    pub(super) fn kill(&self) {
        let gone = || fs::read(self.unified.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty());
        for _ in 0..500 {
            if gone() {
                return;
            }
            // Fails on kernels before 5.14, whose process groups have to do.
            let _ = fs::write(self.unified.join("cgroup.kill"), "1");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        for group in std::iter::once(&self.unified).chain(&self.blkio) {
            // A group stays busy for a moment after its last process was reaped.
            for _ in 0..100 {
                if fs::remove_dir(group).is_ok() || !group.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Where a hierarchy is mounted.
fn hierarchy(kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    find_hierarchy(&fs::read_to_string("/proc/self/mountinfo").ok()?, kind, controller)
}

fn find_hierarchy(mounts: &str, kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let options = (right.next() == Some(kind)).then(|| right.nth(1))??;
        let matches = controller.is_none_or(|wanted| options.split(',').any(|option| option == wanted));
        matches.then(|| left.split(' ').nth(4)).flatten().map(PathBuf::from)
    })
}

fn write_bytes(process: &str) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}

/// The largest resident set that a process ever had; `None` once it has ended.
fn peak_resident(process: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(peak.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_kind_and_controller() {
        let mounts = "31 30 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      32 30 0:27 / /sys/fs/cgroup/blkio rw,relatime shared:1 - cgroup cgroup rw,blkio\n\
                      33 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let find = |kind, controller| find_hierarchy(mounts, kind, controller);
        assert_eq!(find("cgroup", Some("blkio")), Some("/sys/fs/cgroup/blkio".into()));
        assert_eq!(find("cgroup2", None), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find("cgroup", Some("io")), None);
    }

    #[test]
    fn this_process_has_a_resident_set() {
        assert!(peak_resident("self").unwrap() > 100 * 1024);
        assert_eq!(peak_resident("0"), None);
    }
}

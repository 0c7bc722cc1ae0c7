//! What happens between power-on and the first program: the loader's choice, and the files that a
//! kernel would show.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ext4_view::{Ext4, Ext4Read};
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{AttemptId, BootBackend as _, Tries};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::node_upgrade::{Record, SlotContent, SlotContentState};
use monok8s_sdk::os_release::OsRelease;
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;

use crate::disk::Disk;
use crate::rootfs::PANIC_MARKER;

const GUARD: &str = "/usr/bin/monok8s-agent";

/// What the agent looks at in the root file system of a slot that came up.
pub(super) struct BootedRelease {
    /// The os-release.
    text: Vec<u8>,
    /// The program that is also the guard, if the image has it.
    guard: Option<Vec<u8>>,
    /// What it states.
    pub(super) version: String,
}

/// A loader as an installer leaves it: slot A is good, and the only one.
pub(super) fn install(loader: &Path) -> Result<()> {
    SimulatedLoader::install(loader, Slot::A, Tries::DEFAULT_FULL)
        .context("cannot install the simulated loader")?;
    Ok(())
}

/// The same after two upgrades: what is in slot B ran, then what is in slot A. Both are good, and the
/// record says what they hold.
pub(super) fn went_there_and_back(loader: &Path, data: &Path, disk: &Disk) -> Result<()> {
    let loader = SimulatedLoader::open(loader);
    let mut record = Record::default();
    for (attempt, slot) in [(AttemptId(1), Slot::B), (AttemptId(2), Slot::A)] {
        let version: OsVersion = come_up(disk, slot)?.version.parse()?;
        let token = KnownGoodSlot::from_confirm_record(slot, version.clone(), None);
        loader.arm_trial(token.into(), attempt, Tries::TRIAL)?;
        loader.boot(|_| true)?;
        loader.confirm()?;
        let content = SlotContent {
            version,
            checksum: None,
            image_digest: None,
            image_len: None,
            state: SlotContentState::KnownGood,
            extra: BTreeMap::new(),
        };
        match slot {
            Slot::A => record.slots.a = Some(content),
            Slot::B => record.slots.b = Some(content),
        }
        record.next_attempt = AttemptId(attempt.0 + 1);
    }
    RecordStore::in_dir(data).save(&record).context("cannot write the record")
}

/// Boots until a slot comes up, as a machine with a hardware watchdog does.
pub(super) fn boot(loader: &Path, disk: &Disk) -> Result<(Slot, BootedRelease)> {
    let slot = SimulatedLoader::open(loader)
        .boot(|slot| come_up(disk, slot).is_ok())
        .context("no slot comes up: the machine is bricked")?;
    Ok((slot, come_up(disk, slot)?))
}

/// The slot that the loader takes next.
pub(super) fn next_boot(loader: &Path) -> Result<Option<Slot>> {
    Ok(SimulatedLoader::open(loader).status()?.next_boot())
}

/// The slot that is on trial, if one is.
pub(super) fn slot_on_trial(loader: &Path) -> Result<Option<Slot>> {
    Ok(SimulatedLoader::open(loader).status()?.trial.map(|trial| trial.slot))
}

fn come_up(disk: &Disk, slot: Slot) -> Result<BootedRelease> {
    let partition = disk.slot(slot);
    let window = Window { file: File::open(&disk.path)?, offset: partition.offset, length: partition.bytes };
    let root = Ext4::load(Box::new(window)).with_context(|| format!("slot {slot} holds no file system"))?;
    let panics = root.exists(format!("/{PANIC_MARKER}").as_str())?;
    anyhow::ensure!(!panics, "the kernel in slot {slot} panics");
    let text = root.read("/etc/os-release")?;
    let version = OsRelease::parse(&text)?.version()?.map(|version| version.to_string());
    let guard = root.exists(GUARD)?.then(|| root.read(GUARD)).transpose()?;
    // An image that states no version runs all the same; its kubelet has one.
    Ok(BootedRelease { text, guard, version: version.unwrap_or_else(|| "v0.0.0".to_owned()) })
}

/// Writes what a kernel and an init show of a boot.
pub(super) fn write_host(
    host: &Path,
    disk: &Disk,
    slot: Slot,
    release: &BootedRelease,
    boot_id: &str,
) -> Result<()> {
    write_kernel_view(host, disk, slot)?;
    for directory in ["proc/sys/kernel/random", "etc", "usr/bin"] {
        fs::create_dir_all(host.join(directory))?;
    }
    fs::write(host.join("proc/sys/kernel/random/boot_id"), format!("{boot_id}\n"))?;
    fs::write(host.join("etc/os-release"), &release.text)?;
    let guard = host.join(GUARD.trim_start_matches('/'));
    match &release.guard {
        Some(program) => fs::write(guard, program)?,
        None if guard.exists() => fs::remove_file(guard)?,
        None => {}
    }
    write_uptime(host, Duration::ZERO)
}

/// Writes what a kernel shows of a machine that runs from `slot`: all that it takes to find the slots.
pub(crate) fn write_kernel_view(host: &Path, disk: &Disk, slot: Slot) -> Result<()> {
    fs::create_dir_all(host.join("proc/1"))?;
    // Loop devices are found through the real ones.
    for name in ["sys", "dev"] {
        let link = host.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(Path::new("/").join(name), link)?;
        }
    }
    let partuuid = &disk.slot(slot).partuuid;
    fs::write(host.join("proc/cmdline"), format!("console=ttyS0 root=PARTUUID={partuuid} ro panic=10\n"))?;
    fs::write(host.join("proc/swaps"), "Filename\tType\tSize\tUsed\tPriority\n")?;
    Ok(fs::write(host.join("proc/1/mountinfo"), "")?)
}

/// Writes `/proc/uptime`, in a way that no reader sees half of.
pub(super) fn write_uptime(host: &Path, uptime: Duration) -> Result<()> {
    let next = host.join("proc/.uptime");
    fs::write(&next, format!("{:.2} 0.00\n", uptime.as_secs_f64()))?;
    Ok(fs::rename(next, host.join("proc/uptime"))?)
}

/// A partition inside a disk image.
struct Window {
    file: File,
    offset: u64,
    length: u64,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if start.saturating_add(buffer.len() as u64) > self.length {
            return Err("read past the end of the slot".into());
        }
        self.file.seek(SeekFrom::Start(self.offset + start))?;
        Ok(self.file.read_exact(buffer)?)
    }
}

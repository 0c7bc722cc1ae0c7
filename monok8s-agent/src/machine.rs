//! The machine that a program works on: where its slots, boot loader and record are.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use monok8s_sdk::boot::BootBackend;
use monok8s_sdk::boot::grub::GrubEnv;
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::disk::{DiskSource, HostView, PartitionId, SlotLayout, SlotMap, SlotsError};
use monok8s_sdk::image::KeptIndexes;

#[cfg(feature = "failpoints")]
use crate::failpoints::watched;

/// Where GRUB's prefix is on the host.
const GRUB_DIRECTORY: &str = "/boot/grub";

/// Where things are. `ctl` takes the same flags and variables as the agent, so that in the agent's pod
/// it need not be told.
#[derive(Clone, Debug, clap::Args)]
pub struct MachineArgs {
    /// Directory that the host's root is mounted at.
    #[arg(long, value_name = "DIRECTORY", env = "MONOK8S_HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,

    /// Disk that holds both slots [default: the disk that the booted root is on].
    #[arg(long, value_name = "PATH", env = "MONOK8S_DISK")]
    pub disk: Option<PathBuf>,

    /// PARTLABEL of slot A.
    #[arg(long, value_name = "LABEL", env = "MONOK8S_SLOT_A_LABEL", default_value = "rootfs-a")]
    pub slot_a_label: String,

    /// PARTLABEL of slot B.
    #[arg(long, value_name = "LABEL", env = "MONOK8S_SLOT_B_LABEL", default_value = "rootfs-b")]
    pub slot_b_label: String,

    /// Directory of the agent's record; on a partition that both slots share.
    #[arg(long, value_name = "DIRECTORY", env = "MONOK8S_DATA_DIR", default_value = "/var/lib/monok8s")]
    pub data_dir: PathBuf,

    /// Boot loader: auto, or grub:DIRECTORY of its environment on the host, or simulated:PATH of a
    /// simulated loader's state file.
    #[arg(long, value_name = "BACKEND", env = "MONOK8S_BOOT_BACKEND", default_value = "auto")]
    pub boot_backend: BootBackendChoice,
}

impl MachineArgs {
    /// The host's root file system.
    #[must_use]
    pub fn host(&self) -> HostView {
        HostView::new(&self.host_root)
    }

    /// Where the slots are looked for.
    #[must_use]
    pub fn layout(&self) -> SlotLayout {
        SlotLayout {
            disk: self.disk.clone().map_or(DiskSource::BootedRoot, DiskSource::Path),
            a: PartitionId::Label(self.slot_a_label.clone()),
            b: PartitionId::Label(self.slot_b_label.clone()),
        }
    }

    /// Finds the slots.
    pub fn slots(&self) -> Result<SlotMap, SlotsError> {
        SlotMap::discover(&self.host(), &self.layout())
    }

    /// The boot loader, if one is named or can be recognised.
    #[must_use]
    pub fn known_loader(&self) -> Option<Box<dyn BootBackend>> {
        let host = self.host();
        // Paths of the host, wherever it is for this process.
        let on_host = |path: &Path| host.path(path.strip_prefix("/").unwrap_or(path));
        match &self.boot_backend {
            BootBackendChoice::Simulated(path) => Some(Box::new(simulated_loader(path))),
            BootBackendChoice::Grub(directory) => Some(Box::new(GrubEnv::in_directory(on_host(directory)))),
            BootBackendChoice::Auto => {
                GrubEnv::detect(on_host(Path::new(GRUB_DIRECTORY))).map(|grub| Box::new(grub) as _)
            }
        }
    }

    /// Where the agent's record is, or will be.
    #[must_use]
    pub fn record(&self) -> RecordStore {
        #[cfg(feature = "failpoints")]
        return RecordStore::in_directory(watched::directory(&self.data_dir, watched::Keeps::Record));
        #[cfg(not(feature = "failpoints"))]
        RecordStore::in_dir(&self.data_dir)
    }

    /// Makes sure that the record outlives an upgrade. A machine with a simulated loader is one in a
    /// directory, and has everything on one file system.
    pub fn require_lasting_data_dir(&self) -> Result<(), DataDirInSlot> {
        if matches!(self.boot_backend, BootBackendChoice::Simulated(_)) {
            return Ok(());
        }
        // What is not there is told of by those who need it.
        let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
        let (data, root) = (device(&self.data_dir), device(&self.host_root));
        if data.is_some() && data == root {
            return Err(DataDirInSlot { path: self.data_dir.clone() });
        }
        Ok(())
    }

    /// Where indexes of what the slots hold are kept, beside the record.
    #[must_use]
    pub fn kept_indexes(&self) -> KeptIndexes {
        KeptIndexes::new(&self.data_dir)
    }

    /// The agent's record, if an agent keeps one here.
    #[must_use]
    pub fn kept_record(&self) -> Option<RecordStore> {
        self.data_dir.is_dir().then(|| self.record())
    }
}

#[cfg(not(feature = "failpoints"))]
fn simulated_loader(path: &Path) -> SimulatedLoader {
    SimulatedLoader::open(path)
}

#[cfg(feature = "failpoints")]
fn simulated_loader(path: &Path) -> SimulatedLoader {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let directory = watched::directory(path.parent().unwrap_or(path), watched::Keeps::Loader);
    SimulatedLoader::in_directory(directory, &name)
}

/// The data directory is on the root file system of the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data directory {} is on the host's root file system, which is a slot, so an upgrade would leave the record behind: mount the partition that both slots share there, then restart the agent", path.display())]
pub struct DataDirInSlot {
    path: PathBuf,
}

/// Which boot loader the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootBackendChoice {
    /// Whatever is recognised: GRUB, by an environment in `/boot/grub` that tells of slots. Where
    /// nothing is, the node reports itself, and refuses orders with `TrialUnsupported`.
    Auto,
    /// GRUB, with its environment in this directory of the host.
    Grub(PathBuf),
    /// A file that a simulated loader reads.
    Simulated(PathBuf),
}

/// A text that names no boot loader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no boot loader: write auto, grub:DIRECTORY or simulated:PATH")]
pub struct BootBackendChoiceError {
    text: String,
}

impl FromStr for BootBackendChoice {
    type Err = BootBackendChoiceError;

    fn from_str(text: &str) -> Result<Self, BootBackendChoiceError> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            Some(("grub", directory)) if !directory.is_empty() => Ok(Self::Grub(directory.into())),
            Some(("simulated", path)) if !path.is_empty() => Ok(Self::Simulated(path.into())),
            _ => Err(BootBackendChoiceError { text: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        machine: MachineArgs,
    }

    #[test]
    fn a_data_directory_on_the_root_file_system_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |host_root: &Path, data_dir: &Path, backend: &str| {
            let of = |flag: &str, value: &Path| format!("--{flag}={}", value.display());
            let flags = [of("host-root", host_root), of("data-dir", data_dir)];
            let backend = format!("--boot-backend={backend}");
            let given = ["x".to_owned()].into_iter().chain(flags).chain([backend]);
            <Cli as clap::Parser>::parse_from(given).machine.require_lasting_data_dir()
        };
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let refused = check(dir.path(), &data, "auto").unwrap_err().to_string();
        assert!(refused.contains("mount the partition that both slots share there"), "{refused}");
        let elsewhere = Path::new("/proc");
        assert_eq!(check(elsewhere, &data, "auto"), Ok(()), "another file system");
        assert_eq!(check(dir.path(), &data, "simulated:/run/loader"), Ok(()), "a machine in a directory");
        assert_eq!(check(dir.path(), &dir.path().join("absent"), "auto"), Ok(()), "said by the store");
    }

    #[test]
    fn a_loader_is_named_or_looked_for() {
        assert_eq!("auto".parse(), Ok(BootBackendChoice::Auto));
        let simulated = BootBackendChoice::Simulated("/run/loader".into());
        assert_eq!("simulated:/run/loader".parse(), Ok(simulated));
        assert_eq!("grub:/boot/grub".parse(), Ok(BootBackendChoice::Grub("/boot/grub".into())));
        for wrong in ["simulated:", "grub:", "auto:x", "grub9", ""] {
            assert!(wrong.parse::<BootBackendChoice>().is_err(), "{wrong}");
        }
    }
}

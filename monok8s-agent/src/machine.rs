//! The machine that a program works on: where its slots, boot loader and record are.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::disk::{DiskSource, HostView, PartitionId, SlotLayout, SlotMap, SlotsError};
use monok8s_sdk::image::KeptIndexes;

#[cfg(feature = "failpoints")]
use crate::failpoints::watched;
pub use crate::loader::{BootBackendChoice, Loader, LoaderError};

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

    /// Boot loader: auto, grub:DIRECTORY of its environment, uboot:FILE with the places of its environment,
    /// systemd-boot:DIRECTORY of the EFI system partition, gpt, or simulated:PATH of a state file.
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
    pub fn loader(&self) -> Result<Option<Loader>, LoaderError> {
        Loader::of(self)
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

/// The data directory is on the root file system of the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data directory {} is on the host's root file system, which is a slot, so an upgrade would leave the record behind: mount the partition that both slots share there, then restart the agent", path.display())]
pub struct DataDirInSlot {
    path: PathBuf,
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
}

//! The machine that a command works on: its slots, boot loader and record.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use monok8s_sdk::boot::BootBackend;
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::disk::{DiskSource, HostView, PartitionId, SlotLayout, SlotMap};

/// Where things are. The flags and variables are those of `monok8s-agent run`, so that in the agent's
/// pod nothing needs to be said.
#[derive(Debug, Args)]
pub(super) struct Machine {
    /// Directory that the host's root is mounted at.
    #[arg(long, value_name = "DIRECTORY", env = "MONOK8S_HOST_ROOT", default_value = "/")]
    host_root: PathBuf,

    /// Disk that holds both slots [default: the disk that the booted root is on].
    #[arg(long, value_name = "PATH", env = "MONOK8S_DISK")]
    disk: Option<PathBuf>,

    /// PARTLABEL of slot A.
    #[arg(long, value_name = "LABEL", env = "MONOK8S_SLOT_A_LABEL", default_value = "rootfs-a")]
    slot_a_label: String,

    /// PARTLABEL of slot B.
    #[arg(long, value_name = "LABEL", env = "MONOK8S_SLOT_B_LABEL", default_value = "rootfs-b")]
    slot_b_label: String,

    /// Directory of the agent's record.
    #[arg(long, value_name = "DIRECTORY", env = "MONOK8S_DATA_DIR", default_value = "/var/lib/monok8s")]
    data_dir: PathBuf,

    /// Boot loader: simulated:PATH, where PATH is the state file of a simulated loader [default: none is asked].
    #[arg(long, value_name = "BACKEND", env = "MONOK8S_BOOT_BACKEND")]
    boot_backend: Option<Loader>,
}

/// A boot loader by its name on the command line.
#[derive(Clone, Debug)]
enum Loader {
    Simulated(PathBuf),
}

impl FromStr for Loader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("simulated", path)) if !path.is_empty() => Ok(Self::Simulated(path.into())),
            _ => Err("write simulated:PATH".to_owned()),
        }
    }
}

impl Machine {
    pub(super) fn host(&self) -> HostView {
        HostView::new(&self.host_root)
    }

    /// Finds the slots.
    pub(super) fn slots(&self) -> Result<SlotMap> {
        let disk = self.disk.clone().map_or(DiskSource::BootedRoot, DiskSource::Path);
        let layout = SlotLayout {
            disk,
            a: PartitionId::Label(self.slot_a_label.clone()),
            b: PartitionId::Label(self.slot_b_label.clone()),
        };
        Ok(SlotMap::discover(&self.host(), &layout)?)
    }

    /// The boot loader, if one was named.
    pub(super) fn loader(&self) -> Option<Box<dyn BootBackend>> {
        self.boot_backend.as_ref().map(|loader| match loader {
            Loader::Simulated(path) => Box::new(SimulatedLoader::open(path)) as Box<dyn BootBackend>,
        })
    }

    /// The agent's record, if an agent keeps one here.
    pub(super) fn record(&self) -> Option<RecordStore> {
        self.data_dir.is_dir().then(|| RecordStore::in_dir(&self.data_dir))
    }
}

//! The boot loader of a machine: named on the command line, or recognised by what it keeps.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use monok8s_sdk::boot::BootBackend;
use monok8s_sdk::boot::bls::BlsEntries;
use monok8s_sdk::boot::bls::kernel::{BootFiles, Source, StageError};
use monok8s_sdk::boot::gpt_bits::{GptBits, GptBitsError};
use monok8s_sdk::boot::grub::GrubEnv;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::uboot::{Redundancy, UbootEnv, UbootError};
use monok8s_sdk::disk::{HostView, SlotsError, VerifiedSlot};
use monok8s_sdk::image::{InspectError, SlotFile};
use monok8s_sdk::node_upgrade::passed_trial;
use monok8s_sdk::version::OsVersion;

#[cfg(feature = "failpoints")]
use crate::failpoints::watched;
use crate::machine::MachineArgs;
use crate::unknown_loader::UnknownLoader;

/// Where GRUB's prefix is on the host.
const GRUB_DIRECTORY: &str = "boot/grub";
/// Where U-Boot's tools have their configuration on the host.
const UBOOT_CONFIG: &str = "etc/fw_env.config";
/// Where the EFI system partition is mounted, in the order of the Boot Loader Specification.
const EFI_PARTITIONS: [&str; 3] = ["efi", "boot", "boot/efi"];
/// Where an image has its kernel and its initrd.
const KERNEL: &str = "/boot/vmlinuz";
const INITRD: &str = "/boot/initrd.img";

/// Which boot loader the host has. Paths are the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootBackendChoice {
    /// Whatever is recognised. Where nothing is, the node reports itself, and refuses orders with
    /// `TrialUnsupported`.
    Auto,
    /// GRUB, with its environment in this directory.
    Grub(PathBuf),
    /// U-Boot, with its environment where this `fw_env.config` says.
    Uboot(PathBuf),
    /// systemd-boot, with its entries on the EFI system partition mounted here.
    SystemdBoot(PathBuf),
    /// A loader that goes by attributes of the slots' GPT entries.
    Gpt,
    /// A file that a simulated loader reads; its path is this process's.
    Simulated(PathBuf),
}

/// A text that names no boot loader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no boot loader: write auto, grub:DIRECTORY, uboot:FILE, systemd-boot:DIRECTORY, gpt or simulated:PATH"
)]
pub struct BootBackendChoiceError {
    text: String,
}

impl FromStr for BootBackendChoice {
    type Err = BootBackendChoiceError;

    fn from_str(text: &str) -> Result<Self, BootBackendChoiceError> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "gpt" => Ok(Self::Gpt),
            Some((name, path)) if !path.is_empty() => match name {
                "grub" => Ok(Self::Grub(path.into())),
                "uboot" => Ok(Self::Uboot(path.into())),
                "systemd-boot" => Ok(Self::SystemdBoot(path.into())),
                "simulated" => Ok(Self::Simulated(path.into())),
                _ => Err(BootBackendChoiceError { text: text.to_owned() }),
            },
            _ => Err(BootBackendChoiceError { text: text.to_owned() }),
        }
    }
}

/// Why a boot loader that is there, or should be, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// Its environment is not where its configuration says.
    #[error("cannot use U-Boot's environment")]
    Uboot(#[from] UbootError),
    /// The attributes of the slots cannot be read.
    #[error("cannot read the attributes of the slots in the partition table")]
    Gpt(#[from] GptBitsError),
    /// The slots that the attributes are of cannot be told.
    #[error("cannot tell the slots apart")]
    Slots(#[from] SlotsError),
}

/// A boot loader of the host.
#[derive(Debug)]
pub enum Loader {
    /// GRUB.
    Grub(GrubEnv),
    /// U-Boot.
    Uboot(UbootEnv),
    /// systemd-boot, which needs the slots' kernels on a partition of its own.
    SystemdBoot(BlsEntries),
    /// One that goes by attributes of partitions.
    Gpt(GptBits),
    /// A pretended one.
    Simulated(SimulatedLoader),
    /// None that is known: the booted slot is taken for the only good one, and nothing is armed.
    Unknown(UnknownLoader),
}

impl Loader {
    /// What stands where nothing is known.
    pub(crate) fn unknown(machine: &MachineArgs) -> Self {
        Self::Unknown(UnknownLoader { host: machine.host(), layout: machine.layout() })
    }

    /// What a machine has; `None` if nothing was named and nothing is recognised.
    pub fn of(machine: &MachineArgs) -> Result<Option<Self>, LoaderError> {
        let host = machine.host();
        let at = |path: &Path| host.path(path.strip_prefix("/").unwrap_or(path));
        Ok(Some(match &machine.boot_backend {
            BootBackendChoice::Grub(directory) => Self::Grub(GrubEnv::in_directory(at(directory))),
            BootBackendChoice::Uboot(config) => {
                let config = config.strip_prefix("/").unwrap_or(config);
                Self::Uboot(UbootEnv::from_config(&host.path(""), config, Redundancy::Required)?)
            }
            BootBackendChoice::SystemdBoot(partition) => {
                Self::SystemdBoot(BlsEntries::on_partition(at(partition)))
            }
            BootBackendChoice::Gpt => Self::Gpt(GptBits::open(&machine.slots()?, &machine.data_dir)),
            BootBackendChoice::Simulated(path) => Self::Simulated(simulated(path)),
            BootBackendChoice::Auto => return Self::recognised(machine, &host),
        }))
    }

    /// By what each keeps on the host: the first that is there. All of them are looked for before
    /// attributes of partitions, which some tool may have set and no loader reads.
    fn recognised(machine: &MachineArgs, host: &HostView) -> Result<Option<Self>, LoaderError> {
        if let Some(grub) = GrubEnv::detect(host.path(GRUB_DIRECTORY)) {
            return Ok(Some(Self::Grub(grub)));
        }
        if UbootEnv::detect(&host.path(""), UBOOT_CONFIG) {
            let found = UbootEnv::from_config(&host.path(""), UBOOT_CONFIG, Redundancy::Required)?;
            return Ok(Some(Self::Uboot(found)));
        }
        let entries = EFI_PARTITIONS.iter().find_map(|mounted| BlsEntries::detect(host.path(mounted)));
        if let Some(entries) = entries {
            return Ok(Some(Self::SystemdBoot(entries)));
        }
        // A script booted this that reads no attributes: its own state is not there yet, or not any more.
        let command_line = host.kernel_command_line().ok().flatten().unwrap_or_default();
        if passed_trial(&command_line).is_some() {
            return Ok(None);
        }
        // Where the slots are not found there is nothing to be read off them.
        let Ok(slots) = machine.slots() else { return Ok(None) };
        let has_bits = GptBits::detect(&slots).unwrap_or(false);
        Ok(has_bits.then(|| Self::Gpt(GptBits::open(&slots, &machine.data_dir))))
    }

    /// What it is told through.
    #[must_use]
    pub fn backend(&self) -> &dyn BootBackend {
        match self {
            Self::Grub(grub) => grub,
            Self::Uboot(uboot) => uboot,
            Self::SystemdBoot(entries) => entries,
            Self::Gpt(bits) => bits,
            Self::Simulated(simulated) => simulated,
            Self::Unknown(unknown) => unknown,
        }
    }

    /// Puts what the loader reads of a slot where it can read it. Most read the slot itself.
    pub(crate) fn stage(
        &self,
        slot: &VerifiedSlot,
        version: &OsVersion,
        root: &str,
    ) -> Result<(), KernelError> {
        let Self::SystemdBoot(entries) = self else { return Ok(()) };
        let mut kernel = SlotFile::open(slot, KERNEL)?.ok_or(KernelError::NoKernel)?;
        let mut initrd = SlotFile::open(slot, INITRD)?;
        let files = BootFiles {
            kernel: Source { length: kernel.length(), bytes: &mut kernel },
            initrd: initrd.as_mut().map(|initrd| Source { length: initrd.length(), bytes: initrd }),
            version: Some(version),
            root,
        };
        Ok(entries.stage(slot, files)?)
    }
}

/// Why a slot's kernel is not where the loader can read it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("the image has no {KERNEL}, which systemd-boot needs on the EFI system partition")]
    NoKernel,
    #[error("cannot read the image's kernel")]
    Image(#[from] InspectError),
    #[error("cannot put the image's kernel on the EFI system partition")]
    Stage(#[from] StageError),
}

#[cfg(not(feature = "failpoints"))]
fn simulated(path: &Path) -> SimulatedLoader {
    SimulatedLoader::open(path)
}

#[cfg(feature = "failpoints")]
fn simulated(path: &Path) -> SimulatedLoader {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let directory = watched::directory(path.parent().unwrap_or(path), watched::Keeps::Loader);
    SimulatedLoader::in_directory(directory, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_is_named_or_looked_for() {
        for (text, choice) in [
            ("auto", BootBackendChoice::Auto),
            ("gpt", BootBackendChoice::Gpt),
            ("grub:/boot/grub", BootBackendChoice::Grub("/boot/grub".into())),
            ("uboot:/etc/fw_env.config", BootBackendChoice::Uboot("/etc/fw_env.config".into())),
            ("systemd-boot:/efi", BootBackendChoice::SystemdBoot("/efi".into())),
            ("simulated:/run/loader", BootBackendChoice::Simulated("/run/loader".into())),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        for wrong in ["simulated:", "grub:", "auto:x", "gpt:x", "grub9", ""] {
            assert!(wrong.parse::<BootBackendChoice>().is_err(), "{wrong}");
        }
    }
}

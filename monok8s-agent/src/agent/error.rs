//! Why a turn of the loop came to nothing. All of them are tried again.

use monok8s_sdk::boot::BootError;
use monok8s_sdk::boot::record_store::StoreError;
use monok8s_sdk::disk::SlotsError;

use crate::host::HostError;
use crate::machine::{DataDirInSlot, LoaderError};
use crate::reboot::RebootError;

/// What is in the way on this node.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cannot tell the slots apart")]
    Slots(#[from] SlotsError),
    #[error("cannot use the boot loader's state")]
    Loader(#[from] BootError),
    #[error("cannot keep the record on the data partition")]
    Record(#[from] StoreError),
    #[error(transparent)]
    DataDir(#[from] DataDirInSlot),
    #[error(
        "no boot loader is found any more, but an upgrade is under way through one: mount the partition with its state, or name it with --boot-backend"
    )]
    LoaderGone,
    #[error("cannot use the boot loader")]
    FindLoader(#[from] LoaderError),
    #[error("cannot reboot")]
    Reboot(#[from] RebootError),
    #[error(
        "cannot tell which version runs: the host's os-release states none, and no Node of this boot does"
    )]
    NoVersion,
}

//! Slots on disks: where they are, which one may be written, and what is known about its bytes.
//!
//! - [`BlockTarget`] is what a slot is written through; [`DirectTarget`] is a block device, a loop
//!   device or a plain file behind it.
//! - [`Directory`] is what small files are kept in, [`HostDirectory`] one of the host.
//! - [`Region`] is what state is kept in that must stay where it is: a loader's.
//! - [`gpt`] reads partition tables, [`gpt_edit`] changes their attribute bits, [`HostView`] what the kernel says about devices.
//! - [`SlotMap`] finds the two slots and the booted one. [`SlotMap::open_for_writing`] is the only
//!   way to a writable slot, and never gives out the booted one.
//! - [`Throttle`] keeps a slot, and what is read to make it, to a [`Pace`].
//! - [`WrittenSlot`], [`VerifiedSlot`] and [`KnownGoodSlot`] say what is known of a slot's bytes.
//!   They are types, so that booting a slot that nobody read back does not compile.
//!
//! Nothing here needs an async runtime; every call may block on the disk.

mod aligned;
mod booted;
mod direct;
mod directory;
#[cfg(any(test, feature = "test-util"))]
pub mod fault;
#[cfg(any(test, feature = "test-util"))]
pub mod fixture;
pub mod gpt;
pub mod gpt_edit;
mod guard;
mod host;
mod layout;
mod pace;
mod read_only;
mod readback;
mod region;
mod slots;
mod target;
mod token;

pub use aligned::{ALIGNMENT, AlignedBuf};
pub use direct::DirectTarget;
pub use directory::{Directory, HostDirectory};
pub use guard::{GuardError, InactiveSlot};
pub use host::{BlockDevice, HostError, HostView, LoopBacking};
pub use layout::{DiskSource, PartitionId, SlotLayout};
pub use pace::{Pace, Pressure, Throttle};
pub use read_only::ReadOnlySlot;
#[cfg(feature = "image")]
pub(crate) use readback::{Comparison, Written, is_zero};
pub use region::{HostRegion, Region, RegionLock};
pub use slots::{SlotDevice, SlotMap, SlotPartition, SlotsError};
#[cfg(feature = "image")]
pub(crate) use target::Bytes;
pub use target::{Action, BlockTarget, DeviceNumber, DiskError};
#[cfg(feature = "image")]
pub(crate) use token::SlotReader;
pub use token::{KnownGoodSlot, VerifiedSlot, VerifyError, WrittenSlot};

//! Which slot boots: what the loader's state says, and how it is changed.
//!
//! [`LoaderStatus`] and its parts are plain values with pure transitions; decisions and tests use
//! them without any feature. A backend (feature `boot`) reads its loader's variables into a
//! `LoaderStatus` and writes the changed one back in one update.
//!
//! The model is the one that RAUC's GRUB and U-Boot scripts implement: an order of slots, and for
//! each slot whether it is good and how many tries it has left. A try is burnt at every boot, also
//! of a good slot; [`LoaderStatus::marked_good`] refills it once the slot is up. One variable of
//! ours stands beside theirs: the trial, which tells an armed slot from a confirmed one.

#[cfg(feature = "boot")]
mod backend;
#[cfg(feature = "boot")]
pub mod bls;
#[cfg(test)]
#[cfg(feature = "boot")]
mod changes_fixture;
#[cfg(feature = "boot")]
pub mod gpt_bits;
#[cfg(feature = "boot")]
pub mod grub;
#[cfg(feature = "boot")]
pub mod record_store;
#[cfg(feature = "boot")]
pub mod simulated;
mod status;
mod trial_text;
#[cfg(feature = "boot")]
pub mod uboot;

#[cfg(feature = "boot")]
pub use backend::{ArmableSlot, BootBackend, BootError, Capabilities, Change};
pub use status::{
    AttemptId, LoaderStatus, Reset, Reverter, SlotHealth, SlotState, TrialEvidence, TrialProgress,
    TrialState, Tries, TryCounting,
};
pub use trial_text::TrialStateError;

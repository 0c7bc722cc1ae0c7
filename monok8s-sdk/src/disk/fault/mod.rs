//! Storage that loses power and makes mistakes, for tests of whatever writes to it.
//!
//! [`FaultDisk`] is a [`BlockTarget`](super::BlockTarget) and a [`Region`](super::Region),
//! [`FaultDirectory`] a [`Directory`](super::Directory), both in memory. All that hang on one [`Power`] share its clock
//! and its log; [`Power::crash_states`] then goes through what their media may hold if the power
//! fails: at every moment, with any of the operations that no flush covers, in parts or whole.
//! [`FaultDisk::inject`] makes single operations fail, go missing or change a bit.
//!
//! ```
//! use monok8s_sdk::disk::BlockTarget as _;
//! use monok8s_sdk::disk::fault::{Crashes, FaultDisk, Medium, Power};
//!
//! let power = Power::new();
//! let disk = FaultDisk::new(&power, "disk", Medium::filled(64 * 1024, 0));
//! // The data, then the mark that says it is there: without the first flush this fails.
//! disk.write_at(4096, &[7; 8192])?;
//! disk.flush()?;
//! disk.write_at(0, &[1; 512])?;
//! disk.flush()?;
//!
//! let states = power.crash_states(&Crashes::default());
//! assert!(states.len() > 50);
//! for state in states {
//!     let medium = state.disk(&disk);
//!     assert!(medium.is_zero(0, 512) || medium.holds(4096, &[7; 8192]), "{state:?}");
//! }
//! # Ok::<(), monok8s_sdk::disk::DiskError>(())
//! ```

mod disk;
mod files;
mod medium;
mod power;
mod random;
mod region;
mod states;
#[cfg(test)]
mod tests;

pub use disk::{Fault, FaultDisk, ReadFault};
pub use files::{FaultDirectory, Files};
pub use medium::Medium;
pub use power::{Moment, Power};
pub use states::{CrashState, CrashStates, Crashes};

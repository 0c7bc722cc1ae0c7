//! OS images into slots: download, checksum, expansion, write, read-back and inspection.
//!
//! The steps are types, so that none can be left out:
//! [`InactiveSlot`] → [`write()`] → [`BodyWritten`] → [`finish`](BodyWritten::finish) →
//! [`WrittenSlot`] → [`verify`] → [`VerifiedSlot`] → [`inspect()`] and a boot backend. Between them
//! a caller can note in a record what is known, so that a power cut costs at most a download.
//! [`flash`] goes from the first to the last without a record.
//!
//! Where the bytes come from is a [`Source`], and [`BodyWritten::delivery`] says how they came:
//!
//! - A whole artifact, any `.zst`: several threads expand its frames and write, and read back right
//!   behind the writes.
//! - [`Source::Indexed`]: the frames that the slot holds already stay, others are put together from
//!   blocks in the slots that are given, and only the rest is fetched, several requests at a time.
//!   Every frame has its sha256 before it is written. If the [`Index`] is of no use, or no server
//!   sends parts of files, the artifact is taken whole ([`Delivery::WholeInstead`]).
//!
//! Those who publish images use [`build()`], [`index_artifact`], [`verify_artifact`] and
//! [`outline()`].
//!
//! What holds at every instant: the slot's first 64 KiB are zero until everything else of the
//! image is on the medium and its checksums matched, so a torn or foreign image cannot be booted.
//! Memory stays under 64 MiB at any image size.
//!
//! ```
//! use std::sync::Arc;
//!
//! use monok8s_sdk::digest::Sha256Digest;
//! use monok8s_sdk::disk::{HostView, SlotMap};
//! use monok8s_sdk::image::{Cancel, Expected, Progress, Source, flash};
//! # use monok8s_sdk::disk::fixture::FileMachine;
//! # let runtime = tokio::runtime::Runtime::new()?;
//! # runtime.block_on(async {
//! # let dir = tempfile::tempdir()?;
//! # let machine = FileMachine::create(dir.path(), 8 << 20)?;
//! # let artifact = zstd::encode_all(&[7; 100_000][..], 3)?;
//! # let path = dir.path().join("rootfs.ext4.zst");
//! # std::fs::write(&path, &artifact)?;
//! # let (host, layout) = (machine.host(), machine.layout());
//! // On a node: `HostView::new("/")` and `SlotLayout::default()`.
//! let slot = SlotMap::discover(&host, &layout)?.open_inactive(&host)?;
//! let expected = Expected { checksum: Some(Sha256Digest::of(&artifact)), ..Expected::default() };
//!
//! let progress = Progress::default(); // keep a clone to watch it from elsewhere
//! let verified = flash(slot, Source::File(path), expected, &progress, &Cancel::default()).await?;
//!
//! assert_eq!(verified.image(), Sha256Digest::of(&[7; 100_000]));
//! assert_eq!(progress.snapshot().bytes_verified, 100_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assemble;
mod build;
mod delta;
mod economy;
mod error;
mod examine;
mod expand;
mod fetch;
mod fetch_error;
mod fetch_frames;
mod frame;
#[cfg(all(feature = "test-util", feature = "boot"))]
pub(crate) mod fuzzing;
mod index;
mod index_builder;
mod indexed;
mod inspect;
mod kept;
mod links;
mod lookup;
mod pool;
mod progress;
mod resume;
mod run;
mod seek_table;
mod slot_writer;
mod source;
mod sources;
mod spans;
mod wire;
mod write;
mod write_error;

pub use build::{BuildError, BuildOptions, KnownBlocks, build, build_after};
pub use error::{ImageError, Retry};
pub use examine::{ExamineError, Outline, index_artifact, outline, verify_artifact};
pub use fetch::{Download, DownloadLimits};
pub use fetch_error::{FetchError, Interruption};
pub use index::{Index, IndexError, MAX_INDEX_BYTES};
pub use indexed::{Delivery, Indexed};
pub use inspect::{DEFAULT_GUARD_PATHS, InspectError, Inspection, inspect};
pub use kept::KeptIndexes;
pub use progress::{Cancel, Progress, ProgressSnapshot};
pub use seek_table::{SeekEntry, SeekTableError, parse_seek_table};
pub use source::Source;
pub use write::{BodyWritten, Expected, write_body};
pub use write_error::WriteError;

use crate::disk::{InactiveSlot, VerifiedSlot, WrittenSlot};
use source::blocking;

/// Puts an image into a slot and reads it back: all steps, for callers that keep no record.
pub async fn flash(
    slot: InactiveSlot,
    source: Source,
    expected: Expected,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<VerifiedSlot, ImageError> {
    let body = write(slot, source, expected, progress, cancel).await?;
    let written = blocking(move || body.finish()).await?;
    verify(written, progress).await
}

/// Streams an artifact into a slot, all but the slot's first 64 KiB, and reads that back.
///
/// On any error the slot is left without its first 64 KiB, so that nothing can boot it; or as it
/// was, if the first bytes of the image never came. To start over, open the slot again.
pub async fn write(
    slot: InactiveSlot,
    source: Source,
    expected: Expected,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<BodyWritten, ImageError> {
    source.write(slot, expected, progress.clone(), cancel.clone()).await
}

/// Reads back from the medium what was not read back while the slot was written: its first 64 KiB.
pub async fn verify(written: WrittenSlot, progress: &Progress) -> Result<VerifiedSlot, ImageError> {
    let verified = blocking(move || written.verify()).await?;
    progress.set_verified(verified.length());
    Ok(verified)
}

//! OS images into slots: download, checksum, expansion, write, read-back and inspection.
//!
//! The steps are types, so that none can be left out:
//! [`InactiveSlot`] → [`write()`] → [`BodyWritten`] → [`finish`](BodyWritten::finish) →
//! [`WrittenSlot`] → [`verify`] → [`VerifiedSlot`] → [`inspect()`] and a boot backend. Between them
//! a caller can note in a record what is known, so that a power cut costs at most a download.
//! [`flash`] goes from the first to the last without a record.
//!
//! Where the bytes come from is a [`Source`], and a [`Delivery`] says how they came:
//!
//! - A whole artifact, any `.zst`: several threads expand its frames and write, and read back right
//!   behind the writes.
//! - [`Source::Indexed`]: the frames that the slot holds already stay, others are put together from
//!   blocks in the slots that are given, and only the rest is fetched, eight requests at a time.
//!   Every frame has its sha256 before it is written; one that came wrong is fetched again from another
//!   mirror. If the [`Index`] is of no use, or no server sends parts of files, the artifact is taken
//!   whole ([`Delivery::WholeInstead`]).
//!
//! All requests for an image share one deadline ([`DownloadLimits::total`]) and what is known of its
//! mirrors. When the writing side fails, the download is over at once, however silent its server is.
//!
//! Those who publish images use [`build()`], [`index_artifact`], [`verify_artifact`] and
//! [`outline()`].
//!
//! What holds at every instant: the slot's first 64 KiB are zero until everything else of the
//! image is on the medium and its checksums matched, so a torn or foreign image cannot be booted.
//! Memory stays under 64 MiB at any image size.
//!
//! # Without Kubernetes
//!
//! A URL into a slot, with its progress; `examples/flash.rs` is a whole program.
//!
//! ```
//! use std::time::Duration;
//!
//! use monok8s_sdk::disk::SlotMap;
//! use monok8s_sdk::http::{HttpOptions, http_client};
//! use monok8s_sdk::image::{Cancel, Download, Expected, Progress, flash};
//! # use wiremock::{Mock, MockServer, ResponseTemplate, matchers};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let (directory, server) = (tempfile::tempdir()?, MockServer::start().await);
//! # let machine = monok8s_sdk::disk::fixture::FileMachine::create(directory.path(), 8 << 20)?;
//! # let (host, layout) = (machine.host(), machine.layout());
//! # let artifact = zstd::encode_all(&[7; 100_000][..], 3)?;
//! # let checksum = monok8s_sdk::digest::Sha256Digest::of(&artifact);
//! # let served = ResponseTemplate::new(200).set_body_bytes(artifact);
//! # Mock::given(matchers::path("/rootfs.ext4.zst")).respond_with(served).mount(&server).await;
//! # let url = server.uri() + "/rootfs.ext4.zst";
//!
//! // Once, when the program starts: the library leaves the choice to it.
//! let _ = rustls::crypto::ring::default_provider().install_default();
//!
//! // On a node: `HostView::new("/")` and `SlotLayout::default()`.
//! let slot = SlotMap::discover(&host, &layout)?.open_inactive(&host)?;
//! let download = Download::new(http_client(&HttpOptions::default())?, [url.parse()?]);
//! let expected = Expected { checksum: Some(checksum), ..Expected::default() };
//! let (progress, cancel) = (Progress::default(), Cancel::default());
//! let flashing = flash(slot, download.into(), expected, &progress, &cancel);
//! let show = |now| println!("{now:?}");
//! let (verified, _) = progress.watch(Duration::from_secs(1), flashing, show).await?;
//! println!("slot {} holds {}", verified.slot(), verified.image());
//! # assert!(machine.read(verified.slot(), 100_000)? == [7; 100_000]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The same by a block index, so that only what is in neither slot is fetched:
//!
//! ```
//! use monok8s_sdk::disk::SlotMap;
//! use monok8s_sdk::http::{HttpOptions, http_client};
//! use monok8s_sdk::image::{Cancel, Delivery, Download, Expected, Indexed, Progress, flash};
//! # use wiremock::{Mock, MockServer, ResponseTemplate, matchers};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let (directory, server) = (tempfile::tempdir()?, MockServer::start().await);
//! # let machine = monok8s_sdk::disk::fixture::FileMachine::create(directory.path(), 8 << 20)?;
//! # let (host, layout) = (machine.host(), machine.layout());
//! # let (image, mut artifact) = ([7; 100_000], Vec::new());
//! # let built = monok8s_sdk::image::build(&mut &image[..], &mut artifact, Default::default())?;
//! # let index_checksum = monok8s_sdk::digest::Sha256Digest::of(built.as_bytes());
//! # let index = ResponseTemplate::new(200).set_body_bytes(built.as_bytes());
//! # Mock::given(matchers::path("/index")).respond_with(index).mount(&server).await;
//! # let parts = move |request: &wiremock::Request| {
//! #     let range = request.headers["range"].to_str().unwrap().strip_prefix("bytes=").unwrap();
//! #     let (from, to) = range.split_once('-').unwrap();
//! #     let part = &artifact[from.parse().unwrap()..=to.parse().unwrap()];
//! #     let content_range = format!("bytes {range}/{}", artifact.len());
//! #     ResponseTemplate::new(206).insert_header("content-range", content_range).set_body_bytes(part)
//! # };
//! # Mock::given(matchers::path("/artifact")).respond_with(parts).mount(&server).await;
//! # let (url, index_url) = (server.uri() + "/artifact", server.uri() + "/index");
//! # let _ = rustls::crypto::ring::default_provider().install_default();
//!
//! let slots = SlotMap::discover(&host, &layout)?;
//! let client = http_client(&HttpOptions::default())?;
//! let artifact = Download::new(client.clone(), [url.parse()?]);
//! let index = Download::new(client, [index_url.parse()?]);
//! let reuse = slots.open_to_reuse(slots.inactive().slot, |slot, error| eprintln!("{slot}: {error}"));
//! let indexed = Indexed::new(artifact, index, index_checksum).with_reuse(reuse);
//! let (progress, cancel) = (Progress::default(), Cancel::default());
//! let slot = slots.open_inactive(&host)?;
//! let expected = Expected::default();
//! let (verified, delivery) = flash(slot, indexed.into(), expected, &progress, &cancel).await?;
//! assert_eq!(delivery, Delivery::Indexed);
//! # assert!(machine.read(verified.slot(), 100_000)? == image);
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
mod exchange;
mod expand;
mod fetch;
mod fetch_error;
mod fetch_frames;
mod frame;
#[cfg(all(feature = "test-util", feature = "boot"))]
pub(crate) mod fuzzing;
mod head;
mod index;
mod index_builder;
mod indexed;
mod inspect;
mod kept;
mod links;
mod lookup;
mod mirrors;
mod pool;
mod progress;
mod resume;
mod run;
mod seek_table;
mod slot_file;
mod slot_writer;
mod source;
mod sources;
mod spans;
mod take_frames;
mod transfer;
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
pub use inspect::{GuardFiles, GuardFound, InspectError, Inspection, inspect};
pub use kept::KeptIndexes;
pub use progress::{Cancel, Progress, ProgressSnapshot};
pub use seek_table::{SeekEntry, SeekTableError, parse_seek_table};
pub use slot_file::SlotFile;
pub use source::Source;
pub use write::{BodyWritten, Expected, write_body};
pub use write_error::WriteError;

use crate::disk::{InactiveSlot, VerifiedSlot, WrittenSlot};
use source::blocking;

/// Puts an image into a slot and reads it back: all steps, for callers that keep no record. Returns the
/// slot, and how the image came into it.
///
/// To stop it, use `cancel` and await this. Dropping the future ends the download, but a thread may hold
/// the slot for a moment more.
pub async fn flash(
    slot: InactiveSlot,
    source: Source,
    expected: Expected,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(VerifiedSlot, Delivery), ImageError> {
    let body = write(slot, source, expected, progress, cancel).await?;
    let delivery = body.delivery().clone();
    let written = blocking(move || body.finish()).await?;
    Ok((verify(written, progress).await?, delivery))
}

/// Streams an artifact into a slot, all but the slot's first 64 KiB, and reads that back.
///
/// On any error the slot is left without its first 64 KiB, so that nothing can boot it; or as it
/// was, if the first bytes of the image never came. To start over, open the slot again. To stop it, use
/// `cancel` and await this: dropping the future leaves a thread with the slot for a moment.
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

//! The catalog: which OS images exist, what channels point to, and what must not be installed.
//!
//! A catalog is a YAML document (JSON is YAML too):
//!
//! ```yaml
//! stable: v1.35.1                       # short for `channels: {stable: v1.35.1}`
//! channels: {candidate: v1.35.4}
//! images:
//!   - version: v1.35.1                  # required
//!     url: https://example.com/v1.35.1/rootfs.ext4.zst        # required, http or https
//!     checksum: sha256:99af82a2…        # required: of the file as served
//!     size: 1858076672                  # bytes of the expanded image
//!     arch: amd64                       # as in the node label kubernetes.io/arch; absent = every node
//!     mirrors: [https://mirror.example.com/v1.35.1/rootfs.ext4.zst]
//!     imageChecksum: sha256:…           # of the expanded image
//!     index:                            # lets nodes fetch only what they do not have
//!       url: https://example.com/v1.35.1/rootfs.ext4.idx
//!       checksum: sha256:…              # of the index itself
//!     minFrom: v1.34.6                  # a node must run at least this before it takes the image
//!     deprecated: {message: known kernel bug, replacement: v1.35.4}
//! blocked:
//!   - v1.34.0
//!   - {version: v1.34.2, reason: loses disks, url: https://example.com/advisory}
//! ```
//!
//! [`Catalog::parse`] reads it, [`lint`] tells everything that is wrong with it, [`Catalog::resolve`]
//! answers what a version or channel stands for, and [`path`] says which images lead there, one
//! Kubernetes minor release at a time. All of them are pure functions. The `client` feature adds
//! `source`, which fetches the document from where an upgrade says it is.
//!
//! Two rules keep a fleet going when a catalog is not perfect. A mistake in one image or channel
//! concerns that one only. A key that is not known is reported and passed over, so that a newer
//! catalog serves an older operator; what is *blocked*, though, must be understood completely, or
//! the document is refused.

mod document;
mod image;
mod lint;
mod path;
mod read;
mod resolve;
#[cfg(feature = "client")]
pub mod source;
mod yaml;

pub use document::{Block, Catalog, CatalogError, Channel, Entry, Limits};
pub use image::{Arch, ArchError, CatalogImage, Deprecation, ImageRefError, Problem};
pub use lint::{Finding, Severity, lint};
pub use path::{PathError, hop_candidates, path};
pub use resolve::{Nearest, Resolution, ResolveError};

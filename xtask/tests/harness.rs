//! The fixtures themselves, before anything relies on them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod harness {
    mod control_plane;
    mod http;
    mod images;
    mod kubelet;
}

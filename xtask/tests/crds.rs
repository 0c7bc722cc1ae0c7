//! The CRDs and manifests in front of a real API server, through the real `kubectl`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod crds {
    mod admission;
    mod bounds;
    mod columns;
    mod manifests;
    mod rules;
    mod selector;
    mod setup;
}

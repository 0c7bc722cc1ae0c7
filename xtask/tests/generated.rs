//! Generated files are what the generator writes, and the CRDs are fit for GitOps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod generated {
    mod compat;
    mod files;
    mod schema;
    mod yaml;
}

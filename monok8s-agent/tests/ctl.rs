//! `ctl` as people and scripts run it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod ctl {
    mod catalog;
    mod create;
    mod flash;
    mod image;
    mod program;
    mod rollback;
    mod slots;
}

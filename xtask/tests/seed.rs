//! The original user guide, line by line: a real API server, the real operator, real agents on
//! simulated machines, and `kubectl` as people type it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod seed {
    mod by_hand;
    mod catalogs;
    mod controller;
    mod guide;
    mod look;
    mod requests;
    mod rollout;
    mod selectors;
}

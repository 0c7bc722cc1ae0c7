//! A grant is withdrawn while the node commits. One of the two writes always loses, so there is
//! never an armed slot on a node that pods may be scheduled on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod commit_race {
    mod node;
    mod operator;
    mod programs;
    mod writes;
}

//! The real operator against a real API server. The nodes' agents are stand-ins that follow the same
//! protocol by status writes, and check on the way what must hold whenever a node commits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod operator {
    mod agent;
    mod catalogs;
    mod crashes;
    mod drain;
    mod explain;
    mod fixture;
    mod health;
    mod kubectl;
    mod lease;
    mod pods;
    mod rollout;
    mod start;
}

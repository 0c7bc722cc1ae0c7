//! The planner against a small cluster in memory, and by tables of situations.

mod rollout;
mod simulation;
mod situations;
mod world;

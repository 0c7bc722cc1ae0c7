//! The planner against a small cluster in memory, and by tables of situations.

mod orders;
mod pace;
mod rollout;
mod simulation;
mod situations;
mod world;

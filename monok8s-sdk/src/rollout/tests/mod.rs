//! The planner against a small cluster in memory, and by tables of situations.

mod drain;
mod health;
mod mutations;
mod orders;
mod pace;
mod rollout;
mod rules;
mod seeds;
mod simulation;
mod situations;
mod world;

//! Typed resources, catalog resolution, partition writers and boot control for MonoK8s OS upgrades.

pub mod api;
pub mod digest;
pub mod slot;
pub mod version;

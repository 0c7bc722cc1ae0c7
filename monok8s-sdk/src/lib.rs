//! Typed resources, catalog resolution, partition writers and boot control for MonoK8s OS upgrades.

pub mod api;
pub mod boot;
pub mod catalog;
pub mod causes;
pub mod digest;
#[cfg(feature = "disk")]
pub mod disk;
#[cfg(all(feature = "test-util", feature = "image", feature = "boot"))]
pub mod fuzzing;
#[cfg(feature = "health")]
pub mod health;
#[cfg(any(feature = "client", feature = "image"))]
pub mod http;
#[cfg(feature = "image")]
pub mod image;
pub mod manifests;
pub mod node_upgrade;
pub mod os_release;
pub mod rollout;
pub mod slot;
pub mod status;
pub mod version;

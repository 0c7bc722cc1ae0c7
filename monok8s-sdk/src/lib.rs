//! MonoK8s OS upgrades.

//! The machine that the figures are from.

use std::fs;

use serde::Serialize;

/// What a reader needs to compare figures.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostFacts {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_bytes: u64,
    pub(super) kernel: String,
    pub(super) os: String,
    /// Load average of the minute before the run: figures of a busy machine mean little.
    pub(super) load_before: String,
}

impl HostFacts {
    pub(super) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| -> Option<String> {
            let value = text.lines().find(|line| line.starts_with(name))?.split([':', '=']).nth(1)?;
            Some(value.trim().trim_matches('"').to_owned())
        };
        let unknown = || "unknown".to_owned();
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib: Option<u64> = memory.and_then(|text| text.trim_end_matches(" kB").parse().ok());
        let load = read("/proc/loadavg");
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: kib.unwrap_or_default() * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            os: field(&read("/etc/os-release"), "PRETTY_NAME").unwrap_or_else(unknown),
            load_before: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

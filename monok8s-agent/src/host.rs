//! Facts of the host that the kernel and the booted root file system state.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use monok8s_sdk::disk::HostView;
use monok8s_sdk::os_release::{MAX_OS_RELEASE_LEN, OS_RELEASE_PATHS, OsRelease};
use monok8s_sdk::version::OsVersion;

/// One byte more than is allowed: the parser refuses what is longer.
const OS_RELEASE_LIMIT: u64 = MAX_OS_RELEASE_LEN as u64 + 1;

/// A file of the host that is needed and cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("cannot read {}: check --host-root", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} does not hold what the kernel writes there: check --host-root", path.display())]
    Format { path: PathBuf },
}

/// The kernel's random ID of this boot. The one proof that a machine has rebooted.
pub(crate) fn boot_id(host: &HostView) -> Result<String, HostError> {
    let path = host.path("proc/sys/kernel/random/boot_id");
    let text = read(&path, 128)?;
    let id = text.trim();
    if id.is_empty() || id.contains(char::is_whitespace) {
        return Err(HostError::Format { path });
    }
    Ok(id.to_owned())
}

/// Time since the boot, suspended time included. Never set back, unlike the time of day.
pub(crate) fn uptime(host: &HostView) -> Result<Duration, HostError> {
    let path = host.path("proc/uptime");
    let text = read(&path, 128)?;
    // proc_uptime(5): two decimal numbers of seconds.
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    uptime.ok_or(HostError::Format { path })
}

/// The version that the booted root file system states; `None` if it states none.
pub(crate) fn booted_version(host: &HostView) -> Option<OsVersion> {
    OS_RELEASE_PATHS.iter().find_map(|relative| {
        let text = read(&host.path(relative), OS_RELEASE_LIMIT).ok()?;
        let parsed = OsRelease::parse(text.as_bytes()).and_then(|release| release.version());
        parsed.unwrap_or_else(|error| {
            tracing::warn!(%error, "the booted os-release states no usable version");
            None
        })
    })
}

/// Whether one of `paths`, relative to the host's root, exists there.
pub(crate) fn holds_any(host: &HostView, paths: &[String]) -> bool {
    // A link into the host's root need not resolve from here, so links count as they are.
    paths.iter().any(|path| host.path(path.trim_start_matches('/')).symlink_metadata().is_ok())
}

fn read(path: &Path, limit: u64) -> Result<String, HostError> {
    let failed = |source| HostError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(limit).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, HostView) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let view = HostView::new(root.path());
        (root, view)
    }

    #[test]
    fn the_kernel_and_the_root_are_read_below_the_host_root() {
        let (_root, host) = host(&[
            ("proc/sys/kernel/random/boot_id", "0b7e0a1c-50a4-4ef1-a0a5-7ab1e1d1b7c2\n"),
            ("proc/uptime", "12.50 20.00\n"),
            ("etc/os-release", "VERSION_ID=1.35.1\nMONOK8S_VERSION=\"v1.35.1+r2\"\n"),
            ("etc/init.d/monok8s-guard", ""),
        ]);
        assert_eq!(boot_id(&host).unwrap(), "0b7e0a1c-50a4-4ef1-a0a5-7ab1e1d1b7c2");
        assert_eq!(uptime(&host).unwrap(), Duration::from_millis(12_500));
        assert_eq!(booted_version(&host).unwrap().to_string(), "v1.35.1+r2");
        assert!(holds_any(&host, &["/absent".to_owned(), "/etc/init.d/monok8s-guard".to_owned()]));
        assert!(!holds_any(&host, &["/absent".to_owned()]));
    }

    #[test]
    fn what_is_missing_or_torn_is_an_error_and_no_default() {
        let (_root, host) = host(&[("proc/uptime", "soon\n"), ("proc/sys/kernel/random/boot_id", "\n")]);
        assert!(matches!(boot_id(&host), Err(HostError::Format { .. })));
        assert!(matches!(uptime(&host), Err(HostError::Format { .. })));
        let nowhere = HostView::new("/nonexistent");
        assert!(matches!(boot_id(&nowhere), Err(HostError::Read { .. })));
        assert_eq!(booted_version(&nowhere), None);
    }

    #[test]
    fn this_machine_states_its_boot() {
        let host = HostView::new("/");
        assert_eq!(boot_id(&host).unwrap().len(), 36);
        assert!(uptime(&host).unwrap() > Duration::ZERO);
    }
}

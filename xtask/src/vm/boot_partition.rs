//! What GRUB reads: its script, our settings of it, and the environment that says which slot boots.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::grub::{GRUB_EDITENV, INSTALLED};
use crate::host::{run, workspace_root};
use crate::vm::{MCOPY, MKFS_FAT};

/// What monok8s.cfg says of the machines that we make. Names of network devices are the kernel's own.
/// The kernel does not trust the counters of two emulated processors and reads a timer chip instead,
/// which takes most of an emulated machine's time; they are one counter, the host's. And what a processor
/// leaks to its neighbours is of no matter in a test.
const SETTINGS: &str = "set monok8s_console=\"console=ttyS0,115200\"\n\
     set monok8s_args=\"net.ifnames=0 tsc=reliable loglevel=4 systemd.show_status=false mitigations=off\"\n";

/// Makes the file system in the file `path`.
pub(super) fn make(path: &Path, bytes: u64, scratch: &Path) -> Result<()> {
    File::create(path)?.set_len(bytes)?;
    run(Command::new(MKFS_FAT.locate()?).args(["-n", "BOOT"]).arg(path))?;
    let settings = scratch.join("monok8s.cfg");
    fs::write(&settings, SETTINGS)?;
    let script = workspace_root().join("deploy/host/grub/grub.cfg");
    let mut files = vec![script, settings];
    for name in ["grubenv.0", "grubenv.1"] {
        let file = scratch.join(name);
        run(Command::new(GRUB_EDITENV.locate()?).arg(&file).arg("create"))?;
        run(Command::new(GRUB_EDITENV.locate()?).arg(&file).arg("set").args(INSTALLED))?;
        files.push(file);
    }
    run(Command::new(MCOPY.locate()?).arg("-i").arg(path).args(files).arg("::")).map(drop)
}

//! What GRUB reads: its script, our settings of it, and the environment that says which slot boots.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::grub::{GRUB_EDITENV, INSTALLED};
use crate::host::{run, workspace_root};
use crate::vm::{MCOPY, MKFS_FAT};

/// What monok8s.cfg says of the machines that we make. Names of network devices are the kernel's own; what a
/// processor leaks to its neighbours is of no matter in a test. The rest is what an emulated processor is slow at:
/// - the kernel does not trust the processor's counter and reads a timer chip instead (`tsc=reliable`);
/// - programs written in Go sleep for microseconds, and each time a timer is set (`highres=off`);
/// - code at another address is translated anew, in every process (`norandmaps`);
/// - memory is cleared when it is taken, and again when it is handed out (`init_on_alloc=0`).
const SETTINGS: &str = "set monok8s_console=\"console=ttyS0,115200\"\n\
     set monok8s_args=\"net.ifnames=0 loglevel=4 systemd.show_status=false mitigations=off \
     tsc=reliable highres=off norandmaps init_on_alloc=0\"\n";

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

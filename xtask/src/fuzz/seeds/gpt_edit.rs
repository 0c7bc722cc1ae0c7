//! Partition tables made by the tools that people use.

use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Put;
use crate::host::{SFDISK, SGDISK};

/// The smallest disk that both tools take, in bytes.
const SIZE: u64 = 80 * 512;

/// Seeds of the change of attribute bits.
pub(super) fn tables(put: Put<'_>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let disk = |name: &str| -> Result<_> {
        let path = scratch.path().join(name);
        File::create_new(&path)?.set_len(SIZE)?;
        Ok(path)
    };
    let path = disk("sgdisk")?;
    let partitions = ["-a", "1", "-n", "1:36:39", "-c", "1:rootfs-a", "-n", "3:42:45", "-A", "3:set:48"];
    let done = Command::new(SGDISK.locate()?).args(partitions).arg(&path).output()?;
    ensure!(done.status.success(), "sgdisk: {}", String::from_utf8_lossy(&done.stderr));
    put("gpt_edit", "sgdisk", &[&[3, 3, 0x2F, 0x13], fs::read(&path)?.as_slice()].concat())?;

    let path = disk("sfdisk")?;
    let mut sfdisk = Command::new(SFDISK.locate()?);
    let mut sfdisk = sfdisk.arg("--quiet").arg(&path).stdin(Stdio::piped()).spawn()?;
    let script = "label: gpt\nfirst-lba: 34\nstart=36, size=4\nstart=42, size=4, attrs=\"GUID:48,52,56\"\n";
    sfdisk.stdin.take().context("sfdisk reads nothing")?.write_all(script.as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk refuses its script");
    put("gpt_edit", "sfdisk", &[&[3, 2, 0xFF, 0x20], fs::read(&path)?.as_slice()].concat())
}

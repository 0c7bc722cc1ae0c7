//! U-Boot environments, made by U-Boot's own tools and by libubootenv's.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use super::Put;
use crate::host::{FW_SETENV, MKENVIMAGE};

/// Bytes of a copy.
const SIZE: usize = 512;

/// Seeds of the environment and of its configuration.
pub(super) fn environments(put: Put<'_>) -> Result<()> {
    let block = "# device offset size sector\n/dev/mmcblk0 0x3f8000 0x8000\n/dev/mmcblk0\t-0x8000\t8000 200 40 1 # MMC\n";
    put("uboot_config", "block", block.as_bytes())?;
    put("uboot_config", "file", b"/boot/uboot.env 0 0x4000\n")?;
    put("uboot_config", "flash", b"/dev/mtd1 010000 0x4000 0x4000\n\n/dev/mtd2 65536 0x4000 0x4000\n")?;

    let scratch = tempfile::tempdir()?;
    let (text, image) = (scratch.path().join("text"), scratch.path().join("env"));
    fs::write(&text, "BOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=2\nethaddr=02:00:00:00:00:01\n")?;
    run(Command::new(MKENVIMAGE.locate()?)
        .args(["-r", "-s"])
        .arg(SIZE.to_string())
        .arg("-o")
        .args([&image, &text]))?;
    let made = fs::read(&image)?;
    put("uboot_env", "mkenvimage", &seed(&[made.as_slice(), &made].concat())?)?;

    let config = scratch.path().join("config");
    let line = |offset: usize| format!("{} {offset:#x} {SIZE:#x}\n", image.display());
    fs::write(&config, line(0) + &line(SIZE))?;
    fs::write(&image, [made.as_slice(), &made].concat())?;
    for (name, value) in [("MONOK8S_TRIAL", "B:7:1:none"), ("MONOK8S_COUNTS", "1"), ("BOOT_B_LEFT", "1")] {
        run(Command::new(FW_SETENV.locate()?).arg("-c").arg(&config).args([name, value]))?;
    }
    put("uboot_env", "fw_setenv", &seed(&fs::read(&image)?)?)
}

/// Both copies whole, as the target takes them.
fn seed(copies: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(SIZE)?.to_le_bytes();
    Ok([&[0b011, length[0], length[1]], copies].concat())
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.output()?;
    ensure!(
        done.status.success(),
        "{}: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

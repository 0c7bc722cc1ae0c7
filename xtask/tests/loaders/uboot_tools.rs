//! Environments of `fw_setenv` and `mkenvimage` read by us, and ours by `fw_printenv`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::boot::uboot::{Environment, Layout, Redundancy, UbootEnv};
use monok8s_sdk::boot::{ArmableSlot, AttemptId, BootBackend as _, Tries, TryCounting};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::slot::Slot;
use xtask::disk::{Disk, DiskSpec, LoopDisk, SectorSize, loop_obstacle};
use xtask::host::{FW_PRINTENV, FW_SETENV, MKENVIMAGE};
use xtask::scratch::Scratch;

const MIB: u64 = 1 << 20;
const FACTORY: [(&str, &str); 5] = [
    ("zone", "north=pole"),
    ("BOOT_ORDER", "A"),
    ("BOOT_A_LEFT", "3"),
    ("BOOT_B_LEFT", "0"),
    ("bootcmd", "run a; run b"),
];

fn obstacle() -> Option<String> {
    let missing = [FW_PRINTENV, FW_SETENV, MKENVIMAGE].into_iter().find_map(|program| program.locate().err());
    missing.map(|error| error.to_string())
}

fn run(command: &mut Command) -> Result<String> {
    let done = command.output()?;
    let (said, complaint) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{}: {complaint}", command.get_program().display());
    Ok(said.into_owned())
}

/// What `mkenvimage` makes of the factory's variables.
fn image(scratch: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let (text, image) = (scratch.join("text"), scratch.join("image"));
    let lines: Vec<String> = FACTORY.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    fs::write(&text, lines.concat())?;
    run(Command::new(MKENVIMAGE.locate()?).args(arguments).arg("-o").args([&image, &text]))?;
    Ok(fs::read(&image)?)
}

/// An environment for the tools and for us.
struct Subject {
    config: PathBuf,
    loader: UbootEnv,
}

impl Subject {
    fn new(scratch: &Path, lines: &[String], redundancy: Redundancy) -> Result<Self> {
        let config = scratch.join("fw_env.config");
        fs::write(&config, lines.join("\n") + "\n")?;
        let loader = UbootEnv::from_config(Path::new("/"), &config, redundancy)?;
        Ok(Self { config, loader })
    }

    fn printed(&self) -> Result<BTreeMap<String, String>> {
        let said = run(Command::new(FW_PRINTENV.locate()?).arg("-c").arg(&self.config))?;
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        said.lines().map(|line| pair(line).with_context(|| format!("no variable: {line}"))).collect()
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        run(Command::new(FW_SETENV.locate()?).arg("-c").arg(&self.config).args([name, value])).map(drop)
    }

    fn expect(&self, changed: &[(&str, &str)]) -> Result<()> {
        let pair = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let expected: BTreeMap<_, _> = FACTORY.iter().chain(changed).map(pair).collect();
        let printed = self.printed()?;
        ensure!(printed == expected, "fw_printenv has {printed:?}, expected {expected:?}");
        Ok(())
    }

    /// Changes by them and by us in turns.
    fn agrees(&self) -> Result<()> {
        self.expect(&[])?;
        let loader = &self.loader;
        ensure!(loader.canary()? == TryCounting::Unsupported);
        self.set("BOOT_A_LEFT", "2")?;
        ensure!(loader.canary()? == TryCounting::Proven);
        loader.mark_good(Slot::A)?;
        self.expect(&[("MONOK8S_COUNTS", "1")])?;
        let slot = KnownGoodSlot::from_confirm_record(Slot::B, "v1.35.4".parse()?, None);
        loader.arm_trial(ArmableSlot::KnownGood(slot), AttemptId(7), Tries::TRIAL)?;
        let armed = [
            ("MONOK8S_COUNTS", "1"),
            ("MONOK8S_TRIAL", "B:7:1:none"),
            ("BOOT_ORDER", "B A"),
            ("BOOT_B_LEFT", "1"),
        ];
        self.expect(&armed)?;
        // More often than there are copies, so that each was written by each.
        for round in ["1", "2", "3"] {
            self.set("round", round)?;
            self.expect(&[armed.as_slice(), &[("round", round)]].concat())?;
        }
        self.set("BOOT_B_LEFT", "0")?;
        ensure!(loader.status()?.b.tries_left == Tries::NONE);
        loader.confirm()?;
        let confirmed =
            [("MONOK8S_COUNTS", "1"), ("BOOT_ORDER", "B A"), ("BOOT_B_LEFT", "3"), ("round", "3")];
        self.expect(&confirmed)?;
        loader.invalidate(Slot::A)?;
        self.expect(&[confirmed.as_slice(), &[("BOOT_ORDER", "B"), ("BOOT_A_LEFT", "0")]].concat())
    }
}

#[test]
fn files_are_read_and_written_as_the_tools_do() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let scratch = Scratch::new("uboot-tools")?;
    let file = scratch.path().join("uboot.env");
    let line = |offset: &str| format!("{} {offset} 0x1000", file.display());

    fs::write(&file, image(scratch.path(), &["-s", "4096"])?)?;
    Subject::new(scratch.path(), &[line("0")], Redundancy::SingleCopyAllowed)?.agrees()?;

    let copy = image(scratch.path(), &["-r", "-s", "4096"])?;
    fs::write(&file, [copy.as_slice(), &copy].concat())?;
    Subject::new(scratch.path(), &[line("0"), line("0x1000")], Redundancy::Required)?.agrees()?;
    fs::write(&file, [copy.as_slice(), &[0xA5; 100], &copy].concat())?;
    Subject::new(scratch.path(), &[line("4196"), line("00")], Redundancy::Required)?.agrees()?;

    // In files of their own.
    let other = scratch.path().join("other.env");
    fs::write(&file, &copy)?;
    fs::write(&other, &copy)?;
    let lines = [line("0"), format!("{} 0x0 1000", other.display())];
    Subject::new(scratch.path(), &lines, Redundancy::Required)?.agrees()
}

#[test]
fn a_block_device_is_read_and_written_as_the_tools_do() -> Result<()> {
    if let Some(obstacle) = obstacle().or_else(loop_obstacle) {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let scratch = Scratch::new("uboot-tools")?;
    let spec = DiskSpec {
        identity: "uboot".to_owned(),
        slot_bytes: MIB,
        data_bytes: MIB,
        sector_size: SectorSize::B512,
    };
    let loops = LoopDisk::attach(&Disk::create(&scratch.path().join("disk"), &spec)?)?;
    let device = loops.data.path();
    let copy = image(scratch.path(), &["-r", "-s", "0x4000"])?;
    let mut content = vec![0x5A; usize::try_from(MIB)?];
    let (first, second) = (0x8000, content.len() - 0x10000);
    for at in [first, second] {
        content[at..at + copy.len()].copy_from_slice(&copy);
    }
    fs::write(device, &content)?;
    let lines = ["0x8000", "-0x10000"].map(|offset| format!("{} {offset} 0x4000 0x200", device.display()));
    Subject::new(scratch.path(), &lines, Redundancy::Required)?.agrees()?;
    let after = fs::read(device)?;
    for (from, to) in [(0, first), (first + copy.len(), second), (second + copy.len(), content.len())] {
        ensure!(after[from..to] == content[from..to], "something else changed between {from} and {to}");
    }
    Ok(())
}

#[test]
fn padding_of_any_kind_is_read() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let scratch = Scratch::new("uboot-tools")?;
    for (arguments, layout) in
        [(&["-s", "512", "-p", "0x00"], Layout::Single), (&["-s", "512", "-p", "0xff"], Layout::Single)]
    {
        let made = image(scratch.path(), arguments)?;
        let environment = Environment::decode(&made, layout)?.environment;
        for (name, value) in FACTORY {
            assert_eq!(environment.get(name), Some(value.as_bytes()));
        }
    }
    let made = image(scratch.path(), &["-r", "-s", "512", "-p", "0x00"])?;
    let whole = Environment::decode(&made, Layout::Redundant)?;
    assert_eq!(whole.environment.encode(512, Layout::Redundant, whole.serial)?, made, "byte for byte");
    Ok(())
}

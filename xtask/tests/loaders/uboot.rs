//! U-Boot itself runs our script, on a machine of QEMU's, down to where it would start a kernel.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::boot::uboot::{Environment, Layout, Redundancy, UbootEnv};
use monok8s_sdk::boot::{
    ArmableSlot, AttemptId, BootBackend as _, Reverter, TrialEvidence, TrialProgress, Tries, TryCounting,
};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::slot::Slot;
use tokio::time::Instant;
use xtask::host::{
    FW_SETENV, MCOPY, MKE2FS, MKENVIMAGE, MKFS_VFAT, MKIMAGE, Program, QEMU_AARCH64, SFDISK, workspace_root,
};
use xtask::process::Child;
use xtask::scratch::Scratch;

use super::tiny_kernel;

/// From the package u-boot-qemu.
const UBOOT: &str = "/usr/lib/u-boot/qemu_arm64/u-boot.bin";
const NEEDED: [Program; 8] = [MKE2FS, QEMU_AARCH64, MKIMAGE, MKENVIMAGE, FW_SETENV, MKFS_VFAT, MCOPY, SFDISK];

const SECTOR: u64 = 512;
const ENVIRONMENT: u64 = 20480 * SECTOR;
const SIZE: usize = 0x4000;
const LAYOUT: &str = "label: gpt
start=2048, size=16384, name=boot, attrs=LegacyBIOSBootable
start=20480, size=2048, name=uboot-env
start=24576, size=2048, name=rootfs-a, uuid=aaaaaaaa-0000-4000-8000-00000000000a
start=26624, size=2048, name=rootfs-b, uuid=bbbbbbbb-0000-4000-8000-00000000000b
";
/// Instead of a kernel: say what would be started, and reset, which ends the machine.
const START: &str = "setenv monok8s_start 'echo \"STARTS ${slot} ${bootargs}\"; reset'\n";
const FACTORY: &str = "BOOT_ORDER=A\nBOOT_A_LEFT=3\nBOOT_B_LEFT=0\nsite=north pole\n";
const ATTEMPT: AttemptId = AttemptId(7);
/// The machine starts in about 5 seconds when nothing else runs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why U-Boot cannot run here, if it cannot.
fn obstacle() -> Option<String> {
    if !Path::new(UBOOT).exists() {
        return Some(format!("{UBOOT} is not there: run `apt-get install u-boot-qemu` as root"));
    }
    NEEDED.iter().find_map(|program| program.locate().err()).map(|error| error.to_string())
}

fn run(program: Program, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let mut command = Command::new(program.locate()?);
    let done = arguments(&mut command).stdin(Stdio::null()).output()?;
    ensure!(done.status.success(), "{}: {}", program.name, String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// How the disk takes writes.
#[derive(Clone, Copy)]
enum Medium {
    Good,
    ReadOnly,
    /// Not this sector.
    BadSector(u64),
}

/// A machine that is off. Its disk is a file below a directory that stands for the host's root.
struct Board {
    root: Scratch,
}

impl Board {
    /// A board with this environment from the factory, which says what it would start.
    fn new(environment: &str) -> Result<Self> {
        Self::with_script(environment, START)
    }

    /// The same with something else in front of our script.
    fn with_script(environment: &str, front: &str) -> Result<Self> {
        let board = Self { root: Scratch::new("uboot")? };
        let path = |name: &str| board.root.path().join(name);
        File::create_new(board.disk())?.set_len(32 << 20)?;
        fs::write(path("layout"), LAYOUT)?;
        let mut sfdisk = Command::new(SFDISK.locate()?);
        let partitioned =
            sfdisk.arg("--quiet").arg(board.disk()).stdin(File::open(path("layout"))?).status()?;
        ensure!(partitioned.success(), "sfdisk: {partitioned}");

        let script = fs::read_to_string(workspace_root().join("deploy/host/u-boot/boot.cmd"))?;
        fs::write(path("boot.cmd"), front.to_owned() + &script)?;
        run(MKIMAGE, |command| {
            command
                .args(["-A", "arm64", "-T", "script", "-C", "none", "-d"])
                .args([path("boot.cmd"), path("boot.scr")])
        })?;
        run(MKFS_VFAT, |command| command.args(["-C"]).arg(path("fat")).arg("8192"))?;
        run(MCOPY, |command| command.arg("-i").arg(path("fat")).arg(path("boot.scr")).arg("::boot.scr"))?;
        board.write(2048 * SECTOR, &fs::read(path("fat"))?)?;

        fs::write(path("factory"), environment)?;
        run(MKENVIMAGE, |command| {
            command.args(["-r", "-s", "0x4000", "-o"]).args([path("environment"), path("factory")])
        })?;
        let copy = fs::read(path("environment"))?;
        board.write(ENVIRONMENT, &[copy.as_slice(), &copy].concat())?;
        let line = |root: &Path, copy: u64| {
            let (disk, offset) = (root.join("disk.img"), ENVIRONMENT + copy * SIZE as u64);
            format!("{} {offset:#x} {SIZE:#x}\n", disk.display())
        };
        fs::create_dir(path("etc"))?;
        fs::write(path("etc/fw_env.config"), line(Path::new("/"), 0) + &line(Path::new("/"), 1))?;
        // For the tools, which know of no other root.
        fs::write(path("fw_env.config"), line(board.root.path(), 0) + &line(board.root.path(), 1))?;
        Ok(board)
    }

    fn disk(&self) -> PathBuf {
        self.root.path().join("disk.img")
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(OpenOptions::new().write(true).open(self.disk())?.write_all_at(bytes, offset)?)
    }

    /// Puts a file system with these files in `/boot` into a slot.
    fn install(&self, slot: Slot, files: &[(&str, &[u8])]) -> Result<()> {
        let (tree, image) = (self.root.path().join("tree"), self.root.path().join("ext4"));
        fs::create_dir_all(tree.join("boot"))?;
        for (name, bytes) in files {
            fs::write(tree.join("boot").join(name), bytes)?;
        }
        run(MKE2FS, |command| {
            command.args(["-q", "-F", "-t", "ext4", "-d"]).args([&tree, &image]).arg("1M")
        })?;
        fs::remove_dir_all(&tree)?;
        self.write([24576, 26624][slot as usize] * SECTOR, &fs::read(&image)?)
    }

    /// Both copies, as bytes.
    fn copies(&self) -> Result<[Vec<u8>; 2]> {
        let mut copies = [vec![0; SIZE], vec![0; SIZE]];
        let disk = File::open(self.disk())?;
        for (number, copy) in (0..).zip(&mut copies) {
            disk.read_exact_at(copy, ENVIRONMENT + number * SIZE as u64)?;
        }
        Ok(copies)
    }

    /// Changes the last byte of the variables' space in a copy.
    fn damage(&self, copy: u64) -> Result<()> {
        self.write(ENVIRONMENT + (copy + 1) * SIZE as u64 - 1, &[0x55])
    }

    fn loader(&self) -> Result<UbootEnv> {
        Ok(UbootEnv::from_config(self.root.path(), "etc/fw_env.config", Redundancy::Required)?)
    }

    /// As a person would.
    fn set(&self, name: &str, value: &str) -> Result<()> {
        let config = self.root.path().join("fw_env.config");
        run(FW_SETENV, |command| command.arg("-c").arg(config).args([name, value]))
    }

    fn power_on(&self, medium: Medium) -> Result<Child> {
        let mut qemu = Command::new(QEMU_AARCH64.locate()?);
        qemu.args(["-M", "virt", "-cpu", "cortex-a57", "-m", "256", "-nographic", "-no-reboot"]);
        qemu.args(["-net", "none", "-bios", UBOOT, "-drive"]);
        let disk = self.disk();
        let disk = disk.display();
        qemu.arg(match medium {
            Medium::Good => format!("if=none,id=disk,format=raw,file={disk}"),
            Medium::ReadOnly => format!("if=none,id=disk,format=raw,readonly=on,file={disk}"),
            Medium::BadSector(sector) => format!(
                "if=none,id=disk,driver=raw,file.driver=blkdebug,file.image.driver=file,\
                 file.image.filename={disk},file.inject-error.0.event=none,\
                 file.inject-error.0.iotype=write,file.inject-error.0.sector={sector}"
            ),
        });
        qemu.args(["-device", "virtio-blk-device,drive=disk"]);
        let log = self.root.path().join("console");
        let _ = fs::remove_file(&log);
        Child::spawn("qemu", qemu, &log)
    }

    /// What is said from power-on until the machine is off, or would start again.
    async fn console_until_off(&self) -> Result<String> {
        self.console_of(self.power_on(Medium::Good)?).await
    }

    async fn console_of(&self, mut machine: Child) -> Result<String> {
        let status = machine.wait(PATIENCE).await?;
        let console = String::from_utf8_lossy(&fs::read(machine.log())?).into_owned();
        ensure!(status.is_some(), "it starts nothing: {console}");
        Ok(console)
    }

    /// From power-on to where a kernel would be started: its slot, and what was said.
    async fn boot_from(&self, medium: Medium) -> Result<(Slot, String)> {
        let console = self.console_of(self.power_on(medium)?).await?;
        let line = console.lines().find_map(|line| line.strip_prefix("STARTS "));
        let line = line.with_context(|| format!("it started nothing: {console}"))?;
        let slot: Slot = line.get(..1).unwrap_or_default().parse()?;
        let partition =
            ["aaaaaaaa-0000-4000-8000-00000000000a", "bbbbbbbb-0000-4000-8000-00000000000b"][slot as usize];
        let trial = self.trial_of(slot)?.map_or(String::new(), |trial| format!(" monok8s.trial={trial}"));
        let expected = format!("root=PARTUUID={partition}{trial} ro rootwait panic=10");
        ensure!(line.trim_end()[2..] == expected, "{line} instead of {expected}");
        Ok((slot, console))
    }

    /// The trial that a slot is on, as a whole copy says.
    fn trial_of(&self, slot: Slot) -> Result<Option<String>> {
        let copies = self.copies()?.map(|copy| Environment::decode(&copy, Layout::Redundant));
        let said = copies.into_iter().flatten().find_map(|copy| {
            let value = copy.environment.get("MONOK8S_TRIAL")?;
            Some(String::from_utf8_lossy(value).into_owned())
        });
        Ok(said.filter(|trial| trial.starts_with(&slot.to_string())))
    }

    /// A boot, after which both copies must have one state.
    async fn boot(&self) -> Result<Slot> {
        let (slot, _) = self.boot_from(Medium::Good).await?;
        let copies = self.copies()?.map(|copy| Environment::decode(&copy, Layout::Redundant));
        let [Ok(first), Ok(second)] = copies else { anyhow::bail!("a copy is damaged: {copies:?}") };
        ensure!(first.environment == second.environment, "the copies differ: {first:?} {second:?}");
        ensure!(first.serial != second.serial, "one serial number: {first:?}");
        for of_u_boot in ["arch", "bootcmd", "filesize", "m_left"] {
            ensure!(first.environment.get(of_u_boot).is_none(), "{of_u_boot} was stored: {first:?}");
        }
        ensure!(first.environment.get("site") == Some(b"north pole"), "a variable is gone: {first:?}");
        Ok(slot)
    }

    fn arm(&self) -> Result<()> {
        let slot = KnownGoodSlot::from_confirm_record(Slot::B, "v1.35.4".parse()?, None);
        Ok(self.loader()?.arm_trial(ArmableSlot::KnownGood(slot), ATTEMPT, Tries::TRIAL)?)
    }
}

/// A board on which slot A was booted once and marked good, which shows that tries are counted.
async fn proven() -> Result<Board> {
    let board = Board::new(FACTORY)?;
    let loader = board.loader()?;
    ensure!(loader.canary()? == TryCounting::Unsupported);
    ensure!(board.boot().await? == Slot::A);
    ensure!(loader.status()?.a.tries_left == Tries(2) && loader.canary()? == TryCounting::Proven);
    loader.mark_good(Slot::A)?;
    Ok(board)
}

#[tokio::test]
async fn a_trial_falls_back_or_is_confirmed() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let board = proven().await?;
    let loader = board.loader()?;
    board.arm()?;
    assert_eq!(board.boot().await?, Slot::B);
    assert_eq!(loader.status()?.trial_progress(ATTEMPT), TrialProgress::Tried(TrialEvidence::None));
    assert_eq!(board.boot().await?, Slot::A, "it was not confirmed");
    loader.mark_good(Slot::A)?;
    assert_eq!(loader.status()?.trial_progress(ATTEMPT), TrialProgress::Tried(TrialEvidence::FellBack));

    loader.disarm()?;
    board.arm()?;
    assert_eq!(board.boot().await?, Slot::B);
    loader.revert(Reverter::Guard)?;
    assert_eq!(board.boot().await?, Slot::A, "it was sent back");
    loader.mark_good(Slot::A)?;

    loader.disarm()?;
    board.arm()?;
    assert_eq!(board.boot().await?, Slot::B);
    loader.confirm()?;
    assert_eq!(board.boot().await?, Slot::B, "it was confirmed");
    assert_eq!(loader.status()?.order, [Slot::B, Slot::A]);
    Ok(())
}

#[tokio::test]
async fn tries_that_are_used_up_come_back_but_not_those_of_a_trial() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let board =
        Board::new("BOOT_ORDER=B A\nBOOT_A_LEFT=1\nBOOT_B_LEFT=1\nMONOK8S_TRIES=4\nsite=north pole\n")?;
    let left = || {
        board
            .loader()?
            .status()
            .map(|status| (status.a.tries_left.0, status.b.tries_left.0))
            .map_err(anyhow::Error::from)
    };
    assert_eq!((board.boot().await?, left()?), (Slot::B, (1, 0)));
    assert_eq!((board.boot().await?, left()?), (Slot::A, (0, 0)));
    assert_eq!((board.boot().await?, left()?), (Slot::B, (4, 3)), "all come back");
    for (name, value) in [("BOOT_A_LEFT", "0"), ("BOOT_B_LEFT", "0"), ("MONOK8S_TRIAL", "B:7:1:none")] {
        board.set(name, value)?;
    }
    assert_eq!((board.boot().await?, left()?), (Slot::A, (3, 0)), "B was tried, and A is what is left");
    Ok(())
}

#[tokio::test]
async fn a_damaged_copy_is_passed_over_and_made_anew() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    // What is read from each copy shows by its counter.
    let board = Board::new("BOOT_ORDER=A\nBOOT_A_LEFT=9\nBOOT_B_LEFT=0\nsite=north pole\n")?;
    for damaged in [0, 1] {
        let before = board.loader()?.status()?.a.tries_left;
        board.damage(damaged)?;
        assert_eq!(board.boot().await?, Slot::A);
        assert_eq!(board.loader()?.status()?.a.tries_left, before.burn());
    }
    // 0 follows 255.
    let [copy, _] = board.copies()?;
    let mut environment = Environment::decode(&copy, Layout::Redundant)?.environment;
    let newer = environment.encode(SIZE, Layout::Redundant, 0)?;
    environment.set("BOOT_A_LEFT", Some("5"));
    let older = environment.encode(SIZE, Layout::Redundant, 255)?;
    board.write(ENVIRONMENT, &[older, newer].concat())?;
    assert_eq!(board.boot().await?, Slot::A);
    assert_eq!(board.loader()?.status()?.a.tries_left, Tries(6));
    board.loader()?.mark_good(Slot::A)?;
    Ok(())
}

#[tokio::test]
async fn a_try_that_cannot_be_stored_is_no_trial() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let board = proven().await?;
    board.arm()?;
    let before = board.copies()?;
    let (slot, console) = board.boot_from(Medium::ReadOnly).await?;
    assert_eq!(slot, Slot::A, "{console}");
    assert!(console.contains("slot B is on trial and its try cannot be stored"), "{console}");
    assert!(console.contains("WARNING: the try of slot A cannot be stored"), "{console}");
    assert_eq!(board.copies()?, before);
    assert_eq!(board.boot().await?, Slot::B, "the disk takes writes again");
    Ok(())
}

#[tokio::test]
async fn a_copy_that_takes_no_writes_keeps_the_other_one_from_being_written() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let board = Board::new(FACTORY)?;
    let bad = Medium::BadSector(ENVIRONMENT / SECTOR);
    // Of two equal ones the first counts: the second is replaced before it.
    assert_eq!(board.boot_from(bad).await?.0, Slot::A);
    assert_eq!(board.loader()?.status()?.a.tries_left, Tries(2));
    let before = board.copies()?;
    assert_ne!(before[0][..8], before[1][..8]);
    // Now the first would have to be replaced before the only one with the newer state.
    let (slot, console) = board.boot_from(bad).await?;
    assert!(slot == Slot::A && console.contains("WARNING"), "{console}");
    assert_eq!(board.copies()?, before);
    Ok(())
}

#[tokio::test]
async fn with_both_copies_damaged_nothing_is_booted_or_written() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let board = Board::new(FACTORY)?;
    board.damage(0)?;
    board.damage(1)?;
    let before = fs::read(board.disk())?;
    let mut machine = board.power_on(Medium::Good)?;
    let deadline = Instant::now() + PATIENCE;
    let console =
        || Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(machine_log(&board))?).into_owned());
    while !console()?.contains("Ctrl-C leads to the prompt") {
        machine.expect_running()?;
        ensure!(Instant::now() < deadline, "{}", console()?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    machine.expect_running()?;
    machine.kill()?;
    let console = console()?;
    assert!(
        console.contains("Nothing is booted and nothing is written") && !console.contains("STARTS"),
        "{console}"
    );
    assert!(fs::read(board.disk())? == before, "something was written");
    Ok(())
}

/// With nothing in front of the script: the kernel of the slot, with its initial file system and its
/// root, and the next slot if there is none.
#[tokio::test]
async fn each_slot_starts_its_own_kernel() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let board = Board::with_script("BOOT_ORDER=B A\nBOOT_A_LEFT=3\nBOOT_B_LEFT=1\n", "")?;
    let kernel = tiny_kernel::image();
    board.install(Slot::A, &[("Image", &kernel), ("initrd.img", b"initial file system")])?;
    board.install(Slot::B, &[])?;
    let console = board.console_until_off().await?;
    assert!(console.contains("monok8s: slot B does not start"), "{console}");

    let console = board.console_until_off().await?;
    let root = "root=PARTUUID=aaaaaaaa-0000-4000-8000-00000000000a ro rootwait panic=10";
    assert!(console.contains("slot A, tries left: 2") && console.contains(root), "{console}");
    assert!(console.contains("linux,initrd-start"), "{console}");

    board.set("BOOT_B_LEFT", "2")?;
    board.install(Slot::B, &[("Image", &kernel)])?;
    let console = board.console_until_off().await?;
    let root = "root=PARTUUID=bbbbbbbb-0000-4000-8000-00000000000b ro rootwait panic=10";
    assert!(console.contains("slot B, tries left: 1") && console.contains(root), "{console}");
    assert!(!console.contains("linux,initrd-start"), "{console}");
    Ok(())
}

fn machine_log(board: &Board) -> PathBuf {
    board.root.path().join("console")
}

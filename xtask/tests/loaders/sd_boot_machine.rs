//! A UEFI machine with systemd-boot and two slots whose "kernel" tells which one it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use monok8s_sdk::boot::bls::{BlsEntries, ENTRIES, sd_boot};
use monok8s_sdk::disk::HostDirectory;
use monok8s_sdk::slot::Slot;
use xtask::grub::GRUB_MKIMAGE;
use xtask::host::SFDISK;
use xtask::process::Child;

use super::tools::{MCOPY, MDEL, MDIR, MFORMAT, MIB, MMD, QEMU, run};

const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
const SD_BOOT: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const GRUB_EFI: &str = "/usr/lib/grub/x86_64-efi/echo.mod";
/// The firmware takes ten seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Why there can be no such machine here.
pub(super) fn obstacle() -> Option<String> {
    let programs = [QEMU, MFORMAT, MCOPY, MMD, MDIR, MDEL, SFDISK, GRUB_MKIMAGE];
    let missing = programs.into_iter().find_map(|program| program.locate().err());
    let files = [(FIRMWARE, "ovmf"), (SD_BOOT, "systemd-boot"), (GRUB_EFI, "grub-efi-amd64-bin")];
    let absent = files.into_iter().find(|(path, _)| !Path::new(path).exists());
    missing.map(|error| error.to_string()).or_else(|| {
        absent.map(|(path, package)| format!("no {path}: run `apt-get install {package}` as root"))
    })
}

pub(super) struct Machine {
    dir: tempfile::TempDir,
    boots: usize,
}

impl Machine {
    /// A machine with these entries.
    pub(super) fn with(entries: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("esp").join(ENTRIES)).unwrap();
        let machine = Self { dir, boots: 0 };
        for (name, text) in entries {
            fs::write(machine.entries().join(name), text).unwrap();
        }
        File::create(machine.path("disk")).unwrap().set_len(34 * MIB).unwrap();
        let table =
            "label: gpt\nstart=1MiB, size=32MiB, type=C12A7328-F81F-11D2-BA4B-00C93EC93B00, name=esp\n";
        fs::write(machine.path("table"), table).unwrap();
        let table = File::open(machine.path("table")).unwrap();
        let options = ["--quiet", "--no-reread", "--no-tell-kernel"];
        run(SFDISK, |sfdisk| sfdisk.args(options).arg(machine.path("disk")).stdin(table));
        machine.format();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn entries(&self) -> PathBuf {
        self.path("esp").join(ENTRIES)
    }

    /// The partition as mtools address it.
    fn partition(&self) -> String {
        format!("{}@@1M", self.path("disk").display())
    }

    fn format(&self) {
        let partition = self.partition();
        run(MFORMAT, |mformat| mformat.args(["-i", &partition, "-T", "65536", "-h", "16", "-s", "32", "::"]));
        for dir in ["EFI", "EFI/BOOT", "loader", ENTRIES, "monok8s", "monok8s/a", "monok8s/b"] {
            run(MMD, |mmd| mmd.args(["-i", &partition, &format!("::{dir}")]));
        }
        fs::write(self.path("loader.conf"), "timeout 0\n").unwrap();
        self.copy_in(&self.path("loader.conf"), "loader/loader.conf");
        self.copy_in(Path::new(SD_BOOT), "EFI/BOOT/BOOTX64.EFI");
        for slot in ["a", "b"] {
            // Not a kernel, but a program for UEFI that says so and resets.
            fs::write(self.path("embedded"), format!("echo SLOT-{slot}\nreboot\n")).unwrap();
            run(GRUB_MKIMAGE, |mkimage| {
                mkimage.args(["--format=x86_64-efi", "--prefix=/", "--config"]).arg(self.path("embedded"));
                mkimage.arg("--output").arg(self.path("teller")).args(["echo", "reboot"])
            });
            self.copy_in(&self.path("teller"), &format!("monok8s/{slot}/vmlinuz"));
        }
    }

    fn copy_in(&self, from: &Path, to: &str) {
        run(MCOPY, |mcopy| mcopy.args(["-o", "-i", &self.partition()]).arg(from).arg(format!("::{to}")));
    }

    /// The node's backend, on the entries as they are now.
    pub(super) fn loader(&self) -> BlsEntries {
        BlsEntries::on_partition(self.path("esp"))
    }

    /// Puts a slot's kernel in place, as far as the backend is concerned.
    pub(super) fn stage(&self, slot: &str) {
        let dir = self.path("esp").join("monok8s").join(slot);
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("entry"),
            format!("title {slot}\nlinux /monok8s/{slot}/vmlinuz\noptions root=x\n"),
        )
        .unwrap();
    }

    pub(super) fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.entries()).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A power-on in a real systemd-boot, which must take, and leave behind, what the model does.
    pub(super) fn power_on(&mut self) -> Slot {
        let partition = self.partition();
        for name in self.listed() {
            run(MDEL, |mdel| mdel.args(["-i", &partition, &format!("::{ENTRIES}/{name}")]));
        }
        for name in self.names() {
            self.copy_in(&self.entries().join(&name), &format!("{ENTRIES}/{name}"));
        }
        let seen = self.run_firmware();
        let model = sd_boot::power_on(&HostDirectory::new(self.entries())).unwrap();
        assert_eq!(Some(seen), model, "power-on {}: systemd-boot and the model differ", self.boots);
        assert_eq!(self.listed(), self.names(), "after power-on {}", self.boots);
        seen
    }

    /// The names on the partition.
    fn listed(&self) -> Vec<String> {
        let listed = run(MDIR, |mdir| mdir.args(["-b", "-i", &self.partition(), &format!("::{ENTRIES}")]));
        let listed = String::from_utf8(listed.stdout).unwrap();
        let mut names: Vec<_> = listed
            .lines()
            .filter_map(|line| line.rsplit('/').next())
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    fn run_firmware(&mut self) -> Slot {
        self.boots += 1;
        let serial = self.path("serial");
        let _ = fs::remove_file(&serial);
        let mut qemu = Command::new(QEMU.locate().unwrap());
        qemu.args(["-accel", "tcg", "-m", "128", "-display", "none", "-no-reboot", "-nic", "none"]);
        qemu.args(["-bios", FIRMWARE]).arg("-serial").arg(format!("file:{}", serial.display()));
        qemu.arg("-drive").arg(format!("file={},format=raw,if=ide", self.path("disk").display()));
        let mut machine = Child::spawn("qemu", qemu, &self.path("qemu.log")).unwrap();
        let since = Instant::now();
        loop {
            let ended = machine.exit_status().unwrap();
            let said = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
            // Its end says that everything is on the disk.
            if ended.is_some() {
                let slot = [("SLOT-a", Slot::A), ("SLOT-b", Slot::B)]
                    .into_iter()
                    .find(|(word, _)| said.contains(word));
                return slot.unwrap_or_else(|| panic!("no slot was booted: {said}")).1;
            }
            assert!(since.elapsed() < PATIENCE, "the firmware said: {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

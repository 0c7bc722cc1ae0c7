//! A machine with GRUB, our script and two slots whose "kernel" tells what it was given.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use monok8s_sdk::boot::grub::script::{self, Outcome};
use monok8s_sdk::boot::grub::{FILE, FILES, GrubEnv};
use monok8s_sdk::disk::{HostRegion, Region};
use monok8s_sdk::slot::Slot;
use xtask::grub::{BiosBoot, GRUB_MKIMAGE, MODULES, install_bios};
use xtask::host::{MKE2FS, SFDISK, workspace_root};
use xtask::process::Child;

use super::teller;
use super::tools::{MCOPY, MFORMAT, MIB, MMD, QEMU, run};

/// GRUB and a second of its waiting take three seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Partition {
    name: &'static str,
    kind: &'static str,
    mib: (u64, u64),
    uuid: &'static str,
}

const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00C93EC93B00";
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
const PARTITIONS: [Partition; 4] = [
    Partition {
        name: "firmware",
        kind: BIOS_BOOT,
        mib: (1, 4),
        uuid: "10000000-0000-4000-8000-000000000001",
    },
    Partition {
        name: "monok8s-boot",
        kind: LINUX,
        mib: (5, 4),
        uuid: "10000000-0000-4000-8000-000000000002",
    },
    Partition { name: "rootfs-a", kind: LINUX, mib: (9, 4), uuid: "10000000-0000-4000-8000-00000000000a" },
    Partition { name: "rootfs-b", kind: LINUX, mib: (13, 4), uuid: "10000000-0000-4000-8000-00000000000b" },
];

/// What starts GRUB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Firmware {
    Bios,
    Uefi,
}

const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

pub(super) struct Machine {
    dir: tempfile::TempDir,
    firmware: Firmware,
    files: &'static [&'static str],
    has_kernel: [bool; 2],
    boots: usize,
}

/// Why there can be no such machine here.
pub(super) fn obstacle(firmware: Firmware) -> Option<String> {
    let programs = [QEMU, MFORMAT, MMD, MCOPY, MKE2FS, SFDISK, GRUB_MKIMAGE];
    let missing = programs.into_iter().find_map(|program| program.locate().err());
    let parts = match firmware {
        Firmware::Bios => vec![("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin")],
        Firmware::Uefi => vec![("/usr/lib/grub/x86_64-efi/normal.mod", "grub-efi-amd64-bin"), (OVMF, "ovmf")],
    };
    let absent = parts.into_iter().find(|(path, _)| !Path::new(path).exists());
    missing.map(|error| error.to_string()).or_else(|| {
        absent.map(|(path, package)| format!("no {path}: run `apt-get install {package}` as root"))
    })
}

impl Machine {
    /// A machine whose environment is in these files, and says this.
    pub(super) fn with(firmware: Firmware, files: &'static [&'static str], block: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { dir, firmware, files, has_kernel: [true; 2], boots: 0 };
        File::create(machine.disk()).unwrap().set_len(18 * MIB).unwrap();
        machine.partition();
        machine.format_boot();
        for slot in Slot::BOTH {
            machine.fill(slot);
        }
        machine.install_grub();
        for name in files {
            fs::write(machine.path(name), block).unwrap();
        }
        machine
    }

    fn install_grub(&self) {
        let (offset, bytes) = PARTITIONS[0].mib;
        let place = BiosBoot { offset: offset * MIB, bytes: bytes * MIB };
        match self.firmware {
            Firmware::Bios => install_bios(&self.disk(), place, "(hd0,gpt2)").unwrap(),
            Firmware::Uefi => {
                run(GRUB_MKIMAGE, |mkimage| {
                    mkimage.args(["--format=x86_64-efi", "--prefix=(,gpt2)/", "--output"]);
                    mkimage.arg(self.path("BOOTX64.EFI")).args(MODULES)
                });
                let esp = format!("{}@@{offset}M", self.disk().display());
                run(MFORMAT, |mformat| {
                    mformat.args(["-i", &esp, "-T", "8192", "-h", "16", "-s", "32", "::"])
                });
                run(MMD, |mmd| mmd.args(["-i", &esp, "::EFI", "::EFI/BOOT"]));
                run(MCOPY, |mcopy| mcopy.args(["-i", &esp]).arg(self.path("BOOTX64.EFI")).arg("::EFI/BOOT"));
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    fn partition(&self) {
        let lines = PARTITIONS.iter().map(|Partition { name, kind, mib: (start, size), uuid }| {
            let kind = if (*kind, self.firmware) == (BIOS_BOOT, Firmware::Uefi) { ESP } else { kind };
            format!("start={start}MiB, size={size}MiB, type={kind}, uuid={uuid}, name={name}\n")
        });
        fs::write(self.path("table"), "label: gpt\n".to_owned() + &lines.collect::<String>()).unwrap();
        let table = File::open(self.path("table")).unwrap();
        run(SFDISK, |sfdisk| {
            sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(self.disk()).stdin(table)
        });
    }

    /// The boot partition as mtools address it.
    fn boot_partition(&self) -> String {
        format!("{}@@{}M", self.disk().display(), PARTITIONS[1].mib.0)
    }

    fn format_boot(&self) {
        run(MFORMAT, |mformat| {
            mformat.args(["-i", &self.boot_partition(), "-T", "8192", "-h", "16", "-s", "32", "::"])
        });
        let script = workspace_root().join("deploy/host/grub/grub.cfg");
        fs::copy(script, self.path("grub.cfg")).unwrap();
        fs::write(self.path("monok8s.cfg"), "set monok8s_args=\"mark=its-own\"\n").unwrap();
        self.copy_in(&["grub.cfg", "monok8s.cfg"]);
    }

    fn copy_in(&self, names: &[&str]) {
        let paths = names.iter().map(|name| self.path(name));
        run(MCOPY, |mcopy| mcopy.args(["-o", "-i", &self.boot_partition()]).args(paths).arg("::"));
    }

    fn copy_out(&self, name: &str) -> Vec<u8> {
        run(MCOPY, |mcopy| mcopy.args(["-i", &self.boot_partition(), &format!("::{name}"), "-"])).stdout
    }

    fn write_slot(&self, slot: Slot, bytes: &[u8]) {
        let mut disk = File::options().write(true).open(self.disk()).unwrap();
        disk.seek(SeekFrom::Start(PARTITIONS[2 + slot as usize].mib.0 * MIB)).unwrap();
        disk.write_all(bytes).unwrap();
    }

    fn fill(&self, slot: Slot) {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("boot")).unwrap();
        fs::write(tree.join("boot/vmlinuz"), teller::kernel()).unwrap();
        // Only slot A has an initrd.
        if slot == Slot::A {
            fs::write(tree.join("boot/initrd.img"), [7; 700]).unwrap();
        }
        let image = self.path("slot");
        run(MKE2FS, |mke2fs| mke2fs.args(["-q", "-t", "ext4", "-d"]).args([&tree, &image]).arg("4M"));
        self.write_slot(slot, &fs::read(&image).unwrap());
        fs::remove_dir_all(&tree).unwrap();
        fs::remove_file(&image).unwrap();
    }

    /// Overwrites the beginning of a slot, as an interrupted write leaves it.
    pub(super) fn tear(&mut self, slot: Slot) {
        self.write_slot(slot, &vec![0; 64 << 10]);
        self.has_kernel[slot as usize] = false;
    }

    /// The node's backend, on the files of the boot partition as they are now.
    pub(super) fn loader(&self) -> GrubEnv {
        GrubEnv::in_directory(self.dir.path())
    }

    /// Damages a file.
    pub(super) fn zero(&self, name: &str) {
        fs::write(self.path(name), [0; 1024]).unwrap();
    }

    /// Replaces a file.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// A power-on in a real GRUB, which must do, and leave in the files, what the model does.
    pub(super) fn power_on(&mut self) -> Outcome {
        self.copy_in(self.files);
        let seen = self.run_grub();
        let regions: Vec<_> = self.files.iter().map(|name| HostRegion::new(self.path(name))).collect();
        let regions: Vec<&dyn Region> = regions.iter().map(|region| region as &dyn Region).collect();
        let model = script::power_on(&regions, |slot| self.has_kernel[slot as usize]).unwrap();
        assert_eq!(seen, model, "power-on {}: GRUB and the model differ", self.boots);
        for name in self.files {
            let (real, model) = (self.copy_out(name), fs::read(self.path(name)).unwrap());
            let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('#', "");
            assert_eq!(shown(&real), shown(&model), "{name} after power-on {}", self.boots);
            assert_eq!(real, model, "{name} after power-on {}", self.boots);
        }
        seen
    }

    fn run_grub(&mut self) -> Outcome {
        self.boots += 1;
        let serial = self.path("serial");
        let _ = fs::remove_file(&serial);
        let mut qemu = Command::new(QEMU.locate().unwrap());
        if self.firmware == Firmware::Uefi {
            qemu.args(["-bios", OVMF]);
        }
        qemu.args(["-accel", "tcg", "-m", "128", "-display", "none", "-no-reboot", "-nic", "none"]);
        qemu.arg("-serial").arg(format!("file:{}", serial.display()));
        qemu.arg("-drive").arg(format!("file={},format=raw,if=ide", self.disk().display()));
        let mut machine = Child::spawn("qemu", qemu, &self.path("qemu.log")).unwrap();
        let since = Instant::now();
        loop {
            let ended = machine.exit_status().unwrap();
            let said = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
            if let Some(outcome) = outcome(&said) {
                return outcome;
            }
            assert!(ended.is_none() && since.elapsed() < PATIENCE, "QEMU {ended:?} said: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What the serial line says came of it.
fn outcome(said: &str) -> Option<Outcome> {
    let menus = [
        ("(no slot started)", Outcome::NothingStarted),
        ("(no slot may boot)", Outcome::NothingMayBoot),
        ("(no environment could be read)", Outcome::NoEnvironment),
    ];
    if let Some((_, outcome)) = menus.into_iter().find(|(words, _)| said.contains(words)) {
        return Some(outcome);
    }
    // The kernel's line ends with its word about the initrd.
    let line = said
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("BOOT_IMAGE=") && line.ends_with(['+', '-']))?;
    let (slot, disk, initrd) = match line {
        _ if line.starts_with("BOOT_IMAGE=(hd0,gpt3)/boot/vmlinuz ") => (Slot::A, &PARTITIONS[2], '+'),
        _ if line.starts_with("BOOT_IMAGE=(hd0,gpt4)/boot/vmlinuz ") => (Slot::B, &PARTITIONS[3], '-'),
        _ => panic!("booted what is no slot: {line}"),
    };
    let words: Vec<_> = line.trim_end_matches(['+', '-']).split(' ').collect();
    let root = format!("root=PARTUUID={}", disk.uuid);
    for word in [root.as_str(), "ro", "panic=5", "console=ttyS0,115200", "mark=its-own"] {
        assert!(words.contains(&word), "no {word} in {line}");
    }
    assert!(line.ends_with(initrd), "the initrd of slot {slot}: {line}");
    Some(Outcome::Entered(slot))
}

pub(super) const ONE: &[&str] = &[FILE];
pub(super) const TWO: &[&str] = &FILES;

//! Node images: the base, a kubelet of one version, our programs, and the container images that the OS
//! version ships.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::manifests::{LOCAL_AGENT_IMAGE, LOCAL_CONTROLLER_IMAGE};

use crate::cache::target_directory;
use crate::controlplane;
use crate::host::{MKE2FS, run, workspace_root};
use crate::programs::Program;
use crate::rootfs::{Artifact, Image};
use crate::scratch::Scratch;
use crate::vm::BaseTree;
use crate::vm::archive::Archive;
use crate::vm::recipe;
use crate::vm::tree::Tree;

const MIB: u64 = 1 << 20;
/// Size of an image with everything in it, and of the slots that hold it.
const IMAGE_BYTES: u64 = 416 * MIB;
/// So much less without the controller's program.
const CONTROLLER_BYTES: u64 = 48 * MIB;
/// More than an image has files; by themselves file systems of this size take eight times as many.
const INODES: u32 = 12_288;
/// Several are expanded at once.
const FRAME_BYTES: u64 = 8 * MIB;
/// containerd's `sandbox_image`, as our config.toml names it.
const PAUSE_IMAGE: &str = "localhost/monok8s/pause:local";
/// What the programs in container images load, under `/usr/lib/x86_64-linux-gnu`.
const LIBRARIES: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
const ENABLED: [&str; 3] = ["monok8s-network.service", "monok8s-apiserver.socket", "kubelet.service"];
/// The dead-man switch, as `deploy/host/` has it.
const GUARD: &str = "monok8s-guard.service";
/// What would take its time at every start, or writes to a root that is never written.
const MASKED: [&str; 35] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
];

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// The kernel panics: its initramfs has no driver for the disk.
    KernelPanics,
    /// There is no `/sbin/init`.
    NoInit,
    /// The kubelet ends at once.
    KubeletNeverStarts,
    /// The kubelet runs, and its Node is never Ready: there is no network for pods.
    NodeNeverReady,
    /// The API server of a control-plane node never answers.
    ApiServerNeverReady,
    /// The data partition cannot be mounted.
    DataNotMountable,
    /// The os-release says another version.
    SaysItIs(String),
    /// The guard is not there.
    NoGuard,
}

/// What goes into an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeImage {
    version: String,
    controller: Controller,
    defect: Option<Defect>,
}

/// Whether the controller's container image has its program in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Controller {
    Whole,
    Hollow,
}

/// Builds images, each once, and keeps them until it is dropped.
pub struct ImageLibrary {
    parts: Parts,
    built: BTreeMap<NodeImage, Artifact>,
    scratch: Scratch,
}

/// What images are made of, beside a kubelet.
struct Parts {
    base: BaseTree,
    /// With `ours`, what is laid over the base, and `containers`, the container images as containerd keeps
    /// them, and our programs.
    directory: PathBuf,
}

impl ImageLibrary {
    /// Builds or finds the base and our programs, and makes the container images.
    ///
    /// # Errors
    /// One of them cannot be built, or our programs do not run on the base, because they were built
    /// against a newer C library than it has.
    pub async fn open() -> Result<Self> {
        let base = BaseTree::provide().await?;
        // On the file system of the base, for links to it.
        let scratch = Scratch::new_in(&target_directory().join("vm"), "images")?;
        let parts = Parts { base, directory: scratch.path().join("parts") };
        parts.make_containers().await?;
        Ok(Self { parts, built: BTreeMap::new(), scratch })
    }

    /// An image, compressed. Without an index: all that an emulated machine reads to spare a download costs it
    /// more than the download.
    ///
    /// # Errors
    /// It cannot be built.
    pub async fn artifact(&mut self, image: &NodeImage) -> Result<Artifact> {
        if let Some(artifact) = self.built.get(image) {
            return Ok(artifact.clone());
        }
        let path = self.scratch.path().join(format!("{}.ext4", self.built.len()));
        let built = self.build(image, &path).await?;
        let artifact = built.compress_in_frames(&path.with_extension("ext4.zst"), FRAME_BYTES)?;
        self.built.insert(image.clone(), artifact.clone());
        Ok(artifact)
    }

    /// Builds an image at `path`, and keeps no account of it.
    ///
    /// # Errors
    /// It cannot be built.
    pub async fn build(&self, image: &NodeImage, path: &Path) -> Result<Image> {
        let kubelet = controlplane::kubelet(&image.version).await?;
        let tree = Tree::linked(self.parts.base.root(), &path.with_extension("tree"))?;
        image.fill(&tree, &self.parts, &kubelet)?;
        if let Some(defect) = &image.defect {
            break_it(&tree, defect)?;
        }
        make_ext4(tree.root(), path, image.bytes())?;
        tree.discard()?;
        Image::at(path)
    }
}

impl Parts {
    /// Writes an archive with the three images, and has it unpacked.
    async fn make_containers(&self) -> Result<()> {
        let tree = |name: &str| Tree::empty(&self.directory.join(name));
        let (libraries, pause, agent, controller) =
            (tree("libraries")?, tree("pause")?, tree("programs")?, tree("controller")?);
        let base = self.base.root();
        for library in LIBRARIES {
            let path = format!("usr/lib/x86_64-linux-gnu/{library}");
            libraries.install(&base.join(&path), &path)?;
        }
        libraries.link("lib", "usr/lib")?;
        libraries.link("lib64", "usr/lib/x86_64-linux-gnu")?;
        let authorities = "etc/ssl/certs/ca-certificates.crt";
        libraries.install(&base.join(authorities), authorities)?;
        for program in ["usr/bin/sleep", "usr/bin/dash"] {
            pause.install(&base.join(program), program)?;
        }
        pause.link("bin/sh", "../usr/bin/dash")?;
        let programs = [(&agent, Program::Agent), (&agent, Program::Ctl), (&controller, Program::Operator)];
        for (tree, program) in programs {
            let name = program.file_name();
            let stripped = self.directory.join(name);
            program.strip_to(&stripped)?;
            tree.install(&stripped, &format!("usr/bin/{name}"))?;
        }
        let layout = self.directory.join("layout");
        let mut archive = Archive::new(&layout)?;
        let shared = archive.layer(libraries.root())?;
        let pause = archive.layer(pause.root())?;
        let agent = archive.layer(agent.root())?;
        let controller = archive.layer(controller.root())?;
        // As the first process of its container `sleep` would ignore the signal that ends it.
        let pause_command = ["/bin/sh", "-c", "trap exit TERM INT; /usr/bin/sleep infinity & wait"];
        archive.image(PAUSE_IMAGE, &[&shared, &pause], &pause_command)?;
        archive.image(LOCAL_AGENT_IMAGE, &[&shared, &agent], &["/usr/bin/monok8s-agent"])?;
        archive.image(LOCAL_CONTROLLER_IMAGE, &[&shared, &controller], &["/usr/bin/monok8s-operator"])?;
        let packed = self.directory.join("containers.tar");
        archive.finish(&packed)?;
        fs::remove_dir_all(&layout)?;
        let (ours, log) = (Tree::adopted(&recipe::ours(), &self.ours())?, packed.with_extension("log"));
        let arguments = [self.base.root(), ours.root(), &packed, &self.containers()];
        recipe::run("containers.sh", &arguments, &log).await
    }

    fn ours(&self) -> PathBuf {
        self.directory.join("ours")
    }

    fn containers(&self) -> PathBuf {
        self.directory.join("containers")
    }
}

impl NodeImage {
    /// An image of `version`, as in `v1.35.4`.
    #[must_use]
    pub fn of(version: &str) -> Self {
        Self { version: version.to_owned(), controller: Controller::Whole, defect: None }
    }

    /// The same for machines on which no controller ever starts: a tenth smaller, which emulated machines feel.
    #[must_use]
    pub fn without_controller(self) -> Self {
        Self { controller: Controller::Hollow, ..self }
    }

    fn bytes(&self) -> u64 {
        match self.controller {
            Controller::Whole => IMAGE_BYTES,
            Controller::Hollow => IMAGE_BYTES - CONTROLLER_BYTES,
        }
    }

    /// The same with something wrong.
    #[must_use]
    pub fn with(self, defect: Defect) -> Self {
        Self { defect: Some(defect), ..self }
    }

    fn fill(&self, tree: &Tree, parts: &Parts, kubelet: &Path) -> Result<()> {
        tree.overlay(&parts.ours())?;
        tree.overlay(&parts.containers())?;
        if self.controller == Controller::Hollow {
            hollow_out(tree)?;
        }
        // Not for nodes: it put the images where they are.
        tree.remove("usr/bin/ctr")?;
        for unit in ENABLED {
            tree.enable(unit, "multi-user.target")?;
        }
        let guard = workspace_root().join("deploy/host/systemd").join(GUARD);
        tree.install(&guard, &format!("usr/lib/systemd/system/{GUARD}"))?;
        tree.enable(GUARD, "sysinit.target")?;
        for unit in MASKED {
            tree.mask(unit)?;
        }
        let stated = match &self.defect {
            Some(Defect::SaysItIs(other)) => other,
            _ => &self.version,
        };
        let bare = stated.trim_start_matches('v');
        tree.write(
            "etc/os-release",
            &format!("NAME=\"MonoK8s OS\"\nPRETTY_NAME=\"MonoK8s OS {stated}\"\nID=monok8s\nVERSION_ID={bare}\nMONOK8S_VERSION=\"{stated}\"\n"),
        )?;
        // Empty: systemd makes one up for each boot.
        tree.write("etc/machine-id", "")?;
        tree.install(kubelet, "usr/bin/kubelet")
    }
}

/// Takes the controller's program out of its container image.
fn hollow_out(tree: &Tree) -> Result<()> {
    const CONTAINERS: &str = "usr/share/monok8s/containers";
    let mut found = 0;
    for entry in fs::read_dir(tree.root().join(CONTAINERS))? {
        let snapshot = entry?.file_name();
        let program = format!("{CONTAINERS}/{}/fs/usr/bin/monok8s-operator", snapshot.display());
        found += usize::from(tree.root().join(&program).exists());
        tree.remove(&program)?;
    }
    ensure!(found == 1, "{found} controllers below /{CONTAINERS}, instead of one");
    Ok(())
}

/// Ruins a good image.
fn break_it(tree: &Tree, defect: &Defect) -> Result<()> {
    match defect {
        // An empty archive is a good initramfs that does nothing.
        Defect::KernelPanics => tree.write("boot/initrd.img", ""),
        Defect::NoInit => tree.remove("usr/sbin/init"),
        Defect::KubeletNeverStarts => tree.script("usr/bin/kubelet", "#!/bin/sh\nexit 1\n"),
        Defect::NodeNeverReady => tree.remove("etc/cni/net.d/10-pods.conflist"),
        Defect::ApiServerNeverReady => tree.remove("usr/lib/systemd/system/monok8s-apiserver.socket"),
        Defect::DataNotMountable => {
            let table = fs::read_to_string(tree.root().join("etc/fstab"))?;
            tree.write("etc/fstab", &table.replace("nodev,nosuid", "nosuchoption"))
        }
        Defect::SaysItIs(_) => Ok(()),
        Defect::NoGuard => tree.remove("usr/bin/monok8s-agent"),
    }
}

/// Of 4 KiB blocks: by themselves file systems of this size have smaller ones. Without a journal: nobody writes
/// there; and without what GRUB 2.06 does not read. Identifiers are fixed, so that versions differ by their
/// files.
fn make_ext4(root: &Path, path: &Path, bytes: u64) -> Result<()> {
    File::create(path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("cannot create {}", path.display()))?;
    let mut make = Command::new(MKE2FS.locate()?);
    make.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal,^metadata_csum_seed"])
        .args(["-b", "4096", "-N", &INODES.to_string()])
        .args(["-U", "6b386f73-0000-4000-8000-000000000003"])
        .args(["-E", "root_owner=0:0,hash_seed=6b386f73-0000-4000-8000-000000000004", "-d"])
        .arg(root)
        .arg(path);
    run(&mut make).map(drop)
}

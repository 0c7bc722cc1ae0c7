//! Node images: the base, a kubelet of one version, our programs, and the container images that the OS
//! version ships.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use monok8s_sdk::manifests::{LOCAL_AGENT_IMAGE, LOCAL_CONTROLLER_IMAGE};

use crate::cache::target_directory;
use crate::controlplane;
use crate::host::{MKE2FS, run, workspace_root};
use crate::programs;
use crate::rootfs::{Artifact, Image};
use crate::scratch::Scratch;
use crate::vm::BaseTree;
use crate::vm::archive::Archive;
use crate::vm::recipe;
use crate::vm::tree::Tree;

const MIB: u64 = 1 << 20;
/// What every image is a file system of, and every slot holds.
const IMAGE_BYTES: u64 = 392 * MIB;
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
const MASKED: [&str; 33] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
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
    defect: Option<Defect>,
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
        make_ext4(tree.root(), path)?;
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
        let programs = programs::for_nodes()?;
        agent.install(&programs.join("monok8s-agent"), "usr/bin/monok8s-agent")?;
        agent.install(&programs.join("ctl"), "usr/bin/ctl")?;
        controller.install(&programs.join("monok8s-operator"), "usr/bin/monok8s-operator")?;
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
        Self { version: version.to_owned(), defect: None }
    }

    /// The same with something wrong.
    #[must_use]
    pub fn with(self, defect: Defect) -> Self {
        Self { defect: Some(defect), ..self }
    }

    fn fill(&self, tree: &Tree, parts: &Parts, kubelet: &Path) -> Result<()> {
        tree.overlay(&parts.ours())?;
        tree.overlay(&parts.containers())?;
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

/// Without a journal: nobody writes there; and without what GRUB 2.06 does not read. Identifiers are fixed, so
/// that versions differ by their files.
fn make_ext4(root: &Path, path: &Path) -> Result<()> {
    File::create(path)
        .and_then(|file| file.set_len(IMAGE_BYTES))
        .with_context(|| format!("cannot create {}", path.display()))?;
    let mut make = Command::new(MKE2FS.locate()?);
    make.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal,^metadata_csum_seed"])
        .args(["-U", "6b386f73-0000-4000-8000-000000000003"])
        .args(["-E", "root_owner=0:0,hash_seed=6b386f73-0000-4000-8000-000000000004", "-d"])
        .arg(root)
        .arg(path);
    run(&mut make).map(drop)
}

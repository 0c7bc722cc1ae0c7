//! Root file systems as a release engineer builds them: a directory tree, made into ext4 by
//! `mke2fs -d`, compressed with zstd. Small, but with enough content that compression, blocks and
//! differences between versions mean something.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::image::{BuildOptions, build};

use crate::digest;
use crate::host::{MKE2FS, run};

const MIB: u64 = 1 << 20;
/// Level of the published artifacts.
const ZSTD_LEVEL: i32 = 3;
const FILLER_FILE: u64 = MIB;

/// Whether the image can fall back by itself after a failed trial boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The agent and its host service are in the image and enabled.
    Installed,
    /// They are not; such an image must not be booted.
    Missing,
}

/// Whether the image boots on a simulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    ComesUp,
    Panics,
}

/// An image that holds this file does not come up on a simulated machine.
pub const PANIC_MARKER: &str = "etc/simulate-panic";

/// What goes into an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsSpec {
    version: String,
    stated: Option<String>,
    guard: Guard,
    kernel: Kernel,
    bytes: u64,
    filler_bytes: u64,
}

/// An ext4 file system in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Of all of it.
    pub digest: Sha256Digest,
}

/// A compressed [`Image`], as a catalog lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Where it is.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Of the file as served; the catalog's `checksum`.
    pub digest: Sha256Digest,
    /// What it expands to.
    pub image: Image,
    /// Its block index, if one was made.
    pub index: Option<IndexFile>,
}

/// The block index of an [`Artifact`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexFile {
    /// Where it is.
    pub path: PathBuf,
    /// Of all of it.
    pub digest: Sha256Digest,
}

impl RootfsSpec {
    /// An image of `version` (as in `v1.35.4`) that says so, with the guard: 64 MiB with 16 MiB of
    /// content.
    #[must_use]
    pub fn of(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            stated: Some(version.to_owned()),
            guard: Guard::Installed,
            kernel: Kernel::ComesUp,
            bytes: 64 * MIB,
            filler_bytes: 16 * MIB,
        }
    }

    /// A lying image: the content of this version, whose os-release says `other`.
    #[must_use]
    pub fn claiming(self, other: &str) -> Self {
        Self { stated: Some(other.to_owned()), ..self }
    }

    /// An image whose os-release says no version at all.
    #[must_use]
    pub fn claiming_nothing(self) -> Self {
        Self { stated: None, ..self }
    }

    /// An image whose kernel panics on a simulated machine.
    #[must_use]
    pub fn panicking(self) -> Self {
        Self { kernel: Kernel::Panics, ..self }
    }

    /// An image that lacks the guard.
    #[must_use]
    pub fn without_guard(self) -> Self {
        Self { guard: Guard::Missing, ..self }
    }

    /// Size of the file system and bytes of content in it; the content must fit.
    #[must_use]
    pub fn sized(self, bytes: u64, filler_bytes: u64) -> Self {
        Self { bytes, filler_bytes, ..self }
    }

    /// Builds the image at `path`.
    pub fn build(&self, path: &Path) -> Result<Image> {
        let mke2fs = MKE2FS.locate()?;
        let tree = crate::scratch::Scratch::new("tree")?;
        self.write_tree(&tree.path().join("root"))?;
        File::create(path)
            .and_then(|file| file.set_len(self.bytes))
            .with_context(|| format!("cannot create {}", path.display()))?;
        let mut make = Command::new(mke2fs);
        make.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d"])
            .arg(tree.path().join("root"))
            .arg(path);
        run(&mut make)?;
        Image::at(path)
    }

    fn write_tree(&self, root: &Path) -> Result<()> {
        let write = |name: &str, text: &str| -> Result<()> {
            let path = root.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("etc/os-release", &self.os_release())?;
        let program = |name: &str, text: &str| -> Result<()> {
            write(name, text)?;
            Ok(fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?)
        };
        program("usr/bin/kubelet", &format!("kubelet {}\n", self.version))?;
        if self.kernel == Kernel::Panics {
            write(PANIC_MARKER, "")?;
        }
        if self.guard == Guard::Installed {
            program("usr/bin/monok8s-agent", &format!("monok8s-agent {}\n", self.version))?;
            let unit = "usr/lib/systemd/system/monok8s-guard.service";
            write(unit, "[Service]\nExecStart=/usr/bin/monok8s-agent guard\n")?;
            let wants = root.join("etc/systemd/system/multi-user.target.wants");
            fs::create_dir_all(&wants)?;
            std::os::unix::fs::symlink(Path::new("/").join(unit), wants.join("monok8s-guard.service"))?;
        }
        self.write_filler(&root.join("usr/lib/content"))
    }

    fn os_release(&self) -> String {
        let name = "NAME=\"MonoK8s OS\"\nID=monok8s\n";
        match &self.stated {
            None => name.to_owned(),
            Some(version) => {
                let bare = version.trim_start_matches('v');
                format!("{name}VERSION_ID={bare}\nMONOK8S_VERSION=\"{version}\"\n")
            }
        }
    }

    /// Three files in four are the same in every version, as between two patch releases.
    fn write_filler(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        for number in 0..self.filler_bytes.div_ceil(FILLER_FILE) {
            let seed = if number % 4 == 3 {
                format!("{}/{number}", self.version)
            } else {
                format!("every/{number}")
            };
            let length = FILLER_FILE.min(self.filler_bytes - number * FILLER_FILE);
            let mut file = BufWriter::new(File::create(directory.join(format!("{number:04}")))?);
            write_content(&mut file, &seed, length)?;
            file.flush()?;
        }
        Ok(())
    }
}

impl Image {
    /// Describes the image in the file at `path`.
    pub fn at(path: &Path) -> Result<Self> {
        let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        Ok(Self { path: path.to_owned(), bytes, digest: digest::of_file(path)? })
    }

    /// Compresses it into one zstd frame at `path`.
    pub fn compress(&self, path: &Path) -> Result<Artifact> {
        self.compress_in_frames(path, self.bytes)
    }

    /// Compresses every `frame_bytes` of it into a zstd frame of its own, one after the other.
    pub fn compress_in_frames(&self, path: &Path, frame_bytes: u64) -> Result<Artifact> {
        let mut source = BufReader::new(File::open(&self.path)?);
        let mut target =
            BufWriter::new(File::create(path).with_context(|| format!("cannot create {}", path.display()))?);
        let mut left = self.bytes;
        while left > 0 {
            let frame = left.min(frame_bytes.max(1));
            let mut encoder = zstd::Encoder::new(&mut target, ZSTD_LEVEL)?;
            encoder.include_contentsize(true)?;
            encoder.set_pledged_src_size(Some(frame))?;
            io::copy(&mut source.by_ref().take(frame), &mut encoder)?;
            encoder.finish()?;
            left -= frame;
        }
        target.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        self.artifact(path, None)
    }

    /// Compresses it as `ctl image build` does, with the index beside it.
    pub fn compress_with_index(&self, path: &Path) -> Result<Artifact> {
        let mut source = File::open(&self.path)?;
        let mut target =
            BufWriter::new(File::create(path).with_context(|| format!("cannot create {}", path.display()))?);
        // The images here are small, so that small frames are what shows that only parts are fetched.
        let index = build(&mut source, &mut target, BuildOptions { level: ZSTD_LEVEL, frame_log: 16 })?;
        target.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        let index_path = path.with_extension("idx");
        fs::write(&index_path, index.as_bytes())?;
        let digest = Sha256Digest::of(index.as_bytes());
        self.artifact(path, Some(IndexFile { path: index_path, digest }))
    }

    fn artifact(&self, path: &Path, index: Option<IndexFile>) -> Result<Artifact> {
        let bytes = fs::metadata(path)?.len();
        let digest = digest::of_file(path)?;
        Ok(Artifact { path: path.to_owned(), bytes, digest, image: self.clone(), index })
    }
}

/// Writes `length` bytes that depend on `seed` alone: half of them noise, which does not compress, and
/// half repetition, which does.
fn write_content(mut target: impl io::Write, seed: &str, length: u64) -> io::Result<()> {
    let digest = Sha256Digest::of(seed.as_bytes());
    let mut state =
        digest.as_bytes().iter().fold(1_u64, |state, byte| state.rotate_left(8) ^ u64::from(*byte)) | 1;
    let mut left = length;
    while left > 0 {
        // xorshift64; Marsaglia, "Xorshift RNGs", 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut sixteen = [0; 16];
        let (noise, repetition) = sixteen.split_at_mut(8);
        noise.copy_from_slice(&state.to_le_bytes());
        repetition.copy_from_slice(b"monok8s\n");
        let take = left.min(16);
        target.write_all(sixteen.get(..usize::try_from(take).unwrap_or(16)).unwrap_or(&sixteen))?;
        left -= take;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_depends_on_the_seed_alone_and_compresses_by_about_half() {
        let content = |seed: &str| {
            let mut bytes = Vec::new();
            write_content(&mut bytes, seed, 100_001).unwrap();
            bytes
        };
        assert_eq!(content("a").len(), 100_001);
        assert_eq!(content("a"), content("a"));
        assert_ne!(content("a"), content("b"));
        let packed = zstd::encode_all(content("a").as_slice(), ZSTD_LEVEL).unwrap().len();
        assert!((40_000..70_000).contains(&packed), "{packed}");
    }

    #[test]
    fn os_release_says_what_it_was_told_to() {
        let spec = RootfsSpec::of("v1.35.4");
        assert!(spec.os_release().contains("VERSION_ID=1.35.4\nMONOK8S_VERSION=\"v1.35.4\"\n"));
        assert!(spec.clone().claiming("v1.35.1").os_release().contains("MONOK8S_VERSION=\"v1.35.1\""));
        assert!(!spec.claiming_nothing().os_release().contains("VERSION"));
    }
}

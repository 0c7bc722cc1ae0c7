//! Container images as an OCI archive: an image layout (image-spec 1.0, `image-layout.md`) in one tar
//! file, as `ctr images import` takes it. No registry, no container engine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use monok8s_sdk::digest::Sha256Digest;
use serde_json::{Value, json};

use crate::digest;
use crate::host::run;
use crate::vm::TAR;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const LEVEL: i32 = 3;
/// containerd names the image after it.
const NAME: &str = "io.containerd.image.name";

/// An archive in the making: the layout's directory and its list of images.
pub(super) struct Archive<'a> {
    directory: &'a Path,
    images: Vec<Value>,
}

/// What is in the archive under its digest.
#[derive(Clone, Debug)]
struct Blob {
    digest: Sha256Digest,
    bytes: u64,
}

/// A layer that is in the archive.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    blob: Blob,
    /// Digest of what it expands to.
    diff_id: Sha256Digest,
}

impl<'a> Archive<'a> {
    /// Starts one in an empty directory.
    pub(super) fn new(directory: &'a Path) -> Result<Self> {
        fs::create_dir_all(directory.join("blobs/sha256"))
            .with_context(|| format!("cannot create {}", directory.display()))?;
        fs::write(directory.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
        Ok(Self { directory, images: Vec::new() })
    }

    /// Makes a layer of all files below `root`. The same files give the same layer.
    pub(super) fn layer(&self, root: &Path) -> Result<Layer> {
        let (packed, part) = (self.directory.join("layer.tar"), self.directory.join("layer.part"));
        pack(root, &packed)?;
        zstd::stream::copy_encode(File::open(&packed)?, File::create(&part)?, LEVEL)?;
        let diff_id = digest::of_file(&packed)?;
        let blob = Blob { digest: digest::of_file(&part)?, bytes: fs::metadata(&part)?.len() };
        fs::remove_file(&packed)?;
        fs::rename(&part, self.path_of(&blob.digest))?;
        Ok(Layer { blob, diff_id })
    }

    /// Adds an image of these layers that is called `reference`, and runs `command` by default.
    pub(super) fn image(&mut self, reference: &str, layers: &[&Layer], command: &[&str]) -> Result<()> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = self.document(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Env": ["PATH=/usr/bin:/bin"], "Entrypoint": command },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }))?;
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER, &layer.blob)).collect();
        let manifest = self.document(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers,
        }))?;
        let mut entry = descriptor(MANIFEST, &manifest);
        if let Some(fields) = entry.as_object_mut() {
            fields.insert("annotations".to_owned(), json!({ NAME: reference }));
            fields.insert("platform".to_owned(), json!({ "architecture": "amd64", "os": "linux" }));
        }
        self.images.push(entry);
        Ok(())
    }

    /// Writes the archive to `path`.
    pub(super) fn finish(self, path: &Path) -> Result<()> {
        let index = json!({ "schemaVersion": 2, "manifests": self.images });
        fs::write(self.directory.join("index.json"), index.to_string())?;
        pack(self.directory, path)
    }

    fn document(&self, document: &Value) -> Result<Blob> {
        let text = document.to_string();
        let digest = Sha256Digest::of(text.as_bytes());
        fs::write(self.path_of(&digest), &text)?;
        Ok(Blob { digest, bytes: u64::try_from(text.len())? })
    }

    fn path_of(&self, digest: &Sha256Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.bytes })
}

/// A tar file of everything below `root`, in which nothing depends on when and by whom it was made.
fn pack(root: &Path, to: &Path) -> Result<()> {
    let mut tar = Command::new(TAR.locate()?);
    tar.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--hard-dereference", "--format=gnu", "--file"])
        .arg(to)
        .arg("--directory")
        .arg(root)
        .arg(".");
    run(&mut tar).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_names_what_it_holds() {
        let scratch = tempfile::tempdir().unwrap();
        let (layout, files) = (scratch.path().join("layout"), scratch.path().join("files"));
        fs::create_dir(&files).unwrap();
        fs::write(files.join("hello"), "hello").unwrap();
        let mut archive = Archive::new(&layout).unwrap();
        let layer = archive.layer(&files).unwrap();
        archive.image("localhost/a:local", &[&layer], &["/hello"]).unwrap();
        archive.finish(&scratch.path().join("images.tar")).unwrap();
        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |digest: &Value| {
            let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            let path = layout.join("blobs/sha256").join(hex);
            assert_eq!(digest::of_file(&path).unwrap().hex(), hex);
            path
        };
        let index = read(&layout.join("index.json"));
        assert_eq!(index["manifests"][0]["annotations"][NAME], "localhost/a:local");
        let manifest = read(&blob(&index["manifests"][0]["digest"]));
        let config = read(&blob(&manifest["config"]["digest"]));
        let layer = &manifest["layers"][0];
        let packed = fs::read(blob(&layer["digest"])).unwrap();
        assert_eq!(packed.len() as u64, layer["size"].as_u64().unwrap());
        let unpacked = zstd::decode_all(packed.as_slice()).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], Sha256Digest::of(&unpacked).to_string());
    }
}

//! Container images as an OCI archive: an image layout (image-spec 1.0, `image-layout.md`) in one tar
//! file, as `ctr images import` takes it. No registry, no container engine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::digest::Sha256Digest;
use serde_json::{Value, json};

use crate::digest;
use crate::vm::TAR;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Not compressed: whoever imports it would only have to expand it again.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// containerd names the image after it.
const NAME: &str = "io.containerd.image.name";

/// An archive in the making: the layout's directory and its list of images.
pub(super) struct Archive<'a> {
    directory: &'a Path,
    images: Vec<Value>,
}

/// A layer that is in the archive.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// Also the digest of what it expands to, as it is not compressed.
    digest: Sha256Digest,
    bytes: u64,
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
        let part = self.directory.join("layer.part");
        pack(root, &part)?;
        let layer = Layer { digest: digest::of_file(&part)?, bytes: fs::metadata(&part)?.len() };
        fs::rename(&part, self.blob(&layer.digest))?;
        Ok(layer)
    }

    /// Adds an image of these layers that is called `reference`, and runs `command` by default.
    pub(super) fn image(&mut self, reference: &str, layers: &[&Layer], command: &[&str]) -> Result<()> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        let config = self.document(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Env": ["PATH=/usr/bin:/bin"], "Entrypoint": command },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }))?;
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
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

    fn document(&self, document: &Value) -> Result<Layer> {
        let text = document.to_string();
        let digest = Sha256Digest::of(text.as_bytes());
        fs::write(self.blob(&digest), &text)?;
        Ok(Layer { digest, bytes: u64::try_from(text.len())? })
    }

    fn blob(&self, digest: &Sha256Digest) -> std::path::PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }
}

fn descriptor(media_type: &str, layer: &Layer) -> Value {
    json!({ "mediaType": media_type, "digest": layer.digest.to_string(), "size": layer.bytes })
}

/// A tar file of everything below `root`, in which nothing depends on when and by whom it was made.
fn pack(root: &Path, to: &Path) -> Result<()> {
    let output = Command::new(TAR.locate()?)
        .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--hard-dereference", "--format=gnu", "--file"])
        .arg(to)
        .arg("--directory")
        .arg(root)
        .arg(".")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`tar` cannot pack {}: {}", root.display(), said.trim());
    Ok(())
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
        assert_eq!(config["rootfs"]["diff_ids"][0], layer["digest"]);
        assert_eq!(fs::metadata(blob(&layer["digest"])).unwrap().len(), layer["size"].as_u64().unwrap());
    }
}

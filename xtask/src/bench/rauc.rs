//! RAUC, from Debian's package: a service on a private bus, and slots that are raw devices.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::contender::{Place, made};
use super::tool;
use crate::host::Program;
use crate::rootfs::Image;

pub(super) const PROGRAMS: [Program; 4] = [
    Program { name: "rauc", package: "rauc" },
    Program { name: "mksquashfs", package: "squashfs-tools" },
    Program { name: "openssl", package: "openssl" },
    Program { name: "dbus-run-session", package: "dbus-daemon" },
];

/// Downloads the rest of the bundle if a run before was interrupted, and installs it.
pub(super) const SCRIPT: &str = r#"
cd "$STATE"
[ -e complete ] || curl -sSf -C - -o bundle.raucb "$URL"
touch complete
dbus-run-session -- bash -euo pipefail -c '
    export DBUS_STARTER_BUS_TYPE=session
    rauc --conf=system.conf --override-boot-slot=A service &
    service=$!
    for attempt in $(seq 200); do
        rauc status > /dev/null 2>&1 && break
        sleep 0.05
    done
    code=0
    rauc install bundle.raucb || code=$?
    kill $service
    wait $service || true
    exit $code
'
"#;

/// Makes a signed bundle and its index.
const BUNDLE: &str = r#"
set -eu
image=$1 bundle=$2 keys=$3
if [ ! -e "$keys/key.pem" ]; then
    mkdir -p "$keys"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$keys/key.part" -out "$keys/cert.pem" \
        -subj /CN=bench -days 3650
    mv "$keys/key.part" "$keys/key.pem"
fi
content=$bundle.content
rm -rf "$content"
mkdir "$content"
ln "$image" "$content/rootfs.img"
cat > "$content/manifest.raucm" <<MANIFEST
[update]
compatible=bench
version=1
[bundle]
format=plain
[image.rootfs]
filename=rootfs.img
adaptive=block-hash-index
MANIFEST
rauc bundle --mksquashfs-args='-comp zstd -Xcompression-level 3' \
    --cert="$keys/cert.pem" --key="$keys/key.pem" "$content" "$bundle"
mv "$content/rootfs.img.block-hash-index" "${image%.ext4}.block-hash-index"
rm -rf "$content"
"#;

pub(super) async fn bundle(image: &Image) -> Result<PathBuf> {
    made(image, "raucb", |part| {
        let arguments = [&image.path, part, &keys(&image.path)].map(|path| path.display().to_string());
        tool::script(BUNDLE, &arguments)
    })
    .await
}

fn keys(image: &Path) -> PathBuf {
    image.with_file_name("keys")
}

/// Configures RAUC as it is after an update: if the slots hold a release, it knows that release's index.
pub(super) async fn prepare(place: &Place<'_>) -> Result<()> {
    let state = place.state.display();
    let keys = place.artifacts.join("keys");
    fs::create_dir_all(place.state.join("mnt"))?;
    fs::create_dir_all(place.state.join("data"))?;
    let mut system = format!(
        "[system]\ncompatible=bench\nbootloader=noop\nbundle-formats=plain\nmountprefix={state}/mnt\n\
         statusfile={state}/status\ndata-directory={state}/data\n[keyring]\npath={}/cert.pem\n",
        keys.display()
    );
    let mut status = String::new();
    for (number, bootname, device) in [(0, "A", place.rig.source()), (1, "B", place.rig.target())] {
        let slot =
            format!("[slot.rootfs.{number}]\ndevice={}\ntype=raw\nbootname={bootname}\n", device.display());
        system.push_str(&slot);
        let Some(old) = place.old else { continue };
        let hash = old.digest.hex();
        let known = format!("[slot.rootfs.{number}]\nstatus=ok\nsha256={hash}\nsize={}\n", old.bytes);
        status.push_str(&known);
        bundle(old).await?;
        let directory = place.state.join(format!("data/slot.rootfs.{number}/hash-{hash}"));
        fs::create_dir_all(&directory)?;
        let index = old.path.with_extension("block-hash-index");
        fs::copy(&index, directory.join("block-hash-index"))
            .with_context(|| format!("cannot copy {}", index.display()))?;
    }
    fs::write(place.state.join("system.conf"), system)?;
    fs::write(place.state.join("status"), status)?;
    Ok(())
}

/// How much of the image RAUC took out of the bundle, by its own account.
pub(super) fn remark(log: &str) -> Option<String> {
    let line = log.lines().rfind(|line| line.contains("access stats for source_image"))?;
    let blocks: f64 =
        line.split("sum=").nth(1).map_or(Some(0.0), |sum| sum.split(' ').next()?.parse().ok())?;
    Some(format!(
        "of the bundle it used {:.1} MiB of blocks (before compression); with streaming it would fetch those and the index",
        blocks * 4096.0 / 1_048_576.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_the_bundle_are_read_from_the_log() {
        let log = "x\nrauc: access stats for source_image: count=30033 sum=512.000 min=1.000\ny";
        assert!(remark(log).unwrap().contains(" 2.0 MiB"));
        assert!(remark("access stats for source_image: count=0").unwrap().contains(" 0.0 MiB"));
        assert_eq!(remark("nothing"), None);
    }
}

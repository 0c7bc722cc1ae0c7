//! Puts an OS image into the inactive slot of this machine, or of a disk image.
//!
//! ```text
//! flash rootfs.ext4.zst                         the inactive slot of this machine
//! flash --checksum sha256:HEX https://example.com/rootfs.ext4.zst
//! flash --index URL --index-checksum sha256:HEX https://example.com/rootfs.ext4.zst
//! flash --root DIR --disk DISK.img FILE|URL     the machine whose /proc is DIR/proc
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::{DiskError, DiskSource, HostView, SlotLayout, SlotMap};
use monok8s_sdk::http::{HttpOptions, http_client};
use monok8s_sdk::image::{Cancel, Download, Expected, GuardFiles, Indexed, Progress, Source, flash, inspect};

const USAGE: &str = "usage: flash [--root DIR] [--disk DISK] [--checksum sha256:HEX] [--index URL --index-checksum sha256:HEX] FILE|URL";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut root = PathBuf::from("/");
    let mut layout = SlotLayout::default();
    let (mut artifact, mut index, mut index_checksum) = (None, None, None);
    let mut expected = Expected::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--root" => root = value()?.into(),
            "--disk" => layout.disk = DiskSource::Path(value()?.into()),
            "--index" => index = Some(value()?),
            "--index-checksum" => index_checksum = Some(value()?.parse::<Sha256Digest>()?),
            "--checksum" => expected.checksum = Some(value()?.parse()?),
            option if option.starts_with('-') => return Err(USAGE.into()),
            _ => artifact = Some(argument),
        }
    }
    let artifact = artifact.ok_or(USAGE)?;
    // The program chooses the TLS provider; the library never does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = http_client(&HttpOptions::default())?;
    let download = |url: &str| Ok::<_, Box<dyn Error>>(Download::new(client.clone(), [url.parse()?]));

    let host = HostView::new(root);
    let slots = SlotMap::discover(&host, &layout)?;
    let is_url = artifact.starts_with("http://") || artifact.starts_with("https://");
    let source = match (index, index_checksum) {
        (Some(index), Some(checksum)) if is_url => {
            let refused = |slot, error: &DiskError| eprintln!("slot {slot} is of no use: {error}");
            let reuse = slots.open_to_reuse(slots.inactive().slot, refused);
            Indexed::new(download(&artifact)?, download(&index)?, checksum).with_reuse(reuse).into()
        }
        (None, None) if is_url => download(&artifact)?.into(),
        (None, None) => Source::File(artifact.into()),
        _ => return Err(USAGE.into()),
    };

    let slot = slots.open_inactive(&host)?;
    println!("writing slot {} ({})", slot.slot(), slot.description());
    let (progress, cancel) = (Progress::default(), Cancel::default());
    let flashing = flash(slot, source, expected, &progress, &cancel);
    let (verified, delivery) = progress
        .watch(Duration::from_secs(1), flashing, |now| {
            eprintln!(
                "{} received, {} written, {} right already, {} verified",
                now.bytes_done, now.bytes_written, now.bytes_reused, now.bytes_verified
            );
        })
        .await?;
    println!("slot {} holds {} ({} bytes)", verified.slot(), verified.image(), verified.length());
    println!("it came so: {delivery:?}");

    let inspection = inspect(&verified, &GuardFiles::default())?;
    match inspection.version {
        Some(version) => println!("it is {version}"),
        None => println!("it states no version"),
    }
    Ok(())
}

//! Puts an OS image into the inactive slot of this machine, or of a disk image.
//!
//! ```text
//! flash rootfs.ext4.zst                         the inactive slot of this machine
//! flash https://example.com/rootfs.ext4.zst
//! flash --root DIR --disk DISK.img FILE|URL     the machine whose /proc is DIR/proc
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use monok8s_sdk::disk::{DiskSource, HostView, SlotLayout, SlotMap};
use monok8s_sdk::http::{HttpOptions, http_client};
use monok8s_sdk::image::{Cancel, DEFAULT_GUARD_PATHS, Download, Expected, Progress, Source, flash, inspect};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut root = PathBuf::from("/");
    let mut layout = SlotLayout::default();
    let mut artifact = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--root" => root = value()?.into(),
            "--disk" => layout.disk = DiskSource::Path(value()?.into()),
            _ => artifact = Some(argument),
        }
    }
    let artifact = artifact.ok_or("usage: flash [--root DIR] [--disk DISK] FILE|URL")?;
    let source = if artifact.starts_with("http://") || artifact.starts_with("https://") {
        // The program chooses the TLS provider; the library never does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Source::Http(Download::new(http_client(&HttpOptions::default())?, [artifact.parse()?]))
    } else {
        Source::File(artifact.into())
    };

    let host = HostView::new(root);
    let slot = SlotMap::discover(&host, &layout)?.open_inactive(&host)?;
    println!("writing slot {} ({})", slot.slot(), slot.description());

    let progress = Progress::default();
    let watched = progress.clone();
    let shown = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = watched.snapshot();
            eprintln!(
                "{} received, {} written, {} verified",
                now.bytes_done, now.bytes_written, now.bytes_verified
            );
        }
    });
    let verified = flash(slot, source, Expected::default(), &progress, &Cancel::default()).await;
    shown.abort();
    let verified = verified?;
    println!("slot {} holds {} ({} bytes)", verified.slot(), verified.image(), verified.length());

    let inspection = inspect(&verified, &DEFAULT_GUARD_PATHS)?;
    match inspection.version {
        Some(version) => println!("it is {version}"),
        None => println!("it states no version"),
    }
    Ok(())
}

//! The images of the tests.

use std::sync::{Arc, Weak};

use anyhow::Result;
use tokio::sync::Mutex;
use xtask::controlplane;
use xtask::rootfs::Artifact;
use xtask::vm::{self, ImageLibrary, NodeImage};

use crate::scene::{NEW, OLD};

/// What the tests share, for as long as one of them has it: the last one removes it.
static LIBRARY: Mutex<Weak<Mutex<ImageLibrary>>> = Mutex::const_new(Weak::new());

/// What the machines' clusters run beside what all tests do, built while the images' base is.
async fn kubernetes() -> Result<()> {
    controlplane::scheduler().await?;
    for version in [OLD, NEW] {
        controlplane::kubelet(version).await?;
    }
    Ok(())
}

/// The images that the tests share.
pub(crate) struct Images(Arc<Mutex<ImageLibrary>>);

impl Images {
    /// `None`, with the reason said, where no machine can be started.
    pub(crate) async fn open() -> Result<Option<Self>> {
        if let Some(reason) = vm::obstacle() {
            println!("SKIP: {reason}");
            return Ok(None);
        }
        let mut shared = LIBRARY.lock().await;
        let library = match shared.upgrade() {
            Some(library) => library,
            None => {
                let (library, ()) = tokio::try_join!(ImageLibrary::open(), kubernetes())?;
                Arc::new(Mutex::new(library))
            }
        };
        *shared = Arc::downgrade(&library);
        Ok(Some(Self(library)))
    }

    /// An image, built by whoever asks for it first.
    pub(crate) async fn artifact(&self, image: &NodeImage) -> Result<Artifact> {
        self.0.lock().await.artifact(image).await
    }
}

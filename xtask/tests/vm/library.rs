//! The images of the tests of one program.

use anyhow::Result;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use xtask::vm::{self, ImageLibrary};

/// The images that the tests share. Held for the length of a test: two of them at once would only take
/// each other's processors.
static LIBRARY: Mutex<Option<ImageLibrary>> = Mutex::const_new(None);

/// The images; `None`, with the reason said, where no machine can be started.
pub(crate) async fn library() -> Result<Option<MappedMutexGuard<'static, ImageLibrary>>> {
    if let Some(reason) = vm::obstacle() {
        println!("SKIP: {reason}");
        return Ok(None);
    }
    let mut shared = LIBRARY.lock().await;
    if shared.is_none() {
        *shared = Some(ImageLibrary::open().await?);
    }
    Ok(MutexGuard::try_map(shared, Option::as_mut).ok())
}

//! Where an artifact comes from, and how its bytes get to the writing thread.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::panic::resume_unwind;
use std::path::PathBuf;

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::error::ImageError;
use super::fetch::{Download, Taken};
use super::fetch_error::FetchError;
use super::indexed::{Attempt, Delivery, Indexed};
use super::progress::{Cancel, Progress};
use super::transfer::Session;
use super::write::{BodyWritten, Expected, write_body, write_until};
use super::write_error::WriteError;
use crate::disk::InactiveSlot;

/// How many received chunks may wait for the writer. One is a network read, rarely above 64 KiB.
const WAITING_CHUNKS: usize = 8;
/// A received chunk is cut to this, so that the queue's memory is bounded whatever the network
/// stack hands out.
pub(super) const MAX_CHUNK: usize = 64 * 1024;

/// Where an artifact comes from.
#[non_exhaustive]
pub enum Source {
    /// HTTP, from one or several servers.
    Http(Download),
    /// The same with a block index, which says what need not be fetched. If the index is of no
    /// use, or no server sends parts of files, the artifact is fetched whole.
    Indexed(Box<Indexed>),
    /// A local file.
    File(PathBuf),
    /// Anything that can be read, such as standard input. It is read on a thread of its own and
    /// once only; a read that never returns cannot be cancelled.
    Reader(Box<dyn Read + Send>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(download) => write!(f, "Http({download})"),
            Self::Indexed(indexed) => write!(f, "Indexed({})", indexed.artifact),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Reader(_) => f.write_str("Reader"),
        }
    }
}

impl From<Download> for Source {
    fn from(download: Download) -> Self {
        Self::Http(download)
    }
}

impl From<Indexed> for Source {
    fn from(indexed: Indexed) -> Self {
        Self::Indexed(Box::new(indexed))
    }
}

impl Source {
    pub(super) async fn write(
        self,
        slot: InactiveSlot,
        expected: Expected,
        progress: Progress,
        cancel: Cancel,
    ) -> Result<BodyWritten, ImageError> {
        if let Some(size) = expected.size {
            progress.set_image(size);
        }
        match self {
            Self::Http(download) => {
                let session = Session::begin(download, None);
                from_network(&session, slot, expected, progress, cancel).await
            }
            Self::Indexed(indexed) => {
                let session = Session::begin(indexed.artifact.clone(), Some(indexed.index.clone()));
                // On the heap, for callers whose futures are held on a stack.
                match Box::pin(indexed.write(&session, slot, expected, &progress, &cancel)).await? {
                    Attempt::Written(body) => Ok(body),
                    Attempt::Whole(slot, reason) => {
                        let body = from_network(&session, slot, expected, progress, cancel).await?;
                        Ok(body.delivered(Delivery::WholeInstead { reason }))
                    }
                }
            }
            Self::File(path) => {
                let body = blocking(move || {
                    let artifact = open(&path, &progress)?;
                    write_body(slot, artifact, &expected, &progress, &cancel)
                });
                Ok(body.await?)
            }
            Self::Reader(artifact) => {
                Ok(blocking(move || write_body(slot, artifact, &expected, &progress, &cancel)).await?)
            }
        }
    }
}

fn open(path: &std::path::Path, progress: &Progress) -> Result<File, WriteError> {
    let failed = |error: io::Error| WriteError::Source {
        received: 0,
        // The path is the caller's; the system's answer alone would not say which file.
        source: io::Error::new(error.kind(), format!("{}: {error}", path.display())),
    };
    let artifact = File::open(path).map_err(failed)?;
    let metadata = artifact.metadata().map_err(failed)?;
    if metadata.is_file() {
        progress.set_total(metadata.len());
    }
    Ok(artifact)
}

async fn from_network(
    session: &Session,
    slot: InactiveSlot,
    expected: Expected,
    progress: Progress,
    cancel: Cancel,
) -> Result<BodyWritten, ImageError> {
    let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
    // A writer that fails stops the transfer at once, however long the server stays silent.
    let stop = cancel.below();
    let writer = {
        let (progress, stop) = (progress.clone(), stop.clone());
        let artifact = Received { receiver, current: Bytes::new(), ended: false };
        blocking(move || write_until(slot, artifact, &expected, &progress, &stop))
    };
    let writer = stopping(&stop, writer, Result::is_err);
    let transfer = async {
        let ended = session.whole(sender.clone(), &progress, &stop).await;
        if ended.as_ref().is_ok_and(|taken| *taken == Taken::Whole) {
            // An empty chunk says that the artifact is whole. A channel that closes without one,
            // because the download failed or its future was dropped, is an interruption.
            let _ = sender.send(Bytes::new()).await;
        }
        drop(sender);
        ended
    };
    // Both are awaited whatever happens: when this returns, no thread holds the slot any more.
    let (transferred, written) = tokio::join!(transfer, writer);
    match (transferred, written) {
        (_, Ok(body)) => Ok(body),
        // The writer only noticed that the download broke off.
        (Err(error), Err(WriteError::Source { .. })) => Err(error.into()),
        (Err(FetchError::Cancelled), Err(WriteError::Cancelled)) => Err(WriteError::Cancelled.into()),
        (_, Err(error)) => Err(error.into()),
    }
}

/// What arrives from the network, as a blocking reader.
struct Received {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
    ended: bool,
}

impl Read for Received {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.ended {
            self.current = self
                .receiver
                .blocking_recv()
                .ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "the download broke off"))?;
            self.ended = self.current.is_empty();
        }
        let length = buf.len().min(self.current.len());
        let (into, _) = buf.split_at_mut(length);
        self.current.copy_to_slice(into);
        Ok(length)
    }
}

/// Awaits `work`, and cancels if it ended badly.
pub(super) async fn stopping<T>(
    cancel: &Cancel,
    work: impl Future<Output = T>,
    is_bad: impl Fn(&T) -> bool,
) -> T {
    let done = work.await;
    if is_bad(&done) {
        cancel.cancel();
    }
    done
}

/// Runs `work` on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Blocking tasks are cancelled only when the runtime goes away, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

//! A machine made of files, with two slots.

use monok8s_sdk::api::FailureReason;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::SlotMap;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::image::{
    Cancel, Delivery, Download, Expected, ImageError, Indexed, KeptIndexes, Progress, ProgressSnapshot,
    Source, verify, write,
};
use monok8s_sdk::slot::Slot;

use super::download;
use super::server::Server;

const SLOT_SIZE: u64 = 24 << 20;

/// A machine that runs from slot A.
pub(crate) struct Machine {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) files: FileMachine,
}

/// What came of a write.
pub(crate) struct Outcome {
    pub(crate) delivery: Delivery,
    pub(crate) counted: ProgressSnapshot,
}

impl Machine {
    pub(crate) fn new(a: &[u8], b: &[u8]) -> Self {
        Self::sized(SLOT_SIZE, a, b)
    }

    /// With slots of this size.
    pub(crate) fn sized(slot_size: u64, a: &[u8], b: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = FileMachine::create(dir.path(), slot_size).unwrap();
        files.write(Slot::A, a).unwrap();
        files.write(Slot::B, b).unwrap();
        Self { dir, files }
    }

    pub(crate) fn map(&self) -> SlotMap {
        SlotMap::discover(&self.files.host(), &self.files.layout()).unwrap()
    }

    pub(crate) fn source(&self, server: &Server, checksum: Sha256Digest) -> Source {
        let (artifact, index) = (server.url("/rootfs.ext4.zst"), server.url("/index"));
        self.indexed(download([artifact]), download([index]), checksum)
    }

    /// By an index, from what the slots hold.
    pub(crate) fn indexed(&self, artifact: Download, index: Download, checksum: Sha256Digest) -> Source {
        let reuse = self.map().open_to_reuse(Slot::B, |slot, error| panic!("{slot}: {error}"));
        let indexed = Indexed::new(artifact, index, checksum).with_reuse(reuse);
        indexed.with_kept(KeptIndexes::new(self.dir.path())).into()
    }

    pub(crate) async fn flash(&self, source: Source, expected: Expected) -> Result<Outcome, ImageError> {
        self.flash_until(source, expected, &Progress::default(), &Cancel::default()).await
    }

    pub(crate) async fn flash_until(
        &self,
        source: Source,
        expected: Expected,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Outcome, ImageError> {
        let booted = self.files.read_all(Slot::A).unwrap();
        let slot = self.map().open_inactive(&self.files.host()).unwrap();
        let ended = write(slot, source, expected, progress, cancel).await;
        assert!(self.files.read_all(Slot::A).unwrap() == booted, "the booted slot changed");
        let body = ended?;
        let delivery = body.delivery().clone();
        verify(body.finish().unwrap(), progress).await?;
        Ok(Outcome { delivery, counted: progress.snapshot() })
    }

    /// Expects a failure with this reason, after which slot B is as it was or cannot be booted.
    pub(crate) async fn refuses(
        &self,
        source: Source,
        expected: Expected,
        reason: FailureReason,
    ) -> ImageError {
        let before = self.files.read_all(Slot::B).unwrap();
        let error = self.flash(source, expected).await.map(|_| ()).unwrap_err();
        assert_eq!(error.reason(), reason, "{error:?}");
        let after = self.files.read_all(Slot::B).unwrap();
        let no_head = after.iter().take(64 * 1024).all(|byte| *byte == 0);
        assert!(no_head || before == after, "slot B could be booted with a wrong image after {error}");
        error
    }

    pub(crate) fn holds(&self, image: &[u8]) {
        assert!(self.files.read(Slot::B, image.len()).unwrap() == image, "slot B is not the image");
    }

    pub(crate) fn cannot_boot(&self) {
        assert!(self.files.read(Slot::B, 64 * 1024).unwrap().iter().all(|byte| *byte == 0));
    }
}

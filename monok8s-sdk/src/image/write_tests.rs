use crate::api::FailureReason;
use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::expand::WINDOW_LOG_MAX;
use super::super::head::HEAD;
use super::*;
use crate::disk::{Action, BlockTarget, DiskError};
use crate::slot::Slot;

/// A disk in memory that notes what is done to it and fails when told to.
#[derive(Default)]
struct MemoryDisk {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    log: Vec<(Action, u64, u64)>,
    fail_at: Option<usize>,
    /// A place where the medium stores other bytes than it is given.
    rotten: Option<usize>,
}

impl MemoryDisk {
    fn filled(size: usize, byte: u8) -> Arc<Self> {
        let state = State { bytes: vec![byte; size], ..State::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap().bytes.clone()
    }

    fn has_no_head(&self) -> bool {
        self.bytes().iter().take(HEAD).all(|byte| *byte == 0)
    }

    fn log(&self) -> Vec<(Action, u64, u64)> {
        self.state.lock().unwrap().log.clone()
    }

    fn act(
        &self,
        action: Action,
        offset: u64,
        length: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), DiskError> {
        let mut state = self.state.lock().unwrap();
        if state.fail_at == Some(state.log.len()) {
            return Err(DiskError::from_io(action, "memory", offset, io::Error::from_raw_os_error(5)));
        }
        state.log.push((action, offset, length));
        change(&mut state.bytes[usize::try_from(offset).unwrap()..][..usize::try_from(length).unwrap()]);
        if let Some(place) = state.rotten.filter(|place| (offset..offset + length).contains(&(*place as u64)))
        {
            state.bytes[place] ^= 1;
        }
        Ok(())
    }
}

impl BlockTarget for MemoryDisk {
    fn size(&self) -> u64 {
        self.state.lock().unwrap().bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let start = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.state.lock().unwrap().bytes[start..start + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.act(Action::Write, offset, bytes.len() as u64, |place| place.copy_from_slice(bytes))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if len == 0 {
            return Ok(());
        }
        self.act(Action::Zero, offset, len, |place| place.fill(0))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.act(Action::Flush, 0, 0, |_| {})
    }

    fn description(&self) -> &'static str {
        "memory"
    }
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An image of `len` bytes without zero runs.
fn image(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap() | 1).collect()
}

fn write(disk: &Arc<MemoryDisk>, artifact: &[u8], expected: Expected) -> Result<BodyWritten, WriteError> {
    let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(disk) as Arc<dyn BlockTarget>);
    write_body(slot, artifact, &expected, &Progress::default(), &Cancel::default())
}

/// Writes and expects a failure, after which nothing may boot the slot.
fn refused(size: usize, artifact: &[u8], expected: Expected) -> WriteError {
    let disk = MemoryDisk::filled(size, 0xAA);
    let error = write(&disk, artifact, expected).unwrap_err();
    assert!(disk.has_no_head() || disk.log().is_empty(), "{error}: the old head is still there");
    error
}

const SLOT: usize = 4 << 20;

#[test]
fn the_head_goes_first_to_zero_and_last_to_its_bytes() {
    let disk = MemoryDisk::filled(SLOT, 0xAA);
    let image = image(2 << 20);
    let body = write(&disk, &zstd(&image), Expected::default()).unwrap();
    assert!(disk.has_no_head());
    assert_eq!(disk.bytes()[HEAD..image.len()], image[HEAD..]);
    assert_eq!((body.length(), body.image()), (2 << 20, Sha256Digest::of(&image)));
    let verified = body.finish().unwrap().verify().unwrap();
    assert_eq!(disk.bytes()[..image.len()], image);
    assert!(disk.bytes()[image.len()..].iter().all(|byte| *byte == 0xAA));
    assert_eq!((verified.slot(), verified.length()), (Slot::B, 2 << 20));
    let log = disk.log();
    let head = HEAD as u64;
    assert_eq!(log[..2], [(Action::Zero, 0, head), (Action::Flush, 0, 0)]);
    assert_eq!(
        log[log.len() - 3..],
        [(Action::Flush, 0, 0), (Action::Write, 0, head), (Action::Flush, 0, 0)]
    );
    assert!(
        log[2..log.len() - 3].iter().all(|(action, offset, _)| *action == Action::Flush || *offset >= head)
    );
}

#[test]
fn runs_of_zeroes_are_zeroed_in_one_go() {
    let disk = MemoryDisk::filled(SLOT, 0xAA);
    let mut image = image(3 << 20);
    image[1 << 20..(2 << 20) + HEAD].fill(0);
    let _ = write(&disk, &zstd(&image), Expected::default()).unwrap();
    assert_eq!(disk.bytes()[HEAD..image.len()], image[HEAD..]);
    let mut zeroed: Vec<_> =
        disk.log().into_iter().filter(|(action, ..)| *action == Action::Zero).skip(1).collect();
    zeroed.sort_by_key(|(_, offset, _)| *offset);
    // A whole piece, and the start of the next one.
    assert_eq!(zeroed, [(Action::Zero, 1 << 20, 1 << 20), (Action::Zero, 2 << 20, HEAD as u64)]);
}

#[test]
fn each_wrong_artifact_has_its_own_refusal() {
    let image = image(300_000);
    let good = zstd(&image);
    let other = Some(Sha256Digest::of(b"other"));
    let size = |bytes: usize| Expected { size: Some(bytes as u64), ..Expected::default() };
    let any = Expected::default();
    let refuse = |artifact: &[u8], expected| refused(SLOT, artifact, expected).reason();

    assert_eq!(refuse(&good, Expected { checksum: other, ..any }), FailureReason::ChecksumMismatch);
    assert_eq!(
        refuse(&good, Expected { image_checksum: other, ..any }),
        FailureReason::ImageChecksumMismatch
    );
    assert_eq!(refuse(&good, size(image.len() - 1)), FailureReason::ExpandsBeyondSize);
    assert_eq!(refuse(&good, size(image.len() + 1)), FailureReason::SizeMismatch);
    assert_eq!(refuse(&good[..good.len() - 5], any), FailureReason::TruncatedArtifact);
    assert_eq!(refuse(&good[..3], any), FailureReason::TruncatedArtifact);
    assert_eq!(refuse(&[], any), FailureReason::TruncatedArtifact);
    assert_eq!(refuse(&zstd(&[]), any), FailureReason::TruncatedArtifact);
    assert_eq!(refuse(b"<!DOCTYPE html>", any), FailureReason::NotZstd);
    assert_eq!(refuse(&[&good[..], b"trailing"].concat(), any), FailureReason::CorruptArtifact);
    // 0xFF begins a block of a kind that does not exist.
    assert_eq!(refuse(&[&good[..6], &[0xFF; 5000]].concat(), any), FailureReason::CorruptArtifact);
    assert_eq!(refused(200_000, &good, any).reason(), FailureReason::ImageTooLarge);
}

#[test]
fn a_declared_size_beyond_the_slot_leaves_the_slot_alone() {
    let disk = MemoryDisk::filled(1 << 20, 0xAA);
    let expected = Expected { size: Some((1 << 20) + 1), ..Expected::default() };
    assert_eq!(write(&disk, &[], expected).unwrap_err().reason(), FailureReason::ImageTooLarge);
    assert_eq!(disk.log(), []);
}

#[test]
fn a_bomb_is_stopped_at_its_bound() {
    let bomb = zstd(&vec![0; 200 << 20]);
    assert!(bomb.len() < 64 * 1024);
    let disk = MemoryDisk::filled(SLOT, 0xAA);
    let expected = Expected { size: Some(100_000), ..Expected::default() };
    assert_eq!(write(&disk, &bomb, expected).unwrap_err().reason(), FailureReason::ExpandsBeyondSize);
    assert_eq!(disk.log(), [], "not even the first step was written");
    let disk = MemoryDisk::filled(SLOT, 0xAA);
    assert_eq!(write(&disk, &bomb, Expected::default()).unwrap_err().reason(), FailureReason::ImageTooLarge);
}

/// Pieces that nobody takes any more hold buffers, and whoever feeds waits for one.
#[test]
fn a_refusal_in_the_middle_never_waits_for_itself() {
    let image = vec![7; 24 << 20];
    let artifacts = [zstd(&image), image.chunks(100_000).flat_map(zstd_sized).collect()];
    for round in 0..100_u64 {
        let size = Some(1_000_000 + round * 100_000);
        let expected = Expected { size, ..Expected::default() };
        for artifact in &artifacts {
            let disk = MemoryDisk::filled(25 << 20, 0xAA);
            assert_eq!(
                write(&disk, artifact, expected).unwrap_err().reason(),
                FailureReason::ExpandsBeyondSize
            );
        }
    }
}

#[test]
fn a_window_beyond_the_memory_limit_is_refused() {
    let compress = |log| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        std::io::Write::write_all(&mut encoder, &image(100_000)).unwrap();
        encoder.finish().unwrap()
    };
    let accepted = write(&MemoryDisk::filled(SLOT, 0), &compress(WINDOW_LOG_MAX), Expected::default());
    assert!(accepted.is_ok(), "{accepted:?}");
    assert_eq!(
        refused(SLOT, &compress(WINDOW_LOG_MAX + 1), Expected::default()).reason(),
        FailureReason::WindowTooLarge
    );
}

#[test]
fn an_artifact_that_never_ends_is_cut_off() {
    // A skippable frame that claims 4 GiB: nothing is ever expanded.
    let start: &[u8] = &[0x50, 0x2A, 0x4D, 0x18, 0xFF, 0xFF, 0xFF, 0xFF];
    let disk = MemoryDisk::filled(1 << 20, 0xAA);
    let slot = InactiveSlot::on_test_storage(Slot::B, disk as Arc<dyn BlockTarget>);
    let endless = start.chain(io::repeat(7));
    let ended = write_body(slot, endless, &Expected::default(), &Progress::default(), &Cancel::default());
    assert_eq!(ended.unwrap_err().reason(), FailureReason::ArtifactTooLong);
}

#[test]
fn no_io_error_leaves_a_bootable_slot() {
    let artifact = zstd(&image(2 << 20));
    let clean = MemoryDisk::filled(SLOT, 0xAA);
    let _ = write(&clean, &artifact, Expected::default()).unwrap().finish().unwrap();
    let steps = clean.log().len();
    for step in 0..steps {
        let disk = MemoryDisk::filled(SLOT, 0xAA);
        disk.state.lock().unwrap().fail_at = Some(step);
        let ended = write(&disk, &artifact, Expected::default()).and_then(BodyWritten::finish);
        assert_eq!(ended.unwrap_err().reason(), FailureReason::DiskWriteFailed, "step {step}");
        if step > 0 && step < steps - 1 {
            assert!(disk.has_no_head(), "step {step}");
        }
    }
}

#[test]
fn a_lost_write_is_found_by_the_read_back() {
    let artifact = zstd(&image(2 << 20));
    for (place, zeroed) in
        [(1_500_000, false), (70_000, false), (HEAD, false), ((2 << 20) - 1, false), (1_500_000, true)]
    {
        let disk = MemoryDisk::filled(SLOT, 0xAA);
        disk.state.lock().unwrap().rotten = Some(place);
        let zeroes = zstd(&vec![0; 2 << 20]);
        let artifact = if zeroed { &zeroes } else { &artifact };
        let error = write(&disk, artifact, Expected::default()).unwrap_err();
        assert_eq!(error.reason(), FailureReason::ReadBackMismatch, "{place}");
        assert!(disk.has_no_head());
    }
    // The first 64 KiB are written last, and read back by themselves.
    let disk = MemoryDisk::filled(SLOT, 0xAA);
    let body = write(&disk, &artifact, Expected::default()).unwrap();
    disk.state.lock().unwrap().rotten = Some(1000);
    let error = body.finish().unwrap().verify().unwrap_err();
    assert_eq!(error.reason(), FailureReason::ReadBackMismatch);
}

#[test]
fn what_is_right_already_is_read_and_not_written() {
    let image = image(32 << 20);
    let disk = MemoryDisk::filled(40 << 20, 0xAA);
    disk.state.lock().unwrap().bytes[..image.len()].copy_from_slice(&image);
    // A block in the middle differs.
    disk.state.lock().unwrap().bytes[20_000_000] ^= 1;
    let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(&disk) as Arc<dyn BlockTarget>);
    let progress = Progress::default();
    let artifact = zstd(&image);
    let body =
        write_body(slot, artifact.as_slice(), &Expected::default(), &progress, &Cancel::default()).unwrap();
    let _ = body.finish().unwrap().verify().unwrap();
    assert!(disk.bytes()[..image.len()] == image);
    let counted = progress.snapshot();
    assert_eq!(counted.bytes_written + counted.bytes_reused, image.len() as u64);
    // Everything but the head, that block, and what a pair of eyes on the economy may cost.
    assert!(counted.bytes_reused >= 28 << 20, "{counted:?}");
    let written: u64 =
        disk.log().iter().filter(|(action, ..)| *action == Action::Write).map(|(_, _, length)| length).sum();
    assert_eq!(written, counted.bytes_written, "what is counted as written was written");
}

#[test]
fn frames_are_expanded_beside_each_other_and_land_in_order() {
    let mut image = image(5 << 20);
    image[700_000..2_000_000].fill(0);
    // Small frames, a large one, an empty one, and one that decoders skip.
    let skipped: &[u8] = &[0x5E, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let (small, rest) = image.split_at(1 << 20);
    let (large, last) = rest.split_at(3 << 20);
    let small: Vec<u8> = small.chunks(100_000).flat_map(zstd_sized).collect();
    let artifact = [
        &small[..],
        skipped,
        &zstd(large),
        &zstd_sized(&[]),
        &zstd_sized(&last[..77]),
        &zstd_sized(&last[77..]),
    ]
    .concat();
    let disk = MemoryDisk::filled(8 << 20, 0xAA);
    let body = write(&disk, &artifact, Expected::default()).unwrap();
    assert_eq!((body.image(), body.length()), (Sha256Digest::of(&image), image.len() as u64));
    let _ = body.finish().unwrap().verify().unwrap();
    assert!(disk.bytes()[..image.len()] == image);
    // A frame that is cut, one with rubbish behind it, one that lies about its content.
    let refuse = |artifact: &[u8]| refused(8 << 20, artifact, Expected::default()).reason();
    assert_eq!(refuse(&artifact[..small.len() / 2]), FailureReason::TruncatedArtifact);
    assert_eq!(refuse(&[&small[..], b"?????????????????????"].concat()), FailureReason::CorruptArtifact);
    let mut liar = zstd_sized(&image[..200]);
    liar[5] += 1;
    assert_eq!(refuse(&liar), FailureReason::CorruptArtifact);
}

/// A frame that says how much it holds, as `zstd` makes them of files.
fn zstd_sized(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

#[test]
fn a_cancelled_write_stops() {
    let cancel = Cancel::default();
    cancel.cancel();
    let disk = MemoryDisk::filled(SLOT, 0xAA);
    let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(&disk) as Arc<dyn BlockTarget>);
    let artifact = zstd(&image(100));
    let ended = write_body(slot, artifact.as_slice(), &Expected::default(), &Progress::default(), &cancel);
    assert!(matches!(ended, Err(WriteError::Cancelled)));
    assert_eq!(disk.log(), []);
}

/// Reads as a network does: in pieces of any size, with interruptions.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes.next().copied().unwrap_or(1);
        if size == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = size.min(buf.len()).min(self.bytes.len());
        buf[..length].copy_from_slice(&self.bytes[..length]);
        self.bytes = &self.bytes[length..];
        Ok(length)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Images of any shape, in any number of frames, read in pieces of any size.
    #[test]
    fn the_slot_holds_the_image_and_nothing_else_changes(
        parts in proptest::collection::vec((any::<u8>(), 1_usize..300_000, any::<bool>()), 1..8),
        sizes in proptest::collection::vec(0_usize..70_000, 1..6),
        cut in 0_usize..1000,
    ) {
        let image: Vec<u8> = parts
            .iter()
            .flat_map(|(byte, length, zero)| std::iter::repeat_n(if *zero { 0 } else { *byte }, *length))
            .collect();
        let middle = image.len() * cut / 1000;
        let artifact = [zstd(&image[..middle]), zstd(&image[middle..])].concat();
        let sizes = [sizes, vec![977]].concat();
        let disk = MemoryDisk::filled(3 << 20, 0xAA);
        let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(&disk) as Arc<dyn BlockTarget>);
        let expected = Expected {
            checksum: Some(Sha256Digest::of(&artifact)),
            size: Some(image.len() as u64),
            image_checksum: Some(Sha256Digest::of(&image)),
        };
        let pieces = Pieces { bytes: &artifact, sizes: sizes.iter().cycle() };
        let progress = Progress::default();
        let body = write_body(slot, pieces, &expected, &progress, &Cancel::default()).unwrap();
        let _ = body.finish().unwrap().verify().unwrap();
        prop_assert!(disk.bytes()[..image.len()] == image);
        // The rest of the first 64 KiB stays as it was zeroed.
        prop_assert!(disk.bytes()[image.len().max(HEAD)..].iter().all(|byte| *byte == 0xAA));
        prop_assert_eq!(progress.snapshot().bytes_done, artifact.len() as u64);
        let counted = progress.snapshot();
        prop_assert_eq!(counted.bytes_written + counted.bytes_reused, image.len() as u64);
    }
}

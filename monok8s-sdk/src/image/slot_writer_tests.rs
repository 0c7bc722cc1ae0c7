use std::time::Duration;

use super::super::pool::Pool;
use super::*;

/// A disk in memory, on which every zeroing takes a while.
struct SlowZeroes {
    bytes: Mutex<Vec<u8>>,
    zeroings: AtomicU64,
}

impl SlowZeroes {
    fn new(size: usize) -> Self {
        Self { bytes: Mutex::new(vec![0xAA; size]), zeroings: AtomicU64::new(0) }
    }

    fn within(&self, offset: u64, length: usize, act: impl FnOnce(&mut [u8])) {
        act(&mut lock(&self.bytes)[usize::try_from(offset).unwrap()..][..length]);
    }
}

impl BlockTarget for SlowZeroes {
    fn size(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.within(offset, buf.len(), |found| buf.copy_from_slice(found));
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.within(offset, bytes.len(), |place| place.copy_from_slice(bytes));
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zeroings.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(5));
        self.within(offset, usize::try_from(len).unwrap(), |place| place.fill(0));
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn description(&self) -> &'static str {
        "memory"
    }
}

fn piece(pool: &Pool, length: usize, byte: u8) -> Buffer {
    let mut piece = pool.take();
    piece.truncate(length);
    piece.fill(byte);
    piece
}

#[test]
fn tiny_pieces_are_read_back_long_before_their_bytes_would_fill_an_epoch() {
    const TINY: usize = 16;
    let (disk, pool, progress) = (SlowZeroes::new(1 << 20), Pool::new(6, TINY), Progress::default());
    let pieces = NOTES * 2 + 64;
    write_slot(&disk, &progress, &Cancel::default(), |writer| {
        for number in 0..pieces {
            writer.put((HEAD + number * TINY) as u64, piece(&pool, TINY, 7))?;
        }
        // All but what waits in a queue was noted, so that this many notes were read back already.
        let verified = progress.snapshot().bytes_verified;
        assert!(verified >= ((NOTES - 64) * TINY) as u64, "{verified}");
        Ok(())
    })
    .unwrap();
    assert_eq!(progress.snapshot().bytes_verified, (pieces * TINY) as u64);
}

#[test]
fn a_long_run_of_zeroes_can_be_cancelled() {
    let length = 512 << 20;
    let (disk, cancel) = (SlowZeroes::new(length), Cancel::default());
    let result = write_slot(&disk, &Progress::default(), &cancel, |writer| {
        writer.put_zeroes(0, length as u64)?;
        while disk.zeroings.load(Ordering::Relaxed) < 4 {
            thread::yield_now();
        }
        cancel.cancel();
        Ok(())
    });
    assert!(matches!(result, Err(WriteError::Cancelled)));
    let (done, steps) = (disk.zeroings.into_inner(), length as u64 / ZERO_STEP);
    assert!(done < steps / 2, "{done} of {steps} steps");
}

#[test]
fn an_image_of_which_a_part_never_came_cannot_be_finished() {
    let (disk, pool, length) = (SlowZeroes::new(1 << 20), Pool::new(6, HEAD), 4 * HEAD as u64);
    let filled = |kept: u64| {
        let ((), head) = write_slot(&disk, &Progress::default(), &Cancel::default(), |writer| {
            writer.put(0, piece(&pool, HEAD, 1))?;
            writer.put(HEAD as u64, piece(&pool, HEAD, 2))?;
            writer.put_zeroes(2 * HEAD as u64, HEAD as u64)?;
            writer.keep(kept);
            Ok(())
        })
        .unwrap();
        head
    };
    assert!(filled(HEAD as u64).of(length).is_ok());
    let head = filled(HEAD as u64 - 1);
    assert!(matches!(head.of(length), Err(WriteError::Incomplete { placed, .. }) if placed == length - 1));
}

//! A disk that loses power, as the region that small state is kept in.

use std::io;
use std::path::Path;

use super::super::region::{Region, RegionLock};
use super::super::target::BlockTarget;
use super::FaultDisk;

/// The whole disk. A write is flushed before it returns; nobody else can get at it.
impl Region for FaultDisk {
    fn path(&self) -> &Path {
        Path::new(self.description())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(BlockTarget::size(self))
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes).map_err(io::Error::other)?;
        self.flush().map_err(io::Error::other)
    }

    fn lock(&self) -> io::Result<RegionLock> {
        Ok(RegionLock::of_nothing())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Crashes, Medium, Power};
    use super::*;

    #[test]
    fn a_write_is_torn_until_it_returns_and_never_afterwards() {
        let power = Power::new();
        let disk = FaultDisk::new(&power, "state", Medium::filled(2048, 0));
        let region: &dyn Region = &disk;
        region.write(512, &[1; 1024]).unwrap();
        let written = power.now();
        assert_eq!((region.size().unwrap(), region.read(1024, 2).unwrap()), (2048, vec![1, 1]));
        assert!(region.write(1025, &[1; 1024]).is_err() && region.read(2047, 2).is_err());
        let seen: BTreeSet<_> = power
            .crash_states(&Crashes::default())
            .map(|state| {
                (
                    state.moment() >= written,
                    state.disk(&disk).to_vec().chunks(512).map(|sector| sector[0]).collect::<Vec<_>>(),
                )
            })
            .collect();
        let before =
            [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]].map(|sectors| (false, sectors.to_vec()));
        assert_eq!(seen, before.into_iter().chain([(true, vec![0, 1, 1, 0])]).collect());
    }
}

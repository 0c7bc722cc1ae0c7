//! The places of an environment: which copy counts, and how both are replaced.
//!
//! A change goes to the older copy first, with the next serial number, and is read back. Only then
//! the other copy gets it too, with the number after that. So at every instant one copy is whole, and
//! it has the old or the new state; and once a change is done, no copy is left that has the old one:
//! if the newer copy rots, U-Boot must not fall back to a state in which an invalidated slot boots.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::UbootError;
use super::environment::{Environment, Flaw, Layout, Whole};
use crate::disk::Region;

/// Where one copy is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device or file.
    pub region: Arc<dyn Region>,
    /// Where the copy begins, in bytes from the region's start.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.region.path().display(), self.offset)
    }
}

/// The places of an environment.
#[derive(Clone, Debug)]
pub(super) enum Copies {
    Single(Place),
    Redundant([Place; 2]),
}

/// The copy that counts.
pub(super) struct Active {
    /// Whether it is the second one.
    is_second: bool,
    pub(super) whole: Whole,
}

/// Which of two whole copies U-Boot takes: the higher serial number, except that 0 follows 255; the
/// first if they are equal (`env_check_redund` in `env/common.c`).
fn second_is_newer(first: u8, second: u8) -> bool {
    match (first, second) {
        (255, 0) => true,
        (0, 255) => false,
        _ => second > first,
    }
}

/// The copy that U-Boot takes of two, or what is wrong with both.
pub(crate) fn choose<'a>(copies: [Result<&'a [u8], Flaw>; 2]) -> Result<(bool, Whole), [Flaw; 2]> {
    let decode = |copy: Result<&'a [u8], Flaw>| Environment::decode(copy?, Layout::Redundant);
    match copies.map(decode) {
        [Ok(first), Ok(second)] if second_is_newer(first.serial, second.serial) => Ok((true, second)),
        [Ok(first), _] => Ok((false, first)),
        [Err(_), Ok(second)] => Ok((true, second)),
        [Err(first), Err(second)] => Err([first, second]),
    }
}

impl Copies {
    /// The first one's place.
    pub(super) fn first(&self) -> &Place {
        match self {
            Self::Single(place) | Self::Redundant([place, _]) => place,
        }
    }

    pub(super) fn load(&self, size: usize) -> Result<Active, UbootError> {
        let read = |place: &Place| place.region.read(place.offset, size).map_err(|_| Flaw::Unreadable);
        match self {
            Self::Single(place) => {
                let decoded = read(place).and_then(|bytes| Environment::decode(&bytes, Layout::Single));
                let damaged = |flaw| UbootError::Damaged { place: place.to_string(), flaw };
                Ok(Active { is_second: false, whole: decoded.map_err(damaged)? })
            }
            Self::Redundant([first, second]) => {
                let bytes = [read(first), read(second)];
                let copies = bytes.each_ref().map(|copy| copy.as_deref().map_err(|flaw| *flaw));
                let damaged = |[first_flaw, second_flaw]: [Flaw; 2]| UbootError::BothDamaged {
                    first: first.to_string(),
                    first_flaw,
                    second: second.to_string(),
                    second_flaw,
                };
                let (is_second, whole) = choose(copies).map_err(damaged)?;
                Ok(Active { is_second, whole })
            }
        }
    }

    /// Whether both copies are whole, and do not hold the same.
    pub(super) fn differ(&self, size: usize) -> bool {
        let Self::Redundant(places) = self else { return false };
        let [first, second] = places.each_ref().map(|place| {
            let bytes = place.region.read(place.offset, size).ok()?;
            Environment::decode(&bytes, Layout::Redundant).ok()
        });
        matches!((first, second), (Some(first), Some(second)) if first.environment != second.environment)
    }

    /// Replaces the environment. `active` is what was loaded.
    pub(super) fn store(
        &self,
        size: usize,
        active: &Active,
        environment: &Environment,
    ) -> Result<(), UbootError> {
        match self {
            Self::Single(place) => put(place, &environment.encode(size, Layout::Single, 0)?),
            Self::Redundant([first, second]) => {
                let (newer, older) = if active.is_second { (second, first) } else { (first, second) };
                for (place, step) in [(older, 1), (newer, 2)] {
                    let serial = active.whole.serial.wrapping_add(step);
                    put(place, &environment.encode(size, Layout::Redundant, serial)?)?;
                }
                Ok(())
            }
        }
    }
}

/// Writes a copy and reads it back.
fn put(place: &Place, bytes: &[u8]) -> Result<(), UbootError> {
    let failed = |source: io::Error| UbootError::Write { place: place.to_string(), source };
    place.region.write(place.offset, bytes).map_err(failed)?;
    if place.region.read(place.offset, bytes.len()).is_ok_and(|read| read == bytes) {
        Ok(())
    } else {
        Err(UbootError::ReadBack { place: place.to_string() })
    }
}

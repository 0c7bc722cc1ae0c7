//! Mutation without instrumentation: what stable tests do with a target.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Target;

/// No input grows beyond this, in bytes.
const LONGEST: usize = 128 * 1024;

/// How much was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// How many inputs.
    pub inputs: u64,
}

/// An input that a target does not survive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// It panics.
    Panic {
        /// The input.
        input: Vec<u8>,
    },
    /// It does not return in time.
    Hang {
        /// The input.
        input: Vec<u8>,
    },
}

impl Found {
    /// The input.
    #[must_use]
    pub fn input(&self) -> &[u8] {
        match self {
            Self::Panic { input } | Self::Hang { input } => input,
        }
    }
}

/// What the thread that runs the target is at.
#[derive(Default)]
struct Current {
    inputs: u64,
    input: Vec<u8>,
    panicked: bool,
}

/// Runs a target on every seed and then on mutations of them, for `time`. The same `random` gives
/// the same inputs. No input may take longer than `patience`; a thread that hangs is left behind.
pub fn drive(
    target: Target,
    seeds: Vec<Vec<u8>>,
    random: u64,
    time: Duration,
    patience: Duration,
) -> Result<Runs, Found> {
    let current = Arc::new(Mutex::new(Current::default()));
    let worker = {
        let current = Arc::clone(&current);
        thread::spawn(move || work(target, &seeds, random, time, &current))
    };
    let (mut seen, mut since) = (0, Instant::now());
    while !worker.is_finished() {
        thread::sleep(Duration::from_millis(5));
        let now = lock(&current);
        if now.inputs != seen {
            (seen, since) = (now.inputs, Instant::now());
        } else if since.elapsed() > patience && !worker.is_finished() {
            return Err(Found::Hang { input: now.input.clone() });
        }
    }
    let end = lock(&current);
    if end.panicked {
        return Err(Found::Panic { input: end.input.clone() });
    }
    Ok(Runs { inputs: end.inputs })
}

fn work(target: Target, seeds: &[Vec<u8>], random: u64, time: Duration, current: &Mutex<Current>) {
    let mut random = Random(random | 1);
    let began = Instant::now();
    let mut left = seeds.iter();
    loop {
        let input = match left.next() {
            Some(seed) => seed.clone(),
            None if began.elapsed() > time => return,
            None => mutated(seeds, &mut random),
        };
        {
            let mut now = lock(current);
            now.inputs += 1;
            now.input.clone_from(&input);
        }
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            lock(current).panicked = true;
            return;
        }
    }
}

fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let pick = |random: &mut Random| seeds.get(random.below(seeds.len())).cloned().unwrap_or_default();
    let (mut input, other) = (pick(random), pick(random));
    for _ in 0..=random.below(4) {
        mutate(&mut input, &other, random);
    }
    input.truncate(LONGEST);
    input
}

/// One change.
fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = input.len().min(at + 1 + random.below(32));
    match random.below(8) {
        0 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
        1 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.byte()),
        2 => drop(input.drain(at..end)),
        3 => input.truncate(at),
        4 => drop(input.splice(at..at, (0..=random.below(16)).map(|_| random.byte()).collect::<Vec<_>>())),
        5 => {
            let number = random.number();
            let width = 1 << random.below(4);
            let bytes = number.to_le_bytes();
            input.iter_mut().skip(at).zip(bytes).take(width).for_each(|(place, byte)| *place = byte);
        }
        6 => {
            let part = input.get(at..end).unwrap_or_default().to_vec();
            let to = random.below(input.len() + 1);
            drop(input.splice(to..to, part));
        }
        _ => {
            let from = random.below(other.len() + 1);
            let part = other.get(from..).unwrap_or_default();
            let length = part.len().min(1 + random.below(256));
            let part = part.get(..length).unwrap_or_default().to_vec();
            drop(input.splice(at..end, part));
        }
    }
}

/// xorshift64; Marsaglia, "Xorshift RNGs", 2003.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or(0).checked_rem(bound).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// One at which arithmetic tends to go wrong.
    fn number(&mut self) -> u64 {
        let near = 1_u64.checked_shl(u32::from(self.byte()) % 65).unwrap_or(0);
        near.wrapping_add(self.below(3) as u64).wrapping_sub(1)
    }
}

fn lock(current: &Mutex<Current>) -> MutexGuard<'_, Current> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[test]
    fn a_planted_panic_is_found_with_its_input() {
        let target: Target = |bytes| assert_ne!(bytes.get(4), Some(&b'!'));
        let seeds = vec![b"monok8s".to_vec()];
        let Err(Found::Panic { input }) = drive(target, seeds, 7, Duration::from_secs(20), SHORT * 50) else {
            panic!("not found")
        };
        assert_eq!(input[4], b'!');
    }

    #[test]
    fn a_planted_hang_is_found_and_a_good_target_is_not_blamed() {
        let hangs: Target = |bytes| {
            if bytes.starts_with(b"x") {
                thread::sleep(SHORT * 10);
            }
        };
        let found = drive(hangs, vec![b"a".to_vec(), b"x".to_vec()], 7, SHORT, SHORT);
        assert_eq!(found, Err(Found::Hang { input: b"x".to_vec() }));
        assert!(drive(|_| {}, vec![Vec::new()], 7, SHORT, SHORT).unwrap().inputs > 100);
    }
}

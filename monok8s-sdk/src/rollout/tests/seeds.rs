//! Tens of thousands of stories of the simulation. Each has a number and is the same whenever it is told: to tell one
//! again that broke a rule, call `tell` with its number alone.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::simulation::{live_to_the_end, story};

const STORIES: usize = 20_000;

#[test]
fn none_of_tens_of_thousands_of_stories_breaks_a_rule() {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || (first..STORIES).step_by(threads).for_each(tell));
        }
    });
}

fn tell(number: usize) {
    let mut seed = *b"a story number: ";
    seed[..8].copy_from_slice(&u64::try_from(number).unwrap().to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let story = story().new_tree(&mut runner).unwrap().current();
    if let Err(broken) = catch_unwind(AssertUnwindSafe(|| live_to_the_end(&story))) {
        eprintln!("story {number}: {story:#?}");
        resume_unwind(broken);
    }
}

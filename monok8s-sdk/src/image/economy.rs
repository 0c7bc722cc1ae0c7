//! Whether to look before writing: a block that is already right costs one read instead of a write
//! and its read-back. Pure: costs in, choice out.

use std::time::Duration;

/// One in this many pieces is looked at while looking does not pay.
const PROBE_EVERY: u32 = 8;
/// How much a new observation counts against the old ones.
const WEIGHT: f64 = 0.25;

/// What to do with the next piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Read it all, and write what differs.
    Compare,
    /// Look at its start: if that is right, compare it all, else write.
    Probe,
    /// Write it without looking.
    Write,
    /// Write a little and read that, to learn what it costs.
    Try,
}

/// What reading, writing and looking came to so far, for one kind of content.
#[derive(Clone, Debug, Default)]
pub(super) struct Economy {
    /// Seconds a byte: to look at what is there, to write, and to read back what was written.
    read: Option<f64>,
    write: Option<f64>,
    proof: Option<f64>,
    /// The part of the bytes looked at that was already right.
    hits: Option<f64>,
    turn: u32,
    /// Whether writing is tried even if everything looked at was right.
    tries: bool,
}

impl Economy {
    /// For zeroes. Many devices forget what is zeroed, and then both the write and the read-back
    /// cost next to nothing, however long it takes to look at zeroes that were written once.
    pub(super) fn of_zeroes() -> Self {
        Self { tries: true, ..Self::default() }
    }

    pub(super) fn choose(&mut self) -> Choice {
        self.turn = self.turn.wrapping_add(1);
        if self.tries && self.read.is_some() && (self.write.is_none() || self.proof.is_none()) {
            Choice::Try
        } else if self.pays() {
            Choice::Compare
        } else if self.turn % PROBE_EVERY == 1 {
            Choice::Probe
        } else {
            Choice::Write
        }
    }

    /// Plainly: a write and a read-back. With a look: a read, and those two for what is wrong.
    fn pays(&self) -> bool {
        let (Some(read), Some(hits)) = (self.read, self.hits) else { return false };
        // What was not seen yet is taken to cost what looking does.
        let (write, proof) = (self.write.unwrap_or(read), self.proof.unwrap_or(read));
        hits * (write + proof) > read
    }

    pub(super) fn was_read(&mut self, bytes: usize, took: Duration) {
        blend(&mut self.read, per_byte(bytes, took));
    }

    pub(super) fn was_written(&mut self, bytes: usize, took: Duration) {
        blend(&mut self.write, per_byte(bytes, took));
    }

    pub(super) fn was_proven(&mut self, bytes: usize, took: Duration) {
        blend(&mut self.proof, per_byte(bytes, took));
    }

    /// `right` of `bytes` that were looked at held what they should.
    #[expect(clippy::cast_precision_loss, reason = "a share of a piece needs no more than f64 has")]
    pub(super) fn was_seen(&mut self, right: usize, bytes: usize) {
        blend(&mut self.hits, right as f64 / bytes.max(1) as f64);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than f64 has")]
fn per_byte(bytes: usize, took: Duration) -> f64 {
    took.as_secs_f64() / bytes.max(1) as f64
}

fn blend(value: &mut Option<f64>, observed: f64) {
    *value = Some(value.map_or(observed, |before| before + WEIGHT * (observed - before)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn seen(read_ms: u64, write_ms: u64, right: usize) -> Economy {
        let mut economy = Economy::default();
        for _ in 0..20 {
            economy.was_read(MIB, Duration::from_millis(read_ms));
            economy.was_written(MIB, Duration::from_millis(write_ms));
            economy.was_seen(right, 100);
        }
        economy
    }

    #[test]
    fn looking_pays_where_writing_is_dear_and_much_is_right() {
        // (read, write, % right) and whether a look saves time.
        for (read, write, right, pays) in [
            (4, 12, 90, true),
            (4, 12, 30, true),
            (4, 12, 20, false),
            (10, 1, 95, true),
            (10, 1, 80, false),
            (4, 12, 0, false),
        ] {
            assert_eq!(seen(read, write, right).pays(), pays, "{read} {write} {right}");
        }
    }

    #[test]
    fn zeroing_is_tried_and_chosen_where_it_costs_less_than_a_look() {
        // (write, read-back) in microseconds, where a look at a MiB takes 1000.
        for (write, proof, chosen) in
            [(10, 20, Choice::Write), (100, 1000, Choice::Compare), (12_000, 1000, Choice::Compare)]
        {
            let mut economy = Economy::of_zeroes();
            assert_eq!(economy.choose(), Choice::Probe);
            economy.was_read(MIB, Duration::from_millis(1));
            economy.was_seen(100, 100);
            assert_eq!(economy.choose(), Choice::Try);
            economy.was_written(MIB, Duration::from_micros(write));
            economy.was_proven(MIB, Duration::from_micros(proof));
            assert_eq!(economy.choose(), chosen, "{write} {proof}");
        }
    }

    #[test]
    fn the_first_piece_is_probed_and_later_ones_now_and_then() {
        let mut economy = seen(10, 10, 0);
        let choices: Vec<Choice> = (0..24).map(|_| economy.choose()).collect();
        assert_eq!(choices.first(), Some(&Choice::Probe));
        assert_eq!(choices.iter().filter(|choice| **choice == Choice::Probe).count(), 3);
        assert!(!choices.contains(&Choice::Compare));
        for _ in 0..8 {
            economy.was_seen(100, 100);
        }
        assert_eq!(economy.choose(), Choice::Compare, "a region that is right is noticed");
    }
}

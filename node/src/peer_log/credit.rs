//! How much of a log may be under way to a reader on another node.
//!
//! The reader grants bytes and takes in everything that comes at once, into a queue of its own: a
//! slow one costs a window of memory and holds up nobody on the same connection. Pure.

/// What may be under way to one reader. At 0.2 ms between nodes it allows 10 GB/s, at 2 ms still 1 GB/s;
/// a thousand readers that are stuck hold 2 GiB at worst.
pub const READ_WINDOW_BYTES: u64 = 2 << 20;

/// A batch counts as this much at least: it bounds the number of batches under way.
pub const BATCH_CHARGE_MIN: u64 = 4 << 10;

/// Credit is given back in portions, so that it costs a message for many batches.
pub const CREDIT_PORTION_BYTES: u64 = READ_WINDOW_BYTES / 4;

/// A reader that grants more is not ours; the sum stays far from overflowing.
pub const CREDIT_MAX: u64 = 1 << 30;

/// Messages that can be under way at once: batches, the answers to probes, the end.
pub const MESSAGES_WAITING_MAX: usize = (READ_WINDOW_BYTES / BATCH_CHARGE_MIN) as usize + 16;

/// What a batch of that many bytes costs.
#[must_use]
pub fn charge(length: usize) -> u64 {
    (length as u64).max(BATCH_CHARGE_MIN)
}

/// What a sender may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance(i64);

impl Allowance {
    /// Begins with what was granted.
    #[must_use]
    pub fn new(granted: u64) -> Self {
        let mut allowance = Self(0);
        allowance.grant(granted);
        allowance
    }

    /// Adds what is granted.
    pub fn grant(&mut self, bytes: u64) {
        let most = i64::try_from(CREDIT_MAX).unwrap_or(i64::MAX);
        let bytes = i64::try_from(bytes).unwrap_or(most).min(most);
        self.0 = self.0.saturating_add(bytes).min(most);
    }

    /// Tells whether a batch may be sent. One that is larger than what is left may: it is charged
    /// whole, so that the largest row goes through any window.
    #[must_use]
    pub const fn is_open(self) -> bool {
        self.0 > 0
    }

    /// Charges a batch.
    pub fn spend(&mut self, length: usize) {
        let bytes = i64::try_from(charge(length)).unwrap_or(i64::MAX);
        self.0 = self.0.saturating_sub(bytes);
    }
}

/// What a reader has taken and not yet granted anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed(u64);

impl Owed {
    /// Adds a batch that was taken.
    pub fn take(&mut self, length: usize) {
        self.0 = self.0.saturating_add(charge(length));
    }

    /// Returns what is worth a message now.
    #[must_use]
    pub const fn portion(self) -> Option<u64> {
        if self.0 >= CREDIT_PORTION_BYTES {
            Some(self.0)
        } else {
            None
        }
    }

    /// Returns all that is owed: worth a message when nothing else comes.
    #[must_use]
    pub const fn all(self) -> Option<u64> {
        if self.0 > 0 { Some(self.0) } else { None }
    }

    /// Takes away what was granted.
    pub fn granted(&mut self, bytes: u64) {
        self.0 = self.0.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_a_window_and_one_batch_is_under_way() {
        for length in [0, 1, 4_096, 100_000, 5_000_000] {
            let mut allowance = Allowance::new(READ_WINDOW_BYTES);
            let (mut sent, mut count) = (0, 0);
            while allowance.is_open() {
                allowance.spend(length);
                sent += length as u64;
                count += 1;
            }
            assert!(sent < READ_WINDOW_BYTES + length as u64 + 1);
            assert!(count <= MESSAGES_WAITING_MAX, "{count} of {length}");
        }
    }

    #[test]
    fn a_reader_that_takes_everything_never_starves_the_sender() {
        let mut allowance = Allowance::new(READ_WINDOW_BYTES);
        let mut owed = Owed::default();
        for step in 0..10_000_usize {
            assert!(allowance.is_open(), "{step}");
            let length = step * 7_919 % 300_000;
            allowance.spend(length);
            owed.take(length);
            if let Some(portion) = owed.portion() {
                owed.granted(portion);
                allowance.grant(portion);
            }
        }
    }

    #[test]
    fn foreign_numbers_do_not_overflow() {
        let mut allowance = Allowance::new(u64::MAX);
        allowance.grant(u64::MAX);
        allowance.spend(usize::MAX);
        assert!(!allowance.is_open());
        allowance.spend(usize::MAX);
        assert!(!allowance.is_open());
    }
}

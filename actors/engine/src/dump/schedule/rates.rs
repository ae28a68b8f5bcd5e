//! What may be read from a replica a second, shared out among the ranges that are read from it.
//!
//! The leader hands out every range, whichever node reads it, and a range keeps to what it was given
//! ([`crate::dump::pace`]). So it is enough that all that are being read were never given more than the limit
//! together. Each is given an equal part of it, for as many as may be read at once; one for which less
//! than half of a part is left waits until another ends.
//!
//! What a range turned out to have is paid for as well, before the next is begun: a pause has a longest time.
//! A gateway of another kind keeps to no pace and does not say what it read: what was guessed is paid.

use std::time::Duration;

/// What was given and paid of one replica's limit.
#[derive(Clone, Debug, Default)]
pub(super) struct RateBook {
    /// Bytes a second; `None` without a limit.
    limit: Option<u64>,
    /// What the ranges that are being read were given together.
    given: u64,
    /// No range is begun before.
    paid_until: Duration,
}

/// What a range may have of a replica's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// All that can be read.
    Unlimited,
    /// So many bytes a second, and as many ranges as this may be given that much.
    Bytes(u64, u32),
    /// Nothing now.
    Nothing,
}

impl RateBook {
    /// Sets the limit. Under another one what was read before is not paid for: it kept to the one before.
    pub(super) fn set_limit(&mut self, limit: Option<u64>) {
        if self.limit != limit {
            self.limit = limit;
            self.paid_until = Duration::ZERO;
        }
    }

    /// Returns when everything that was read is paid for; `None` without a limit.
    pub(super) fn rested_at(&self) -> Option<Duration> {
        self.limit.map(|_| self.paid_until)
    }

    /// Returns what the next range would be given, of an equal part for so many.
    pub(super) fn share(&self, parts: u32, now: Duration) -> Share {
        let Some(limit) = self.limit else {
            return Share::Unlimited;
        };
        let part = (limit / u64::from(parts.max(1))).max(1);
        let left = limit.saturating_sub(self.given);
        // A crumb would make a range that takes for ever.
        if self.paid_until > now || left < part.div_ceil(2) {
            return Share::Nothing;
        }
        let count = u32::try_from(left.div_ceil(part)).unwrap_or(u32::MAX);
        Share::Bytes(part.min(left), count)
    }

    /// Gives a share to a range that begins, and charges what it will probably have; returns the charge.
    pub(super) fn begin(&mut self, share: u64, guess: u64, now: Duration) -> u64 {
        self.given = self.given.saturating_add(share);
        self.paid_until = self.paid_until.max(now);
        self.pay(guess, 0);
        self.limit.map_or(0, |_| guess)
    }

    /// Takes the share of a range back that is read no more.
    pub(super) const fn end(&mut self, share: u64) {
        self.given = self.given.saturating_sub(share);
    }

    /// Corrects what a range was charged once it is known what it had.
    pub(super) fn settle(&mut self, charged: u64, delivered: u64) {
        self.pay(delivered, charged);
    }

    fn pay(&mut self, bytes: u64, paid: u64) {
        let Some(limit) = self.limit else {
            return;
        };
        let until = self.paid_until.saturating_add(time(bytes, limit));
        self.paid_until = until.saturating_sub(time(paid, limit));
    }
}

/// Returns how long so many bytes take at a rate.
pub(super) fn time(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(1);

    fn book(limit: u64) -> RateBook {
        RateBook {
            limit: Some(limit),
            ..RateBook::default()
        }
    }

    #[test]
    fn parts_are_equal_and_never_more_than_the_limit_together() {
        let mut book = book(100);
        assert_eq!(book.share(2, START), Share::Bytes(50, 2));
        book.begin(50, 0, START);
        // A third one wants a part meanwhile.
        assert_eq!(book.share(3, START), Share::Bytes(33, 2));
        book.begin(33, 0, START);
        assert_eq!(book.share(3, START), Share::Bytes(17, 1));
        book.begin(17, 0, START);
        assert_eq!(book.share(3, START), Share::Nothing);
        book.end(50);
        assert_eq!(book.share(3, START), Share::Bytes(33, 2));
    }

    #[test]
    fn what_was_read_is_paid_before_more_is() {
        let mut book = book(100);
        book.begin(100, 50, START);
        book.end(100);
        assert_eq!(book.share(1, START), Share::Nothing);
        let half = Duration::from_millis(500);
        assert_eq!(book.share(1, START + half), Share::Bytes(100, 1));
        book.settle(50, 200);
        assert_eq!(book.share(1, START + half * 3), Share::Nothing);
        assert_eq!(book.share(1, START + half * 4), Share::Bytes(100, 1));
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let mut book = RateBook::default();
        book.begin(0, u64::MAX, START);
        assert_eq!(book.share(1, START), Share::Unlimited);
    }

    proptest! {
        #[test]
        fn whatever_begins_and_ends_no_more_than_the_limit_is_given(
            limit in 1_u64..1_000,
            steps in proptest::collection::vec((0_u32..9, any::<bool>()), 1..60),
        ) {
            let mut book = book(limit);
            let mut given: Vec<u64> = Vec::new();
            for (parts, is_end) in steps {
                if is_end && let Some(share) = given.pop() {
                    book.end(share);
                } else if let Share::Bytes(share, count) = book.share(parts, START) {
                    prop_assert!(count > 0 && share > 0);
                    book.begin(share, 0, START);
                    given.push(share);
                }
                prop_assert!(given.iter().sum::<u64>() <= limit);
                // As long as nothing is read, something may be.
                prop_assert!(!given.is_empty() || book.share(parts, START) != Share::Nothing);
            }
        }
    }
}

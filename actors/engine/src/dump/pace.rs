//! Spreads the rows of a range over the time that a rate gives them.
//!
//! The schedule keeps a rate from range to range. Within one, a dump that may read little would still
//! take all it can get for a moment, and whatever shares the machine would wait. So whoever reads
//! pauses after each batch. Decides only; time comes in as an argument.

use std::time::Duration;

/// A shorter pause is saved up for the next one: timers count in milliseconds.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// No pause is longer: a session must not take it for a reader that hangs. What is missing then the
/// schedule makes up for, after the range.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pace of one range.
#[derive(Clone, Debug)]
pub struct RowPace {
    bytes_per_second: Option<u64>,
    bytes: u64,
}

impl RowPace {
    /// Begins a range; without a rate there is no pause.
    #[must_use]
    pub const fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            bytes: 0,
        }
    }

    /// Takes note of rows that were read, `elapsed` after the begin; returns how long to wait before
    /// more are.
    pub fn after(&mut self, bytes: u64, elapsed: Duration) -> Option<Duration> {
        let rate = self.bytes_per_second?.max(1);
        self.bytes = self.bytes.saturating_add(bytes);
        let nanos = u128::from(self.bytes) * 1_000_000_000 / u128::from(rate);
        let due = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let pause = due.saturating_sub(elapsed).min(PAUSE_MAX);
        (pause >= PAUSE_MIN).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_range_takes_the_time_that_its_rate_gives_it() {
        let mut pace = RowPace::new(Some(50 * MIB));
        let (mut now, mut pauses) = (Duration::ZERO, 0);
        for _ in 0..128 {
            // Reading takes its part of the time.
            now += Duration::from_micros(500);
            if let Some(pause) = pace.after(MIB / 4, now) {
                now += pause;
                pauses += 1;
            }
        }
        let wanted = Duration::from_millis(640);
        assert!(now <= wanted && now >= wanted - PAUSE_MIN, "{now:?}");
        assert!(pauses > 100, "{pauses}");
    }

    #[test]
    fn without_a_rate_or_behind_it_nothing_waits() {
        let now = Duration::from_secs(1);
        assert_eq!(RowPace::new(None).after(u64::MAX, now), None);
        let mut pace = RowPace::new(Some(MIB));
        assert_eq!(pace.after(MIB / 2, now), None);
        assert_eq!(pace.after(MIB / 2 + 1_024, now), None, "saved up");
        assert!(pace.after(1_024 * 4, now).is_some());
    }

    #[test]
    fn no_pause_is_taken_for_the_end() {
        let mut pace = RowPace::new(Some(0));
        assert_eq!(pace.after(u64::MAX, Duration::ZERO), Some(PAUSE_MAX));
    }
}

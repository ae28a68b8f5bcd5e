//! How long to wait before the next attempt. Owns the number of failures, no clock and no dice:
//! the caller passes the random factor in and does the waiting.

use std::time::Duration;

/// Exponential back-off with a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failure_count: u32,
}

impl Backoff {
    /// Makes a back-off whose delays double from `first` to `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            failure_count: 0,
        }
    }

    /// Counts a failure and returns the delay before the next attempt: between half and all of the
    /// doubled step, chosen by `jitter` (0.0 to 1.0), so that many clients do not come back at once.
    pub fn next_delay(&mut self, jitter: f64) -> Duration {
        let factor = 1_u32.checked_shl(self.failure_count).unwrap_or(u32::MAX);
        let step = self.first.saturating_mul(factor).min(self.cap);
        self.failure_count = self.failure_count.saturating_add(1);
        let jitter = if jitter.is_nan() { 1.0 } else { jitter };
        step.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// Starts from the first delay again, after a success.
    pub const fn reset(&mut self) {
        self.failure_count = 0;
    }

    /// Returns how many failures came since the last success.
    #[must_use]
    pub const fn failure_count(&self) -> u32 {
        self.failure_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn delays_double_up_to_the_cap() {
        let mut backoff = Backoff::new(MILLIS(100), MILLIS(1_000));
        let delays: Vec<_> = (0..6).map(|_| backoff.next_delay(1.0)).collect();
        assert_eq!(
            delays,
            [100, 200, 400, 800, 1_000, 1_000].map(MILLIS),
            "the full step"
        );
        backoff.reset();
        assert_eq!(backoff.next_delay(1.0), MILLIS(100));
        assert_eq!(backoff.failure_count(), 1);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        for (jitter, expected) in [
            (0.0, 50),
            (0.5, 75),
            (1.0, 100),
            (-3.0, 50),
            (9.0, 100),
            (f64::NAN, 100),
        ] {
            let mut backoff = Backoff::new(MILLIS(100), MILLIS(1_000));
            assert_eq!(backoff.next_delay(jitter), MILLIS(expected), "{jitter}");
        }
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut backoff = Backoff::new(MILLIS(1), MILLIS(10));
        for _ in 0..100 {
            assert!(backoff.next_delay(1.0) <= MILLIS(10));
        }
        backoff.failure_count = u32::MAX;
        assert_eq!(backoff.next_delay(1.0), MILLIS(10));
    }
}

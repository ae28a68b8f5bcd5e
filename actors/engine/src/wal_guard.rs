//! Says how much WAL a source may keep for us, how long that will last, and when it is too much.
//!
//! Fed with what the server keeps for the slot, every few seconds. Kept WAL has the form of a saw:
//! the server lets go of it in jumps, at most every fifteen seconds. So the forecast looks at the
//! lower edge: how much the least of the newer half of a window lies above the least of the older
//! half. A slot that is followed gives no growth, a slot that stands gives the rate of the WAL.
//!
//! Decides nothing about the slot by itself: the agent acts on [`WalLevel`], once.

use std::{collections::VecDeque, time::Duration};

/// How far back the forecast looks: some twenty jumps of a slot that is followed.
const WINDOW: Duration = Duration::from_secs(300);

/// Samples of a window at one look every three seconds, with room for looks that come early.
const SAMPLES_MAX: usize = 128;

/// A forecast beyond this is no news: ten years.
const SECONDS_MAX: u64 = 10 * 365 * 24 * 3_600;

/// What happens when the limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WalPolicy {
    /// Tell, and keep the slot: no change is lost, the source's disk may fill.
    #[default]
    Alert,
    /// Let the slot go with a declared gap: the source is protected, changes are lost.
    DropWithGap,
}

/// How much WAL a source may keep for its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalGuard {
    /// Bytes that may be kept.
    pub limit_bytes: u64,
    /// Percent of the limit from which on it is told.
    pub alert_percent: u8,
    /// What happens at the limit.
    pub policy: WalPolicy,
}

/// How kept WAL stands to its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Below the alert.
    #[default]
    Within,
    /// Between the alert and the limit.
    Warning,
    /// At the limit or beyond.
    Reached,
}

impl WalLevel {
    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Within => "within",
            Self::Warning => "warning",
            Self::Reached => "reached",
        }
    }
}

/// What is known after a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalOutlook {
    /// How kept WAL stands to the limit.
    pub level: WalLevel,
    /// The limit that comes first, ours or the server's own.
    pub limit_bytes: u64,
    /// Seconds until it is reached if it goes on as in the last minutes; `None` while nothing
    /// grows.
    pub seconds_to_limit: Option<u64>,
}

/// The kept WAL of one slot over time.
#[derive(Clone, Debug)]
pub struct WalBudget {
    guard: WalGuard,
    /// Since any fixed moment, and bytes; oldest first.
    samples: VecDeque<(Duration, u64)>,
}

impl WalBudget {
    /// Starts to watch.
    #[must_use]
    pub fn new(guard: WalGuard) -> Self {
        Self {
            guard,
            samples: VecDeque::with_capacity(SAMPLES_MAX),
        }
    }

    /// Takes note of a look: `retained` bytes are kept, and the server gives the slot up after
    /// `safe_bytes` more (`None`: never).
    pub fn observe(&mut self, now: Duration, retained: u64, safe_bytes: Option<u64>) -> WalOutlook {
        self.samples.push_back((now, retained));
        let is_old = |sample: &(Duration, u64)| now.saturating_sub(sample.0) > WINDOW;
        while self.samples.len() > SAMPLES_MAX || self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
        let servers = safe_bytes.map_or(u64::MAX, |safe| retained.saturating_add(safe));
        let limit_bytes = self.guard.limit_bytes.min(servers);
        let alert = u128::from(limit_bytes) * u128::from(self.guard.alert_percent.min(100)) / 100;
        // The server acts at its own limit by itself: the policy is about ours.
        let level = if retained >= self.guard.limit_bytes {
            WalLevel::Reached
        } else if u128::from(retained) >= alert {
            WalLevel::Warning
        } else {
            WalLevel::Within
        };
        WalOutlook {
            level,
            limit_bytes,
            seconds_to_limit: self.seconds_to(limit_bytes, retained),
        }
    }

    fn seconds_to(&self, limit: u64, retained: u64) -> Option<u64> {
        let left = limit.saturating_sub(retained);
        if left == 0 {
            return Some(0);
        }
        let half = self.samples.len() / 2;
        // The later of equal ones in the older half, the earlier in the newer: the steepest that
        // the samples allow, so that the forecast errs to the near side.
        let older = self.samples.iter().take(half).rev();
        let (before, low) = older.min_by_key(|(_, bytes)| *bytes)?;
        let newer = self.samples.iter().skip(half);
        let (after, high) = newer.min_by_key(|(_, bytes)| *bytes)?;
        let grown = high.checked_sub(*low).filter(|grown| *grown > 0)?;
        let millis = after.saturating_sub(*before).as_millis();
        let seconds = u128::from(left) * millis / u128::from(grown) / 1_000;
        Some(u64::try_from(seconds).map_or(SECONDS_MAX, |seconds| seconds.min(SECONDS_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(limit_bytes: u64) -> WalBudget {
        WalBudget::new(WalGuard {
            limit_bytes,
            alert_percent: 50,
            policy: WalPolicy::Alert,
        })
    }

    const fn look(number: u64) -> Duration {
        Duration::from_secs(number * 3)
    }

    #[test]
    fn a_slot_that_stands_reaches_the_limit_in_time() {
        let mut budget = budget(1_000 * MIB);
        let first = budget.observe(look(0), 0, None);
        assert_eq!(
            (first.level, first.seconds_to_limit),
            (WalLevel::Within, None)
        );
        // 30 MiB every look: 10 MiB a second.
        for number in 1..=10 {
            let outlook = budget.observe(look(number), number * 30 * MIB, None);
            assert_eq!(outlook.seconds_to_limit, Some(100 - number * 3));
        }
        assert_eq!(
            budget.observe(look(17), 510 * MIB, None).level,
            WalLevel::Warning
        );
        let reached = budget.observe(look(34), 1_020 * MIB, None);
        assert_eq!(
            (reached.level, reached.seconds_to_limit),
            (WalLevel::Reached, Some(0))
        );
    }

    #[test]
    fn a_saw_that_does_not_rise_has_no_end() {
        let mut budget = budget(1_000 * MIB);
        for number in 0..200 {
            let outlook = budget.observe(look(number), (number % 5) * 100 * MIB, None);
            if number > 20 {
                assert_eq!(outlook.seconds_to_limit, None, "look {number}");
            }
        }
        // Then the slot stands.
        let ends = (0..60).map(|number| {
            let retained = number * 10 * MIB;
            let outlook = budget.observe(look(200 + number), retained, None);
            outlook.seconds_to_limit
        });
        assert!(ends.last().flatten().is_some());
    }

    #[test]
    fn the_limit_of_the_server_counts_when_it_comes_first() {
        let mut budget = budget(1_000 * MIB);
        let outlook = budget.observe(look(0), 100 * MIB, Some(50 * MIB));
        assert_eq!(
            (outlook.level, outlook.limit_bytes),
            (WalLevel::Warning, 150 * MIB)
        );
        let outlook = budget.observe(look(1), 100 * MIB, Some(2_000 * MIB));
        assert_eq!(
            (outlook.level, outlook.limit_bytes),
            (WalLevel::Within, 1_000 * MIB)
        );
        let lost = budget.observe(look(2), 100 * MIB, Some(0));
        assert_eq!(
            (lost.level, lost.seconds_to_limit),
            (WalLevel::Warning, Some(0))
        );
    }

    proptest! {
        /// Whatever is observed: bounded memory, the level by the last look alone, and a forecast
        /// only for what grows.
        #[test]
        fn the_level_is_that_of_the_last_look(
            samples in prop::collection::vec((0_u64..20_000, 0_u64..2_000), 1..400),
        ) {
            let mut budget = budget(1_000);
            let (mut now, mut lowest) = (Duration::ZERO, u64::MAX);
            for (millis, retained) in samples {
                now += Duration::from_millis(millis);
                let outlook = budget.observe(now, retained, None);
                prop_assert_eq!(outlook.level == WalLevel::Reached, retained >= 1_000);
                prop_assert_eq!(outlook.level == WalLevel::Within, retained < 500);
                prop_assert!(budget.samples.len() <= SAMPLES_MAX);
                lowest = lowest.min(retained);
                if retained < 1_000 && retained == lowest {
                    prop_assert_eq!(outlook.seconds_to_limit, None, "nothing grew");
                }
            }
        }
    }
}

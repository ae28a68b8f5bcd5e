//! Says how much WAL a source may keep for us, how long that will last, and when it is too much.
//!
//! Fed with what the server keeps for the slot, every few seconds. Kept WAL has the form of a saw:
//! the server lets go of it in jumps, at most every fifteen seconds. So the forecast looks at the
//! lower edge: how much the least of the newer half of a window lies above the least of the older
//! half. A slot that is followed gives no growth, a slot that stands gives the rate of the WAL.
//!
//! Decides nothing about the slot by itself: the agent acts on [`WalLevel`].

use std::{collections::VecDeque, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// How far back the forecast looks: some twenty jumps of a slot that is followed.
const WINDOW: Duration = Duration::from_secs(300);

/// Samples of a window at one look every three seconds, with room for looks that come early.
const SAMPLES_MAX: usize = 128;

/// A forecast beyond this is no news: ten years.
const SECONDS_MAX: u64 = 10 * 365 * 24 * 3_600;

/// Less than this is not worth an entry of the agreed state: PostgreSQL removes WAL in files of
/// 16 MiB.
const LET_GO_BYTES: u64 = 1 << 20;

/// What happens when the limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WalPolicy {
    /// Tell, and keep the slot: no change is lost, the source's disk may fill.
    #[default]
    Alert,
    /// Let the slot go with a declared gap: the source is protected, changes are lost.
    DropWithGap,
    /// Where the slot is kept for consumers: let it go up to the alert, as far as the log of the node
    /// that reads it goes. Consumers read on from there; they get a declared gap if that node is
    /// lost before they have read it.
    Spill,
}

impl WalPolicy {
    /// All of them, the mildest first.
    pub const ALL: [Self; 3] = [Self::Alert, Self::Spill, Self::DropWithGap];

    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Spill => "spill",
            Self::DropWithGap => "drop_with_gap",
        }
    }
}

/// The text names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no policy; use alert, spill or drop_with_gap")]
pub struct UnknownPolicy {
    /// What was written.
    pub text: String,
}

impl FromStr for WalPolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|policy| policy.as_str() == text);
        found.ok_or_else(|| UnknownPolicy {
            text: text.to_owned(),
        })
    }
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

impl WalGuard {
    /// Returns the bytes from which on it is told, of a limit.
    fn alert_of(self, limit_bytes: u64) -> u64 {
        let alert = u128::from(limit_bytes) * u128::from(self.alert_percent.min(100)) / 100;
        u64::try_from(alert).unwrap_or(limit_bytes)
    }

    /// Returns up to where a slot is let go with [`WalPolicy::Spill`], so that it keeps what the alert
    /// allows: never beyond `durable`, the end of the node's log; `None` while that is not worth it.
    /// `before` is as far as it was let go already.
    #[must_use]
    pub fn let_go_to(self, server_end: Lsn, durable: Lsn, before: Lsn) -> Option<Lsn> {
        let kept = self.alert_of(self.limit_bytes);
        let to = Lsn(server_end.0.saturating_sub(kept)).min(durable);
        (to.bytes_since(before) >= LET_GO_BYTES).then_some(to)
    }
}

/// What was said about one source; what was not is as the node says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalWish {
    /// Bytes that may be kept; 0 means no limit.
    pub limit_bytes: Option<u64>,
    /// Percent of the limit from which on it is told.
    pub alert_percent: Option<u8>,
    /// What happens at the limit.
    pub policy: Option<WalPolicy>,
}

impl WalWish {
    /// Fills in what was not said; `None` when there is no limit.
    #[must_use]
    pub fn or(self, default: WalGuard) -> Option<WalGuard> {
        let guard = WalGuard {
            limit_bytes: self.limit_bytes.unwrap_or(default.limit_bytes),
            alert_percent: self.alert_percent.unwrap_or(default.alert_percent),
            policy: self.policy.unwrap_or(default.policy),
        };
        (guard.limit_bytes > 0).then_some(guard)
    }
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
        let alert = self.guard.alert_of(limit_bytes);
        // The server acts at its own limit by itself: the policy is about ours.
        let level = if retained >= self.guard.limit_bytes {
            WalLevel::Reached
        } else if retained >= alert {
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

    #[test]
    fn a_policy_is_one_of_its_words() {
        for policy in WalPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        let unknown = "drop".parse::<WalPolicy>().unwrap_err();
        assert!(unknown.to_string().contains("drop_with_gap"), "{unknown}");
    }

    #[test]
    fn what_a_source_does_not_say_the_node_says() {
        let default = budget(1_000 * MIB).guard;
        let said = WalWish {
            policy: Some(WalPolicy::Spill),
            ..WalWish::default()
        };
        let spill = WalGuard {
            policy: WalPolicy::Spill,
            ..default
        };
        assert_eq!(WalWish::default().or(default), Some(default));
        assert_eq!(said.or(default), Some(spill));
        let none = WalWish {
            limit_bytes: Some(0),
            ..said
        };
        assert_eq!(none.or(default), None);
    }

    #[test]
    fn a_slot_is_let_go_up_to_the_alert_and_never_beyond_the_log() {
        let guard = budget(100 * MIB).guard;
        let mib = |mib: u64| Lsn(mib * MIB);
        for (end, durable, before, wanted) in [
            (200, 200, 10, Some(150)),
            (200, 120, 10, Some(120)),
            (200, 200, 150, None),
            (200, 5, 10, None),
            (20, 20, 0, None),
        ] {
            let to = guard.let_go_to(mib(end), mib(durable), mib(before));
            assert_eq!(to, wanted.map(mib), "{end} {durable} {before}");
        }
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

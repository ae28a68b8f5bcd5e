//! Decides which segments of a log are removed.
//!
//! Whole segments only, oldest first, never the last one: the log keeps at least what it is
//! writing, and may therefore exceed a limit by up to one segment.

use crate::lsn::PgTime;

/// How much a log keeps. The first limit that is reached removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Bytes kept; `None`: as many as there are.
    pub bytes: Option<u64>,
    /// Microseconds a closed segment is kept; `None`: for ever.
    pub micros: Option<i64>,
}

/// What retention looks at of a closed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedSegment {
    /// Bytes on disk.
    pub bytes: u64,
    /// When its last entry was written, by the clock of the machine. The commit times inside do
    /// not count: a backlog that is read late must not be removed as soon as it is written.
    pub closed: PgTime,
}

impl Retention {
    /// Returns how many of the `closed` segments, oldest first, are removed at `now` while the
    /// open one holds `open_bytes`.
    #[must_use]
    pub fn expired(&self, closed: &[ClosedSegment], open_bytes: u64, now: PgTime) -> usize {
        let total: u64 = closed.iter().map(|segment| segment.bytes).sum();
        let mut kept = total.saturating_add(open_bytes);
        let mut count = 0;
        for segment in closed {
            let too_many = self.bytes.is_some_and(|limit| kept > limit);
            let age = now.0.saturating_sub(segment.closed.0);
            let too_old = self.micros.is_some_and(|limit| age > limit);
            if !too_many && !too_old {
                break;
            }
            kept = kept.saturating_sub(segment.bytes);
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> [ClosedSegment; 3] {
        [10, 20, 30].map(|closed| ClosedSegment {
            bytes: 100,
            closed: PgTime(closed),
        })
    }

    #[test]
    fn without_limits_everything_stays() {
        let retention = Retention::default();
        assert_eq!(retention.expired(&segments(), 50, PgTime(i64::MAX)), 0);
    }

    #[test]
    fn size_removes_the_oldest_until_the_rest_fits() {
        let removed = |limit| {
            let retention = Retention {
                bytes: Some(limit),
                micros: None,
            };
            retention.expired(&segments(), 50, PgTime(0))
        };
        assert_eq!(removed(350), 0);
        assert_eq!(removed(349), 1);
        assert_eq!(removed(250), 1);
        assert_eq!(removed(249), 2);
        assert_eq!(removed(0), 3);
    }

    #[test]
    fn age_counts_from_when_a_segment_was_closed() {
        let retention = Retention {
            bytes: None,
            micros: Some(100),
        };
        assert_eq!(retention.expired(&segments(), 50, PgTime(110)), 0);
        assert_eq!(retention.expired(&segments(), 50, PgTime(111)), 1);
        assert_eq!(retention.expired(&segments(), 50, PgTime(131)), 3);
    }
}

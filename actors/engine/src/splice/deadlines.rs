//! How long a range may hold up changes, other sessions, or a snapshot on a replica.
//!
//! Every wait is counted from when nothing else was to be waited for, so that a range loses no time
//! behind another one.

use std::time::Duration;

use super::{Range, Splice, Stage};

/// Longest time that changes wait for a range to be opened. A standby follows within
/// milliseconds; one that is seconds behind is no reason to stop a stream.
pub const HOLD_MAX: Duration = Duration::from_secs(5);

/// Longest time that an opened range waits for the changes before it. Its reader holds a snapshot
/// on the replica meanwhile; a consumer that needs longer is too far behind to get rows now.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// A session that neither takes nor acknowledges rows for this long loses the range while others
/// wait for it.
pub const STALL_MAX: Duration = Duration::from_secs(30);

/// The same for a session that holds up only itself and a snapshot on the replica: a consumer that
/// works through what it got in one go, and says so at the end, must be able to finish.
pub const STALL_ALONE_MAX: Duration = Duration::from_secs(300);

impl Splice {
    /// Returns when [`Self::give_up_overdue`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let deadlines = self.ranges.values();
        deadlines.filter_map(|range| self.deadline(range)).min()
    }

    /// Gives up what has held up others, or a replica, for too long.
    pub fn give_up_overdue(&mut self, now: Duration) {
        let ranges = self.ranges.iter();
        let overdue: Vec<_> = ranges
            .filter(|(_, range)| self.deadline(range).is_some_and(|at| at <= now))
            .map(|(number, range)| (*number, range.end_when_overdue()))
            .collect();
        for (number, end) in overdue {
            self.end(number, end, now);
        }
    }

    fn deadline(&self, range: &Range) -> Option<Duration> {
        let is_alone = self.is_alone();
        let stall = if is_alone { STALL_ALONE_MAX } else { STALL_MAX };
        // Counted from when nothing else was to be waited for.
        let held = self.held_since.unwrap_or(range.since);
        let turn = range.since.max(self.released_at).max(held);
        match range.stage {
            Stage::Opening { at_least } => (self.is_held() && self.limit() == Some(at_least))
                .then(|| turn + HOLD_MAX)
                .filter(|_| !self.is_delivering()),
            Stage::Waiting { at } if at > self.reached => {
                (!self.is_delivering()).then(|| turn + WAIT_MAX)
            }
            Stage::Waiting { .. } => (!self.is_delivering()).then(|| turn + stall),
            Stage::Delivering { .. } => Some(range.since + stall),
            // Others wait, or the source does, to hand it out again.
            Stage::Sent { .. } => (!range.is_acked() && (!is_alone || range.stopped.is_some()))
                .then(|| range.since + STALL_MAX),
        }
    }

    fn is_delivering(&self) -> bool {
        let mut ranges = self.ranges.values();
        ranges.any(|range| matches!(range.stage, Stage::Delivering { .. }))
    }
}

//! Where the rows of a dump go between the changes of a subscription.
//!
//! A range is read in one snapshot whose position `at` is known: the rows are those after every
//! transaction that commits before `at` and before every one that commits at or after it. The
//! splice holds the feed of changes at such bounds, gives each range to one session, counts what that
//! session acknowledges, and says how each range ended. It never reads rows or the log, never
//! sends and has no clock.
//!
//! # The life of a range
//!
//! ```text
//! request ─► Opening ─opened─► Waiting ─take─► Delivering ─last row─► Sent ─acknowledged─► finished
//!               └────────────────┴───────────────┴──────────────────────┴─► given up
//! ```
//!
//! - *Opening* at `at_least`, a position that the feed has not passed and may not pass now. So a
//!   snapshot that contains everything before it is never too old when it comes. The hold ends
//!   with [`HOLD_MAX`]. A range that is opened while another is delivered is asked for at that
//!   one's bound, where the feed stands anyway: the two overlap.
//! - *Waiting* until every change before `at` was handed out ([`Splice::reached`]).
//! - *Delivering* to one session. No session gets a change from `at` on.
//! - *Sent*. A lone session has the rows before whatever comes next on its stream: the feed goes
//!   on. Beside others it does not, until the rows are acknowledged: another session would apply a
//!   newer change first and the row after it, and a row has no position by which a consumer
//!   could tell.
//!
//! A range that fails, or of which a row is sent back, stops, but keeps its place until every row
//! that is out was answered: only then may newer changes go to others. Time-outs end this ([`STALL_MAX`],
//! the session's own time-out of acknowledgements): a consumer that is so late and goes on all the
//! same may then be overtaken, with rows as with changes. In order nobody can overtake.
//!
//! # Redelivery of older changes
//!
//! *Ordered*: a change that comes again is followed by everything that came after it, so a range
//! delivered after it is given up (it is read again, newer), and a range is finished only once no
//! change before `at` can come again: all of them are acknowledged ([`Splice::settle`]).
//!
//! *Shared*: a change that comes again comes out of order, after younger changes of its row. The
//! rows need no rule of their own here: a row shows what the youngest change before `at` left, and
//! that change was handed out too. A late change overwrites the row exactly where it would
//! overwrite that younger change, and where it is itself the youngest it says the same as the row. So
//! waiting for acknowledgements before the rows would buy nothing, and let one stuck session starve
//! the dumps of all.
//!
//! # Invariants
//!
//! - Rows come after every change before `at` and before every change from `at` on.
//! - A range is finished only when its last row was sent and every row was acknowledged.
//! - Every range ends exactly once, finished or given up, whatever sessions do.
//! - Nothing of a row is kept; the books of a range have at most one note for each chunk sent.

mod deadlines;
mod range;
mod room;
mod types;

use std::{collections::BTreeMap, time::Duration};

pub use deadlines::{HOLD_MAX, STALL_ALONE_MAX, STALL_MAX, WAIT_MAX};
use range::{Range, Stage};
pub use room::{RANGES_HELD_MAX, RANGES_OPEN_MAX, open_max};
pub use types::{RangeEnd, RangeNumber, RowAck, RowsSent, UnknownRows};

use crate::{checkpoint::Checkpoint, ledger::SessionId, lsn::Lsn};

/// The ranges of one subscription.
#[derive(Debug, Default)]
pub struct Splice {
    is_ordered: bool,
    ranges: BTreeMap<RangeNumber, Range>,
    last_number: u32,
    /// Counts the ranges that were given to sessions.
    turns: u64,
    /// Connected sessions, each with the highest number that it was sent.
    sessions: BTreeMap<SessionId, RangeNumber>,
    /// Every change before this was handed out.
    reached: Lsn,
    held_since: Option<Duration>,
    /// When a range last made way for the next.
    released_at: Duration,
    ended: Vec<(RangeNumber, RangeEnd)>,
}

impl Splice {
    /// Takes a session in. All agree on the order: the first one decides.
    pub fn join(&mut self, session: SessionId, is_ordered: bool) {
        if self.sessions.is_empty() {
            self.is_ordered = is_ordered;
        }
        self.sessions.insert(session, RangeNumber(0));
    }

    /// Gives everything up: nobody is left who would bring it to an end.
    pub fn give_up_all(&mut self, now: Duration) {
        self.end_all(&RangeEnd::Disconnected, now, |_| true);
    }

    /// Lets a session go. What it had is given up; with the last one, everything is.
    pub fn leave(&mut self, session: SessionId, now: Duration) {
        self.sessions.remove(&session);
        let is_last = self.sessions.is_empty();
        self.end_all(&RangeEnd::Disconnected, now, |range| {
            is_last || range.session() == Some(session)
        });
        if is_last {
            // The next life may read again what this one had handed out.
            self.reached = Lsn::ZERO;
        }
    }

    /// Gives up what is not wholly sent: no more is delivered.
    pub fn withdraw(&mut self, now: Duration) {
        self.end_all(&RangeEnd::Disconnected, now, |range| {
            !matches!(range.stage, Stage::Sent { .. })
        });
    }

    /// Begins a range: returns its number and the position before which its snapshot must contain
    /// everything. The feed must not be in the middle of handing out: this lowers its limit to
    /// just behind the transaction of `passed`.
    ///
    /// `passed` is the last entry that the consumer may have: what was handed out in this life, or
    /// what earlier ones may have handed out, the end of the log at that time. A consumer that
    /// leaves out what it has done already would keep a row that is older than that.
    pub fn request(&mut self, passed: Checkpoint, now: Duration) -> (RangeNumber, Lsn) {
        let next = Lsn(passed.lsn.0.saturating_add(1));
        let bounds = self.ranges.values().filter_map(Range::unsent_bound);
        let at_least = bounds.chain([next]).max().unwrap_or(next);
        self.last_number = self.last_number.checked_add(1).unwrap_or(1);
        let number = RangeNumber(self.last_number);
        let range = Range::new(Stage::Opening { at_least }, now);
        self.ranges.insert(number, range);
        (number, at_least)
    }

    /// Records at which position a range was opened; tells whether it is still wanted.
    pub fn opened(&mut self, number: RangeNumber, at: Lsn, now: Duration) -> bool {
        let Some(range) = self.ranges.get_mut(&number) else {
            return false;
        };
        let Stage::Opening { at_least } = range.stage else {
            debug_assert!(false, "a range is opened once");
            return false;
        };
        if at < at_least {
            self.end(number, RangeEnd::TooOld, now);
            return false;
        }
        range.stage = Stage::Waiting { at };
        range.since = now;
        true
    }

    /// Records that a range cannot be read; nothing when it has ended already.
    pub fn failed(&mut self, number: RangeNumber, now: Duration) {
        self.stop(number, RangeEnd::Failed, now);
    }

    /// Returns the position from which on no change may be handed out.
    #[must_use]
    pub fn limit(&self) -> Option<Lsn> {
        if self.ranges.is_empty() {
            return None;
        }
        let is_alone = self.is_alone();
        let bounds = self.ranges.values();
        bounds.filter_map(|range| range.bound(is_alone)).min()
    }

    /// Tells whether everything before the limit was handed out, so that changes wait.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.limit().is_some_and(|limit| limit <= self.reached)
    }

    /// Records that every change before `bound` was handed out.
    pub fn reached(&mut self, bound: Lsn, now: Duration) {
        self.reached = self.reached.max(bound);
        if self.is_held() {
            self.held_since.get_or_insert(now);
        }
    }

    /// Returns how long changes have waited, once they go on.
    pub fn hold_ended(&mut self, now: Duration) -> Option<Duration> {
        let since = self.held_since?;
        if self.is_held() {
            return None;
        }
        self.held_since = None;
        Some(now.saturating_sub(since))
    }

    /// Returns the range that the session is being sent.
    #[must_use]
    pub fn delivering(&self, session: SessionId) -> Option<RangeNumber> {
        let mut ranges = self.ranges.iter();
        ranges
            .find(|(_, range)| range.delivering_to(session).is_some())
            .map(|(number, _)| *number)
    }

    /// Gives the next range whose turn has come, if any, to a session that has room.
    pub fn take(&mut self, session: SessionId, now: Duration) -> Option<RangeNumber> {
        let is_alone = self.is_alone();
        let reached = self.reached;
        let is_in_the_way = |range: &Range| match range.stage {
            Stage::Delivering { .. } => true,
            // The next range may have a newer version of the same row.
            Stage::Sent { session: owner, .. } => {
                !is_alone && owner != session && !range.is_acked()
            }
            Stage::Opening { .. } | Stage::Waiting { .. } => false,
        };
        if self.ranges.values().any(is_in_the_way) {
            return None;
        }
        let due = self.ranges.iter_mut().filter_map(|(number, range)| {
            let at = range.waiting_at().filter(|at| *at <= reached)?;
            Some((at, *number, range))
        });
        let (at, number, range) = due.min_by_key(|(at, number, _)| (*at, *number))?;
        self.turns += 1;
        range.stage = Stage::Delivering { at, session };
        range.turn = self.turns;
        range.since = now;
        let highest = self.sessions.entry(session).or_default();
        *highest = number.max(*highest);
        Some(number)
    }

    /// Records a chunk that goes out to the session now, `is_last` with the last row. Tells whether
    /// the range is still its to deliver; else the chunk must not go out.
    pub fn sent(
        &mut self,
        number: RangeNumber,
        session: SessionId,
        rows: RowsSent,
        is_last: bool,
        now: Duration,
    ) -> bool {
        let Some(range) = self.ranges.get_mut(&number) else {
            return false;
        };
        let Some(at) = range.delivering_to(session) else {
            return false;
        };
        range.note(rows, now);
        if is_last {
            range.stage = Stage::Sent { at, session };
            self.released_at = now;
        }
        true
    }

    /// Applies an acknowledgement of rows. Returns how many that are, and before which position the
    /// session's changes are acknowledged with them.
    ///
    /// # Errors
    ///
    /// [`UnknownRows`] for what the session was not sent. What came of a range that has ended
    /// meanwhile changes nothing.
    pub fn ack(
        &mut self,
        session: SessionId,
        number: RangeNumber,
        ack: RowAck,
        now: Duration,
    ) -> Result<(u64, Option<Lsn>), UnknownRows> {
        let Some(range) = self.owned(session, number)? else {
            return Ok((0, None));
        };
        let mut acked = match ack {
            RowAck::One => range.ack(1, now)?,
            RowAck::UpTo(row) => range.ack_up_to(row, now)?,
            RowAck::All => range.ack_all(now)?,
        };
        let (turn, at) = (range.turn, range.at());
        if ack == RowAck::One {
            return Ok((acked, None));
        }
        for range in self.ranges.values_mut() {
            if range.session() == Some(session) && range.turn < turn {
                acked += range.ack_rest(now);
            }
        }
        Ok((acked, at))
    }

    /// Applies a cumulative acknowledgement of a change: rows that the session got before it count
    /// as well. Returns how many.
    pub fn ack_before(&mut self, session: SessionId, change: Lsn, now: Duration) -> u64 {
        let own = self.ranges.values_mut().filter(|range| {
            range.session() == Some(session) && range.at().is_some_and(|at| at <= change)
        });
        own.map(|range| range.ack_rest(now)).sum()
    }

    /// Stops a range because its consumer sent a row back.
    ///
    /// # Errors
    ///
    /// As for [`Self::ack`].
    pub fn requeue(
        &mut self,
        session: SessionId,
        number: RangeNumber,
        reason: &str,
        now: Duration,
    ) -> Result<(), UnknownRows> {
        if let Some(range) = self.owned(session, number)? {
            range.ack(1, now)?;
            self.stop(number, RangeEnd::Requeued(reason.to_owned()), now);
        }
        Ok(())
    }

    /// Gives up what was delivered after a change that comes again, in order.
    pub fn rewound(&mut self, to: Lsn, now: Duration) {
        self.end_all(&RangeEnd::Rewound, now, |range| {
            range.session().is_some() && range.at().is_some_and(|at| at > to)
        });
    }

    /// Ends what is sent and answered; in order, a range finishes only when no change can come
    /// before it again. `oldest_open` is the first change that is not acknowledged.
    pub fn settle(&mut self, oldest_open: impl Fn() -> Option<Checkpoint>, now: Duration) {
        let is_ordered = self.is_ordered;
        let end_of = |range: &Range| {
            let Stage::Sent { at, .. } = range.stage else {
                return None;
            };
            if !range.is_acked() {
                return None;
            }
            if range.stopped.is_some() {
                return range.stopped.clone();
            }
            let is_past = !is_ordered || oldest_open().is_none_or(|open| open.lsn >= at);
            is_past.then(|| RangeEnd::Finished(range.rows_sent()))
        };
        let ranges = self.ranges.iter();
        let done: Vec<_> = ranges
            .filter_map(|(number, range)| Some((*number, end_of(range)?)))
            .collect();
        for (number, end) in done {
            self.end(number, end, now);
        }
    }

    /// Gives up what the session has left unanswered for longer than `timeout`. Returns how many
    /// rows that are.
    pub fn expire(&mut self, session: SessionId, timeout: Duration, now: Duration) -> u64 {
        let is_overdue = |range: &Range| {
            range.session() == Some(session)
                && range.oldest_unacked().is_some_and(|at| at + timeout <= now)
        };
        let own = self.ranges.values().filter(|range| is_overdue(range));
        let rows = own.map(|range| range.unacked().0 as u64).sum();
        self.end_all(&RangeEnd::Stalled, now, is_overdue);
        rows
    }

    /// Takes what has ended since the last call.
    pub fn take_ended(&mut self) -> Vec<(RangeNumber, RangeEnd)> {
        std::mem::take(&mut self.ended)
    }

    /// Tells whether [`Self::take_ended`] has something.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Rows and bytes that the session has not acknowledged.
    #[must_use]
    pub fn unacked(&self, session: SessionId) -> (usize, usize) {
        let own = self.ranges.values();
        own.filter(|range| range.session() == Some(session))
            .map(Range::unacked)
            .fold((0, 0), |sum, (rows, bytes)| (sum.0 + rows, sum.1 + bytes))
    }

    /// Tells whether there is no range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Ranges that have a reader, and all.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let sent = self.ranges.values();
        let sent = sent.filter(|range| matches!(range.stage, Stage::Sent { .. }));
        (self.ranges.len() - sent.count(), self.ranges.len())
    }

    /// Tells whether nobody waits for the session that has a range: sessions that stand by in
    /// order wait for its end anyway.
    fn is_alone(&self) -> bool {
        self.is_ordered || self.sessions.len() <= 1
    }

    /// Finds the session's range; `None` when it has ended.
    fn owned(
        &mut self,
        session: SessionId,
        number: RangeNumber,
    ) -> Result<Option<&mut Range>, UnknownRows> {
        let highest = self.sessions.get(&session).copied().unwrap_or_default();
        match self.ranges.get_mut(&number) {
            Some(range) if range.session() == Some(session) => Ok(Some(range)),
            None if number > RangeNumber(0) && number <= highest => Ok(None),
            Some(_) | None => Err(UnknownRows),
        }
    }

    /// Stops a range: it ends once what is out of it was answered.
    fn stop(&mut self, number: RangeNumber, end: RangeEnd, now: Duration) {
        let Some(range) = self.ranges.get_mut(&number) else {
            return;
        };
        match (range.at(), range.session()) {
            (Some(at), Some(session)) if !range.is_acked() => {
                range.stage = Stage::Sent { at, session };
                range.stopped.get_or_insert(end);
                self.released_at = now;
            }
            _ => {
                let first = range.stopped.take();
                self.end(number, first.unwrap_or(end), now);
            }
        }
    }

    fn end_all(&mut self, end: &RangeEnd, now: Duration, is_meant: impl Fn(&Range) -> bool) {
        let ranges = self.ranges.iter();
        let meant: Vec<_> = ranges
            .filter(|(_, range)| is_meant(range))
            .map(|(number, _)| *number)
            .collect();
        for number in meant {
            self.end(number, end.clone(), now);
        }
    }

    fn end(&mut self, number: RangeNumber, end: RangeEnd, now: Duration) {
        if self.ranges.remove(&number).is_some() {
            self.released_at = now;
            self.ended.push((number, end));
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod model;

//! Ranges of dumps in a subscription: the splice, the readers that wait, and what sessions do to
//! both.
//!
//! The splice decides; here its decisions meet the ledger, the feed and the channels of rows.
//! [`super::intake`] brings ranges in and reports their ends.
//!
//! # The limit of the feed
//!
//! A session reads the limit after it has locked the feed and keeps to it until it lets go. So
//! the limit is lowered only with the feed locked ([`super::intake`]): nobody is then in the
//! middle of taking a change that lies behind it. It rises at any time, and `changed` tells. A session
//! that joins beside a lone one lowers it too, for rows that the lone one has not answered; the lone
//! one may take one more part then, which comes after those rows on its own stream.

use std::{collections::BTreeMap, time::Duration};

use pgcapture_engine::{
    checkpoint::Checkpoint,
    ledger::{ALL_ROWS, Ack, AckKind, Applied, Ledger, Room, SessionId, UnknownCheckpoint, before},
    lsn::{Lsn, PgTime},
    splice::{RangeEnd, RangeNumber, RowAck, Splice},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    delivery::Delivery,
    feed::NO_LIMIT,
    membership::{Membership, Pulled, Puller, Rows},
    subscription::Subscription,
};
use crate::{
    dump::{DumpError, RowEvent},
    supervise::Task,
};

/// What a subscription has of dumps.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    pub(super) splice: Splice,
    /// The end of the log when the subscription came to memory: no consumer has more.
    pub(super) restored_at: Checkpoint,
    /// A range is about to begin: nobody takes the feed.
    pub(super) is_requesting: bool,
    /// Whether somebody brings ranges in.
    pub(super) has_intake: bool,
    pub(super) intake: Option<Task<()>>,
    readers: BTreeMap<RangeNumber, Reader>,
    errors: BTreeMap<RangeNumber, DumpError>,
}

/// What reads a range.
#[derive(Debug)]
struct Reader {
    /// Taken by the session that delivers it.
    rows: Option<mpsc::Receiver<RowEvent>>,
    stop: CancellationToken,
}

/// What a session with room does next.
pub(super) enum Turn {
    /// Deliver rows.
    Rows,
    /// Take changes.
    Changes,
    /// Wait: changes are held.
    Held,
}

impl Ranges {
    /// Adds the reader of a range that was opened, if it is still wanted.
    pub(super) fn opened(
        &mut self,
        number: RangeNumber,
        at: Lsn,
        rows: mpsc::Receiver<RowEvent>,
        stop: CancellationToken,
        now: Duration,
    ) {
        if self.splice.opened(number, at, now) {
            let rows = Some(rows);
            self.readers.insert(number, Reader { rows, stop });
        }
    }

    /// Ends a range that cannot be read.
    pub(super) fn failed(&mut self, number: RangeNumber, error: DumpError, now: Duration) {
        self.errors.entry(number).or_insert(error);
        self.splice.failed(number, now);
    }

    /// Takes what has ended, each with its error when it failed; nothing reads it any more.
    pub(super) fn take_ended(&mut self) -> Vec<(RangeNumber, RangeEnd, Option<DumpError>)> {
        let ended = self.splice.take_ended().into_iter();
        ended
            .map(|(number, end)| {
                if let Some(reader) = self.readers.remove(&number) {
                    reader.stop.cancel();
                }
                (number, end, self.errors.remove(&number))
            })
            .collect()
    }

    pub(super) fn limit(&self) -> Lsn {
        self.splice.limit().unwrap_or(NO_LIMIT)
    }

    /// Decides what the session does next; `delivery` is the range that it has.
    pub(super) fn turn(
        &mut self,
        session: SessionId,
        delivery: &mut Option<Delivery>,
        now: Duration,
    ) -> Turn {
        if self.is_requesting {
            return Turn::Held;
        }
        if self.splice.is_empty() {
            return Turn::Changes;
        }
        if delivery.is_none()
            && let Some(number) = self.splice.take(session, now)
            && let Some(reader) = self.readers.get_mut(&number)
            && let Some(rows) = reader.rows.take()
        {
            *delivery = Some(Delivery::new(number, rows, reader.stop.clone()));
        }
        if delivery.is_some() {
            Turn::Rows
        } else if self.splice.is_held() {
            Turn::Held
        } else {
            Turn::Changes
        }
    }

    /// Forgets a delivery whose range has ended or stopped.
    pub(super) fn drop_stale(&self, session: SessionId, delivery: &mut Option<Delivery>) {
        let current = delivery.as_ref().map(|delivery| delivery.number);
        if current.is_some() && self.splice.delivering(session) != current {
            *delivery = None;
        }
    }

    /// Takes from a session's room what it holds of rows.
    pub(super) fn shrink(&self, session: SessionId, room: &mut Room) {
        if !self.splice.is_empty() {
            let (rows, bytes) = self.splice.unacked(session);
            room.messages = room.messages.saturating_sub(rows);
            room.bytes = room.bytes.saturating_sub(bytes);
        }
    }

    /// Applies acknowledgements of changes and of rows, in order.
    pub(super) fn apply(
        &mut self,
        ledger: &mut Ledger,
        session: SessionId,
        acks: &[Ack],
        now: Duration,
    ) -> Result<Applied, UnknownCheckpoint> {
        let is_row = |ack: &Ack| ack.checkpoint.lsn == Lsn::ZERO;
        if self.splice.is_empty() && !acks.iter().any(is_row) {
            return ledger.apply(session, acks, now);
        }
        let mut all = Applied::default();
        for ack in acks {
            let applied = if is_row(ack) {
                self.apply_row(ledger, session, ack, now)?
            } else {
                if ack.kind == AckKind::UpTo {
                    self.splice.ack_before(session, ack.checkpoint.lsn, now);
                }
                ledger.apply(session, std::slice::from_ref(ack), now)?
            };
            all.acked_count += applied.acked_count;
            all.repeated_count += applied.repeated_count;
            all.requeued_count += applied.requeued_count;
        }
        Ok(all)
    }

    fn apply_row(
        &mut self,
        ledger: &mut Ledger,
        session: SessionId,
        ack: &Ack,
        now: Duration,
    ) -> Result<Applied, UnknownCheckpoint> {
        let number = RangeNumber(ack.checkpoint.seq);
        let unknown = |_| UnknownCheckpoint(ack.checkpoint);
        let row_ack = match ack.kind {
            AckKind::Requeue => {
                let refused = self.splice.requeue(session, number, "", now);
                return refused.map(|()| Applied::default()).map_err(unknown);
            }
            AckKind::Done | AckKind::UpTo => RowAck::One,
            AckKind::UpToRow(ALL_ROWS) => RowAck::All,
            AckKind::UpToRow(place) => RowAck::UpTo(u64::from(place)),
        };
        let acked = self.splice.ack(session, number, row_ack, now);
        let (_, before_lsn) = acked.map_err(unknown)?;
        let Some(lsn) = before_lsn else {
            return Ok(Applied::default());
        };
        // Everything that the session got before the rows.
        let ack = Ack {
            checkpoint: before(Checkpoint::new(lsn, 0)).min(ledger.admitted()),
            kind: AckKind::UpTo,
        };
        ledger.apply(session, &[ack], now)
    }
}

impl Subscription {
    /// Draws the consequences after anything that may end a range or a hold. Changes nothing when
    /// there is no range.
    pub(super) fn settle(&self, ranges: &mut Ranges, ledger: Option<&Ledger>, now: Duration) {
        let splice = &mut ranges.splice;
        if let Some(ledger) = ledger
            && !splice.is_empty()
        {
            if let Some(first) = ledger.rewound_to() {
                splice.rewound(first.lsn, now);
            }
            splice.settle(|| ledger.first_open(), now);
        }
        let hold = splice.hold_ended(now);
        if let Some(hold) = hold {
            self.meters.held(hold);
        }
        if splice.has_ended() {
            self.intake_wake.notify_one();
        }
        if hold.is_some() || splice.has_ended() {
            self.changed.notify_waiters();
        }
    }

    /// Records that every change before `limit` was handed out.
    pub(super) fn reached(&self, limit: Lsn, now: Duration) {
        self.with_ranges(|ranges, ledger| {
            ranges.splice.reached(limit, now);
            self.settle(ranges, ledger, now);
        });
        self.changed.notify_waiters();
        // Its deadlines count from here.
        self.intake_wake.notify_one();
    }
}

impl Membership {
    /// Delivers the next rows of the range that the session has; `None` when it has ended.
    pub(super) async fn rows(&self, puller: &mut Puller, room: Room) -> Option<Pulled> {
        let Puller { filter, delivery } = puller;
        let delivering = delivery.as_mut()?;
        let number = delivering.number;
        let next = delivering.next(filter, room).await;
        let now = self.hub.now();
        let subscription = &self.subscription;
        let rows = subscription.with_ranges(|ranges, ledger| {
            let rows = match next {
                Ok(rows) => {
                    let sent = rows.sent();
                    let splice = &mut ranges.splice;
                    let is_ours = splice.sent(number, self.session, sent, rows.is_last, now);
                    is_ours.then_some(rows)
                }
                Err(error) => {
                    ranges.failed(number, error, now);
                    None
                }
            };
            subscription.settle(ranges, ledger, now);
            rows
        });
        if rows.as_ref().is_none_or(|rows| rows.is_last) {
            *delivery = None;
            // The next range may be asked for, its turn may have come.
            subscription.changed.notify_waiters();
            subscription.intake_wake.notify_one();
        }
        let rows = rows.filter(|rows| rows.len() > 0)?;
        subscription.meters.rows_delivered(rows.sent());
        Some(Pulled {
            rows: Rows::Dump(rows),
            commit_time: PgTime(0),
        })
    }

    /// Takes note that the consumer sent a row back: its range is read again, later.
    pub(super) fn refuse_row(&self, range: u32, reason: &str) -> Result<(), UnknownCheckpoint> {
        let now = self.hub.now();
        let number = RangeNumber(range);
        self.subscription.with_ranges(|ranges, ledger| {
            let refused = ranges.splice.requeue(self.session, number, reason, now);
            self.subscription.settle(ranges, ledger, now);
            refused.map_err(|_| UnknownCheckpoint(Checkpoint::new(Lsn::ZERO, range)))
        })?;
        self.subscription.changed.notify_waiters();
        Ok(())
    }

    /// Gives up every range that is not wholly delivered: the node stops.
    pub(super) fn withdraw_ranges(&self) {
        let now = self.hub.now();
        self.subscription.with_ranges(|ranges, ledger| {
            ranges.splice.withdraw(now);
            self.subscription.settle(ranges, ledger, now);
        });
    }
}

//! The books of one range: where it stands, what went out, what came back.

use std::{collections::VecDeque, time::Duration};

use super::{RangeEnd, RowsSent, UnknownRows};
use crate::{ledger::SessionId, lsn::Lsn};

/// Where a range stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its snapshot is being made; it will be at this position or a later one.
    Opening { at_least: Lsn },
    /// The changes before it are being handed out.
    Waiting { at: Lsn },
    /// Its rows go out.
    Delivering { at: Lsn, session: SessionId },
    /// All rows are out, or no more will be.
    Sent { at: Lsn, session: SessionId },
}

/// One range.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) stage: Stage,
    /// Last time that it moved.
    pub(super) since: Duration,
    /// Its place among all ranges that were given to sessions.
    pub(super) turn: u64,
    /// Why no more goes out, before the last row did.
    pub(super) stopped: Option<RangeEnd>,
    sent: RowsSent,
    acked: u64,
    /// What went out and is not acknowledged, oldest first.
    unacked: VecDeque<Chunk>,
}

/// Rows that went out together.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    rows: u64,
    bytes: u64,
    sent_at: Duration,
}

impl Range {
    pub(super) fn new(stage: Stage, now: Duration) -> Self {
        Self {
            stage,
            since: now,
            turn: 0,
            stopped: None,
            sent: RowsSent::default(),
            acked: 0,
            unacked: VecDeque::new(),
        }
    }

    /// How it ends when its time is up.
    pub(super) fn end_when_overdue(&self) -> RangeEnd {
        match (&self.stopped, self.stage) {
            (Some(end), _) => end.clone(),
            (None, Stage::Opening { .. }) => RangeEnd::TooOld,
            (None, _) => RangeEnd::Stalled,
        }
    }

    /// The session that has rows of it.
    pub(super) const fn session(&self) -> Option<SessionId> {
        match self.stage {
            Stage::Delivering { session, .. } | Stage::Sent { session, .. } => Some(session),
            Stage::Opening { .. } | Stage::Waiting { .. } => None,
        }
    }

    pub(super) const fn at(&self) -> Option<Lsn> {
        match self.stage {
            Stage::Opening { .. } => None,
            Stage::Waiting { at } | Stage::Delivering { at, .. } | Stage::Sent { at, .. } => {
                Some(at)
            }
        }
    }

    pub(super) const fn waiting_at(&self) -> Option<Lsn> {
        match self.stage {
            Stage::Waiting { at } => Some(at),
            Stage::Opening { .. } | Stage::Delivering { .. } | Stage::Sent { .. } => None,
        }
    }

    /// Its position while it goes out to this session.
    pub(super) fn delivering_to(&self, session: SessionId) -> Option<Lsn> {
        match self.stage {
            Stage::Delivering { at, session: owner } => (owner == session).then_some(at),
            Stage::Opening { .. } | Stage::Waiting { .. } | Stage::Sent { .. } => None,
        }
    }

    /// Where the feed stops for it until its rows are out.
    pub(super) const fn unsent_bound(&self) -> Option<Lsn> {
        match self.stage {
            Stage::Opening { at_least } => Some(at_least),
            Stage::Waiting { at } | Stage::Delivering { at, .. } => Some(at),
            Stage::Sent { .. } => None,
        }
    }

    /// Where the feed stops for it.
    pub(super) fn bound(&self, is_alone: bool) -> Option<Lsn> {
        match self.stage {
            Stage::Sent { at, .. } => (!is_alone && !self.is_acked()).then_some(at),
            Stage::Opening { .. } | Stage::Waiting { .. } | Stage::Delivering { .. } => {
                self.unsent_bound()
            }
        }
    }

    /// Notes rows that go out.
    pub(super) fn note(&mut self, rows: RowsSent, now: Duration) {
        self.since = now;
        if rows.row_count == 0 {
            return;
        }
        self.sent.row_count += rows.row_count;
        self.sent.bytes += rows.bytes;
        self.unacked.push_back(Chunk {
            rows: rows.row_count,
            bytes: rows.bytes,
            sent_at: now,
        });
    }

    pub(super) const fn rows_sent(&self) -> RowsSent {
        self.sent
    }

    pub(super) const fn is_acked(&self) -> bool {
        self.acked == self.sent.row_count
    }

    /// Rows and bytes that are out and not acknowledged. Which rows came back is not known, so
    /// their bytes are taken from the oldest chunk, by its mean.
    pub(super) fn unacked(&self) -> (usize, usize) {
        let sum = self.unacked.iter().fold((0, 0), |sum, chunk| {
            (sum.0 + chunk.rows, sum.1 + chunk.bytes)
        });
        let usize_of = |value| usize::try_from(value).unwrap_or(usize::MAX);
        (usize_of(sum.0), usize_of(sum.1))
    }

    /// When the oldest chunk went out that is not wholly acknowledged.
    pub(super) fn oldest_unacked(&self) -> Option<Duration> {
        self.unacked.front().map(|chunk| chunk.sent_at)
    }

    /// Counts `rows` more as acknowledged and returns them. Repeating answers is harmless once all
    /// were given.
    pub(super) fn ack(&mut self, rows: u64, now: Duration) -> Result<u64, UnknownRows> {
        if rows == 1 && self.is_acked() && matches!(self.stage, Stage::Sent { .. }) {
            return Ok(0);
        }
        if self.acked + rows > self.sent.row_count {
            return Err(UnknownRows);
        }
        self.acked += rows;
        self.since = now;
        let mut rest = rows;
        while let Some(chunk) = self.unacked.front_mut() {
            if chunk.rows > rest {
                chunk.bytes -= chunk.bytes / chunk.rows * rest;
                chunk.rows -= rest;
                break;
            }
            rest -= chunk.rows;
            self.unacked.pop_front();
        }
        Ok(rows)
    }

    /// Counts the first `row` rows as acknowledged.
    pub(super) fn ack_up_to(&mut self, row: u64, now: Duration) -> Result<u64, UnknownRows> {
        self.ack(row.saturating_sub(self.acked), now)
    }

    /// Counts all rows as acknowledged, once the last one was sent.
    pub(super) fn ack_all(&mut self, now: Duration) -> Result<u64, UnknownRows> {
        match self.stage {
            Stage::Sent { .. } => Ok(self.ack_rest(now)),
            Stage::Opening { .. } | Stage::Waiting { .. } | Stage::Delivering { .. } => {
                Err(UnknownRows)
            }
        }
    }

    /// Counts what was sent as acknowledged.
    pub(super) fn ack_rest(&mut self, now: Duration) -> u64 {
        let rows = self.sent.row_count - self.acked;
        if rows > 0 {
            self.acked = self.sent.row_count;
            self.unacked.clear();
            self.since = now;
        }
        rows
    }
}

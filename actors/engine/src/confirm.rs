//! Decides how far a slot may be let go, and how a log begins when another node takes the slot over.
//!
//! On a single node the log is the truth: what it holds durably may be confirmed. In a cluster the
//! log of a node is a cache and the slot is the truth: PostgreSQL may forget only what every
//! subscription has consumed, so that the next leader, with an empty log, decodes the rest again.
//!
//! A subscription's cursor names an entry, not a place in the WAL. While it stands at `(lsn, seq)`,
//! every transaction that committed before `lsn` is done, and the one at `lsn` may be half done: the
//! slot may go to `lsn` and no further. Only when every cursor is at or beyond the last durable
//! entry is there nothing left to consume; then the whole durable end may go, whatever lies between
//! that entry and it. Else an idle source would keep its WAL for ever.
//!
//! That last step loses knowledge: later nobody can tell a slot that we let go beyond the cursors,
//! because nothing was there, from one that somebody else has moved. So it is *attested* first, in
//! the agreed state: an [`Origin`], durable, before it is confirmed. A new leader that finds the slot
//! at or before what was attested, or at or before the cursors, knows that nothing is missing.
//!
//! Two things may lie behind the slot by intent. A consumer that goes back, or begins, where the
//! others are done reads what the owner's log still holds; a new owner has not got it and refuses that
//! consumer with the earliest position that is left. And what a decision has *let go*, of an operator
//! or of the limit of kept WAL, is declared by a new owner to the consumers that lack it, without
//! halting again. Both are in the agreed state: see [`Known`].
//!
//! # Invariants
//!
//! - The confirmed position never goes back, never passes what is durable, and no entry before it is
//!   unconsumed but for what a decision has let go.
//! - A log that starts anew says which entry is the last before it: a reader that needs an earlier
//!   one is refused, never started later in silence.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{checkpoint::Checkpoint, lsn::Lsn};

/// Less than this beyond the cursors is not worth an entry of the agreed state: PostgreSQL keeps
/// and removes WAL in files of 16 MiB.
const ATTEST_BYTES: u64 = 1 << 20;

/// An idle source with traffic beside the published tables attests so often at most: one entry a
/// second of some tens of bytes.
const ATTEST_INTERVAL: Duration = Duration::from_secs(1);

/// Behind every entry of its LSN, declared gaps included.
const SEQ_LAST: u32 = u32::MAX;

/// A place where a log may end or begin: between `previous` and `resume_lsn` there is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The last entry before it; `None` when there never was one.
    pub previous: Option<Checkpoint>,
    /// Where replication goes on.
    pub resume_lsn: Lsn,
}

/// Returns how far everything durable is consumed. `floor` is the least cursor; `None` means that
/// there is no subscription, so that nobody has to be waited for.
#[must_use]
pub fn consumed(durable: Origin, floor: Option<Checkpoint>) -> Lsn {
    match floor {
        Some(_) if floor < durable.previous => proved_by_cursors(durable, floor),
        Some(_) | None => durable.resume_lsn,
    }
}

/// Returns what the cursors alone prove to be consumed: it may be confirmed without more.
#[must_use]
pub fn proved_by_cursors(durable: Origin, floor: Option<Checkpoint>) -> Lsn {
    floor.map_or(Lsn::ZERO, |floor| floor.lsn.min(durable.resume_lsn))
}

/// The position that is confirmed to PostgreSQL.
#[derive(Clone, Debug)]
pub struct Confirmation {
    confirmed: Lsn,
    /// `None` when the log is the truth.
    attested: Option<Lsn>,
    last_attested: Option<Duration>,
    /// Let go by a decision, whatever the cursors say.
    let_go: Lsn,
}

impl Origin {
    /// Attested where nothing is known but that the source has been captured.
    pub const CAPTURED: Self = Self {
        previous: Some(Checkpoint::new(Lsn::ZERO, 0)),
        resume_lsn: Lsn::ZERO,
    };
}

impl Confirmation {
    /// Where the log of this node is the truth; it is durable up to `at`.
    #[must_use]
    pub const fn by_log(at: Lsn) -> Self {
        Self {
            confirmed: at,
            attested: None,
            last_attested: None,
            let_go: Lsn::ZERO,
        }
    }

    /// Where the slot is the truth: it stands at `at`, and `attested` was agreed on.
    #[must_use]
    pub const fn by_slot(at: Lsn, attested: Lsn) -> Self {
        Self {
            confirmed: at,
            attested: Some(attested),
            last_attested: None,
            let_go: Lsn::ZERO,
        }
    }

    /// Takes note of the log's durable end and of the least cursor; returns what may be confirmed.
    pub fn advance(&mut self, durable: Origin, floor: Option<Checkpoint>) -> Lsn {
        let allowed = match self.attested {
            None => durable.resume_lsn,
            Some(attested) => {
                let proved = attested.max(proved_by_cursors(durable, floor));
                let let_go = self.let_go.min(durable.resume_lsn);
                consumed(durable, floor).min(proved).max(let_go)
            }
        };
        self.confirmed = self.confirmed.max(allowed);
        self.confirmed
    }

    /// Returns what must be agreed on before more can be confirmed, when it is worth that and the
    /// interval is over. `now` is the time since any fixed moment.
    pub fn attest(
        &mut self,
        durable: Origin,
        floor: Option<Checkpoint>,
        now: Duration,
    ) -> Option<Origin> {
        let consumed = consumed(durable, floor);
        let proved = self.attested?.max(proved_by_cursors(durable, floor));
        let is_due = self
            .last_attested
            .is_none_or(|last| now.saturating_sub(last) >= ATTEST_INTERVAL);
        let is_whole = consumed == durable.resume_lsn;
        if !is_due || !is_whole || consumed.bytes_since(proved) < ATTEST_BYTES {
            return None;
        }
        self.last_attested = Some(now);
        Some(durable)
    }

    /// Records that `origin` was agreed on.
    pub fn attested(&mut self, origin: Origin) {
        if let Some(attested) = &mut self.attested {
            *attested = origin.resume_lsn.max(*attested);
        }
    }

    /// Lets the slot go up to `to`, as was agreed on; as far as the log holds it. Nothing where the log
    /// is the truth.
    pub fn let_go(&mut self, to: Lsn) {
        self.let_go = self.let_go.max(to);
    }

    /// Returns the confirmed position.
    #[must_use]
    pub const fn position(&self) -> Lsn {
        self.confirmed
    }
}

/// How the log of a node goes on when the slot is the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// The log is as far as the slot or further: go on at its end.
    GoOn,
    /// Another node was the leader meanwhile: start the log anew here; nothing is missing.
    Anew(Origin),
    /// A consumer has not got what the slot has let go. A log that ends before the consumer is
    /// started anew at its cursor first, so that the gap stands where every consumer meets it.
    Gap(Option<Origin>),
    /// The same, but a decision has let it go: the gap is declared and nobody need accept it again.
    LetGo(Option<Origin>),
}

/// What is agreed on about a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The least cursor.
    pub floor: Option<Checkpoint>,
    /// What was attested last.
    pub attested: Option<Origin>,
    /// How far all consumers had come before one of them went back or began.
    pub reached: Option<Checkpoint>,
    /// What a decision has let go.
    pub let_go: Option<Lsn>,
}

impl Known {
    /// Tells whether all consumers had done with everything before `slot`: who is behind it now went
    /// there by itself.
    fn was_done(&self, slot: Lsn) -> bool {
        let Some(reached) = self.reached else {
            return false;
        };
        let was_void = |attested: Origin| {
            slot <= attested.resume_lsn && attested.previous.is_none_or(|last| last <= reached)
        };
        slot <= reached.lsn || self.attested.is_some_and(was_void)
    }
}

/// Decides how the log goes on: `tail` is the end of this node's log, `slot` the slot's confirmed
/// position. A source of which nothing was ever attested, with nothing captured and nothing consumed,
/// begins at the slot.
#[must_use]
pub fn log_start(tail: Origin, slot: Lsn, known: &Known) -> LogStart {
    let Known {
        floor,
        attested,
        let_go,
        ..
    } = *known;
    if slot <= tail.resume_lsn {
        return LogStart::GoOn;
    }
    if attested.is_none() && tail == Origin::default() && floor.is_none_or(is_beginning) {
        return LogStart::Anew(Origin {
            previous: None,
            resume_lsn: slot,
        });
    }
    let unknown = Some(Checkpoint::new(Lsn(slot.0 - 1), SEQ_LAST));
    let previous = match attested {
        Some(attested) if attested.resume_lsn >= slot => {
            let is_before = attested.previous.is_none_or(|last| last.lsn < slot);
            if is_before {
                attested.previous
            } else {
                unknown
            }
        }
        Some(_) | None => unknown,
    };
    if floor.is_some() && floor < previous && !known.was_done(slot) {
        let anew = before_gap(tail, floor);
        let is_let_go = let_go.is_some_and(|to| slot <= to);
        return if is_let_go {
            LogStart::LetGo(anew)
        } else {
            LogStart::Gap(anew)
        };
    }
    LogStart::Anew(Origin {
        previous: previous.max(tail.previous),
        resume_lsn: slot,
    })
}

/// Decides how the log goes on when `start` would be right but for a hole that nobody has decided on: one
/// that an earlier owner has declared, or a publication that is another one. It is declared in this node's
/// log too, after what every consumer has got, and nothing is read before somebody accepts it.
#[must_use]
pub fn at_hole(start: LogStart, tail: Origin, floor: Option<Checkpoint>) -> LogStart {
    let before = before_gap(tail, floor);
    LogStart::Gap(match start {
        LogStart::GoOn => before,
        LogStart::Anew(origin) => before.or(Some(origin)),
        LogStart::Gap(anew) | LogStart::LetGo(anew) => anew,
    })
}

/// Returns where a log that ends before the least cursor must be started anew before a gap is
/// declared in it, so that the gap comes after what every consumer has got.
#[must_use]
pub fn before_gap(tail: Origin, floor: Option<Checkpoint>) -> Option<Origin> {
    let cursor = floor.filter(|_| tail.previous < floor)?;
    // A cursor at a declared gap: the next one must not have its place.
    let after = if cursor.seq == SEQ_LAST {
        Lsn(cursor.lsn.0.saturating_add(1))
    } else {
        cursor.lsn
    };
    Some(Origin {
        previous: floor,
        resume_lsn: after.max(tail.resume_lsn),
    })
}

fn is_beginning(cursor: Checkpoint) -> bool {
    cursor == Checkpoint::default()
}

#[cfg(test)]
mod tests;

//! Who has which message of a subscription, and how far everything is acknowledged.
//!
//! Owns the parcels that were taken from the log and are not fully acknowledged, the queue of what
//! must be delivered again, and the books of the connected sessions. Never reads the log, never sends
//! and has no clock: time comes in as the duration since any fixed moment.
//!
//! # Invariants
//!
//! - Every entry that was admitted is done, held by a session, or queued: nothing is lost.
//! - Only an entry that was sent back, timed out or lost its session is delivered again.
//! - The floor never falls and never passes an entry that is not acknowledged.
//! - Memory is bounded by what sessions may hold: fully acknowledged parcels keep no bytes and
//!   neighbours of them become one.

mod books;
mod parcel;
mod position;
mod redelivery;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use books::Books;
use parcel::{Owner, Parcel};
pub use parcel::{ParcelBody, Slot};
pub use position::{Position, before};
pub use redelivery::{REQUEUE_DELAY_MAX, REQUEUE_DELAY_MIN};
pub use types::{ALL_ROWS, Ack, AckKind, Applied, Part, Room, SessionId, Terms, UnknownCheckpoint};

use crate::{checkpoint::Checkpoint, lsn::PgTime};

/// Acknowledged bytes that parcels may keep beside open ones before they are copied small.
const SLACK_BYTES: usize = 4 << 20;

/// The acknowledgements of one subscription.
#[derive(Debug)]
pub struct Ledger {
    is_ordered: bool,
    /// Everything up to here is done; the exact floor may lie later, in the first parcel.
    floor: Checkpoint,
    /// Commit time of the newest transaction at the floor; zero when unknown.
    floor_time: PgTime,
    /// Last entry that was taken from the log.
    admitted: Checkpoint,
    /// What lies between the two, by first position, without holes.
    spans: BTreeMap<Checkpoint, Span>,
    /// What is delivered again, and when.
    requeued: BTreeSet<(Duration, Checkpoint)>,
    /// In order, nothing is delivered again before this.
    ordered_pause_until: Duration,
    sessions: BTreeMap<SessionId, Books>,
    /// Acknowledged above the floor by an earlier life.
    restored: Vec<(Checkpoint, Checkpoint)>,
    open_count: usize,
    open_bytes: usize,
    retained_bytes: usize,
    shrink_above: usize,
}

#[derive(Debug)]
enum Span {
    Open(Parcel),
    Done {
        last: Checkpoint,
        commit_time: PgTime,
    },
}

impl Ledger {
    /// Starts where an earlier life of the subscription ended.
    #[must_use]
    pub fn restore(position: Position, is_ordered: bool) -> Self {
        Self {
            is_ordered,
            floor: position.floor,
            floor_time: PgTime(0),
            admitted: position.floor,
            spans: BTreeMap::new(),
            requeued: BTreeSet::new(),
            ordered_pause_until: Duration::ZERO,
            sessions: BTreeMap::new(),
            restored: position.acked_above,
            open_count: 0,
            open_bytes: 0,
            retained_bytes: 0,
            shrink_above: SLACK_BYTES,
        }
    }

    /// Opens the books of a session.
    pub fn join(&mut self, session: SessionId, terms: Terms) {
        let books = Books {
            terms,
            unacked: 0,
            bytes: 0,
            held: BTreeMap::new(),
            hint: 0,
        };
        self.sessions.insert(session, books);
    }

    /// Tells whether the session is the one that is served now. In shared mode all are.
    #[must_use]
    pub fn is_active(&self, session: SessionId) -> bool {
        !self.is_ordered || self.sessions.keys().next() == Some(&session)
    }

    /// Returns how much more the session may get, `bytes_max` being its share of the node's memory.
    #[must_use]
    pub fn room(&self, session: SessionId, bytes_max: usize) -> Room {
        self.sessions.get(&session).map_or(
            Room {
                messages: 0,
                bytes: 0,
            },
            |books| Room {
                messages: books.terms.unacked_max.saturating_sub(books.unacked),
                bytes: bytes_max.saturating_sub(books.bytes),
            },
        )
    }

    /// Records that the next part of the log went to a session. Parts come in the order of the log.
    pub fn admit(&mut self, session: SessionId, part: Part, now: Duration) {
        debug_assert!(part.first > self.admitted, "the log is read in order");
        self.admitted = part.last;
        self.restored.retain(|(_, last)| *last > part.last);
        let key = part.first;
        if part.body.slots.is_empty() {
            let done = Span::Done {
                last: part.last,
                commit_time: part.commit_time,
            };
            self.spans.insert(key, done);
            self.settle(key);
            return;
        }
        let mut parcel = Parcel::new(part.body, part.last, part.commit_time, session);
        parcel.is_compacted = part.has_restored;
        self.open_count += parcel.open_count;
        self.open_bytes += parcel.open_bytes;
        self.retained_bytes += parcel.body.bytes.len();
        if let Some(books) = self.sessions.get_mut(&session) {
            books.take(key, parcel.open_count, parcel.open_bytes, now);
        } else {
            debug_assert!(false, "a session joins before it gets anything");
        }
        self.spans.insert(key, Span::Open(parcel));
        self.shrink_if_needed();
    }

    /// Applies acknowledgements of one session, in order.
    ///
    /// # Errors
    ///
    /// [`UnknownCheckpoint`] at the first one that names what was never delivered; those before
    /// it count.
    pub fn apply(
        &mut self,
        session: SessionId,
        acks: &[Ack],
        now: Duration,
    ) -> Result<Applied, UnknownCheckpoint> {
        let mut applied = Applied::default();
        for ack in acks {
            match ack.kind {
                AckKind::Done => self.finish(session, ack.checkpoint, &mut applied)?,
                AckKind::UpTo | AckKind::UpToRow(_) => {
                    self.finish_up_to(session, ack.checkpoint, &mut applied)?;
                }
                AckKind::Requeue => {
                    applied.requeued_count += self.requeue(session, ack.checkpoint, now)?;
                }
            }
        }
        Ok(applied)
    }

    /// Messages that are not acknowledged.
    #[must_use]
    pub const fn open_count(&self) -> usize {
        self.open_count
    }

    /// Messages that the session has not answered.
    #[must_use]
    pub fn unacked(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |books| books.unacked)
    }

    /// Bytes of rows that are kept in memory until they are acknowledged.
    #[must_use]
    pub const fn retained_bytes(&self) -> usize {
        self.retained_bytes
    }

    /// Commit time of the newest transaction that is wholly done; zero when unknown.
    #[must_use]
    pub const fn floor_time(&self) -> PgTime {
        self.floor_time
    }

    /// Returns the first message that is not acknowledged.
    #[must_use]
    pub fn first_open(&self) -> Option<Checkpoint> {
        // Done spans at the front have become the floor: the first one is open.
        let Some(Span::Open(parcel)) = self.spans.values().next() else {
            return None;
        };
        let pairs = parcel.marks.iter().zip(&parcel.body.slots);
        let mut open = pairs.filter(|(mark, _)| mark.owner != Owner::Done);
        open.next().map(|(_, slot)| slot.checkpoint)
    }

    /// Last entry that was taken from the log.
    #[must_use]
    pub const fn admitted(&self) -> Checkpoint {
        self.admitted
    }

    fn finish(
        &mut self,
        session: SessionId,
        checkpoint: Checkpoint,
        applied: &mut Applied,
    ) -> Result<(), UnknownCheckpoint> {
        let hint = self.sessions.get(&session).map_or(0, |books| books.hint);
        match find_open(&mut self.spans, checkpoint, hint) {
            Some((key, _, index)) => {
                if let Some(books) = self.sessions.get_mut(&session) {
                    books.hint = index + 1;
                }
                if self.finish_slot(key, index) {
                    applied.acked_count += 1;
                } else {
                    applied.repeated_count += 1;
                }
                Ok(())
            }
            None => {
                if !self.is_past(checkpoint) {
                    return Err(UnknownCheckpoint(checkpoint));
                }
                applied.repeated_count += 1;
                Ok(())
            }
        }
    }

    fn finish_up_to(
        &mut self,
        session: SessionId,
        checkpoint: Checkpoint,
        applied: &mut Applied,
    ) -> Result<(), UnknownCheckpoint> {
        if checkpoint > self.admitted {
            return Err(UnknownCheckpoint(checkpoint));
        }
        let Some(books) = self.sessions.get(&session) else {
            return Ok(());
        };
        let keys: Vec<Checkpoint> = books.held.range(..=checkpoint).map(|(k, _)| *k).collect();
        let acked_before = applied.acked_count;
        for key in keys {
            for index in self.held_slots(key, session, |slot| slot <= checkpoint) {
                applied.acked_count += u64::from(self.finish_slot(key, index));
            }
        }
        applied.repeated_count += u64::from(applied.acked_count == acked_before);
        Ok(())
    }

    /// Tells whether the checkpoint lies where everything is done.
    fn is_past(&self, checkpoint: Checkpoint) -> bool {
        if checkpoint > self.admitted {
            return false;
        }
        match self.spans.range(..=checkpoint).next_back() {
            // What was left out of a parcel copied small was done before.
            Some((_, Span::Open(parcel))) => checkpoint > parcel.last || parcel.is_compacted,
            Some((_, Span::Done { .. })) | None => true,
        }
    }

    /// Slots of a parcel that the session holds and that are selected.
    fn held_slots(
        &self,
        key: Checkpoint,
        session: SessionId,
        is_selected: impl Fn(Checkpoint) -> bool,
    ) -> Vec<usize> {
        let Some(Span::Open(parcel)) = self.spans.get(&key) else {
            return Vec::new();
        };
        let pairs = parcel.marks.iter().zip(&parcel.body.slots).enumerate();
        pairs
            .filter(|(_, (mark, slot))| {
                mark.owner == Owner::Session(session) && is_selected(slot.checkpoint)
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Marks a slot as done; tells whether it was not before.
    #[inline]
    fn finish_slot(&mut self, key: Checkpoint, index: usize) -> bool {
        let Some(Span::Open(parcel)) = self.spans.get_mut(&key) else {
            return false;
        };
        let Some((owner, length)) = parcel.finish(index) else {
            return false;
        };
        self.open_count -= 1;
        self.open_bytes -= length;
        if let Owner::Session(owner) = owner
            && let Some(books) = self.sessions.get_mut(&owner)
        {
            books.give(key, length);
        }
        if parcel.open_count == 0 {
            self.retained_bytes -= parcel.body.bytes.len();
            let done = Span::Done {
                last: parcel.last,
                commit_time: parcel.commit_time,
            };
            self.spans.insert(key, done);
            self.settle(key);
        }
        true
    }

    /// Joins a done span with done neighbours; at the front it becomes the floor.
    fn settle(&mut self, key: Checkpoint) {
        let Some(Span::Done {
            mut last,
            mut commit_time,
        }) = self.spans.remove(&key)
        else {
            debug_assert!(false, "only done spans settle");
            return;
        };
        let next = self.spans.range(key..).next();
        if let Some((
            &next_key,
            Span::Done {
                last: end,
                commit_time: time,
            },
        )) = next
        {
            (last, commit_time) = (*end, *time);
            self.spans.remove(&next_key);
        }
        match self.spans.range_mut(..key).next_back() {
            None => {
                self.floor = last;
                self.floor_time = self.floor_time.max(commit_time);
            }
            Some((
                _,
                Span::Done {
                    last: end,
                    commit_time: time,
                },
            )) => (*end, *time) = (last, commit_time),
            Some((_, Span::Open(_))) => {
                self.spans.insert(key, Span::Done { last, commit_time });
            }
        }
    }

    /// Copies parcels small once they keep much more than is open. The threshold then follows what
    /// is left, so that the work stays in proportion.
    fn shrink_if_needed(&mut self) {
        if self.retained_bytes <= self.shrink_above {
            return;
        }
        let mut retained = 0;
        for span in self.spans.values_mut() {
            if let Span::Open(parcel) = span {
                parcel.shrink();
                retained += parcel.body.bytes.len();
            }
        }
        self.retained_bytes = retained;
        self.shrink_above = 2 * retained + SLACK_BYTES;
    }
}

fn find_open(
    spans: &mut BTreeMap<Checkpoint, Span>,
    checkpoint: Checkpoint,
    hint: usize,
) -> Option<(Checkpoint, &mut Parcel, usize)> {
    let (key, span) = spans.range_mut(..=checkpoint).next_back()?;
    match span {
        Span::Open(parcel) if checkpoint <= parcel.last => {
            let index = parcel.find(checkpoint, hint)?;
            Some((*key, parcel, index))
        }
        Span::Open(_) | Span::Done { .. } => None,
    }
}

#[cfg(test)]
mod tests;

//! What must be delivered again: sent back, timed out, or left by a session that ended.

use std::{sync::Arc, time::Duration};

use super::{Ledger, Owner, ParcelBody, Room, SessionId, Slot, Span, UnknownCheckpoint, find_open};
use crate::checkpoint::Checkpoint;

/// First pause before a message that was sent back is delivered again; it doubles each time.
pub const REQUEUE_DELAY_MIN: Duration = Duration::from_millis(100);

/// The pause grows no further: a consumer that recovers is served within half a minute.
pub const REQUEUE_DELAY_MAX: Duration = Duration::from_secs(30);

impl Ledger {
    /// Closes the books of a session; what it held is delivered again at once. Returns how much
    /// that is. The second call does nothing.
    pub fn release(&mut self, session: SessionId, now: Duration) -> u64 {
        let Some(books) = self.sessions.remove(&session) else {
            return 0;
        };
        let mut released = 0;
        for key in books.held.keys() {
            released += self.queue_held(*key, session, Checkpoint::default(), now);
        }
        released
    }

    /// Takes what is due to be delivered again, at most what fits; it is the session's from now on.
    pub fn take_requeued(
        &mut self,
        session: SessionId,
        room: Room,
        now: Duration,
    ) -> Vec<(Arc<ParcelBody>, Slot)> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < room.messages && bytes < room.bytes {
            if self.next_due().is_none_or(|due| due > now) {
                break;
            }
            let Some((_, checkpoint)) = self.requeued.pop_first() else {
                break;
            };
            let Some((key, parcel, index)) = find_open(&mut self.spans, checkpoint, 0) else {
                continue;
            };
            let (Some(mark), Some(slot)) =
                (parcel.marks.get_mut(index), parcel.body.slots.get(index))
            else {
                continue;
            };
            // Acknowledged late, while it waited.
            if mark.owner != Owner::Queued {
                continue;
            }
            mark.owner = Owner::Session(session);
            let length = slot.length as usize;
            bytes += length;
            taken.push((Arc::clone(&parcel.body), *slot));
            if let Some(books) = self.sessions.get_mut(&session) {
                books.take(key, 1, length, now);
            }
        }
        taken
    }

    /// Returns when the next message is due to be delivered again.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let (due, _) = self.requeued.first()?;
        Some(if self.is_ordered {
            self.ordered_pause_until
        } else {
            *due
        })
    }

    /// Returns the first message that waits to be delivered again, in order.
    #[must_use]
    pub fn rewound_to(&self) -> Option<Checkpoint> {
        let first = self.is_ordered.then(|| self.requeued.first())?;
        first.map(|(_, checkpoint)| *checkpoint)
    }

    /// Tells whether new entries must wait, so that order is kept, for older ones to be delivered
    /// again.
    #[must_use]
    pub fn is_rewinding(&self) -> bool {
        self.is_ordered && !self.requeued.is_empty()
    }

    /// Queues what the session has left unanswered for longer than its terms allow. Returns how
    /// much that is.
    pub fn expire(&mut self, session: SessionId, now: Duration) -> u64 {
        let Some(books) = self.sessions.get(&session) else {
            return 0;
        };
        let Some(timeout) = books.terms.ack_timeout else {
            return 0;
        };
        let overdue = books
            .held
            .iter()
            .filter(|(_, held)| held.since + timeout <= now)
            .map(|(key, _)| *key);
        let keys: Vec<Checkpoint> = if self.is_ordered {
            // In order, everything behind the first overdue one comes again after it.
            let first = overdue.min();
            let all = books.held.keys().copied();
            all.filter(|key| first.is_some_and(|first| *key >= first))
                .collect()
        } else {
            overdue.collect()
        };
        keys.into_iter()
            .map(|key| self.queue_held(key, session, Checkpoint::default(), now))
            .sum()
    }

    /// Queues one message; in order, also what the session got after it.
    pub(super) fn requeue(
        &mut self,
        session: SessionId,
        checkpoint: Checkpoint,
        now: Duration,
    ) -> Result<u64, UnknownCheckpoint> {
        let Some((key, parcel, index)) = find_open(&mut self.spans, checkpoint, 0) else {
            return if self.is_past(checkpoint) {
                Ok(0)
            } else {
                Err(UnknownCheckpoint(checkpoint))
            };
        };
        let Some(mark) = parcel.marks.get_mut(index) else {
            return Ok(0);
        };
        if mark.owner != Owner::Session(session) {
            return Ok(0);
        }
        let delay = requeue_delay(mark.requeue_count);
        mark.requeue_count = mark.requeue_count.saturating_add(1);
        if !self.is_ordered {
            return Ok(self.queue_slot(key, index, now + delay));
        }
        // In order, everything behind it comes again after it.
        self.ordered_pause_until = self.ordered_pause_until.max(now + delay);
        let keys: Vec<Checkpoint> = self
            .sessions
            .get(&session)
            .map(|books| books.held.range(key..).map(|(key, _)| *key).collect())
            .unwrap_or_default();
        Ok(keys
            .into_iter()
            .map(|key| self.queue_held(key, session, checkpoint, now))
            .sum())
    }

    /// Queues what the session holds of a parcel, from `from` on.
    fn queue_held(
        &mut self,
        key: Checkpoint,
        session: SessionId,
        from: Checkpoint,
        due: Duration,
    ) -> u64 {
        self.held_slots(key, session, |checkpoint| checkpoint >= from)
            .into_iter()
            .map(|index| self.queue_slot(key, index, due))
            .sum()
    }

    /// Takes a slot from its session and queues it.
    fn queue_slot(&mut self, key: Checkpoint, index: usize, due: Duration) -> u64 {
        let Some(Span::Open(parcel)) = self.spans.get_mut(&key) else {
            return 0;
        };
        let (Some(mark), Some(slot)) = (parcel.marks.get_mut(index), parcel.body.slots.get(index))
        else {
            return 0;
        };
        let Owner::Session(owner) = std::mem::replace(&mut mark.owner, Owner::Queued) else {
            debug_assert!(false, "only what a session holds is queued");
            return 0;
        };
        if let Some(books) = self.sessions.get_mut(&owner) {
            books.give(key, slot.length as usize);
        }
        let due = if self.is_ordered { Duration::ZERO } else { due };
        self.requeued.insert((due, slot.checkpoint));
        1
    }
}

fn requeue_delay(requeue_count: u8) -> Duration {
    let factor = 1_u32
        .checked_shl(u32::from(requeue_count))
        .unwrap_or(u32::MAX);
    REQUEUE_DELAY_MIN
        .saturating_mul(factor)
        .min(REQUEUE_DELAY_MAX)
}

//! A part of the log that was handed to sessions and is not acknowledged as a whole yet.
//!
//! The immutable part, the rows, is shared with the session that encodes it; the marks belong to
//! the ledger. Keeps no more memory than its open entries deserve: it is copied small once most of it
//! is done.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::SessionId;
use crate::{checkpoint::Checkpoint, lsn::PgTime};

/// A parcel is copied small when less than one of this many bytes is still needed. Each copy at
/// least quarters what is kept, so that all copies together cost less than one pass.
const COMPACT_BELOW_ONE_IN: usize = 4;

/// Smaller parcels are not worth a copy.
const COMPACT_BYTES_MIN: usize = 16 * 1024;

/// One deliverable entry and where its payload lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Position of the entry.
    pub checkpoint: Checkpoint,
    /// Commit time of its transaction; zero when unknown.
    pub commit_time: PgTime,
    /// Where its payload begins.
    pub offset: u32,
    /// Length of its payload.
    pub length: u32,
}

/// The rows of a parcel.
#[derive(Clone, Debug)]
pub struct ParcelBody {
    /// The memory that all payloads lie in.
    pub bytes: Bytes,
    /// Deliverable entries in checkpoint order.
    pub slots: Vec<Slot>,
}

impl ParcelBody {
    /// Returns the encoded `pgcapture.Message` of a slot; empty when the slot is not of this body.
    #[must_use]
    #[inline]
    pub fn payload(&self, slot: &Slot) -> &[u8] {
        let start = slot.offset as usize;
        self.bytes
            .get(start..start + slot.length as usize)
            .unwrap_or_default()
    }

    /// Leaves out the slots behind `end`.
    #[must_use]
    pub fn truncated(mut self, end: Checkpoint) -> Self {
        self.slots.retain(|slot| slot.checkpoint <= end);
        self
    }

    /// Copies the selected slots, by index, into memory of their own.
    #[must_use]
    pub fn compact(&self, is_kept: impl Fn(usize) -> bool) -> Self {
        let kept = || {
            let all = self.slots.iter().enumerate();
            all.filter(|(index, _)| is_kept(*index))
                .map(|(_, slot)| slot)
        };
        let mut bytes = BytesMut::with_capacity(kept().map(|slot| slot.length as usize).sum());
        let mut slots = Vec::with_capacity(kept().count());
        for slot in kept() {
            slots.push(Slot {
                offset: u32::try_from(bytes.len()).expect("smaller than what it is copied from"),
                ..*slot
            });
            bytes.extend_from_slice(self.payload(slot));
        }
        Self {
            bytes: bytes.freeze(),
            slots,
        }
    }
}

/// Who has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody; it waits to be delivered again.
    Queued,
    /// This session got it and has not answered.
    Session(SessionId),
    /// Acknowledged.
    Done,
}

/// Where one entry stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) owner: Owner,
    /// Times it was sent back with a reason.
    pub(super) requeue_count: u8,
}

/// A parcel with open entries.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) body: Arc<ParcelBody>,
    pub(super) marks: Vec<Mark>,
    /// Last position it stands for, filtered entries included.
    pub(super) last: Checkpoint,
    /// Commit time of the newest transaction in it.
    pub(super) commit_time: PgTime,
    /// Entries that are not done.
    pub(super) open_count: usize,
    /// Payload bytes of those.
    pub(super) open_bytes: usize,
    /// Whether done entries were left out of the body.
    pub(super) is_compacted: bool,
}

impl Parcel {
    pub(super) fn new(
        body: Arc<ParcelBody>,
        last: Checkpoint,
        commit_time: PgTime,
        session: SessionId,
    ) -> Self {
        let open_bytes = body.slots.iter().map(|slot| slot.length as usize).sum();
        let mark = Mark {
            owner: Owner::Session(session),
            requeue_count: 0,
        };
        Self {
            marks: vec![mark; body.slots.len()],
            open_count: body.slots.len(),
            open_bytes,
            body,
            last,
            commit_time,
            is_compacted: false,
        }
    }

    /// Finds the slot of `checkpoint`, trying `hint` first: consumers mostly answer in order.
    #[inline]
    pub(super) fn find(&self, checkpoint: Checkpoint, hint: usize) -> Option<usize> {
        let slots = &self.body.slots;
        if slots
            .get(hint)
            .is_some_and(|slot| slot.checkpoint == checkpoint)
        {
            return Some(hint);
        }
        slots
            .binary_search_by_key(&checkpoint, |slot| slot.checkpoint)
            .ok()
    }

    /// Marks an entry as done. Returns who had it and its bytes, `None` if it was done before.
    #[inline]
    pub(super) fn finish(&mut self, index: usize) -> Option<(Owner, usize)> {
        let mark = self.marks.get_mut(index)?;
        let before = std::mem::replace(&mut mark.owner, Owner::Done);
        if before == Owner::Done {
            return None;
        }
        let length = self.body.slots.get(index)?.length as usize;
        self.open_count -= 1;
        self.open_bytes -= length;
        Some((before, length))
    }

    /// Lets go of memory that only done entries need.
    pub(super) fn shrink(&mut self) {
        let held = self.body.bytes.len();
        let is_worth_it =
            held >= COMPACT_BYTES_MIN && self.open_bytes < held / COMPACT_BELOW_ONE_IN;
        if !is_worth_it {
            return;
        }
        let is_open = |index: usize| {
            let mark = self.marks.get(index);
            mark.is_some_and(|mark| mark.owner != Owner::Done)
        };
        self.body = Arc::new(self.body.compact(is_open));
        self.marks.retain(|mark| mark.owner != Owner::Done);
        self.is_compacted = true;
    }
}

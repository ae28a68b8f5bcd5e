//! Remembers what was acknowledged, so that a redelivery of it is not shown again.
//!
//! Owns the newest acknowledged checkpoints. Bounded: what falls out of the window may be
//! delivered twice, which at-least-once allows. Never remembers rows of dumps, whose
//! checkpoints are shared by a whole range.
//!
//! A gateway that lost acknowledgements may read existing rows at a position that this process has
//! passed already. The changes behind them come again and must be shown, or the older row would stay:
//! what lies behind an existing row's place in its session is forgotten when the row arrives.

use std::collections::{HashSet, VecDeque};

use crate::checkpoint::Checkpoint;

/// Acknowledged checkpoints that are remembered: several times what a gateway keeps in flight,
/// about 3 MiB.
pub(crate) const DEDUP_WINDOW: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Acknowledged {
    known: HashSet<(u64, u32)>,
    order: VecDeque<(u64, u32)>,
    limit: usize,
    /// At least the highest that is known.
    highest: (u64, u32),
    /// The newest session that brought an existing row.
    rows_since: u64,
}

impl Acknowledged {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            known: HashSet::new(),
            order: VecDeque::new(),
            limit,
            highest: (0, 0),
            rows_since: 0,
        }
    }

    /// Remembers what was acknowledged in a session; sessions are counted from 1.
    pub(crate) fn insert(&mut self, checkpoint: &Checkpoint, session: u64) {
        let key = key_of(checkpoint);
        // An older session's change may have been dealt with before the row that overwrote it.
        let is_late = session < self.rows_since;
        if checkpoint.is_dump() || is_late || !self.known.insert(key) {
            return;
        }
        self.highest = self.highest.max(key);
        self.order.push_back(key);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// An existing row arrived in a session that had come to this change, or to none.
    pub(crate) fn forget_behind(&mut self, last: Option<&Checkpoint>, session: u64) {
        self.rows_since = self.rows_since.max(session);
        let last = last.map_or((0, 0), key_of);
        if self.highest > last {
            self.known.retain(|key| *key <= last);
            self.order.retain(|key| *key <= last);
            self.highest = last;
        }
    }

    pub(crate) fn contains(&self, checkpoint: &Checkpoint) -> bool {
        self.known.contains(&key_of(checkpoint))
    }
}

fn key_of(checkpoint: &Checkpoint) -> (u64, u32) {
    (checkpoint.lsn().get(), checkpoint.seq())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::lsn::Lsn;

    fn at(lsn: u64, seq: u32) -> Checkpoint {
        Checkpoint::new(Lsn::new(lsn), seq, Bytes::new())
    }

    #[test]
    fn the_window_forgets_the_oldest() {
        let mut acknowledged = Acknowledged::new(2);
        for seq in 1..=3 {
            acknowledged.insert(&at(9, seq), 1);
            acknowledged.insert(&at(9, seq), 1);
        }
        assert!(!acknowledged.contains(&at(9, 1)));
        assert!(acknowledged.contains(&at(9, 2)) && acknowledged.contains(&at(9, 3)));
        assert_eq!(acknowledged.known.len(), 2);
    }

    #[test]
    fn rows_of_a_dump_are_never_taken_for_repeated() {
        let mut acknowledged = Acknowledged::new(2);
        acknowledged.insert(&at(0, 1), 1);
        assert!(!acknowledged.contains(&at(0, 1)));
    }

    #[test]
    fn behind_an_existing_row_nothing_is_known_any_more() {
        let mut acknowledged = Acknowledged::new(9);
        for seq in 1..=3 {
            acknowledged.insert(&at(9, seq), 1);
        }
        // The next session delivers 1 again and then a row.
        acknowledged.forget_behind(Some(&at(9, 1)), 2);
        assert!(acknowledged.contains(&at(9, 1)));
        assert!(!acknowledged.contains(&at(9, 2)) && !acknowledged.contains(&at(9, 3)));
        acknowledged.insert(&at(9, 2), 1);
        assert!(
            !acknowledged.contains(&at(9, 2)),
            "said before the row came"
        );
        acknowledged.insert(&at(9, 2), 2);
        assert!(acknowledged.contains(&at(9, 2)));
        acknowledged.forget_behind(None, 3);
        assert!(acknowledged.known.is_empty() && acknowledged.order.is_empty());
    }
}

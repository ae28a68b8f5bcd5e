//! Remembers what was acknowledged, so that a redelivery of it is not shown again.
//!
//! Owns the newest acknowledged checkpoints. Bounded: what falls out of the window may be
//! delivered twice, which at-least-once allows. Never remembers rows of dumps, whose
//! checkpoints are shared by a whole range.

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
}

impl Acknowledged {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            known: HashSet::new(),
            order: VecDeque::new(),
            limit,
        }
    }

    pub(crate) fn insert(&mut self, checkpoint: &Checkpoint) {
        let key = (checkpoint.lsn().get(), checkpoint.seq());
        if checkpoint.is_dump() || !self.known.insert(key) {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    pub(crate) fn contains(&self, checkpoint: &Checkpoint) -> bool {
        self.known
            .contains(&(checkpoint.lsn().get(), checkpoint.seq()))
    }
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
            acknowledged.insert(&at(9, seq));
            acknowledged.insert(&at(9, seq));
        }
        assert!(!acknowledged.contains(&at(9, 1)));
        assert!(acknowledged.contains(&at(9, 2)) && acknowledged.contains(&at(9, 3)));
        assert_eq!(acknowledged.known.len(), 2);
    }

    #[test]
    fn rows_of_a_dump_are_never_taken_for_repeated() {
        let mut acknowledged = Acknowledged::new(2);
        acknowledged.insert(&at(0, 1));
        assert!(!acknowledged.contains(&at(0, 1)));
    }
}

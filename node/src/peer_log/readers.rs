//! How far readers on other nodes have come, as their credits tell.
//!
//! Where the slot is the durable truth, it may not be let go beyond what a reader elsewhere has taken:
//! with the node gone, the next owner must be able to decode that again. A reader without a
//! subscription counts for as long as it reads; nothing of it is agreed on.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pgcapture_engine::checkpoint::Checkpoint;
use tokio::sync::watch;

use super::credit::charge;

/// Readers on other nodes, by source. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RemoteReaders {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    places: Mutex<BTreeMap<(String, u64), Checkpoint>>,
    moves: watch::Sender<u64>,
}

/// The place of one reader. Its drop forgets it.
#[derive(Debug)]
pub struct ReaderPlace {
    inner: Arc<Inner>,
    key: (String, u64),
    sent: Sent,
}

/// What was sent and is not known to be taken: the last entry and the charge of each batch.
#[derive(Debug, Default)]
struct Sent {
    batches: VecDeque<(Checkpoint, u64)>,
    /// Taken of the first of them.
    credit: u64,
}

impl RemoteReaders {
    /// Takes in a reader that has everything up to `at`.
    #[must_use]
    pub fn enter(&self, source: &str, at: Checkpoint) -> ReaderPlace {
        let mut places = self.inner.places();
        let of_source = (source.to_owned(), 0)..=(source.to_owned(), u64::MAX);
        let last = places.range(of_source).next_back();
        let number = last.map_or(0, |((_, number), _)| number.saturating_add(1));
        let key = (source.to_owned(), number);
        places.insert(key.clone(), at);
        drop(places);
        self.inner.has_moved();
        ReaderPlace {
            inner: Arc::clone(&self.inner),
            key,
            sent: Sent::default(),
        }
    }

    /// Returns what every reader of a source has taken; `None` when there is none.
    #[must_use]
    pub fn floor(&self, source: &str) -> Option<Checkpoint> {
        let of_source = (source.to_owned(), 0)..=(source.to_owned(), u64::MAX);
        let places = self.inner.places();
        places.range(of_source).map(|(_, at)| *at).min()
    }

    /// Watches a number that grows whenever a reader has moved.
    #[must_use]
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.inner.moves.subscribe()
    }
}

impl Inner {
    fn has_moved(&self) {
        self.moves.send_modify(|number| *number += 1);
    }

    /// A panic under the lock leaves the map as it was: go on.
    fn places(&self) -> MutexGuard<'_, BTreeMap<(String, u64), Checkpoint>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReaderPlace {
    /// Returns the last entry that was sent, or where the reader began.
    #[must_use]
    pub fn at(&self) -> Checkpoint {
        let sent = self.sent.batches.back().map(|(last, _)| *last);
        sent.unwrap_or_else(|| {
            let places = self.inner.places();
            places.get(&self.key).copied().unwrap_or_default()
        })
    }

    /// Records that a batch of that length, which ends with this entry, is on its way.
    pub fn sent(&mut self, last: Checkpoint, length: usize) {
        self.sent.batches.push_back((last, charge(length)));
    }

    /// Records that the reader has taken so much.
    pub fn credited(&mut self, bytes: u64) {
        let Some(at) = self.sent.credited(bytes) else {
            return;
        };
        self.inner.places().insert(self.key.clone(), at);
        self.inner.has_moved();
    }
}

impl Sent {
    /// Returns the last entry of the last batch that was taken whole.
    fn credited(&mut self, bytes: u64) -> Option<Checkpoint> {
        self.credit = self.credit.saturating_add(bytes);
        let mut taken = None;
        while let Some((last, charge)) = self.batches.front().copied() {
            if charge > self.credit {
                break;
            }
            self.credit -= charge;
            self.batches.pop_front();
            taken = Some(last);
        }
        if self.batches.is_empty() {
            self.credit = 0;
        }
        taken
    }
}

impl Drop for ReaderPlace {
    fn drop(&mut self) {
        self.inner.places().remove(&self.key);
        self.inner.has_moved();
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_engine::lsn::Lsn;

    use super::*;

    const fn at(lsn: u64) -> Checkpoint {
        Checkpoint::new(Lsn(lsn), 1)
    }

    #[test]
    fn the_slowest_reader_counts_until_it_leaves() {
        let readers = RemoteReaders::default();
        let moves = readers.moves();
        assert_eq!(readers.floor("shop"), None);
        let mut slow = readers.enter("shop", at(1));
        let mut fast = readers.enter("shop", at(5));
        let _other = readers.enter("shop2", at(0));
        assert_eq!(readers.floor("shop"), Some(at(1)));
        slow.sent(at(7), 10_000);
        slow.sent(at(8), 10_000);
        slow.credited(15_000);
        assert_eq!(readers.floor("shop"), Some(at(5)), "the first is taken");
        fast.sent(at(9), 1);
        fast.credited(charge(1));
        assert_eq!(readers.floor("shop"), Some(at(7)));
        drop(slow);
        assert_eq!(readers.floor("shop"), Some(at(9)));
        drop(fast);
        assert_eq!(readers.floor("shop"), None);
        assert!(moves.has_changed().unwrap());
    }

    #[test]
    fn credit_for_more_than_was_sent_counts_for_nothing_later() {
        let mut sent = Sent::default();
        assert_eq!(sent.credited(1 << 20), None);
        sent.batches.push_back((at(3), 4_096));
        assert_eq!(sent.credited(4_095), None);
        assert_eq!(sent.credited(1), Some(at(3)));
    }
}

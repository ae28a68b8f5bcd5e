//! What one session holds: counts, bytes and since when.

use std::{collections::BTreeMap, time::Duration};

use super::Terms;
use crate::checkpoint::Checkpoint;

/// What one session holds.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) terms: Terms,
    pub(super) unacked: usize,
    pub(super) bytes: usize,
    /// Entries held in each parcel, and since when.
    pub(super) held: BTreeMap<Checkpoint, Held>,
    /// Slot that is expected to be answered next.
    pub(super) hint: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) count: usize,
    pub(super) since: Duration,
}

impl Books {
    pub(super) fn take(&mut self, key: Checkpoint, count: usize, bytes: usize, now: Duration) {
        self.unacked += count;
        self.bytes += bytes;
        let held = self.held.entry(key).or_insert(Held {
            count: 0,
            since: now,
        });
        held.count += count;
        held.since = now;
    }

    pub(super) fn give(&mut self, key: Checkpoint, bytes: usize) {
        self.unacked -= 1;
        self.bytes -= bytes;
        if let Some(held) = self.held.get_mut(&key) {
            held.count -= 1;
            if held.count == 0 {
                self.held.remove(&key);
            }
        }
    }
}

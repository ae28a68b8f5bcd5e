//! Cursors of subscriptions, as every node knows them.
//!
//! Beside the rest of the agreed state, because they move all the time: whoever watches sources need
//! not wake for them. Their minimum over a stream is what every consumer has done with; behind it a
//! slot may let go of WAL.

use std::{
    collections::{BTreeMap, btree_map},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;

/// Runs of a cursor beyond this many are forgotten on save and are delivered again after a
/// restart; a cursor then stays below 32 KiB.
pub const ACKED_RUNS_MAX: usize = 1_000;

/// How far a subscription has acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Everything up to here is acknowledged or filtered out.
    pub floor: Checkpoint,
    /// Runs acknowledged above the floor: first and last, both included, in order; at most
    /// [`ACKED_RUNS_MAX`].
    pub acked_above: Vec<(Checkpoint, Checkpoint)>,
}

/// Name of a subscription: the stream it reads and its own name on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SubscriptionId {
    /// The stream.
    pub stream: String,
    /// The consumer's name; equal to the stream for uris that name only a stream.
    pub consumer: String,
}

/// A change of cursors; never refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CursorCommand {
    /// Overwrites cursors, as far as they may be: those of subscriptions that are at home on the node
    /// that saves, or of any where there is no other node; never back, and of no stream that does not
    /// exist. What a node has kept in memory while it was taken for dead may be old, whatever has
    /// become of the home since.
    Save {
        /// The node that saves.
        by: String,
        /// The cursors.
        cursors: Vec<(SubscriptionId, Cursor)>,
    },
    /// Forgets a subscription. The second time changes nothing.
    Remove(SubscriptionId),
    /// Moves cursors wherever they shall be: the order of an operator. Kept unless the subscription is
    /// at home on another node.
    Seek {
        /// The node that moves them.
        by: String,
        /// The cursors.
        cursors: Vec<(SubscriptionId, Cursor)>,
    },
}

/// The cursors of all subscriptions. A clone shares what did not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CursorTable {
    cursors: BTreeMap<SubscriptionId, Arc<Cursor>>,
}

impl CursorTable {
    /// Applies a command. Runs beyond [`ACKED_RUNS_MAX`] are forgotten.
    pub fn apply(&mut self, command: CursorCommand) {
        match command {
            CursorCommand::Save { cursors, .. } | CursorCommand::Seek { cursors, .. } => {
                for (id, mut cursor) in cursors {
                    cursor.acked_above.truncate(ACKED_RUNS_MAX);
                    self.cursors.insert(id, Arc::new(cursor));
                }
            }
            CursorCommand::Remove(id) => {
                self.cursors.remove(&id);
            }
        }
    }

    /// Forgets every subscription of a stream and returns which they were.
    pub(super) fn remove_stream(&mut self, stream: &str) -> Vec<SubscriptionId> {
        let of_stream = self.of_stream(stream).map(|(id, _)| id.clone());
        let removed: Vec<_> = of_stream.collect();
        for id in &removed {
            self.cursors.remove(id);
        }
        removed
    }

    /// Returns a subscription's cursor.
    #[must_use]
    pub fn get(&self, id: &SubscriptionId) -> Option<&Arc<Cursor>> {
        self.cursors.get(id)
    }

    /// Returns what every subscription of a stream has done with; `None` when it has none.
    #[must_use]
    pub fn floor(&self, stream: &str) -> Option<Checkpoint> {
        let of_stream = self.of_stream(stream);
        of_stream.map(|(_, cursor)| cursor.floor).min()
    }

    /// Tells whether a cursor that is saved now would put its stream behind what all others have done
    /// with: it goes back, or is new.
    #[must_use]
    pub fn falls_back(&self, id: &SubscriptionId, cursor: &Cursor) -> bool {
        match self.cursors.get(id) {
            Some(known) => cursor.floor < known.floor,
            // Most new ones begin at the end; then the first of the others settles it.
            None => !self
                .of_stream(&id.stream)
                .any(|(_, other)| other.floor <= cursor.floor),
        }
    }

    fn of_stream<'a>(
        &'a self,
        stream: &'a str,
    ) -> impl Iterator<Item = (&'a SubscriptionId, &'a Arc<Cursor>)> {
        let first = SubscriptionId {
            stream: stream.to_owned(),
            consumer: String::new(),
        };
        let after = self.cursors.range(first..);
        after.take_while(move |(id, _)| id.stream == stream)
    }

    /// Returns all cursors in the order of their names.
    pub fn iter(&self) -> btree_map::Iter<'_, SubscriptionId, Arc<Cursor>> {
        self.cursors.iter()
    }
}

impl<'a> IntoIterator for &'a CursorTable {
    type Item = (&'a SubscriptionId, &'a Arc<Cursor>);
    type IntoIter = btree_map::Iter<'a, SubscriptionId, Arc<Cursor>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn id(stream: &str, consumer: &str) -> SubscriptionId {
        SubscriptionId {
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
        }
    }

    fn cursor(lsn: u64) -> Cursor {
        Cursor {
            floor: Checkpoint::new(Lsn(lsn), 1),
            acked_above: Vec::new(),
        }
    }

    fn save(cursors: Vec<(SubscriptionId, Cursor)>) -> CursorCommand {
        let by = "n1".to_owned();
        CursorCommand::Save { by, cursors }
    }

    #[test]
    fn the_floor_of_a_stream_is_its_slowest_subscription() {
        let mut table = CursorTable::default();
        table.apply(save(vec![
            (id("orders", "a"), cursor(9)),
            (id("orders", "b"), cursor(5)),
            (id("orders2", "a"), cursor(1)),
            (id("order", "z"), cursor(2)),
        ]));
        let floor = |table: &CursorTable, stream| table.floor(stream).map(|floor| floor.lsn);
        assert_eq!(floor(&table, "orders"), Some(Lsn(5)));
        assert_eq!(floor(&table, "nope"), None);
        table.apply(CursorCommand::Remove(id("orders", "b")));
        table.apply(CursorCommand::Remove(id("orders", "b")));
        assert_eq!(floor(&table, "orders"), Some(Lsn(9)));
    }

    #[test]
    fn runs_beyond_the_bound_are_forgotten() {
        let run = |lsn| (Checkpoint::new(Lsn(lsn), 1), Checkpoint::new(Lsn(lsn), 2));
        let large = Cursor {
            acked_above: (1..=5_000).map(run).collect(),
            ..cursor(0)
        };
        let mut table = CursorTable::default();
        table.apply(save(vec![(id("a", "a"), large)]));
        let kept = table.get(&id("a", "a")).unwrap();
        assert_eq!(kept.acked_above.len(), ACKED_RUNS_MAX);
    }
}

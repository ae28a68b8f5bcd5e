//! The durable form of a ledger: what a new life needs to go on without delivering twice.

use serde::{Deserialize, Serialize};

use super::{Ledger, Owner, Span};
use crate::{checkpoint::Checkpoint, lsn::Lsn};

/// How far a subscription is acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Everything up to here is done.
    pub floor: Checkpoint,
    /// Runs above the floor that are done too: first and last, both included, in order.
    pub acked_above: Vec<(Checkpoint, Checkpoint)>,
}

impl Ledger {
    /// Returns the exact position, with the first `runs_max` runs above the floor.
    #[must_use]
    pub fn position(&self, runs_max: usize) -> Position {
        let mut collector = Collector::default();
        for span in self.spans.values() {
            match span {
                Span::Done { .. } => collector.has_done = true,
                Span::Open(parcel) => {
                    for (mark, slot) in parcel.marks.iter().zip(&parcel.body.slots) {
                        // What was left out of the parcel may lie before each slot that is kept.
                        collector.has_done |= parcel.is_compacted || mark.owner == Owner::Done;
                        if mark.owner != Owner::Done {
                            collector.open(slot.checkpoint, runs_max);
                        }
                    }
                    collector.has_done |= parcel.is_compacted;
                }
            }
        }
        let Collector {
            first_open,
            last_open,
            has_done,
            mut runs,
        } = collector;
        let floor = first_open.map_or(self.admitted, before);
        if let Some(open) = last_open
            && has_done
            && open < self.admitted
        {
            runs.push((after(open), self.admitted));
        }
        let ahead = self
            .restored
            .iter()
            .filter(|(_, last)| *last > self.admitted);
        runs.extend(ahead.map(|(first, last)| ((*first).max(after(self.admitted)), *last)));
        runs.truncate(runs_max);
        Position {
            floor: floor.max(self.floor),
            acked_above: runs,
        }
    }

    /// Returns the runs that an earlier life had acknowledged and that were not read again yet.
    #[must_use]
    pub fn restored_runs(&self) -> &[(Checkpoint, Checkpoint)] {
        &self.restored
    }
}

/// Walks the open slots; what lies between two of them is done if anything there was delivered.
#[derive(Default)]
struct Collector {
    first_open: Option<Checkpoint>,
    last_open: Option<Checkpoint>,
    has_done: bool,
    runs: Vec<(Checkpoint, Checkpoint)>,
}

impl Collector {
    fn open(&mut self, checkpoint: Checkpoint, runs_max: usize) {
        if let Some(previous) = self.last_open
            && self.has_done
            && self.runs.len() < runs_max
            && after(previous) <= before(checkpoint)
        {
            self.runs.push((after(previous), before(checkpoint)));
        }
        self.first_open.get_or_insert(checkpoint);
        self.last_open = Some(checkpoint);
        self.has_done = false;
    }
}

/// Returns the greatest position before `checkpoint`; nothing lies between the two.
#[must_use]
pub const fn before(checkpoint: Checkpoint) -> Checkpoint {
    match (checkpoint.lsn.0, checkpoint.seq) {
        (0, 0) => checkpoint,
        (lsn, 0) => Checkpoint::new(Lsn(lsn - 1), u32::MAX),
        (lsn, seq) => Checkpoint::new(Lsn(lsn), seq - 1),
    }
}

const fn after(checkpoint: Checkpoint) -> Checkpoint {
    match (checkpoint.lsn.0, checkpoint.seq) {
        (lsn, u32::MAX) => Checkpoint::new(Lsn(lsn.saturating_add(1)), 0),
        (lsn, seq) => Checkpoint::new(Lsn(lsn), seq + 1),
    }
}

//! The position of one change: the total order of a source.
//!
//! Ordered by commit LSN, then by the place inside the transaction. Row LSNs and transaction ids
//! are never used for order: both interleave between concurrent transactions.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// The position of one log entry of a source.
///
/// `seq` is 0 for Begin and counts every wire change of the transaction from 1, whatever is
/// filtered, so that decoding the same WAL again yields the same checkpoints. Commit is the last.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Checkpoint {
    /// Commit LSN of the transaction.
    pub lsn: Lsn,
    /// Place inside the transaction.
    pub seq: u32,
}

impl Checkpoint {
    /// Makes a checkpoint.
    #[must_use]
    pub const fn new(lsn: Lsn, seq: u32) -> Self {
        Self { lsn, seq }
    }
}

/// Prints as the key of a Pulsar message does: `16/B374D848|1f`, `seq` in lower-case hexadecimal.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{:x}", self.lsn, self.seq)
    }
}

/// The right to act for a source; only grows. The fencing token of the log and of node messages.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_commit_then_by_place() {
        let first = Checkpoint::new(Lsn(1), 9);
        let second = Checkpoint::new(Lsn(2), 0);
        assert!(first < second && second < Checkpoint::new(Lsn(2), 1));
    }

    #[test]
    fn prints_as_the_topic_key() {
        assert_eq!(
            Checkpoint::new(Lsn(0x16_B374_D848), 31).to_string(),
            "16/B374D848|1f"
        );
    }
}

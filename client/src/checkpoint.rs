//! The position of one delivered message.
//!
//! A checkpoint is opaque to a consumer: it is echoed to the gateway untouched. It orders by
//! LSN and then by the place inside the transaction. Rows of a dump have LSN 0 and share the
//! number of their range, so they are not told apart by it.

use std::{cmp::Ordering, fmt};

use bytes::Bytes;
use pgcapture_proto::pgcapture as proto;

use crate::lsn::Lsn;

/// Where a message stands in the order of its source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    lsn: Lsn,
    seq: u32,
    data: Bytes,
}

impl Checkpoint {
    pub(crate) fn new(lsn: Lsn, seq: u32, data: Bytes) -> Self {
        Self { lsn, seq, data }
    }

    /// The commit LSN of the transaction; 0 on the rows of a dump.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The place inside the transaction; on the rows of a dump, the number of the range.
    #[must_use]
    pub fn seq(&self) -> u32 {
        self.seq
    }

    /// The log's own position.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Whether this is the checkpoint of a row of a dump.
    #[must_use]
    pub fn is_dump(&self) -> bool {
        self.lsn == Lsn::default()
    }

    pub(crate) fn to_proto(&self) -> proto::Checkpoint {
        proto::Checkpoint {
            lsn: self.lsn.get(),
            seq: self.seq,
            data: self.data.clone(),
        }
    }
}

impl PartialOrd for Checkpoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Checkpoint {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.lsn, self.seq, &self.data).cmp(&(other.lsn, other.seq, &other.data))
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{:x}", self.lsn, self.seq)
    }
}

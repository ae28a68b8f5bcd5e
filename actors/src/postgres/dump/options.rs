//! What to read, from where, and within which limits.

use std::time::Duration;

pub use pgcapture_engine::cluster::ReplicaKind;
use pgcapture_engine::{
    dump::{DumpId, Extent, Heap},
    lsn::Lsn,
};

use crate::postgres::Config;

/// Time that a range waits for a replica to reach the position it needs. A standby that streams is
/// milliseconds behind; one that is further is better used for something else meanwhile.
pub const BEHIND_MAX: Duration = Duration::from_secs(10);
/// Time that a snapshot on the source waits for transactions that are writing.
pub const SNAPSHOT_MAX: Duration = Duration::from_secs(30);
/// Time that a range waits for the lock on its table: an ALTER TABLE or VACUUM FULL is at work.
pub const LOCK_MAX: Duration = Duration::from_secs(30);
/// Silence after which a replica that is being read is taken for dead. A sweep over a large table
/// that finds nothing is silent; TCP keepalive notices a vanished host much sooner.
pub const SILENCE_MAX: Duration = Duration::from_secs(3_600);

/// Where rows are read from.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// How to connect, password included; the database is that of the source.
    pub config: Config,
    /// What it is.
    pub kind: ReplicaKind,
    /// Identity of the source's cluster ([`crate::postgres::catalog::ServerInfo`]).
    pub system_identifier: u64,
    /// Publication of the source: it decides tables, columns and rows.
    pub publication: String,
    /// Whether the source is captured in binary form; rows come in the same form.
    pub binary: bool,
    /// Connections at once, at most; a range is one. Another range waits for one to be free.
    pub connections_max: u32,
    /// Limits.
    pub limits: ReadLimits,
}

/// Limits of reading; the defaults are the constants of this module.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// See [`BEHIND_MAX`].
    pub behind_max: Duration,
    /// See [`SNAPSHOT_MAX`].
    pub snapshot_max: Duration,
    /// See [`LOCK_MAX`].
    pub lock_max: Duration,
    /// See [`SILENCE_MAX`].
    pub silence_max: Duration,
    /// A larger row (bytes, encoded) is an error, as it is for the decoder of the source.
    pub row_bytes_max: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            behind_max: BEHIND_MAX,
            snapshot_max: SNAPSHOT_MAX,
            lock_max: LOCK_MAX,
            silence_max: SILENCE_MAX,
            row_bytes_max: 64 << 20,
        }
    }
}

/// One range to read.
#[derive(Clone, Debug)]
pub struct RangeRequest {
    /// For `application_name`: `pgcapture/dump/d-41`.
    pub dump: DumpId,
    /// Which heap.
    pub heap: Heap,
    /// Which of its rows.
    pub extent: Extent,
    /// Every transaction that commits before this position must be in.
    pub at_least: Lsn,
    /// Whether it is read at a rate: the server is then kept from running ahead of the reader.
    pub is_paced: bool,
}

//! What is known of a replica and of the tables on it.

use std::time::Duration;

use pgcapture_engine::{
    dump::{Heap, TableName},
    lsn::Lsn,
};

use super::ReadError;

/// A replica that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// As `server_version_num`: 150018.
    pub version: u32,
    /// Identity of the cluster: that of the source.
    pub system_identifier: u64,
    /// Grows with each failover; a standby tells that of its last restart point.
    pub timeline: u32,
    /// How it is.
    pub health: ReplicaHealth,
}

/// How a replica is doing: reasons to pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaHealth {
    /// Up to where it has replayed; on the source, written.
    pub replayed: Lsn,
    /// Up to where it has received; `None` when it does not stream (or is the source).
    pub received: Option<Lsn>,
    /// How old the last replayed transaction is while there is more to replay; zero when
    /// everything that was received is replayed. `None` before the first transaction.
    pub replay_delay: Option<Duration>,
    /// Somebody has paused replay.
    pub is_replay_paused: bool,
    /// Sessions of others that run a statement.
    pub active_count: u32,
    /// Sessions of others that wait for a lock.
    pub waiting_count: u32,
    /// How long the oldest statement of others runs; `None` when there is none, or the role may not
    /// see them (it needs `pg_monitor`).
    pub longest_statement: Option<Duration>,
}

/// The tables of a dump.
#[derive(Debug)]
pub struct TablePlan {
    /// Heaps that can be read, by label and name.
    pub tables: Vec<DumpTable>,
    /// What was asked for and cannot be read.
    pub problems: Vec<TableProblem>,
    /// When all this was true.
    pub position: PlanPosition,
    /// Bytes of a page: 8,192 unless PostgreSQL was built otherwise.
    pub page_bytes: u32,
}

/// The moment of a plan.
///
/// Every range of the dump must be opened with `at_least >= at`: a transaction older than
/// `since_xid` is then in each of their snapshots, so that no row it moved can be missed, and the
/// sweep need not look for it. This holds for the same replica too: a standby that was restarted
/// serves queries from a place that may be before the one it had reached (seen).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanPosition {
    /// Every transaction that the plan saw commits before this position.
    pub at: Lsn,
    /// The oldest transaction that was not finished: for [`pgcapture_engine::dump::Extent::Sweep`].
    pub since_xid: u32,
}

/// A heap that can be dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpTable {
    /// Which.
    pub heap: Heap,
    /// Pages of the heap.
    pub page_count: u32,
    /// Bytes of heap and TOAST.
    pub byte_count: u64,
    /// Rows by the last ANALYZE or VACUUM; `None` when it was never looked at.
    pub row_estimate: Option<u64>,
    /// It has a TOAST table. Changes may leave values out that lie there, so that a row which moves
    /// from an unread page to a read one is completed by the final sweep only.
    pub has_toast: bool,
}

/// A table that was asked for and cannot be dumped.
#[derive(Debug)]
pub struct TableProblem {
    /// The name or pattern as it was asked for, or the table it led to.
    pub name: TableName,
    /// Why.
    pub error: ReadError,
}

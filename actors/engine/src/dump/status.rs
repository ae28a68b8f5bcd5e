//! How dumps and replicas are, for people: progress, rate, what waits, what failed and why.
//!
//! Made from the agreed state and what the schedule knows; says nothing that decides anything.

use std::time::Duration;

use super::{DumpId, Extent, TableName};
use crate::{
    cluster::{DumpOptions, DumpState, TableFailure},
    lsn::PgTime,
};

/// How a dump is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpStatus {
    /// Its number.
    pub id: DumpId,
    /// Who asked.
    pub uri: String,
    /// Whose rows.
    pub source: String,
    /// Where it stands.
    pub state: DumpState,
    /// How it goes about it.
    pub options: DumpOptions,
    /// When it was created.
    pub created_at: PgTime,
    /// When it was over.
    pub ended_at: Option<PgTime>,
    /// Its tables.
    pub tables: Vec<TableStatus>,
    /// Sums over the tables.
    pub progress: Progress,
    /// Rows a second, lately.
    pub rows_per_second: u64,
    /// Bytes a second, lately.
    pub bytes_per_second: u64,
    /// How long it will take at this rate; `None` while there is no rate, or nothing left.
    pub remaining: Option<Duration>,
    /// Ranges being read or delivered.
    pub running_count: u32,
    /// Where they are read, the oldest first; at most [`READINGS_SHOWN_MAX`].
    pub readings: Vec<RangeReading>,
    /// Ranges that failed or were sent back and wait for their next try, the most tried first; at
    /// most [`RETRIES_SHOWN_MAX`].
    pub retries: Vec<RangeRetry>,
    /// How many wait so.
    pub retry_count: u32,
    /// Ranges given back since this controller began.
    pub given_up_count: u64,
    /// Why nothing is handed out now, although there is work.
    pub waits_for: Option<WaitsFor>,
}

/// A status shows at most this many ranges that wait for their next try.
pub const RETRIES_SHOWN_MAX: usize = 20;

/// A status shows at most this many ranges that run.
pub const READINGS_SHOWN_MAX: usize = 20;

/// A range that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeReading {
    /// Of which table.
    pub table: TableName,
    /// Which rows.
    pub extent: Extent,
    /// From which replica.
    pub replica: String,
    /// The node that reads it; empty for a node that has no name yet.
    pub node: String,
    /// How long it has been running.
    pub since: Duration,
    /// Whether it was read to its end, and its rows are on their way.
    pub is_read: bool,
}

/// How much of a dump or a table is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Finished pages.
    pub pages_done: u64,
    /// Pages wanted, as the plan saw them.
    pub pages_total: u64,
    /// Rows acknowledged.
    pub row_count: u64,
    /// Rows expected, as the server guesses.
    pub row_estimate: u64,
    /// Bytes acknowledged.
    pub bytes: u64,
    /// Ranges finished.
    pub range_count: u64,
}

/// How one table of a dump is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableStatus {
    /// The heap that is read.
    pub name: TableName,
    /// The name of its rows in the stream.
    pub label: TableName,
    /// How much is done.
    pub progress: Progress,
    /// How far the sweep is.
    pub sweep: SweepStatus,
    /// Ranges being read or delivered.
    pub running_count: u32,
    /// Ranges waiting for their next try.
    pub retry_count: u32,
    /// How often it was planned anew.
    pub replan_count: u32,
    /// Why it failed.
    pub failure: Option<TableFailure>,
}

/// How far the last pass over a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SweepStatus {
    /// The table needs none.
    NotNeeded,
    /// Pages come first.
    Waiting,
    /// It runs, or waits for its next try.
    Running,
    /// It is finished.
    Done,
}

impl SweepStatus {
    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotNeeded => "not_needed",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
        }
    }
}

/// A range that waits for its next try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRetry {
    /// Of which table.
    pub table: TableName,
    /// Which rows.
    pub extent: Extent,
    /// Tries so far.
    pub try_count: u32,
    /// Time to the next.
    pub due_in: Duration,
    /// Why the last one ended.
    pub reason: String,
}

/// Why a dump hands out nothing although there is work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Someone who takes the rows: no session asked for a range lately.
    Consumer,
    /// A replica of the source; the text says what is wrong with those there are.
    Replica(String),
    /// The cool-down or the rate limit, for so long.
    Pace(Duration),
    /// The next try of ranges that failed, in so long.
    Retry(Duration),
}

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// Whose rows it has.
    pub source: String,
    /// How it is.
    pub health: ReplicaHealth,
    /// Ranges being read from it.
    pub running_count: u32,
    /// Ranges at once, at most.
    pub ranges_max: u32,
}

/// Whether ranges may be read from a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReplicaHealth {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// They may.
    Ready {
        /// How far it is behind.
        lag: Duration,
    },
    /// It is too far behind.
    Behind {
        /// How far.
        lag: Duration,
    },
    /// Its own users come first now.
    Busy {
        /// How far it is behind.
        lag: Duration,
        /// What they do.
        what: String,
    },
    /// It cannot be used.
    Unusable {
        /// Stable code.
        code: String,
        /// What is wrong.
        what: String,
    },
}

impl ReplicaHealth {
    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Ready { .. } => "ready",
            Self::Behind { .. } => "behind",
            Self::Busy { .. } => "busy",
            Self::Unusable { .. } => "unusable",
        }
    }

    /// Returns how far it is behind, if that is known.
    #[must_use]
    pub const fn lag(&self) -> Option<Duration> {
        match self {
            Self::Ready { lag } | Self::Behind { lag } | Self::Busy { lag, .. } => Some(*lag),
            Self::Unknown | Self::Unusable { .. } => None,
        }
    }
}

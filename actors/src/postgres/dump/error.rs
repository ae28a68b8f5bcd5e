//! Why rows could not be read, and what that means for the range.

use std::time::Duration;

use pgcapture_engine::{
    codes::{Explanation, existing_rows as codes, source as source_codes},
    dump::TableName,
    lsn::Lsn,
};

use crate::{
    dump::{DumpError, RangeRemedy},
    postgres::PgError,
};

/// Why existing rows could not be read. No text of it holds a row or a secret.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No connection, or no login.
    #[error("replica {target} cannot be reached")]
    Unreachable {
        /// Its URL without password.
        target: String,
        /// Why.
        #[source]
        source: PgError,
    },
    /// Not in recovery: never was a standby, or was promoted.
    #[error("replica {target} is not in recovery")]
    NotAStandby {
        /// Its URL without password.
        target: String,
    },
    /// In recovery, though it is said to be the source.
    #[error("replica {target} is a standby, not the source itself")]
    NotTheSource {
        /// Its URL without password.
        target: String,
    },
    /// A server of another cluster.
    #[error("replica {target} has system identifier {found}, its source {expected}")]
    OtherSystem {
        /// Its URL without password.
        target: String,
        /// The replica's.
        found: u64,
        /// The source's.
        expected: u64,
    },
    /// A subscriber.
    #[error("replica {target} is a logical replica")]
    LogicalReplica {
        /// Its URL without password.
        target: String,
    },
    /// Before PostgreSQL 14.
    #[error("replica {target} is PostgreSQL {major}")]
    TooOld {
        /// Its URL without password.
        target: String,
        /// Major version.
        major: u32,
    },
    /// Replay did not come far enough in time.
    #[error(
        "the replica has replayed up to {replayed}, {} bytes before {wanted}, after a wait of {} s",
        wanted.bytes_since(*replayed),
        waited.as_secs()
    )]
    Behind {
        /// Up to where it has replayed.
        replayed: Lsn,
        /// What was needed.
        wanted: Lsn,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A transaction holds up the snapshot on the source.
    #[error("no snapshot within {} s: {blocker}", waited.as_secs())]
    SnapshotWaits {
        /// How long it was waited for.
        waited: Duration,
        /// What is known of the transaction; never its statement.
        blocker: String,
    },
    /// The source has no slot, walsender or right for a snapshot.
    #[error("the source gives no snapshot")]
    NoSlot {
        /// Why.
        #[source]
        source: PgError,
    },
    /// The heap has another file than planned.
    #[error("table {table} was rewritten: file {found} instead of {planned}")]
    Rewritten {
        /// The table.
        table: TableName,
        /// The file of the plan.
        planned: u32,
        /// The file now; 0 for none.
        found: u32,
    },
    /// There is no such table.
    #[error("table {table} does not exist")]
    Missing {
        /// The table.
        table: TableName,
    },
    /// Another table than planned.
    #[error("table {table} is not what was planned: {what}")]
    Changed {
        /// The table.
        table: TableName,
        /// What differs.
        what: String,
    },
    /// Not in the publication.
    #[error("table {table} is not in publication \"{publication}\"")]
    NotPublished {
        /// The table.
        table: TableName,
        /// The publication.
        publication: String,
    },
    /// No right to read.
    #[error("the role may not read table {table}")]
    NoSelect {
        /// The table.
        table: TableName,
    },
    /// Row level security would hide rows.
    #[error("row level security applies to table {table}")]
    RowSecurity {
        /// The table.
        table: TableName,
    },
    /// A relation without rows of its own.
    #[error("{table} is a {kind}")]
    NoHeap {
        /// The relation.
        table: TableName,
        /// What it is: `view`, `foreign table`…
        kind: &'static str,
    },
    /// A table whose rows are not in the WAL.
    #[error("table {table} is {kind}")]
    NotInWal {
        /// The table.
        table: TableName,
        /// `unlogged` or `temporary`.
        kind: &'static str,
    },
    /// The server cancelled the statement, or a lock did not come.
    #[error("reading table {table} was cancelled")]
    Cancelled {
        /// The table.
        table: TableName,
        /// What the server said.
        #[source]
        source: PgError,
    },
    /// The connection broke.
    #[error("the connection broke while table {table} was read")]
    Lost {
        /// The table.
        table: TableName,
        /// How.
        #[source]
        source: PgError,
    },
    /// A row cannot be delivered.
    #[error("a row of table {table} cannot be delivered: {what}")]
    RowUnreadable {
        /// The table.
        table: TableName,
        /// Why.
        what: String,
    },
    /// Any other refusal of the server.
    #[error("table {table} cannot be read")]
    Refused {
        /// The table.
        table: TableName,
        /// What the server said.
        #[source]
        source: PgError,
    },
}

impl ReadError {
    /// Returns what the error means.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Unreachable { .. } => &codes::REPLICA_UNREACHABLE,
            Self::NotAStandby { .. } => &codes::NOT_A_STANDBY,
            Self::NotTheSource { .. } => &source_codes::READ_ONLY,
            Self::OtherSystem { .. } => &codes::OTHER_SYSTEM,
            Self::LogicalReplica { .. } => &codes::LOGICAL_REPLICA,
            Self::TooOld { .. } => &codes::REPLICA_TOO_OLD,
            Self::Behind { .. } => &codes::REPLICA_BEHIND,
            Self::SnapshotWaits { .. } => &codes::SNAPSHOT_WAITS,
            Self::NoSlot { .. } => &codes::NO_SNAPSHOT_SLOT,
            Self::Rewritten { .. } => &codes::TABLE_REWRITTEN,
            Self::Missing { .. } => &codes::TABLE_MISSING,
            Self::Changed { .. } => &codes::TABLE_CHANGED,
            Self::NotPublished { .. } => &codes::NOT_PUBLISHED,
            Self::NoSelect { .. } => &codes::NO_SELECT,
            Self::RowSecurity { .. } => &codes::ROW_SECURITY,
            Self::NoHeap { .. } => &codes::NO_HEAP,
            Self::NotInWal { .. } => &codes::NOT_IN_WAL,
            Self::Cancelled { .. } => &codes::READ_CANCELLED,
            Self::Lost { .. } => &codes::REPLICA_LOST,
            Self::RowUnreadable { .. } => &codes::ROW_UNREADABLE,
            Self::Refused { .. } => &codes::READ_REFUSED,
        }
    }

    /// Returns what to do with the range.
    #[must_use]
    pub const fn remedy(&self) -> RangeRemedy {
        match self {
            Self::Unreachable { .. }
            | Self::NotAStandby { .. }
            | Self::NotTheSource { .. }
            | Self::OtherSystem { .. }
            | Self::LogicalReplica { .. }
            | Self::TooOld { .. }
            | Self::Behind { .. }
            | Self::SnapshotWaits { .. }
            | Self::NoSlot { .. }
            | Self::Cancelled { .. }
            | Self::Lost { .. } => RangeRemedy::Retry,
            Self::Rewritten { .. } | Self::Changed { .. } => RangeRemedy::Replan,
            Self::Missing { .. }
            | Self::NotPublished { .. }
            | Self::NoSelect { .. }
            | Self::RowSecurity { .. }
            | Self::NoHeap { .. }
            | Self::NotInWal { .. }
            | Self::RowUnreadable { .. }
            | Self::Refused { .. } => RangeRemedy::Fail,
        }
    }

    /// Tells whether the replica is at fault and not the table: another replica may do better, and
    /// no other range of this one will.
    #[must_use]
    pub const fn is_about_replica(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::NotAStandby { .. }
                | Self::NotTheSource { .. }
                | Self::OtherSystem { .. }
                | Self::LogicalReplica { .. }
                | Self::TooOld { .. }
                | Self::Behind { .. }
                | Self::SnapshotWaits { .. }
                | Self::NoSlot { .. }
                | Self::Lost { .. }
        )
    }

    /// Sorts what went wrong while `table` was read.
    #[must_use]
    pub(super) fn while_reading(table: &TableName, source: PgError) -> Self {
        let table = table.clone();
        if matches!(source, PgError::MessageTooLarge { .. }) {
            let what = source.to_string();
            return Self::RowUnreadable { table, what };
        }
        let Some(server) = source.server_error() else {
            return Self::Lost { table, source };
        };
        let class = server.sqlstate.get(..2).unwrap_or_default();
        match (server.sqlstate.as_str(), class) {
            ("42P01" | "3F000", _) => Self::Missing { table },
            ("42501", _) if server.routine == "check_enable_rls" => Self::RowSecurity { table },
            ("42501", _) => Self::NoSelect { table },
            // A column or type went away between the snapshot and the lock.
            ("42703" | "42704", _) => {
                let what = server.message.clone();
                Self::Changed { table, what }
            }
            ("40001" | "40P01" | "57014" | "55P03" | "25P03" | "25P04", _) | (_, "53") => {
                Self::Cancelled { table, source }
            }
            (_, "57" | "08") => Self::Lost { table, source },
            _ => Self::Refused { table, source },
        }
    }

    /// Returns the whole chain of causes in one line.
    #[must_use]
    pub fn what(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl From<ReadError> for DumpError {
    fn from(error: ReadError) -> Self {
        Self {
            explanation: error.explanation(),
            what: error.what(),
            remedy: error.remedy(),
        }
    }
}

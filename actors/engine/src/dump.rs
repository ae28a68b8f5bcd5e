//! The words of dumps: existing rows of tables, read from a replica by ranges of heap pages.
//!
//! A *dump* is a job for one uri. Its work is cut into *ranges*: pages of one table, or the final
//! *sweep* over the rows that moved meanwhile. A range is read in one snapshot whose position in the
//! log is known, delivered between two changes, and finished once its last row was acknowledged.
//! Nothing here reads rows or hands out work.

mod pages;

pub mod cut;

mod facts;

pub mod pace;

pub mod schedule;

mod status;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::{
    facts::ReplicaFacts,
    pages::PageSet,
    status::{
        DumpStatus, Progress, READINGS_SHOWN_MAX, RETRIES_SHOWN_MAX, RangeReading, RangeRetry,
        ReplicaHealth, ReplicaStatus, SweepStatus, TableStatus, WaitsFor,
    },
};

/// Number of a dump; unique in the cluster for ever, and grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct DumpId(pub u64);

/// Prints as users type it: `d-41`.
impl fmt::Display for DumpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d-{}", self.0)
    }
}

/// The text names no dump.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a dump; expected a name such as d-41")]
pub struct ParseDumpIdError(pub String);

impl std::str::FromStr for DumpId {
    type Err = ParseDumpIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix("d-").unwrap_or(text).parse();
        number
            .map(Self)
            .map_err(|_| ParseDumpIdError(text.to_owned()))
    }
}

/// Heap pages of one table, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// First page.
    pub first: u32,
    /// Last page; [`Self::OPEN`] reads to the end of the table, wherever that is by then.
    pub last: u32,
}

impl PageRange {
    /// The last page of a range without an end. PostgreSQL numbers no page so.
    pub const OPEN: u32 = u32::MAX;

    /// The whole table.
    pub const ALL: Self = Self {
        first: 0,
        last: Self::OPEN,
    };
}

/// Prints as users type it: `0-999`, or `0-` without an end.
impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last {
            Self::OPEN => write!(f, "{}-", self.first),
            last => write!(f, "{}-{last}", self.first),
        }
    }
}

/// A table by its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Namespace.
    pub schema: String,
    /// Name.
    pub table: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// The heap that is read, and the name under which its rows are delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heap {
    /// The relation that has the pages: a table, a leaf partition, an inheritance child.
    pub name: TableName,
    /// The name that the publication gives its rows: its own, or that of the partition root.
    pub label: TableName,
    /// Its OID.
    pub oid: u32,
    /// Its file when the dump was planned; another one means that its rows lie elsewhere now.
    pub filenode: u32,
}

/// Which rows of a heap a range reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// All rows on these pages.
    Pages(PageRange),
    /// The rows written by transaction `since_xid` or a newer one, wherever they lie.
    Sweep {
        /// The oldest transaction that may have moved a row since the dump began.
        since_xid: u32,
    },
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages(pages) => write!(f, "pages {pages}"),
            Self::Sweep { .. } => f.write_str("sweep"),
        }
    }
}

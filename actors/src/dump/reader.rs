//! The seam to what reads rows: PostgreSQL in the product, a script in tests.
//!
//! A reader answers three questions about one replica: how its tables lie, which rows a range has, how
//! it is. It knows nothing of dumps, schedules and sessions, and keeps nothing between two calls but
//! connections.

use std::fmt::Debug;

use async_trait::async_trait;
use pgcapture_engine::{
    cluster::{Replica, Source, TableLayout},
    dump::{DumpId, Extent, Heap, ReplicaFacts},
    lsn::Lsn,
};

use super::{DumpError, RowBatch};

/// Reads rows and catalogs of replicas.
#[async_trait]
pub trait RowReader: Debug + Send + Sync {
    /// Finds what names (`public.orders`) and patterns (`public.*`) lead to. A partitioned table leads
    /// to its leaves.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when the replica cannot be asked, or is none of this source. What is wrong with
    /// single tables stands in the answer.
    async fn look(&self, target: &ReadTarget, tables: &[String]) -> Result<TablesFound, DumpError>;

    /// Opens a snapshot and a range of it. Waits, within the reader's limits, for a replica that is behind. Cancellation-safe: dropping
    /// the call or the answer ends the query on the server.
    ///
    /// # Errors
    ///
    /// [`DumpError`], whose remedy says what to do with the range.
    async fn open(&self, target: &ReadTarget, order: &RangeOrder) -> Result<OpenedRows, DumpError>;

    /// Asks a replica how it is.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when it cannot be asked, or is none of this source.
    async fn health(&self, target: &ReadTarget) -> Result<ReplicaFacts, DumpError>;
}

/// Which replica to read, and what it is a replica of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadTarget {
    /// Where to read.
    pub replica: Replica,
    /// Whose rows: its publication gives labels and columns, its server the identity to compare.
    pub source: Source,
}

/// What names and patterns led to.
#[derive(Debug, Default)]
pub struct TablesFound {
    /// Heaps that can be read, by label and name.
    pub tables: Vec<FoundTable>,
    /// What was asked for, or found, and cannot be dumped: missing, a view, not published, no right.
    pub problems: Vec<DumpError>,
}

/// A heap that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTable {
    /// Which.
    pub heap: Heap,
    /// How it lies.
    pub layout: TableLayout,
    /// Whether changes of its rows may leave values out, because they lie in TOAST.
    pub has_toast: bool,
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeOrder {
    /// For which dump.
    pub dump: DumpId,
    /// Which heap.
    pub heap: Heap,
    /// Which of its rows.
    pub extent: Extent,
    /// Every transaction that commits before this position must be in.
    pub at_least: Lsn,
    /// Whether the rows are taken at a rate.
    pub is_paced: bool,
}

/// A range that is being read.
#[derive(Debug)]
pub struct OpenedRows {
    /// The rows are those after every transaction that commits before this position and before every
    /// one that commits at or after it.
    pub at: Lsn,
    /// The rows.
    pub rows: Box<dyn RowSource>,
}

/// Rows, batch by batch.
#[async_trait]
pub trait RowSource: Debug + Send {
    /// Returns the next rows; `None` once the server has said that there are no more and that the
    /// table still lies where it lay.
    ///
    /// # Errors
    ///
    /// [`DumpError`]; the rows before are right, but not all.
    async fn next(&mut self) -> Result<Option<RowBatch>, DumpError>;
}

//! The seam to what reads rows: PostgreSQL in the product, a script in tests.
//!
//! A reader answers three questions about one replica: how its tables lie, which rows a range has, how
//! it is. It knows nothing of dumps, schedules and sessions, and keeps nothing between two calls but
//! connections.

use std::fmt::Debug;

use async_trait::async_trait;
use pgcapture_engine::{
    cluster::{Replica, Source},
    dump::{Extent, Heap, ReplicaFacts, TableFacts},
    lsn::Lsn,
};

use super::{DumpError, RowBatch};

/// Reads rows and catalogs of replicas.
#[async_trait]
pub trait RowReader: Debug + Send + Sync {
    /// Finds what names (`public.orders`) and patterns (`public.*`) lead to. A partitioned table leads
    /// to its leaves; a name that leads to nothing is in no answer. A pattern leads to published tables
    /// only, a name to whatever has it.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when the replica cannot be asked, or is none of this source.
    async fn look(
        &self,
        target: &ReadTarget,
        tables: &[String],
    ) -> Result<Vec<TableFacts>, DumpError>;

    /// Opens a snapshot that contains every transaction that commits before `at_least`, and a range of
    /// it. Waits, within the reader's limits, for a replica that is behind. Cancellation-safe: dropping
    /// the call or the answer ends the query on the server.
    ///
    /// # Errors
    ///
    /// [`DumpError`], whose remedy says what to do with the range.
    async fn open(
        &self,
        target: &ReadTarget,
        heap: &Heap,
        extent: Extent,
        at_least: Lsn,
    ) -> Result<OpenedRows, DumpError>;

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

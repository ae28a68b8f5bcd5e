//! What a replica says about its tables and itself, in the words that decisions need.
//!
//! Readers fill these in from the catalog; planning and scheduling judge them. Nothing here asks.

use std::time::Duration;

use super::TableName;
use crate::cluster::TableLayout;

/// A relation that a name or pattern of a request led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Index of the name or pattern in the request.
    pub asked: usize,
    /// Its name.
    pub name: TableName,
    /// What it is. A partitioned table is not told; its leaves are, under the same `asked`.
    pub kind: RelationKind,
    /// How its changes are kept.
    pub persistence: Persistence,
    /// The name that the publication gives its rows; `None` when it is not published.
    pub label: Option<TableName>,
    /// Whether the role may read it.
    pub can_select: bool,
    /// Its OID.
    pub oid: u32,
    /// How it lies; without pages when it has none.
    pub layout: TableLayout,
}

/// What a relation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelationKind {
    /// A heap with rows: a table, a leaf partition, an inheritance child.
    Table,
    /// A view.
    View,
    /// A foreign table.
    Foreign,
    /// Anything else: an index, a sequence, a materialized view.
    Other,
}

/// How the changes of a relation are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Persistence {
    /// In the WAL.
    Permanent,
    /// Nowhere; a standby has no rows of it.
    Unlogged,
    /// In one connection.
    Temporary,
}

/// How a replica is, as far as dumps care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// How long ago what it replayed last was committed; zero when nothing is left to replay.
    pub lag: Duration,
    /// Queries that it cancelled so far because they stood in the way of replay.
    pub conflict_count: u64,
    /// Queries of others that wait for something now: locks, or replay that waits for them.
    pub waiting_count: u32,
}

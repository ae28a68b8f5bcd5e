//! What may be asked of the dump controller.

use pgcapture_engine::{
    cluster::DumpOptions,
    dump::{PageRange, TableName},
};

use crate::cursors::SubscriptionId;

/// A dump that someone wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpRequest {
    /// Who asks, as they wrote it.
    pub uri: String,
    /// What the uri stands for.
    pub subscription: SubscriptionId,
    /// Which tables.
    pub tables: Vec<TableRequest>,
    /// How to go about it.
    pub options: DumpOptions,
}

/// Tables that someone wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRequest {
    /// A name such as `public.orders`, or a pattern such as `public.*`.
    pub pattern: String,
    /// Which pages; the whole table when empty. Only for a name that leads to one heap.
    pub pages: Vec<PageRange>,
}

/// A range of a schedule, as existing schedulers give them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledRange {
    /// Of which table.
    pub table: TableName,
    /// Which pages. Behind the end of the table there are no rows, and that is no error.
    pub pages: PageRange,
}

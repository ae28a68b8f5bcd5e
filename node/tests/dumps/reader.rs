//! A replica that says what the test wants.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use pgcapture_actors::dump::{
    DumpError, FoundTable, OpenedRows, RangeOrder, RangeRemedy, ReadTarget, RowBatch, RowReader,
    RowSource, TablesFound,
};
use pgcapture_engine::{
    cluster::TableLayout,
    codes::{Explanation, existing_rows},
    dump::{Extent, Heap, PageRange, ReplicaFacts, TableName},
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::{Change, Field, Message, change::Operation, field, message};
use prost::Message as _;

/// Pages of the one table.
pub(crate) const PAGES: u32 = 100;

/// Rows on each of them.
pub(crate) const ROWS_A_PAGE: u32 = 2;

/// Knows the table `public.orders`; a row's id is its place. `public.parts` leads to two leaves.
#[derive(Debug, Default)]
pub(crate) struct ScriptedReader {
    /// Where its snapshots are.
    pub(crate) at: AtomicU64,
    /// What the next openings say, the first first.
    pub(crate) failures: Mutex<Vec<&'static Explanation>>,
    /// What was opened.
    pub(crate) opened: Mutex<Vec<(Extent, Lsn)>>,
}

pub(crate) fn failure(explanation: &'static Explanation) -> DumpError {
    DumpError {
        explanation,
        what: format!("scripted: {}", explanation.title),
        remedy: RangeRemedy::Retry,
    }
}

pub(crate) fn name(table: &str) -> TableName {
    TableName {
        schema: "public".to_owned(),
        table: table.to_owned(),
    }
}

fn table(heap: &str, label: &str) -> FoundTable {
    FoundTable {
        heap: Heap {
            name: name(heap),
            label: name(label),
            oid: 16_384,
            filenode: 16_384,
        },
        layout: TableLayout {
            filenode: 16_384,
            pages_end: PAGES,
            bytes: u64::from(PAGES) << 13,
            row_estimate: u64::from(PAGES * ROWS_A_PAGE),
            since_xid: 700,
            planned_at: Lsn(1),
        },
        has_toast: false,
    }
}

#[async_trait]
impl RowReader for ScriptedReader {
    async fn look(&self, _: &ReadTarget, tables: &[String]) -> Result<TablesFound, DumpError> {
        let mut found = TablesFound::default();
        for asked in tables {
            match asked.as_str() {
                "public.orders" | "public.*" => found.tables.push(table("orders", "orders")),
                "public.parts" => {
                    found.tables.push(table("parts_1", "parts"));
                    found.tables.push(table("parts_2", "parts"));
                }
                "public.v" => found.problems.push(failure(&existing_rows::NO_HEAP)),
                _ => found.problems.push(failure(&existing_rows::TABLE_MISSING)),
            }
        }
        Ok(found)
    }

    async fn open(&self, _: &ReadTarget, order: &RangeOrder) -> Result<OpenedRows, DumpError> {
        self.opened
            .lock()
            .unwrap()
            .push((order.extent, order.at_least));
        let scripted = self.failures.lock().unwrap().pop();
        if let Some(explanation) = scripted {
            return Err(failure(explanation));
        }
        let at = Lsn(self.at.load(Ordering::SeqCst));
        if at < order.at_least {
            return Err(failure(&existing_rows::REPLICA_BEHIND));
        }
        let pages = match order.extent {
            Extent::Pages(pages) => pages,
            Extent::Sweep { .. } => PageRange { first: 1, last: 0 },
        };
        let pages = pages.first..=pages.last.min(PAGES - 1);
        let rows = pages.map(batch).collect();
        Ok(OpenedRows {
            at,
            rows: Box::new(Rows(rows)),
        })
    }

    async fn health(&self, _: &ReadTarget) -> Result<ReplicaFacts, DumpError> {
        Ok(ReplicaFacts::default())
    }
}

#[derive(Debug)]
struct Rows(std::collections::VecDeque<RowBatch>);

#[async_trait]
impl RowSource for Rows {
    async fn next(&mut self) -> Result<Option<RowBatch>, DumpError> {
        Ok(self.0.pop_front())
    }
}

/// The rows of a page.
fn batch(page: u32) -> RowBatch {
    let mut bytes = Vec::new();
    let mut rows = Vec::new();
    for row in 0..ROWS_A_PAGE {
        let id = i64::from(page * ROWS_A_PAGE + row);
        let message = Message {
            r#type: Some(message::Type::Change(Change {
                op: Operation::Update.into(),
                schema: "public".to_owned(),
                table: "orders".to_owned(),
                new: vec![Field {
                    name: "id".to_owned(),
                    oid: 20,
                    value: Some(field::Value::Binary(id.to_be_bytes().to_vec().into())),
                }],
                old: Vec::new(),
            })),
        };
        let encoded = message.encode_to_vec();
        rows.push((bytes.len() as u32, encoded.len() as u32));
        bytes.extend(encoded);
    }
    RowBatch {
        bytes: bytes.into(),
        rows,
    }
}

/// The id of a change.
pub(crate) fn id(change: &Change) -> i64 {
    let Some(field::Value::Binary(bytes)) = &change.new[0].value else {
        panic!("a binary id: {change:?}")
    };
    i64::from_be_bytes(bytes.as_ref().try_into().unwrap())
}

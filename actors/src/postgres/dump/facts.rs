//! What the stream would make of a table at the moment of a snapshot: its columns, its label, the
//! rows that are published.
//!
//! Asked inside the snapshot, so that rows have the columns of the changes at their position. What
//! pgoutput sends is followed to the letter: the columns of the relation that the publication
//! lists (the partition root, when partitions are published as their root) in that relation's
//! order, without dropped and unpublished ones; the type of a domain is the domain; a type without
//! a binary form comes as text, alone among binary ones.

use pgcapture_engine::{
    copy_row::{RowColumn, ValueForm},
    dump::{Extent, Heap, TableName},
};

use super::{RangeRequest, ReadError, ReplicaOptions};
use crate::postgres::{
    catalog::{Row, flag, owned, parsed, text},
    quote_ident, quote_literal,
};

/// First version with row filters and column lists.
const FILTERS_SINCE: u32 = 150_000;
/// First version that can publish generated columns.
const GENERATED_SINCE: u32 = 180_000;

/// What was found in the snapshot.
#[derive(Debug)]
pub(super) struct Facts {
    /// Columns as the stream has them.
    pub(super) columns: Vec<RowColumn>,
    /// What selects each of them.
    expressions: Vec<String>,
    /// Condition of the publication.
    row_filter: Option<String>,
    /// Every row is older than the sweep's transaction can tell: read all.
    since_is_too_old: bool,
}

/// Returns the statements that prepare a new session for [`questions`]: to plan them anew for each
/// range would take longer than to read a small one.
pub(super) fn preparation(version: u32, publication: &str) -> String {
    let publication = quote_literal(publication);
    let (filter, listed) = if version >= FILTERS_SINCE {
        ("p.rowfilter", "AND a.attname = ANY (p.attnames)")
    } else {
        ("NULL", "")
    };
    let generated = if version >= GENERATED_SINCE {
        "a.attgenerated <> 'v'"
    } else {
        "a.attgenerated = ''"
    };
    // The relation that the publication lists: the heap, or the root above it.
    let label = format!(
        "pg_catalog.pg_publication_tables p \
         JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname \
         JOIN pg_catalog.pg_class c ON c.relname = p.tablename AND c.relnamespace = n.oid \
         WHERE p.pubname = {publication} AND (c.oid = $1 \
         OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors($1)))"
    );
    format!(
        "SET plan_cache_mode = force_generic_plan; PREPARE pgcapture_heap (oid) AS \
         SELECT 'heap', n.nspname, c.relname, c.relkind, c.relfilenode, \
         pg_catalog.pg_relation_filenode(c.oid) FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1; \
         PREPARE pgcapture_label (oid) AS \
         SELECT 'label', n.nspname, c.relname, {filter} FROM {label}; \
         PREPARE pgcapture_columns (oid) AS \
         SELECT 'column', a.attname, a.atttypid, t.typsend <> 0, \
         t.typoutput IN ('textout'::regproc, 'varcharout'::regproc, 'bpcharout'::regproc) \
         FROM (SELECT c.oid, p.* FROM {label}) p JOIN pg_catalog.pg_attribute a \
         ON a.attrelid = p.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         WHERE {generated} {listed} ORDER BY a.attnum; "
    )
}

/// Returns the questions, whose rows [`Facts::read`] understands. The table must be locked.
pub(super) fn questions(request: &RangeRequest) -> String {
    let oid = request.heap.oid;
    let age = match request.extent {
        Extent::Sweep { since_xid } => format!("; SELECT 'age', age('{since_xid}'::xid) < 0"),
        Extent::Pages(_) => String::new(),
    };
    format!(
        "EXECUTE pgcapture_heap ({oid}); EXECUTE pgcapture_label ({oid}); \
         EXECUTE pgcapture_columns ({oid}){age}"
    )
}

impl Facts {
    /// Compares what was found with the plan.
    pub(super) fn read(
        rows: &[Row],
        request: &RangeRequest,
        options: &ReplicaOptions,
    ) -> Result<Self, ReadError> {
        let of_kind =
            |kind: &'static str| rows.iter().filter(move |row| text(row, 0) == Some(kind));
        let heap_row = of_kind("heap").next();
        check_heap(heap_row, &request.heap)?;
        let label = of_kind("label").next();
        check_label(label, &request.heap, options)?;
        let mut facts = Self {
            columns: Vec::new(),
            expressions: Vec::new(),
            row_filter: label.and_then(|row| text(row, 3)).map(str::to_owned),
            since_is_too_old: of_kind("age").any(|row| flag(row, 1)),
        };
        for row in of_kind("column") {
            let (has_binary, is_text) = (flag(row, 3), flag(row, 4));
            let form = if options.binary && has_binary {
                ValueForm::Binary
            } else {
                ValueForm::Text
            };
            let name = owned(row, 1);
            let quoted = quote_ident(&name);
            facts.expressions.push(match form {
                ValueForm::Text if !is_text => format!(
                    // The type's own output function, which a cast to text need not be.
                    "CASE WHEN {quoted} IS DISTINCT FROM NULL \
                     THEN pg_catalog.format('%s', {quoted}) END"
                ),
                ValueForm::Text | ValueForm::Binary => quoted,
            });
            facts.columns.push(RowColumn {
                name,
                type_oid: parsed(row, 2).unwrap_or_default(),
                form,
            });
        }
        Ok(facts)
    }

    /// Returns the COPY of the range and the end of its transaction.
    pub(super) fn statement(&self, request: &RangeRequest) -> String {
        let mut conditions = Vec::new();
        match request.extent {
            Extent::Pages(pages) => {
                if pages.first > 0 {
                    conditions.push(format!("ctid >= '({},0)'", pages.first));
                }
                if pages.last != pgcapture_engine::dump::PageRange::OPEN {
                    conditions.push(format!("ctid <= '({},65535)'", pages.last));
                }
            }
            Extent::Sweep { since_xid } if !self.since_is_too_old => {
                conditions.push(format!(
                    "pg_catalog.age(xmin) <= pg_catalog.age('{since_xid}'::pg_catalog.xid)"
                ));
            }
            Extent::Sweep { .. } => {}
        }
        conditions.extend(self.row_filter.as_ref().map(|filter| format!("({filter})")));
        let condition = match conditions.as_slice() {
            [] => String::new(),
            conditions => format!(" WHERE {}", conditions.join(" AND ")),
        };
        let (columns, table) = (self.expressions.join(", "), qualified(&request.heap.name));
        format!(
            "COPY (SELECT {columns} FROM ONLY {table}{condition}) TO STDOUT (FORMAT binary); COMMIT"
        )
    }
}

/// Quotes a table's names.
pub(super) fn qualified(table: &TableName) -> String {
    format!(
        "{}.{}",
        quote_ident(&table.schema),
        quote_ident(&table.table)
    )
}

fn check_heap(row: Option<&Row>, heap: &Heap) -> Result<(), ReadError> {
    let table = heap.name.clone();
    let Some(row) = row else {
        // The name is there, or it could not have been locked: under another number.
        let what = "it was dropped and made again".to_owned();
        return Err(ReadError::Changed { table, what });
    };
    let name = TableName {
        schema: owned(row, 1),
        table: owned(row, 2),
    };
    if name != table {
        let what = format!("it is called {name} now");
        return Err(ReadError::Changed { table, what });
    }
    if text(row, 3) != Some("r") {
        let what = "it has no rows of its own".to_owned();
        return Err(ReadError::Changed { table, what });
    }
    // At the snapshot, and now.
    for column in [4, 5] {
        let found = parsed(row, column).unwrap_or_default();
        if found != heap.filenode {
            let planned = heap.filenode;
            return Err(ReadError::Rewritten {
                table,
                planned,
                found,
            });
        }
    }
    Ok(())
}

fn check_label(row: Option<&Row>, heap: &Heap, options: &ReplicaOptions) -> Result<(), ReadError> {
    let table = heap.name.clone();
    let Some(row) = row else {
        let publication = options.publication.clone();
        return Err(ReadError::NotPublished { table, publication });
    };
    let label = TableName {
        schema: owned(row, 1),
        table: owned(row, 2),
    };
    if label != heap.label {
        let what = format!("it is published as {label}, not as {}", heap.label);
        return Err(ReadError::Changed { table, what });
    }
    Ok(())
}

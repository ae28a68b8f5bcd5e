//! Which heaps a dump of some tables reads, how large they are, and when that was so.
//!
//! Everything is asked in one snapshot on the replica; the source is not asked when the replica is
//! a standby. A partitioned table leads to its leaves, each under the label that the publication
//! gives its rows. Only tables of the publication are dumped: rows without changes would be a
//! picture that nobody keeps up to date.

use pgcapture_engine::dump::{Heap, TableName};

use super::{
    DumpTable, PlanPosition, ReadError, Replica, ReplicaKind, ReplicaOptions, TablePlan,
    TableProblem,
    check::{self, IDENTITY},
    session::unreachable,
};
use crate::postgres::{
    Connection,
    catalog::{Row, flag, glob, owned, parsed, text},
    quote_literal,
};

/// A heap of the publication.
struct Candidate {
    name: TableName,
    label: TableName,
    oid: u32,
    /// Partitioned tables above it.
    above: Vec<TableName>,
}

impl Replica {
    /// Finds what names lead to: `schema.table`, where each part may hold `*`; without a dot a
    /// table of any schema. A name may be that of a partitioned table or of a leaf.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when the replica cannot be asked. What is wrong with single tables stands in
    /// the answer.
    pub async fn plan(&self, names: &[String]) -> Result<TablePlan, ReadError> {
        let options = self.options();
        let mut catalog = Catalog::open(options).await?;
        let position = catalog.position().await?;
        let candidates = catalog.candidates().await?;
        let mut chosen = Vec::new();
        let mut problems = Vec::new();
        for name in names {
            let pattern = Pattern::new(name);
            let matches = |candidate: &&Candidate| {
                let names = [&candidate.name, &candidate.label];
                names
                    .into_iter()
                    .chain(&candidate.above)
                    .any(|name| pattern.fits(name))
            };
            let found: Vec<u32> = candidates
                .iter()
                .filter(matches)
                .map(|each| each.oid)
                .collect();
            if found.is_empty() {
                problems.extend(catalog.why_nothing(&pattern).await?);
            }
            chosen.extend(found);
        }
        let (page_bytes, rows) = catalog.sizes(&chosen).await?;
        let mut tables = Vec::new();
        for candidate in candidates {
            let row = rows
                .iter()
                .find(|row| parsed(row, 0) == Some(candidate.oid));
            let Some(row) = row else {
                continue;
            };
            let name = candidate.name.clone();
            match measured(candidate, row, page_bytes) {
                Ok(table) => tables.push(table),
                Err(error) => problems.push(TableProblem { name, error }),
            }
        }
        Ok(TablePlan {
            tables,
            problems,
            position,
            page_bytes,
        })
    }
}

/// A transaction on the replica that looks at the catalog.
struct Catalog<'a> {
    connection: Connection,
    options: &'a ReplicaOptions,
}

impl<'a> Catalog<'a> {
    async fn open(options: &'a ReplicaOptions) -> Result<Self, ReadError> {
        let connection = check::connect(options).await?;
        let version = connection.server_version();
        let mut catalog = Self {
            connection,
            options,
        };
        let rows = catalog.ask(IDENTITY).await?;
        check::identity(rows.first(), version, options)?;
        let lock_timeout = options.limits.lock_max.as_millis().max(1);
        catalog
            .ask(&format!(
                "SET statement_timeout = 0; SET lock_timeout = {lock_timeout}; \
                 SET search_path = ''; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
            ))
            .await?;
        Ok(catalog)
    }

    async fn ask(&mut self, sql: &str) -> Result<Vec<Row>, ReadError> {
        let rows = self.connection.query(sql).await;
        rows.map_err(|source| unreachable(self.options, source))
    }

    /// The first query: takes the snapshot. Its position is read after it, and on a standby what
    /// was received counts, as the record that is being applied may be visible already.
    async fn position(&mut self) -> Result<PlanPosition, ReadError> {
        let at = match self.options.kind {
            ReplicaKind::Standby => "greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())",
            ReplicaKind::Source => "pg_current_wal_insert_lsn()",
        };
        let xmin = "SELECT pg_snapshot_xmin(pg_current_snapshot())";
        let rows = self.ask(&format!("{xmin}; SELECT {at}")).await?;
        let xmin: u64 = rows
            .first()
            .and_then(|row| parsed(row, 0))
            .unwrap_or_default();
        Ok(PlanPosition {
            at: rows
                .get(1)
                .and_then(|row| parsed(row, 0))
                .unwrap_or_default(),
            // Rows carry the lower half.
            since_xid: (xmin & u64::from(u32::MAX)) as u32,
        })
    }

    /// Lists the heaps of the publication, by label and name.
    async fn candidates(&mut self) -> Result<Vec<Candidate>, ReadError> {
        let sql = format!(
            "SELECT hn.nspname, h.relname, ln.nspname, l.relname, h.oid, \
             (SELECT string_agg(an.nspname || E'\\n' || a.relname, E'\\n\\n') \
               FROM pg_partition_ancestors(h.oid) t JOIN pg_class a ON a.oid = t.relid \
               JOIN pg_namespace an ON an.oid = a.relnamespace WHERE h.relispartition) \
             FROM pg_publication_tables p \
             JOIN pg_namespace ln ON ln.nspname = p.schemaname \
             JOIN pg_class l ON l.relname = p.tablename AND l.relnamespace = ln.oid \
             CROSS JOIN LATERAL (SELECT l.oid AS oid WHERE l.relkind <> 'p' \
               UNION SELECT relid FROM pg_partition_tree(l.oid) WHERE isleaf) heap \
             JOIN pg_class h ON h.oid = heap.oid JOIN pg_namespace hn ON hn.oid = h.relnamespace \
             WHERE p.pubname = {} ORDER BY 3, 4, 1, 2",
            quote_literal(&self.options.publication)
        );
        let name = |row: &Row, column| TableName {
            schema: owned(row, column),
            table: owned(row, column + 1),
        };
        let above = |row: &Row| {
            let names = text(row, 5).unwrap_or_default().split("\n\n");
            let names = names.filter_map(|name| name.split_once('\n'));
            let name = |(schema, table): (&str, &str)| TableName {
                schema: schema.to_owned(),
                table: table.to_owned(),
            };
            names.map(name).collect()
        };
        let rows = self.ask(&sql).await?;
        let candidate = |row: &Row| Candidate {
            name: name(row, 0),
            label: name(row, 2),
            oid: parsed(row, 4).unwrap_or_default(),
            above: above(row),
        };
        Ok(rows.iter().map(candidate).collect())
    }

    /// Measures heaps; returns also the bytes of a page.
    async fn sizes(&mut self, oids: &[u32]) -> Result<(u32, Vec<Row>), ReadError> {
        let list: Vec<String> = oids.iter().map(u32::to_string).collect();
        let sql = format!(
            "SELECT current_setting('block_size'); \
             SELECT c.oid, pg_relation_filenode(c.oid), c.relkind, c.relpersistence, \
             pg_relation_size(c.oid), pg_table_size(c.oid), c.reltuples::int8, \
             c.reltoastrelid <> 0, has_table_privilege(c.oid, 'SELECT') \
             AND has_schema_privilege(c.relnamespace, 'USAGE') \
             FROM pg_class c WHERE c.oid = ANY ('{{{}}}')",
            list.join(",")
        );
        let mut rows = self.ask(&sql).await?;
        let page_bytes = rows.first().and_then(|row| parsed(row, 0)).unwrap_or(8_192);
        Ok((page_bytes, rows.split_off(1.min(rows.len()))))
    }

    /// Says why a name led to nothing; `None` for a partitioned table that has no partitions.
    async fn why_nothing(
        &mut self,
        pattern: &Pattern<'_>,
    ) -> Result<Option<TableProblem>, ReadError> {
        let table = TableName {
            schema: pattern.schema.to_owned(),
            table: pattern.table.to_owned(),
        };
        let schema = match pattern.schema {
            "*" => "true".to_owned(),
            schema => format!("n.nspname = {}", quote_literal(schema)),
        };
        let publication = self.options.publication.clone();
        let sql = format!(
            "SELECT c.relkind, c.relpersistence, n.nspname, c.relkind = 'p' AND NOT EXISTS \
             (SELECT FROM pg_partition_tree(c.oid) WHERE isleaf) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relname = {} AND {schema} ORDER BY c.relkind = 'r' DESC LIMIT 1",
            quote_literal(pattern.table)
        );
        let rows = self.ask(&sql).await?;
        let Some(row) = rows.first() else {
            let error = ReadError::Missing {
                table: table.clone(),
            };
            return Ok(Some(TableProblem { name: table, error }));
        };
        let table = TableName {
            schema: owned(row, 2),
            ..table
        };
        let name = table.clone();
        let error = match unusable(row, 0, &table) {
            Some(error) => error,
            None if flag(row, 3) => return Ok(None),
            None => ReadError::NotPublished { table, publication },
        };
        Ok(Some(TableProblem { name, error }))
    }
}

/// Says why a relation has no rows to dump, by its kind and persistence in two columns.
fn unusable(row: &Row, column: usize, table: &TableName) -> Option<ReadError> {
    let table = table.clone();
    let kind = match text(row, column) {
        Some("r" | "p") => None,
        Some("v") => Some("view"),
        Some("m") => Some("materialized view"),
        Some("f") => Some("foreign table"),
        Some("S") => Some("sequence"),
        Some("i" | "I") => Some("index"),
        Some("c") => Some("composite type"),
        _ => Some("relation of another kind"),
    };
    if let Some(kind) = kind {
        return Some(ReadError::NoHeap { table, kind });
    }
    let kind = match text(row, column + 1) {
        Some("u") => "unlogged",
        Some("t") => "temporary",
        _ => return None,
    };
    Some(ReadError::NotInWal { table, kind })
}

fn measured(candidate: Candidate, row: &Row, page_bytes: u32) -> Result<DumpTable, ReadError> {
    let table = candidate.name.clone();
    if let Some(error) = unusable(row, 2, &table) {
        return Err(error);
    }
    if !flag(row, 8) {
        return Err(ReadError::NoSelect { table });
    }
    // Both are NULL when the table was dropped in this moment.
    let (Some(filenode), Some(heap_bytes)) = (parsed(row, 1), parsed::<u64>(row, 4)) else {
        return Err(ReadError::Missing { table });
    };
    let estimate: Option<i64> = parsed(row, 6);
    Ok(DumpTable {
        heap: Heap {
            name: candidate.name,
            label: candidate.label,
            oid: candidate.oid,
            filenode,
        },
        page_count: u32::try_from(heap_bytes / u64::from(page_bytes.max(1))).unwrap_or(u32::MAX),
        byte_count: parsed(row, 5).unwrap_or_default(),
        // -1 means that nobody has looked.
        row_estimate: estimate.and_then(|rows| u64::try_from(rows).ok()),
        has_toast: flag(row, 7),
    })
}

/// A name that may hold `*`.
struct Pattern<'a> {
    schema: &'a str,
    table: &'a str,
}

impl<'a> Pattern<'a> {
    fn new(name: &'a str) -> Self {
        let (schema, table) = name.split_once('.').unwrap_or(("*", name));
        Self { schema, table }
    }

    fn fits(&self, name: &TableName) -> bool {
        glob(self.schema.as_bytes(), name.schema.as_bytes())
            && glob(self.table.as_bytes(), name.table.as_bytes())
    }
}

//! The table that is copied: narrow columns of several types, and two that are stored out of line.

use anyhow::{Context, Result};
use tokio_postgres::{
    binary_copy::BinaryCopyOutStream,
    types::{FromSql, Type},
};
use tokio_stream::StreamExt;

use super::digest::{Digest, Digester, digest};
use crate::harness::sql::Sql;

/// Schema of the table.
pub const SCHEMA: &str = "public";

/// Name of the table.
pub const TABLE: &str = "dumped";

/// One row of this many has wide columns from the start.
const WIDE_ONE_IN: u32 = 64;

/// One column: its name, its type's OID, and whether an update may leave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: &'static str,
    /// OID of its type.
    pub oid: u32,
    /// Stored out of line when long.
    pub is_wide: bool,
}

const fn narrow(name: &'static str, oid: u32) -> Column {
    let is_wide = false;
    Column { name, oid, is_wide }
}

const fn wide(name: &'static str, oid: u32) -> Column {
    let is_wide = true;
    Column { name, oid, is_wide }
}

/// The columns in the order of the table.
pub const COLUMNS: [Column; 9] = [
    narrow("id", 20),
    narrow("version", 20),
    narrow("n", 23),
    wide("doc", 25),
    narrow("tag", 25),
    narrow("amount", 1700),
    narrow("at", 1184),
    wide("data", 3802),
    narrow("tags", 1007),
];

/// Wide columns.
pub const WIDE: usize = 2;

/// Creates the tables, empty. `version` grows with every write of a row, over all rows.
pub const CREATE: &str = "
CREATE SEQUENCE public.versions;
CREATE TABLE public.dumped (
    id bigint NOT NULL,
    version bigint NOT NULL,
    gone int,
    n int NOT NULL,
    doc text,
    tag text,
    amount numeric(12, 2),
    at timestamptz,
    data jsonb,
    tags int[]
) WITH (fillfactor = 90);
ALTER TABLE public.dumped ALTER COLUMN doc SET STORAGE EXTERNAL;
ALTER TABLE public.dumped DROP COLUMN gone;
CREATE TABLE public.bystander (id bigint PRIMARY KEY, n int NOT NULL);
INSERT INTO public.bystander SELECT g, g FROM generate_series(1, 1000) g;
CREATE TABLE public.marker (id bigint PRIMARY KEY);
CREATE FUNCTION public.wide(seed bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT string_agg(md5((seed * 1000 + g)::text), '') FROM generate_series(1, 90) g $$;
";

/// Fills the table and leaves holes in its pages, so that rows move back and forth between them.
///
/// # Errors
///
/// When the source refuses.
pub async fn fill(sql: &Sql, rows: u64) -> Result<()> {
    let statements = format!(
        "INSERT INTO public.dumped (id, version, n, doc, tag, amount, at, data, tags)
        SELECT g, 0, g % 1000,
            CASE WHEN g % {WIDE_ONE_IN} = 0 THEN public.wide(g) WHEN g % 3 = 0 THEN 'short' END,
            'tag ' || g % 977, (g % 100000) / 7.0, timestamptz '2026-01-01' + g * interval '1 s',
            CASE WHEN g % {WIDE_ONE_IN} = 1 THEN jsonb_build_object('w', public.wide(g))
                WHEN g % 5 = 0 THEN '{{\"a\": [1, null]}}' END,
            CASE WHEN g % 4 = 0 THEN ARRAY[g % 7, NULL]::int[] END
        FROM generate_series(1, {rows}) g;
        DELETE FROM public.dumped WHERE id % 20 = 3;
        ALTER TABLE public.dumped ADD PRIMARY KEY (id);
        CREATE INDEX ON public.dumped (tag);"
    );
    let filled = sql.client.batch_execute(&statements).await;
    filled.context("fill the table")?;
    let cleaned = sql
        .client
        .batch_execute("VACUUM (ANALYZE) public.dumped")
        .await;
    cleaned.context("vacuum the table")
}

/// One row of the table, as hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Key.
    pub id: i64,
    /// Grows with every write.
    pub version: i64,
    /// The other columns that are always sent.
    pub narrow: Digest,
    /// The wide columns.
    pub wide: [Digest; WIDE],
}

/// A value as PostgreSQL sent it, whatever its type.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Reads the whole table in one statement and gives each row to `visit`.
///
/// # Errors
///
/// When the source cannot be read to the end.
pub async fn read(sql: &Sql, mut visit: impl FnMut(Row)) -> Result<u64> {
    let names = COLUMNS.map(|column| column.name).join(", ");
    let statement = format!("COPY (SELECT {names} FROM public.dumped) TO STDOUT (FORMAT binary)");
    let stream = sql.client.copy_out(&statement).await.context("copy out")?;
    let types = [Type::BYTEA; COLUMNS.len()];
    let mut rows = std::pin::pin!(BinaryCopyOutStream::new(stream, &types));
    let mut count = 0;
    while let Some(row) = rows.next().await {
        let row = row.context("read the table")?;
        let mut image = Image::default();
        for index in 0..COLUMNS.len() {
            let value: Option<Raw<'_>> = row.try_get(index)?;
            image.add(index, value.map(|raw| raw.0));
        }
        visit(image.finish().context("a row without its key")?);
        count += 1;
    }
    Ok(count)
}

/// A row in the making: columns are added in the order of the table.
#[derive(Debug, Default)]
pub struct Image {
    id: Option<i64>,
    version: Option<i64>,
    narrow: Digester,
    wide: [Digest; WIDE],
    wide_seen: usize,
}

impl Image {
    /// Adds the column with this number; `None` is NULL.
    pub fn add(&mut self, index: usize, value: Option<&[u8]>) {
        match COLUMNS.get(index) {
            Some(column) if column.is_wide => self.put_wide(digest(value)),
            Some(_) if index == 0 => self.id = value.and_then(integer),
            Some(_) if index == 1 => self.version = value.and_then(integer),
            Some(_) | None => self.narrow.add(value),
        }
    }

    /// Notes that a wide column was left out.
    pub fn leave_out(&mut self) {
        self.put_wide(Digest::UNKNOWN);
    }

    /// Returns the row; `None` without key or version.
    #[must_use]
    pub fn finish(self) -> Option<Row> {
        Some(Row {
            id: self.id?,
            version: self.version?,
            narrow: self.narrow.finish(),
            wide: self.wide,
        })
    }

    fn put_wide(&mut self, value: Digest) {
        if let Some(place) = self.wide.get_mut(self.wide_seen) {
            *place = value;
        }
        self.wide_seen += 1;
    }
}

/// Reads a bigint as PostgreSQL sends it.
#[must_use]
pub fn integer(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

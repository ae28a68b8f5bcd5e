//! Which tables a source captures, and what stands against some of them.

use super::{flag, owned, text};
use crate::postgres::{Connection, PgError, quote_literal};

/// First version that refuses UPDATE and DELETE of rows whose identity holds a generated column that
/// is not published.
const GENERATED_CHECKED_SINCE: u32 = 180_000;

/// What a publication of UPDATE and DELETE would do to the application's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// Nothing.
    Usable,
    /// They would fail: there is none.
    Missing,
    /// They would fail, from PostgreSQL 18 on: it is the full row, and that has a generated column
    /// which the publication leaves out.
    HidesGenerated,
}

/// A table that patterns have chosen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableInfo {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Whether UPDATE and DELETE can be published.
    pub identity: Identity,
}

/// What patterns have chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableChoice {
    /// Tables that can be captured.
    pub chosen: Vec<TableInfo>,
    /// Tables left out because they have no replica identity, or none that a publication as we make
    /// it can use: the application's own UPDATE and DELETE would fail there.
    pub without_identity: Vec<TableInfo>,
    /// Patterns that matched nothing.
    pub unmatched: Vec<String>,
}

/// Ordinary and partitioned tables that are written to WAL and belong to nobody else. A partition
/// comes with its root. A key that is checked at the commit only is no identity.
const CANDIDATES: &str = "SELECT n.nspname, c.relname, \
     CASE c.relreplident WHEN 'f' THEN true WHEN 'n' THEN false \
     WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) \
     ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary \
     AND i.indimmediate) END, \
     c.relreplident = 'f' AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid \
     AND a.attgenerated <> '' AND NOT a.attisdropped) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition \
     AND c.oid >= 16384 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgcapture') \
     ORDER BY 1, 2";

/// Chooses tables by patterns: `schema.table`, where each part may hold `*`; a pattern without dot
/// is a table of any schema. `excludes` wins.
///
/// # Errors
///
/// A lost connection.
pub async fn choose_tables(
    connection: &mut Connection,
    patterns: &[String],
    excludes: &[String],
) -> Result<TableChoice, PgError> {
    let rows = connection.query(CANDIDATES).await?;
    let checks_generated = connection.server_version() >= GENERATED_CHECKED_SINCE;
    let tables = rows.iter().map(|row| TableInfo {
        schema: owned(row, 0),
        name: owned(row, 1),
        identity: match (flag(row, 2), flag(row, 3) && checks_generated) {
            (false, _) => Identity::Missing,
            (true, true) => Identity::HidesGenerated,
            (true, false) => Identity::Usable,
        },
    });
    let mut choice = TableChoice::default();
    let mut is_matched = vec![false; patterns.len()];
    for table in tables {
        let mut is_wanted = false;
        for (pattern, is_matched) in patterns.iter().zip(&mut is_matched) {
            if fits(pattern, &table) {
                is_wanted = true;
                *is_matched = true;
            }
        }
        if !is_wanted || excludes.iter().any(|pattern| fits(pattern, &table)) {
            continue;
        }
        match table.identity {
            Identity::Usable => choice.chosen.push(table),
            Identity::Missing | Identity::HidesGenerated => choice.without_identity.push(table),
        }
    }
    let unmatched = patterns
        .iter()
        .zip(is_matched)
        .filter(|(_, is_matched)| !is_matched);
    choice.unmatched = unmatched.map(|(pattern, _)| pattern.clone()).collect();
    Ok(choice)
}

fn fits(pattern: &str, table: &TableInfo) -> bool {
    let (schema, name) = pattern.split_once('.').unwrap_or(("*", pattern));
    glob(schema.as_bytes(), table.schema.as_bytes()) && glob(name.as_bytes(), table.name.as_bytes())
}

/// Matches with `*` for any run of bytes; linear in memory, no recursion on the text.
pub(in crate::postgres) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut rest = text;
    let mut parts = pattern.split(|byte| *byte == b'*');
    let first = parts.next().unwrap_or_default();
    let Some(tail) = rest.strip_prefix(first) else {
        return false;
    };
    rest = tail;
    let mut parts: Vec<&[u8]> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        let found = rest
            .windows(part.len().max(1))
            .position(|window| window == part);
        match found {
            _ if part.is_empty() => {}
            Some(place) => rest = rest.get(place + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

/// Returns `table.column type` for every column of the publication's tables whose type cannot be
/// sent in binary form: one value of it fails the whole stream in binary mode.
///
/// # Errors
///
/// A lost connection.
pub async fn types_without_binary(
    connection: &mut Connection,
    publication: &str,
) -> Result<Vec<String>, PgError> {
    let rows = connection
        .query(&types_without_binary_query(publication))
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| text(row, 0).map(str::to_owned))
        .collect())
}

pub(super) fn types_without_binary_query(publication: &str) -> String {
    format!(
        "SELECT format('%I.%I.%I %s', p.schemaname, p.tablename, a.attname, \
         format_type(a.atttypid, a.atttypmod)) \
         FROM pg_publication_tables p \
         JOIN pg_namespace n ON n.nspname = p.schemaname \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typlen = -1 AND t.typcategory = 'A' \
         LEFT JOIN pg_type b ON b.oid = t.typbasetype \
         WHERE p.pubname = {} AND (t.typsend = 0 OR e.typsend = 0 OR b.typsend = 0) ORDER BY 1",
        quote_literal(publication)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(schema: &str, name: &str) -> TableInfo {
        TableInfo {
            schema: schema.to_owned(),
            name: name.to_owned(),
            identity: Identity::Usable,
        }
    }

    #[test]
    fn patterns_choose_by_schema_and_name() {
        for (pattern, schema, name, wanted) in [
            ("public.*", "public", "orders", true),
            ("public.*", "public2", "orders", false),
            ("orders", "any", "orders", true),
            ("*.order*", "a", "orders_2", true),
            ("*.*_log", "a", "audit_log", true),
            ("*.*_log", "a", "audit_logs", false),
            ("a.x*y*z", "a", "xyz", true),
            ("a.x*y*z", "a", "xz", false),
            ("a.ab*ba", "a", "aba", false),
            ("a.b", "a", "b.c", false),
        ] {
            assert_eq!(
                fits(pattern, &table(schema, name)),
                wanted,
                "{pattern} {schema}.{name}"
            );
        }
    }
}

//! Publications: what they hold.

use super::{flag, only, owned, text};
use crate::postgres::{Connection, PgError, quote_literal};

/// One publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Name.
    pub name: String,
    /// Identity: another one under the same name means that it was dropped and made again.
    pub oid: u32,
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// INSERT is published.
    pub inserts: bool,
    /// UPDATE is published.
    pub updates: bool,
    /// DELETE is published.
    pub deletes: bool,
    /// TRUNCATE is published.
    pub truncates: bool,
    /// Partitions are published as their root.
    pub via_root: bool,
    /// Schema and name of every table it holds now, sorted.
    pub tables: Vec<(String, String)>,
}

/// Returns a publication, `None` when there is none of that name. Ask from time to time while a
/// slot is read: a publication that vanished, or has another `oid` than before, means a gap
/// (PGC-S33).
///
/// # Errors
///
/// A lost connection.
pub async fn publication(
    connection: &mut Connection,
    name: &str,
) -> Result<Option<Publication>, PgError> {
    let name = quote_literal(name);
    let sql = format!(
        "SELECT pubname, oid, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, \
         pubviaroot FROM pg_publication WHERE pubname = {name}"
    );
    let rows = connection.query(&sql).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let row = only(rows)?;
    let sql = format!(
        "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = {name} \
         ORDER BY 1, 2"
    );
    let tables = connection.query(&sql).await?;
    Ok(Some(Publication {
        name: owned(&row, 0),
        oid: text(&row, 1)
            .and_then(|oid| oid.parse().ok())
            .unwrap_or_default(),
        all_tables: flag(&row, 2),
        inserts: flag(&row, 3),
        updates: flag(&row, 4),
        deletes: flag(&row, 5),
        truncates: flag(&row, 6),
        via_root: flag(&row, 7),
        tables: tables
            .iter()
            .map(|row| (owned(row, 0), owned(row, 1)))
            .collect(),
    }))
}

//! Everything that an agent must know before it takes a slot, in one round trip.
//!
//! A take-over stands between the death of one agent and the next change, so its questions go to the
//! server together. Each answer has a letter in front that says which question it belongs to.

use std::collections::BTreeMap;

use pgcapture_engine::lsn::Lsn;

use super::{
    Row, owned, parsed,
    slots::{self, SlotHolder, SlotState},
    tables, text,
};
use crate::postgres::{Connection, PgError, quote_literal};

/// What a look at a source has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceLook {
    /// `minimal`, `replica`, `logical`.
    pub wal_level: String,
    /// Where WAL is written and safe; on a standby, replayed.
    pub flush_lsn: Lsn,
    /// Identity of the publication; `None` when there is none of that name.
    pub publication_oid: Option<u32>,
    /// The slot; `None` when there is none of that name.
    pub slot: Option<SlotState>,
    /// Everyone who reads it.
    pub holders: Vec<SlotHolder>,
    /// Columns of captured tables whose type has no binary form.
    pub text_columns: Vec<String>,
}

/// Looks at a source. `is_binary` asks for the types too, which costs the most.
///
/// # Errors
///
/// A lost connection.
pub async fn look(
    connection: &mut Connection,
    slot: &str,
    publication: &str,
    is_binary: bool,
) -> Result<SourceLook, PgError> {
    let version = connection.server_version();
    let condition = format!("slot_name = {}", quote_literal(slot));
    let ask = |letter, sql: String| format!("SELECT '{letter}', a.* FROM ({sql}) a");
    let server = "SELECT current_setting('wal_level'), \
                  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                  ELSE pg_current_wal_flush_lsn() END";
    let publications = format!(
        "SELECT oid FROM pg_publication WHERE pubname = {}",
        quote_literal(publication)
    );
    let mut questions = vec![
        ask('w', server.to_owned()),
        ask('p', publications),
        ask('s', slots::query(version, &condition)),
        ask('h', slots::holders_query(slot)),
    ];
    if is_binary {
        questions.push(ask('t', tables::types_without_binary_query(publication)));
    }
    let mut found = SourceLook::default();
    for mut row in connection.query(&questions.join("; ")).await? {
        if row.is_empty() {
            continue;
        }
        let letter = row.remove(0);
        found.take(letter.as_deref(), &row);
    }
    Ok(found)
}

impl SourceLook {
    fn take(&mut self, letter: Option<&str>, row: &Row) {
        match letter {
            Some("w") => {
                self.wal_level = owned(row, 0);
                self.flush_lsn = parsed(row, 1).unwrap_or_default();
            }
            Some("p") => self.publication_oid = parsed(row, 0),
            Some("s") => self.slot = Some(slots::state(row)),
            Some("h") => self.holders.push(slots::holder(row)),
            _ => self.text_columns.extend(text(row, 0).map(str::to_owned)),
        }
    }
}

/// What is watched while slots of a database are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Version of the server, as a number.
    pub version: u32,
    /// Identity of every publication, by name.
    pub publications: BTreeMap<String, u32>,
    /// Every slot of the database, by name.
    pub slots: BTreeMap<String, SlotState>,
}

/// Looks at all slots and publications of a database. Ask from time to time while a slot is read: a
/// publication that vanished, or has another identity than before, means a gap (PGC-S33).
///
/// # Errors
///
/// A lost connection.
pub async fn watched(connection: &mut Connection) -> Result<Watched, PgError> {
    let version = connection.server_version();
    let slots = slots::query(version, "database = current_database()");
    let sql =
        format!("SELECT 'p', pubname, oid FROM pg_publication; SELECT 's', a.* FROM ({slots}) a");
    let mut watched = Watched {
        version,
        ..Watched::default()
    };
    for mut row in connection.query(&sql).await? {
        if row.is_empty() {
            continue;
        }
        if row.remove(0).as_deref() == Some("p") {
            let oid = parsed(&row, 1).unwrap_or_default();
            watched.publications.insert(owned(&row, 0), oid);
        } else {
            let slot = slots::state(&row);
            watched.slots.insert(slot.name.clone(), slot);
        }
    }
    Ok(watched)
}

//! The rows of everything that was agreed on, in one order: what a snapshot holds, and what is
//! compared between nodes.

use std::sync::Arc;

use redb::{Durability, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{
    ANSWERED, CURSORS, Inner, Mark, STATE, STATE_KEY, Store, StoreError, agreed, dumps, encode,
    failed,
    format::{self, ADDED_KEY},
    log,
};

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Row {
    /// The state but for its dumps.
    State(Vec<u8>),
    /// A cursor: stream, consumer, value.
    Cursor(String, String, Vec<u8>),
    /// A dump without its tables.
    Dump(u64, Vec<u8>),
    /// A table of a dump.
    DumpTable((u64, u32), Vec<u8>),
    /// An answer of the last ones.
    Answered(u64, Vec<u8>),
    /// What the second version of the protocol has added to the state; not there before.
    Added(Vec<u8>),
}

/// One look at the file: later writes do not change what it shows.
#[derive(Debug)]
pub(crate) struct View {
    transaction: ReadTransaction,
}

impl Store {
    /// Takes a look at everything that was agreed on, as it is now.
    pub(crate) fn view(&self) -> Result<View, StoreError> {
        let transaction = self.inner.database.begin_read();
        let transaction = transaction.map_err(|error| failed(error.into()))?;
        Ok(View { transaction })
    }

    /// Puts rows in the place of everything that was agreed on, with the place in the log that they
    /// stand for. All or nothing, and on disk when this returns. Blocking. `version` is that of the store
    /// that the rows come from, from [`SNAPSHOT_VERSION_MIN`](super::SNAPSHOT_VERSION_MIN) on.
    pub(crate) fn replace(
        &self,
        rows: impl IntoIterator<Item = Result<Row, StoreError>>,
        version: u32,
        marks: &[(Mark, Vec<u8>)],
    ) -> Result<(), StoreError> {
        self.inner.replace(rows, version, marks)
    }
}

impl Inner {
    fn replace(
        &self,
        rows: impl IntoIterator<Item = Result<Row, StoreError>>,
        version: u32,
        marks: &[(Mark, Vec<u8>)],
    ) -> Result<(), StoreError> {
        let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?;
        let agreed = self.write(Durability::Immediate, |transaction| {
            write(transaction, &rows).map_err(failed)?;
            log::write_marks(transaction, marks).map_err(failed)?;
            let state = format::read_state(transaction, version)?;
            let kept = format::version_of(&state);
            if version != kept {
                let bytes = encode(&state)?;
                write_state(transaction, &bytes).map_err(failed)?;
            }
            format::write_version(transaction, kept).map_err(failed)?;
            agreed::read(transaction, state)
        })?;
        let state = Arc::clone(&agreed.state);
        self.note_state(encode(&*state)?.len());
        *self.agreed() = agreed;
        self.state.send_replace(state);
        self.cursor_moves.send_modify(|number| *number += 1);
        Ok(())
    }
}

fn write_state(transaction: &WriteTransaction, bytes: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(STATE)?.insert(STATE_KEY, bytes)?;
    Ok(())
}

fn write(transaction: &WriteTransaction, rows: &[Row]) -> Result<(), redb::Error> {
    let mut state = transaction.open_table(STATE)?;
    let mut cursors = transaction.open_table(CURSORS)?;
    let mut answered = transaction.open_table(ANSWERED)?;
    let mut dumps = transaction.open_table(dumps::DUMPS)?;
    let mut tables = transaction.open_table(dumps::DUMP_TABLES)?;
    state.retain(|_, _| false)?;
    cursors.retain(|_, _| false)?;
    answered.retain(|_, _| false)?;
    dumps.retain(|_, _| false)?;
    tables.retain(|_, _| false)?;
    for row in rows {
        match row {
            Row::State(bytes) => drop(state.insert(STATE_KEY, bytes.as_slice())?),
            Row::Cursor(stream, consumer, bytes) => {
                drop(cursors.insert((stream.as_str(), consumer.as_str()), bytes.as_slice())?);
            }
            Row::Dump(id, bytes) => drop(dumps.insert(id, bytes.as_slice())?),
            Row::DumpTable(key, bytes) => drop(tables.insert(key, bytes.as_slice())?),
            Row::Answered(place, bytes) => drop(answered.insert(place, bytes.as_slice())?),
            Row::Added(bytes) => drop(state.insert(ADDED_KEY, bytes.as_slice())?),
        }
    }
    Ok(())
}

impl View {
    /// Reads a value as it was.
    pub(crate) fn mark(&self, mark: Mark) -> Result<Option<Vec<u8>>, StoreError> {
        log::mark_in(&self.transaction, mark).map_err(failed)
    }

    /// Returns the version of the file as it was.
    pub(crate) fn version(&self) -> Result<u32, StoreError> {
        format::version_at(&self.transaction).map_err(failed)
    }

    /// Hands every row to `take`, in the order of tables and keys.
    pub(crate) fn each<E: From<StoreError>>(
        &self,
        mut take: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let fail = |error: redb::Error| E::from(failed(error));
        let transaction = &self.transaction;
        macro_rules! each_of {
            ($table:expr, |$key:ident, $value:ident| $row:expr) => {
                let table = transaction
                    .open_table($table)
                    .map_err(|it| fail(it.into()))?;
                for row in table.iter().map_err(|it| fail(it.into()))? {
                    let (key, value) = row.map_err(|it| fail(it.into()))?;
                    let ($key, $value) = (key.value(), value.value().to_vec());
                    take($row)?;
                }
            };
        }
        each_of!(STATE, |key, value| if key == STATE_KEY {
            Row::State(value)
        } else {
            Row::Added(value)
        });
        each_of!(CURSORS, |key, value| Row::Cursor(
            key.0.to_owned(),
            key.1.to_owned(),
            value
        ));
        each_of!(dumps::DUMPS, |key, value| Row::Dump(key, value));
        each_of!(dumps::DUMP_TABLES, |key, value| Row::DumpTable(key, value));
        each_of!(ANSWERED, |key, value| Row::Answered(key, value));
        Ok(())
    }
}

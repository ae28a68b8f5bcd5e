//! The rows of dumps: one a dump, one a table of it.
//!
//! Finishing a range changes one table of one dump. What a command changed is seen by the pointers:
//! the agreed state shares everything else with the one before. So ten thousand ranges are ten
//! thousand small rows, not ten thousand copies of everything.

use std::{collections::BTreeMap, sync::Arc};

use pgcapture_engine::{
    cluster::{Dump, DumpTable, State},
    dump::DumpId,
};
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{StoreError, decode, encode, failed};

pub(super) const DUMPS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("dumps");
pub(super) const DUMP_TABLES: TableDefinition<'_, (u64, u32), &[u8]> =
    TableDefinition::new("dump_tables");

/// What a command changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    gone: Vec<DumpId>,
    dumps: Vec<(DumpId, Vec<u8>)>,
    tables: Vec<((u64, u32), Vec<u8>)>,
}

/// Compares two states that share what is equal. The number of a dump's tables never changes.
pub(super) fn changes(before: &State, after: &State) -> Result<Changes, StoreError> {
    let mut changes = Changes::default();
    let is_gone = |id: &&DumpId| !after.dumps.contains_key(id);
    changes.gone = before.dumps.keys().filter(is_gone).copied().collect();
    for (id, dump) in &after.dumps {
        let old = before.dumps.get(id);
        if old.is_some_and(|old| Arc::ptr_eq(old, dump)) {
            continue;
        }
        changes.dumps.push((*id, encode(&**dump)?));
        for (index, table) in dump.tables.iter().enumerate() {
            let old = old.and_then(|old| old.tables.get(index));
            if !old.is_some_and(|old| Arc::ptr_eq(old, table)) {
                changes.tables.push((key(*id, index)?, encode(&**table)?));
            }
        }
    }
    Ok(changes)
}

/// Writes what changed.
pub(super) fn write(transaction: &WriteTransaction, changes: &Changes) -> Result<(), redb::Error> {
    if changes.gone.is_empty() && changes.dumps.is_empty() {
        return Ok(());
    }
    let mut dumps = transaction.open_table(DUMPS)?;
    let mut tables = transaction.open_table(DUMP_TABLES)?;
    for id in &changes.gone {
        dumps.remove(id.0)?;
        tables.retain_in((id.0, 0)..=(id.0, u32::MAX), |_, _| false)?;
    }
    for (id, bytes) in &changes.dumps {
        dumps.insert(id.0, bytes.as_slice())?;
    }
    for (key, bytes) in &changes.tables {
        tables.insert(*key, bytes.as_slice())?;
    }
    Ok(())
}

/// Reads every dump with its tables.
pub(super) fn read(
    transaction: &WriteTransaction,
) -> Result<BTreeMap<DumpId, Arc<Dump>>, StoreError> {
    let rows = read_rows(transaction).map_err(failed)?;
    let mut dumps: BTreeMap<DumpId, Dump> = BTreeMap::new();
    for (id, bytes) in rows.dumps {
        dumps.insert(DumpId(id), decode(&bytes)?);
    }
    for ((id, index), bytes) in rows.tables {
        let table: DumpTable = decode(&bytes)?;
        let dump = dumps.get_mut(&DumpId(id)).ok_or_else(|| damaged(id))?;
        // Rows come in the order of their keys.
        if key(DumpId(id), dump.tables.len())? != (id, index) {
            return Err(damaged(id));
        }
        dump.tables.push(Arc::new(table));
    }
    Ok(dumps
        .into_iter()
        .map(|(id, dump)| (id, Arc::new(dump)))
        .collect())
}

/// The rows of both tables of the file, in the order of their keys.
#[derive(Default)]
struct Rows {
    dumps: Vec<(u64, Vec<u8>)>,
    tables: Vec<((u64, u32), Vec<u8>)>,
}

fn read_rows(transaction: &WriteTransaction) -> Result<Rows, redb::Error> {
    let mut rows = Rows::default();
    for row in transaction.open_table(DUMPS)?.iter()? {
        let (key, value) = row?;
        rows.dumps.push((key.value(), value.value().to_vec()));
    }
    for row in transaction.open_table(DUMP_TABLES)?.iter()? {
        let (key, value) = row?;
        rows.tables.push((key.value(), value.value().to_vec()));
    }
    Ok(rows)
}

/// Makes the tables of the file.
pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(DUMPS)?;
    transaction.open_table(DUMP_TABLES)?;
    Ok(())
}

fn key(id: DumpId, index: usize) -> Result<(u64, u32), StoreError> {
    let index = u32::try_from(index).map_err(|_| damaged(id.0))?;
    Ok((id.0, index))
}

fn damaged(id: u64) -> StoreError {
    StoreError::Damaged {
        what: format!("the tables of dump {} are not whole", DumpId(id)),
    }
}

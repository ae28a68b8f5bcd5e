//! This node's part of the common log, its vote, and who it is: rows of bytes.
//!
//! What the bytes mean is the business of `crate::raft`. Every write here is on disk when the call
//! returns, and every call is one transaction, however much it writes.

use std::{fmt, sync::Arc};

use super::{STATE, STATE_KEY, Store, StoreError, decode, encode, failed};
use pgcapture_engine::cluster::{Node, State};
use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("raft_log");
const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("raft");

/// A value of which there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The id under which it asked to be let in.
    Joining,
    /// Who this node is.
    Identity,
    /// For whom it voted.
    Vote,
    /// Up to where the log was removed.
    Purged,
    /// Up to where the log was applied.
    Applied,
    /// Who belonged to the cluster there.
    Membership,
    /// The identities that the cluster had before it was recovered.
    Former,
    /// How many durable writes there were.
    Writes,
}

impl Mark {
    const fn key(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Identity => "identity",
            Self::Vote => "vote",
            Self::Purged => "purged",
            Self::Applied => "applied",
            Self::Membership => "membership",
            Self::Former => "former",
            Self::Writes => "writes",
        }
    }
}

/// What tells one cluster from all others. Made at random with the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// Returns the short form, which names of connections have room for.
    #[must_use]
    pub fn short(self) -> pgcapture_engine::fence::ClusterId {
        let [first, second, third, fourth, ..] = self.0.to_be_bytes();
        pgcapture_engine::fence::ClusterId(u32::from_be_bytes([first, second, third, fourth]))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who a node is. Given once, by its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its number there.
    pub id: u64,
    /// Its name there.
    pub name: String,
}

/// A write to the log.
#[derive(Debug)]
pub(crate) enum LogWrite {
    /// Adds entries after the last one.
    Append(Vec<(u64, Vec<u8>)>),
    /// Removes the entries from that index on.
    Truncate(u64),
    /// Removes the entries up to and including that index.
    Purge(u64),
    /// Sets a value.
    Set(Mark, Vec<u8>),
}

impl Store {
    /// Does all writes in one transaction. Blocking.
    pub(crate) fn write_log(&self, writes: &[LogWrite]) -> Result<(), StoreError> {
        self.inner.write(Durability::Immediate, |transaction| {
            for write in writes {
                write_one(transaction, write).map_err(failed)?;
            }
            Ok(())
        })
    }

    /// Reads a value.
    pub(crate) fn mark(&self, mark: Mark) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || mark_in(&self.inner.database.begin_read()?, mark);
        read().map_err(failed)
    }

    /// Returns who this node is; `None` before it belongs to a cluster.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn identity(&self) -> Result<Option<Identity>, StoreError> {
        let bytes = self.mark(Mark::Identity)?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    /// Tells whether there is anything that a cluster would have to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let agreed = self.inner.agreed();
        agreed.state.as_ref() == &State::default() && agreed.cursors.iter().next().is_none()
    }

    /// Makes this node a member: in one transaction with what it begins with. With `first` it is the
    /// first node of a new cluster, and what the store holds is what the cluster begins with.
    pub(crate) fn become_member(
        &self,
        identity: &Identity,
        first: Option<Node>,
        marks: &[(Mark, Vec<u8>)],
    ) -> Result<(), StoreError> {
        let mut marks = marks.to_vec();
        marks.push((Mark::Identity, encode(identity)?));
        let mut agreed = self.inner.agreed();
        let state = first.map(|node| {
            let mut state = State::clone(&agreed.state);
            state.last_node = node.id;
            state.nodes.insert(node.name.clone(), node);
            Arc::new(state)
        });
        let bytes = state.as_deref().map(encode).transpose()?;
        self.inner.write(Durability::Immediate, |transaction| {
            write_first(transaction, bytes.as_deref(), &marks).map_err(failed)
        })?;
        if let Some(state) = state {
            agreed.state = Arc::clone(&state);
            self.inner.state.send_replace(state);
        }
        Ok(())
    }

    /// Makes this node the only one of its cluster, in one transaction: under another identity, with
    /// this state, and without the log up to `last`.
    pub(crate) fn begin_anew(
        &self,
        identity: &Identity,
        state: State,
        last: u64,
        marks: &[(Mark, Vec<u8>)],
    ) -> Result<(), StoreError> {
        let mut marks = marks.to_vec();
        marks.push((Mark::Identity, encode(identity)?));
        let bytes = encode(&state)?;
        let mut agreed = self.inner.agreed();
        self.inner.write(Durability::Immediate, |transaction| {
            write_one(transaction, &LogWrite::Purge(last)).map_err(failed)?;
            write_first(transaction, Some(&bytes), &marks).map_err(failed)
        })?;
        agreed.state = Arc::new(state);
        self.inner.state.send_replace(Arc::clone(&agreed.state));
        Ok(())
    }

    /// Reads entries from `first` to before `end`, until `bytes_max` is reached; at least one when
    /// there is one.
    pub(crate) fn entries(
        &self,
        (first, end): (u64, u64),
        bytes_max: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let read = || {
            let table = self.inner.database.begin_read()?.open_table(LOG)?;
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for row in table.range(first..end)? {
                let (index, value) = row?;
                let value = value.value();
                if !rows.is_empty() && bytes + value.len() > bytes_max {
                    break;
                }
                bytes += value.len();
                rows.push((index.value(), value.to_vec()));
            }
            Ok::<_, redb::Error>(rows)
        };
        read().map_err(failed)
    }

    /// Reads the last entry.
    pub(crate) fn last_entry(&self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let read = || {
            let table = self.inner.database.begin_read()?.open_table(LOG)?;
            let last = table.last()?;
            Ok::<_, redb::Error>(last.map(|(index, value)| (index.value(), value.value().to_vec())))
        };
        read().map_err(failed)
    }
}

fn write_first(
    transaction: &WriteTransaction,
    state: Option<&[u8]>,
    marks: &[(Mark, Vec<u8>)],
) -> Result<(), redb::Error> {
    if let Some(bytes) = state {
        let mut table = transaction.open_table(STATE)?;
        table.insert(STATE_KEY, bytes)?;
    }
    write_marks(transaction, marks)
}

fn write_one(transaction: &WriteTransaction, write: &LogWrite) -> Result<(), redb::Error> {
    match write {
        LogWrite::Append(entries) => {
            let mut table = transaction.open_table(LOG)?;
            for (index, bytes) in entries {
                table.insert(index, bytes.as_slice())?;
            }
            Ok(())
        }
        LogWrite::Truncate(first) => {
            let mut table = transaction.open_table(LOG)?;
            table.retain_in::<u64, _>(*first.., |_, _| false)?;
            Ok(())
        }
        LogWrite::Purge(last) => {
            let mut table = transaction.open_table(LOG)?;
            table.retain_in::<u64, _>(..=*last, |_, _| false)?;
            Ok(())
        }
        LogWrite::Set(mark, bytes) => {
            let mut table = transaction.open_table(MARKS)?;
            table.insert(mark.key(), bytes.as_slice())?;
            Ok(())
        }
    }
}

/// Reads a value inside a transaction.
pub(super) fn mark_in(
    transaction: &ReadTransaction,
    mark: Mark,
) -> Result<Option<Vec<u8>>, redb::Error> {
    let table = transaction.open_table(MARKS)?;
    let value = table.get(mark.key())?;
    Ok(value.map(|value| value.value().to_vec()))
}

/// Sets values inside a transaction.
pub(super) fn write_marks(
    transaction: &WriteTransaction,
    marks: &[(Mark, Vec<u8>)],
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(MARKS)?;
    for (mark, bytes) in marks {
        table.insert(mark.key(), bytes.as_slice())?;
    }
    Ok(())
}

/// Gives a durable write its number, inside its transaction.
pub(super) fn count_write(transaction: &WriteTransaction) -> Result<u64, StoreError> {
    let count = || {
        let mut table = transaction.open_table(MARKS)?;
        let before = table.get(Mark::Writes.key())?;
        let before = before.map(|value| value.value().to_vec());
        let number = number(before.as_deref()).map(|number| number + 1);
        if let Ok(number) = number {
            table.insert(Mark::Writes.key(), number.to_le_bytes().as_slice())?;
        }
        Ok::<_, redb::Error>(number)
    };
    count().map_err(failed)?
}

/// Returns the number of the last durable write; 0 in a file that did not count them yet.
pub(super) fn writes(database: &Database) -> Result<u64, StoreError> {
    let read = || mark_in(&database.begin_read()?, Mark::Writes);
    number(read().map_err(failed)?.as_deref())
}

fn number(bytes: Option<&[u8]>) -> Result<u64, StoreError> {
    let Some(bytes) = bytes else {
        return Ok(0);
    };
    let bytes = bytes.try_into().map_err(|_| StoreError::Damaged {
        what: "the number of its writes is none".to_owned(),
    })?;
    Ok(u64::from_le_bytes(bytes))
}

/// Makes the tables of the file.
pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(LOG)?;
    transaction.open_table(MARKS)?;
    Ok(())
}

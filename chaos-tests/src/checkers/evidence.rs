//! The evidence of a run, indexed once for all judges.
//!
//! A *write* is known by a key that its writer uses once: insert and update by the number of the
//! write, delete by the key of the row (a delete carries nothing else, and a row dies once).

use std::collections::HashMap;

use crate::{
    history::{
        event::{Entry, Event, Item, Load, Place, Reader, RunHeader},
        row::{Operation, Row, Table},
    },
    workload::journal::{Outcome, Transaction, Write},
};

/// Everything a judge may look at.
#[derive(Debug)]
pub struct Evidence {
    /// What the run was asked to do.
    pub header: RunHeader,
    /// How much the writers did.
    pub load: Load,
    /// The lines of the history.
    pub entries: Vec<Entry>,
    /// The writers' transactions.
    pub journal: Vec<Transaction>,
    writes: HashMap<WriteKey, Known>,
    sightings: HashMap<WriteKey, Vec<(u64, u32)>>,
}

/// Where a write is in the journal.
#[derive(Clone, Copy, Debug)]
struct Known {
    index: usize,
    write: Write,
    is_kept: bool,
}

/// A write of the journal.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// The transaction it belongs to.
    pub transaction: &'a Transaction,
    /// The write.
    pub write: Write,
    /// Whether no savepoint took it back.
    pub is_kept: bool,
}

/// How a write is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriteKey {
    /// Who wrote.
    pub writer: i64,
    /// What.
    pub op: Operation,
    /// Number of the write; for a delete, the row's key.
    pub number: i64,
}

impl WriteKey {
    /// Returns the key of a journal's write.
    #[must_use]
    pub const fn of_write(writer: i64, write: &Write) -> Self {
        let number = match write.op {
            Operation::Insert | Operation::Update => write.n,
            Operation::Delete => write.id,
        };
        Self {
            writer,
            op: write.op,
            number,
        }
    }

    /// Returns the key of a delivered ledger row; `None` when a number it needs is missing.
    #[must_use]
    pub fn of_row(op: Operation, row: &Row) -> Option<Self> {
        let number = match op {
            Operation::Insert | Operation::Update => row.n?,
            Operation::Delete => row.id?,
        };
        let writer = row.writer?;
        Some(Self { writer, op, number })
    }
}

impl Evidence {
    /// Indexes a history and a journal.
    #[must_use]
    pub fn new(entries: Vec<Entry>, journal: Vec<Transaction>) -> Self {
        let mut header = RunHeader::default();
        let mut load = Load::default();
        for entry in &entries {
            if let Event::Run(run) = &entry.event {
                header = run.clone();
            } else if let Event::Load(of_run) = &entry.event {
                load = *of_run;
            }
        }
        let mut writes = HashMap::new();
        for (index, transaction) in journal.iter().enumerate() {
            for (list, is_kept) in [(&transaction.kept, true), (&transaction.undone, false)] {
                for write in list {
                    let key = WriteKey::of_write(transaction.writer, write);
                    // A row may be deleted in vain, and again later: the delete that counts wins.
                    let known = Known {
                        index,
                        write: *write,
                        is_kept,
                    };
                    let present = writes.entry(key).or_insert(known);
                    let counts_more = is_kept && transaction.outcome != Outcome::RolledBack;
                    if counts_more {
                        *present = known;
                    }
                }
            }
        }
        let mut evidence = Self {
            header,
            load,
            entries,
            journal,
            writes,
            sightings: HashMap::new(),
        };
        let mut sightings: HashMap<WriteKey, Vec<(u64, u32)>> = HashMap::new();
        for (place, op, row) in evidence.changes(Reader::Log) {
            if let Some(key) = ledger_key(op, row) {
                sightings.entry(key).or_default().push(place.checkpoint());
            }
        }
        evidence.sightings = sightings;
        evidence
    }

    /// Iterates over what a reader was given, in order.
    pub fn delivered(&self, by: Reader) -> impl Iterator<Item = (&Place, &Item)> {
        self.entries.iter().filter_map(move |entry| {
            if let Event::Delivered { place, item } = &entry.event
                && place.reader == by
            {
                return Some((place, item));
            }
            None
        })
    }

    /// Iterates over the rows that a reader was given, in order.
    pub fn changes(&self, by: Reader) -> impl Iterator<Item = (&Place, Operation, &Row)> {
        self.delivered(by).filter_map(|(place, item)| match item {
            Item::Change { op, row } => Some((place, *op, row)),
            Item::Begin | Item::Commit { .. } | Item::Gap { .. } | Item::Other { .. } => None,
        })
    }

    /// Returns the journal's word on a write.
    #[must_use]
    pub fn write(&self, key: &WriteKey) -> Option<Written<'_>> {
        let known = self.writes.get(key)?;
        Some(Written {
            transaction: self.journal.get(known.index)?,
            write: known.write,
            is_kept: known.is_kept,
        })
    }

    /// Returns where in the log a write was seen.
    #[must_use]
    pub fn sightings(&self, key: &WriteKey) -> &[(u64, u32)] {
        self.sightings.get(key).map_or(&[], Vec::as_slice)
    }
}

/// Returns the key of a row when it is of the ledger.
#[must_use]
pub fn ledger_key(op: Operation, row: &Row) -> Option<WriteKey> {
    (row.table == Table::Ledger)
        .then(|| WriteKey::of_row(op, row))
        .flatten()
}

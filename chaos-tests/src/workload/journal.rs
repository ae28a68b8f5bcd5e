//! What the ledger's writers did, and what became of it.
//!
//! Every write has a number that is used once. A transaction is *committed* when the server said so,
//! *rolled back* when COMMIT was never sent, and *unknown* when COMMIT was sent and the answer was
//! lost. The source itself resolves an unknown one afterwards: each transaction leaves a witness row
//! in a table that is not captured.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::history::{recorder::read_lines, row::Operation};

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A transaction ended.
    Transaction(Transaction),
    /// The source was asked later whether it has a transaction whose outcome was unknown.
    Witness {
        /// Who wrote it.
        writer: i64,
        /// Its number.
        tx: i64,
        /// Whether it is there.
        committed: bool,
    },
}

/// A writer's transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Who wrote it.
    pub writer: i64,
    /// Its number, increasing for each writer.
    pub tx: i64,
    /// What became of it.
    pub outcome: Outcome,
    /// Writes that are there if it committed.
    pub kept: Vec<Write>,
    /// Writes that a savepoint took back: never to be seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone: Vec<Write>,
}

/// One write to one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Write {
    /// What was done.
    pub op: Operation,
    /// The row's key; never used again by another row of this writer.
    pub id: i64,
    /// The number of the write; never used again by this writer.
    pub n: i64,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The server acknowledged the COMMIT.
    Committed,
    /// Certainly not committed.
    RolledBack,
    /// The connection was lost after COMMIT had been sent.
    Unknown,
}

/// The open journal of a run.
#[derive(Debug)]
pub struct JournalWriter {
    file: Mutex<BufWriter<File>>,
}

impl JournalWriter {
    /// Creates the file.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            file: Mutex::new(BufWriter::new(file)),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    ///
    /// When the disk refuses it; the run is then void.
    pub fn append(&self, line: &Line) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_writer(&mut *file, line).context("write the journal")?;
        file.write_all(b"\n").context("write the journal")
    }

    /// Brings every line to the file.
    ///
    /// # Errors
    ///
    /// When the disk refuses it.
    pub fn finish(&self) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.flush().context("write the journal")
    }
}

/// Reads a journal, unknown outcomes resolved where a witness was asked.
///
/// # Errors
///
/// When the file cannot be read, a line is not one of ours, or the source denies a transaction that
/// it had acknowledged: then the source lost it, and the run proves nothing.
pub fn read_journal(path: &Path) -> Result<Vec<Transaction>> {
    resolve(read_lines(path)?)
}

/// Applies the witnesses to the transactions.
///
/// # Errors
///
/// When the source denies a transaction that it had acknowledged.
pub fn resolve(lines: Vec<Line>) -> Result<Vec<Transaction>> {
    let mut transactions = Vec::new();
    let mut witnesses = std::collections::HashMap::new();
    for line in lines {
        match line {
            Line::Transaction(transaction) => transactions.push(transaction),
            Line::Witness {
                writer,
                tx,
                committed,
            } => {
                witnesses.insert((writer, tx), committed);
            }
        }
    }
    for transaction in &mut transactions {
        let key = (transaction.writer, transaction.tx);
        match (transaction.outcome, witnesses.get(&key)) {
            (Outcome::Unknown, Some(true)) => transaction.outcome = Outcome::Committed,
            (Outcome::Unknown, Some(false)) => transaction.outcome = Outcome::RolledBack,
            (Outcome::Committed, Some(false)) => {
                anyhow::bail!("PostgreSQL itself lost transaction {key:?} after acknowledging it")
            }
            (Outcome::Unknown | Outcome::Committed | Outcome::RolledBack, _) => {}
        }
    }
    Ok(transactions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(tx: i64, outcome: Outcome) -> Transaction {
        let write = |op, n| Write { op, id: 1, n };
        Transaction {
            writer: 1,
            tx,
            outcome,
            kept: vec![write(Operation::Insert, tx * 10)],
            undone: vec![write(Operation::Delete, tx * 10 + 1)],
        }
    }

    #[test]
    fn a_journal_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let journal = JournalWriter::create(&path).unwrap();
        let written = [
            transaction(1, Outcome::Committed),
            transaction(2, Outcome::RolledBack),
            transaction(3, Outcome::Unknown),
        ];
        for transaction in &written {
            journal
                .append(&Line::Transaction(transaction.clone()))
                .unwrap();
        }
        journal.finish().unwrap();
        assert_eq!(read_journal(&path).unwrap(), written);
    }

    #[test]
    fn the_source_resolves_an_unknown_outcome() {
        let witness = |tx, committed| Line::Witness {
            writer: 1,
            tx,
            committed,
        };
        let lines = vec![
            Line::Transaction(transaction(1, Outcome::Unknown)),
            Line::Transaction(transaction(2, Outcome::Unknown)),
            witness(1, true),
            witness(2, false),
        ];
        let outcomes: Vec<_> = resolve(lines)
            .unwrap()
            .into_iter()
            .map(|transaction| transaction.outcome)
            .collect();
        assert_eq!(outcomes, [Outcome::Committed, Outcome::RolledBack]);
        let denied = vec![
            Line::Transaction(transaction(1, Outcome::Committed)),
            witness(1, false),
        ];
        assert!(resolve(denied).is_err());
    }
}

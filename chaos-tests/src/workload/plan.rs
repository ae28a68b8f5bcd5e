//! Decides what a ledger writer does next. Pure: randomness comes in, nothing is executed here.
//!
//! A plan is a list of steps with, for each write, whether it survives a commit. Numbers of writes and
//! keys of rows are used once, so a row in the stream names the write that caused it. Rows that a
//! transaction with an unknown outcome touched are never touched again.

use rand::Rng;

use super::journal::{Outcome, Transaction, Write};
use crate::history::row::{Operation, hash_text};

/// Live rows of a writer above which it rather deletes: keeps plans cheap.
const LIVE_ROWS_MAX: usize = 200;

/// Writes of a multi-row transaction.
const ROWS_MAX: usize = 12;

/// What a writer does in a transaction, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write to one row.
    Write(Write),
    /// SAVEPOINT.
    Savepoint,
    /// ROLLBACK TO the savepoint.
    RollbackTo,
}

/// How a transaction is meant to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// COMMIT.
    Commit,
    /// ROLLBACK.
    Rollback,
}

/// A transaction to be executed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its number.
    pub tx: i64,
    /// What it does.
    pub steps: Vec<Step>,
    /// How it ends.
    pub ending: Ending,
    kept: Vec<Write>,
    undone: Vec<Write>,
    live_after: Vec<i64>,
}

/// The memory of one writer.
#[derive(Clone, Debug)]
pub struct Planner {
    writer: i64,
    next_n: i64,
    next_tx: i64,
    live: Vec<i64>,
}

impl Planner {
    /// Makes the planner of a writer that has not written yet.
    #[must_use]
    pub const fn new(writer: i64) -> Self {
        Self {
            writer,
            next_n: 1,
            next_tx: 1,
            live: Vec::new(),
        }
    }

    /// Plans the next transaction: mostly a few rows, some with a savepoint, some rolled back.
    pub fn next(&mut self, rng: &mut impl Rng) -> Plan {
        let mut draft = Draft {
            live: self.live.clone(),
            next_n: self.next_n,
            steps: Vec::new(),
        };
        let rows = if rng.random_bool(0.5) {
            1
        } else {
            rng.random_range(2..=ROWS_MAX)
        };
        let savepoint_at = rng.random_bool(0.15).then(|| rng.random_range(0..rows));
        let (mut kept, mut undone) = (Vec::new(), Vec::new());
        for index in 0..rows {
            if savepoint_at == Some(index) {
                draft.steps.push(Step::Savepoint);
                let live_before = draft.live.clone();
                for _ in 0..rng.random_range(1..=3) {
                    undone.push(draft.write(rng));
                }
                draft.live = live_before;
                draft.steps.push(Step::RollbackTo);
            }
            kept.push(draft.write(rng));
        }
        let ending = if rng.random_bool(0.08) {
            Ending::Rollback
        } else {
            Ending::Commit
        };
        let tx = self.next_tx;
        self.next_tx += 1;
        self.next_n = draft.next_n;
        Plan {
            tx,
            steps: draft.steps,
            ending,
            kept,
            undone,
            live_after: draft.live,
        }
    }

    /// Takes the outcome in and returns the line for the journal.
    pub fn settle(&mut self, plan: Plan, outcome: Outcome) -> Transaction {
        match outcome {
            Outcome::Committed => self.live = plan.live_after,
            Outcome::RolledBack => {}
            Outcome::Unknown => {
                let is_touched = |id: &i64| plan.kept.iter().any(|write| write.id == *id);
                self.live.retain(|id| !is_touched(id));
            }
        }
        Transaction {
            writer: self.writer,
            tx: plan.tx,
            outcome,
            kept: plan.kept,
            undone: plan.undone,
        }
    }
}

/// A transaction in the making.
struct Draft {
    live: Vec<i64>,
    next_n: i64,
    steps: Vec<Step>,
}

impl Draft {
    fn write(&mut self, rng: &mut impl Rng) -> Write {
        let n = self.next_n;
        self.next_n += 1;
        let dice = rng.random_range(0..100);
        let op = match dice {
            _ if self.live.is_empty() => Operation::Insert,
            _ if self.live.len() >= LIVE_ROWS_MAX => Operation::Delete,
            0..50 => Operation::Insert,
            50..80 => Operation::Update,
            _ => Operation::Delete,
        };
        let id = match op {
            Operation::Insert => {
                self.live.push(n);
                n
            }
            Operation::Update | Operation::Delete => {
                let index = rng.random_range(0..self.live.len());
                if op == Operation::Delete {
                    self.live.swap_remove(index)
                } else {
                    *self.live.get(index).expect("the index is below the length")
                }
            }
        };
        let write = Write { op, id, n };
        self.steps.push(Step::Write(write));
        write
    }
}

/// Returns the text of a ledger row: a function of writer and key, so that any delivery of it can be
/// judged. Every sixteenth is long enough to be stored out of line and not compressible.
#[must_use]
pub fn pad(writer: i64, id: i64) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = hash_text(format!("{writer}/{id}").as_bytes()) | 1;
    let length = if state % 32 < 2 {
        3000
    } else {
        20 + state % 40
    };
    let mut text = String::new();
    for _ in 0..length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let index = usize::try_from(state >> 58).unwrap_or(0);
        text.push(char::from(*ALPHABET.get(index).unwrap_or(&b'.')));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn plans_are_executable_whatever_became_of_earlier_ones() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut planner = Planner::new(1);
        let (mut table, mut numbers) = (HashSet::new(), HashSet::new());
        let mut saw = HashSet::new();
        for _ in 0..5_000 {
            let plan = planner.next(&mut rng);
            let mut rows: HashSet<i64> = table.clone();
            let mut saved = HashSet::new();
            for step in &plan.steps {
                match step {
                    Step::Savepoint => saved = rows.clone(),
                    Step::RollbackTo => rows = saved.clone(),
                    Step::Write(write) => {
                        assert!(numbers.insert(write.n), "{write:?} uses a number again");
                        saw.insert(write.op);
                        match write.op {
                            Operation::Insert => assert!(rows.insert(write.id)),
                            Operation::Update => assert!(rows.contains(&write.id)),
                            Operation::Delete => assert!(rows.remove(&write.id)),
                        }
                    }
                }
            }
            let outcome = match (plan.ending, rng.random_range(0..10)) {
                (Ending::Rollback, _) => Outcome::RolledBack,
                (Ending::Commit, 0) => Outcome::Unknown,
                (Ending::Commit, _) => Outcome::Committed,
            };
            if outcome == Outcome::Committed || outcome == Outcome::Unknown && rng.random() {
                table = rows;
            }
            planner.settle(plan, outcome);
        }
        assert_eq!(saw.len(), 3, "all operations are planned");
    }

    #[test]
    fn a_text_depends_on_its_row_and_some_are_long() {
        assert_eq!(pad(1, 2), pad(1, 2));
        assert_ne!(pad(1, 2), pad(2, 1));
        let long = (0..320).filter(|id| pad(1, *id).len() > 2_500).count();
        assert!((5..60).contains(&long), "{long} of 320 are long");
    }
}

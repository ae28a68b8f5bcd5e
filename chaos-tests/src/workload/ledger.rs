//! Executes the ledger's plans and journals each outcome.
//!
//! An error before COMMIT is sent means rolled back, an error after it means unknown. A transaction
//! also leaves a row in `witness.committed`, which is not captured.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use tokio::{sync::watch, time::Instant};
use tokio_postgres::types::ToSql;

use super::{
    journal::{Line, Outcome, Transaction, Write},
    load::{Phase, Shared},
    plan::{Ending, Plan, Planner, Step, pad},
};
use crate::{
    harness::sql::{Sql, is_connection_lost},
    history::row::Operation,
};

/// Number of the writer of large transactions.
pub const LARGE_WRITER: i64 = 1_000;

/// Rows of a large transaction that go in one statement.
const LARGE_CHUNK_ROWS: u32 = 5_000;

/// Pause between two large transactions.
const LARGE_PAUSE: Duration = Duration::from_secs(6);

/// Most that a writer that fell behind its rate tries to make up for.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);

/// What one writer needs.
#[derive(Debug)]
pub struct Pen {
    /// Number of the writer.
    pub writer: i64,
    /// Rows a second that it aims at.
    pub rows_per_second: f64,
    /// Counters and journal.
    pub shared: Arc<Shared>,
    /// What to do now.
    pub phase: watch::Receiver<Phase>,
}

impl Pen {
    /// Waits while there is rest; returns false when the writer should return.
    pub async fn may_write(&mut self) -> bool {
        let turn = self.phase.wait_for(|phase| *phase != Phase::Idle).await;
        turn.is_ok_and(|phase| *phase == Phase::Busy)
    }

    fn journal(&self, transaction: Transaction) -> Result<()> {
        if transaction.outcome == Outcome::Committed {
            self.shared.count(transaction.kept.len() as u64);
        }
        self.shared.journal.append(&Line::Transaction(transaction))
    }
}

/// Writes planned transactions at the pen's rate until told to stop.
///
/// # Errors
///
/// When the source refuses something that it must accept, or does not come back.
pub async fn write(mut pen: Pen, mut rng: StdRng) -> Result<()> {
    let mut planner = Planner::new(pen.writer);
    let mut sql = Sql::connect_again(&pen.shared.dsn).await?;
    let mut due = Instant::now();
    while pen.may_write().await {
        let plan = planner.next(&mut rng);
        let rows = plan.steps.len();
        let outcome = execute(&sql, pen.writer, &plan).await?;
        pen.journal(planner.settle(plan, outcome))?;
        if sql.client.is_closed() || outcome == Outcome::Unknown {
            sql = Sql::connect_again(&pen.shared.dsn).await?;
        }
        let oldest = Instant::now().checked_sub(CATCH_UP_MAX).unwrap_or(due);
        due = due.max(oldest) + Duration::from_secs_f64(rows as f64 / pen.rows_per_second);
        tokio::time::sleep_until(due).await;
    }
    Ok(())
}

/// Writes one large transaction now and then.
///
/// # Errors
///
/// As [`write()`].
pub async fn write_large(mut pen: Pen, rows: u32) -> Result<()> {
    let mut sql = Sql::connect_again(&pen.shared.dsn).await?;
    let mut next_n: i64 = 1;
    for tx in 1_i64.. {
        if !pen.may_write().await {
            break;
        }
        let first = next_n;
        next_n += i64::from(rows);
        let outcome = execute_large(&sql, pen.writer, tx, first..next_n).await?;
        let to_write = |n| Write {
            op: Operation::Insert,
            id: n,
            n,
        };
        pen.journal(Transaction {
            writer: pen.writer,
            tx,
            outcome,
            kept: (first..next_n).map(to_write).collect(),
            undone: Vec::new(),
        })?;
        if sql.client.is_closed() || outcome == Outcome::Unknown {
            sql = Sql::connect_again(&pen.shared.dsn).await?;
        }
        let stop = pen.phase.wait_for(|phase| *phase == Phase::Stop);
        if tokio::time::timeout(LARGE_PAUSE, stop).await.is_ok() {
            break;
        }
    }
    Ok(())
}

async fn execute(sql: &Sql, writer: i64, plan: &Plan) -> Result<Outcome> {
    let prepared = run_steps(sql, writer, plan).await;
    if !survived(prepared, "write to the ledger")? {
        return Ok(Outcome::RolledBack);
    }
    match plan.ending {
        Ending::Commit => commit(sql).await,
        Ending::Rollback => {
            // A lost connection rolls back just as well.
            survived(sql.client.batch_execute("ROLLBACK").await, "roll back")?;
            Ok(Outcome::RolledBack)
        }
    }
}

async fn run_steps(sql: &Sql, writer: i64, plan: &Plan) -> Result<(), tokio_postgres::Error> {
    sql.client.batch_execute("BEGIN").await?;
    witness(sql, writer, plan.tx).await?;
    for step in &plan.steps {
        match step {
            Step::Savepoint => sql.client.batch_execute("SAVEPOINT s").await?,
            Step::RollbackTo => sql.client.batch_execute("ROLLBACK TO s").await?,
            Step::Write(write) => run_write(sql, writer, plan.tx, write).await?,
        }
    }
    Ok(())
}

async fn run_write(
    sql: &Sql,
    writer: i64,
    tx: i64,
    write: &Write,
) -> Result<(), tokio_postgres::Error> {
    let writer_id = i32::try_from(writer).unwrap_or(i32::MAX);
    let text = pad(writer, write.id);
    let (statement, parameters): (&str, Vec<&(dyn ToSql + Sync)>) = match write.op {
        Operation::Insert => (
            "INSERT INTO public.ledger (writer, id, n, tx, pad) VALUES ($1, $2, $3, $4, $5)",
            vec![&writer_id, &write.id, &write.n, &tx, &text],
        ),
        Operation::Update => (
            "UPDATE public.ledger SET n = $3, tx = $4 WHERE writer = $1 AND id = $2",
            vec![&writer_id, &write.id, &write.n, &tx],
        ),
        Operation::Delete => (
            "DELETE FROM public.ledger WHERE writer = $1 AND id = $2",
            vec![&writer_id, &write.id],
        ),
    };
    let rows = sql.execute(statement, &parameters).await?;
    assert_eq!(rows, 1, "the source has no row for {write:?} of {writer}");
    Ok(())
}

async fn execute_large(
    sql: &Sql,
    writer: i64,
    tx: i64,
    numbers: std::ops::Range<i64>,
) -> Result<Outcome> {
    let prepared = run_large(sql, writer, tx, numbers).await;
    if !survived(prepared, "write a large transaction")? {
        return Ok(Outcome::RolledBack);
    }
    commit(sql).await
}

async fn run_large(
    sql: &Sql,
    writer: i64,
    tx: i64,
    numbers: std::ops::Range<i64>,
) -> Result<(), tokio_postgres::Error> {
    sql.client.batch_execute("BEGIN").await?;
    witness(sql, writer, tx).await?;
    let ids: Vec<i64> = numbers.collect();
    let writer_id = i32::try_from(writer).unwrap_or(i32::MAX);
    for chunk in ids.chunks(LARGE_CHUNK_ROWS as usize) {
        let texts: Vec<String> = chunk.iter().map(|id| pad(writer, *id)).collect();
        let statement = "INSERT INTO public.ledger (writer, id, n, tx, pad)
             SELECT $1, u.id, u.id, $2, u.pad FROM unnest($3::bigint[], $4::text[]) AS u (id, pad)";
        sql.execute(statement, &[&writer_id, &tx, &chunk, &texts])
            .await?;
    }
    Ok(())
}

async fn witness(sql: &Sql, writer: i64, tx: i64) -> Result<(), tokio_postgres::Error> {
    let writer = i32::try_from(writer).unwrap_or(i32::MAX);
    let statement = "INSERT INTO witness.committed (writer, tx) VALUES ($1, $2)";
    sql.execute(statement, &[&writer, &tx]).await.map(|_| ())
}

/// Sends COMMIT. From here on a failure says nothing about the transaction.
async fn commit(sql: &Sql) -> Result<Outcome> {
    let committed = sql.client.batch_execute("COMMIT").await;
    let is_known = survived(committed, "commit")?;
    Ok(if is_known {
        Outcome::Committed
    } else {
        Outcome::Unknown
    })
}

/// Returns whether a statement went through; false when the connection was lost under it.
fn survived(result: Result<(), tokio_postgres::Error>, doing: &'static str) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if is_connection_lost(&error) => Ok(false),
        Err(error) => Err(error).context(doing),
    }
}

/// Asks the source for every transaction whose outcome is unknown, and journals its answer.
///
/// # Errors
///
/// When the source cannot be asked.
pub async fn resolve_unknown(sql: &Sql, transactions: &[Transaction]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for transaction in transactions {
        if transaction.outcome != Outcome::Unknown {
            continue;
        }
        let (writer, tx) = (transaction.writer, transaction.tx);
        let writer_id = i32::try_from(writer)?;
        let statement = "SELECT count(*) FROM witness.committed WHERE writer = $1 AND tx = $2";
        let row = sql.client.query_one(statement, &[&writer_id, &tx]).await?;
        let count: i64 = row.try_get(0)?;
        ensure!(
            count <= 1,
            "transaction {tx} of {writer} twice in the source"
        );
        lines.push(Line::Witness {
            writer,
            tx,
            committed: count == 1,
        });
    }
    Ok(lines)
}

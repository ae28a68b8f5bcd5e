//! The paced writer: one-row transactions at a rate over several sessions, each row with the time
//! of its insertion.

use std::time::Duration;

use anyhow::Context as _;
use pgcapture_actors::{
    postgres::{Config, Connection, Replication, Secret},
    supervise::{TaskKind, spawn},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{child, workload::SCHEMA};

/// Sessions that write in turn: 16 of them commit 5,000 times a second when each takes 3 ms.
const SESSIONS: u32 = 16;

/// Time for all sessions to connect before the first is due.
const LEAD: Duration = Duration::from_millis(500);

/// What to write.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    /// Where, without a password.
    pub(super) url: String,
    /// The password.
    pub(super) password: Option<String>,
    /// Transactions a second.
    pub(super) rate: u32,
    /// Transactions altogether.
    pub(super) count: u64,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order")
            .field("rate", &self.rate)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// Everything is committed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    /// Seconds from the first to the last commit.
    pub(super) seconds: f64,
}

/// Writes as ordered.
pub(super) async fn run(order: Order) -> anyhow::Result<()> {
    let mut config = Config::parse(&order.url)?;
    if let Some(password) = order.password {
        config = config.with_password(Secret::new(password));
    }
    let began = Instant::now() + LEAD;
    let interval = Duration::from_secs(1) / order.rate.max(1);
    let mut tasks = Vec::new();
    for session in 0..SESSIONS {
        let pace = Pace {
            began,
            interval,
            count: order.count,
        };
        let task = write(config.clone(), session, pace);
        tasks.push(spawn(TaskKind::Tool, "writer", task));
    }
    for task in &mut tasks {
        task.join().await.context("a writer ended")??;
    }
    let seconds = began.elapsed().as_secs_f64();
    child::answer(&Written { seconds })
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    began: Instant,
    interval: Duration,
    count: u64,
}

/// Writes every row whose number is `session` beyond a multiple of the number of sessions.
async fn write(config: Config, session: u32, pace: Pace) -> anyhow::Result<()> {
    let mut connection = Connection::connect(&config, Replication::Off).await?;
    let first = u64::from(session);
    let step = usize::try_from(SESSIONS)?;
    for id in (first..pace.count).step_by(step) {
        let due = pace.began + pace.interval.mul_f64(id as f64);
        tokio::time::sleep_until(due).await;
        let sql = format!(
            "INSERT INTO {SCHEMA}.t VALUES ({id}, 1, 7, clock_timestamp(), repeat('x', 80), 'v')"
        );
        connection.query(&sql).await?;
    }
    Ok(())
}

//! Compares the slot's confirmed position with the durable one, many times a second: that of a node's log,
//! or of the consumer where the slot waits for it.
//!
//! The slot is read first. While there is no other, the largest slot position seen is kept and paired
//! with the first durable position after it: what was confirmed before a crash must have survived it.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{sync::watch, time::timeout};

use super::{event::Event, recorder::Recorder};
use crate::harness::sql::Sql;

/// Pause between two samples.
const EVERY: Duration = Duration::from_millis(50);

/// Positions of lasting logical slots, as a number. A temporary slot is a reader's copy and dies with
/// its session; it confirms nothing for good.
const CONFIRMED: &str = "SELECT max(confirmed_flush_lsn - '0/0')::bigint
    FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary";

/// Samples until `stop` says true. `durable` is asked after the slot.
///
/// # Errors
///
/// When the source stays away, or the history cannot be written.
pub async fn sample<Asked: Future<Output = Option<u64>> + Send>(
    dsn: String,
    durable: impl Fn() -> Asked + Send,
    recorder: Arc<Recorder>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut sql = Sql::connect_again(&dsn).await?;
    let mut pending: Option<u64> = None;
    loop {
        match sql.client.query_one(CONFIRMED, &[]).await {
            Ok(row) => {
                let confirmed: Option<i64> = row.try_get(0)?;
                pending = pending.max(confirmed.map(i64::unsigned_abs));
            }
            Err(_) if sql.client.is_closed() => sql = Sql::connect_again(&dsn).await?,
            // The server is ending this session; the next look finds it closed.
            Err(_) => {}
        }
        if let Some(confirmed) = pending
            && let Some(durable) = durable().await
        {
            recorder.record(Event::Sampled { confirmed, durable })?;
            pending = None;
        }
        let is_over = stop.wait_for(|stop| *stop);
        if timeout(EVERY, is_over).await.is_ok() {
            return Ok(());
        }
    }
}

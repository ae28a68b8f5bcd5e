//! Writes to the sample shop at a rate, as a shop does: many new orders, fewer changes, few
//! deletions.

use std::{fmt, str::FromStr, time::Duration};

use pgcapture_actors::{
    postgres::PgError,
    supervise::{Task, TaskKind, spawn},
};
use rand::Rng as _;
use tokio_util::sync::CancellationToken;

use super::shop::Shop;

/// Writes come in groups this often: smooth for the eye, few wake-ups.
const TICK: Duration = Duration::from_millis(20);

/// The highest rate: beyond it, measure with `pgcapture bench`.
const RATE_MAX: u32 = 100_000;

/// Length of a note that PostgreSQL stores out of line.
const LONG_NOTE_BYTES: usize = 4_000;

/// A wanted load: row changes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    rows_per_second: u32,
}

impl FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            || format!("\"{text}\" is no load; write orders:500/s, at most orders:{RATE_MAX}/s");
        let (table, rate) = text.split_once(':').ok_or_else(bad)?;
        let rate = rate.strip_suffix("/s").unwrap_or(rate);
        let rows_per_second = rate.parse().map_err(|_| bad())?;
        if table != "orders" || !(1..=RATE_MAX).contains(&rows_per_second) {
            return Err(bad());
        }
        Ok(Self { rows_per_second })
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "orders:{}/s", self.rows_per_second)
    }
}

/// Writes until `stop`; a lost connection is made anew.
pub(super) fn start(load: Load, shop: Shop, stop: CancellationToken) -> Task<()> {
    spawn(TaskKind::Tool, "load", async move {
        while !stop.is_cancelled() {
            if let Err(error) = write_until(load, &shop, &stop).await {
                tracing::warn!(%error, "the load was interrupted and starts again");
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => (),
                () = stop.cancelled() => (),
            }
        }
    })
}

async fn write_until(load: Load, shop: &Shop, stop: &CancellationToken) -> Result<(), PgError> {
    let mut connection = shop.connect().await?;
    let schema = shop.schema();
    connection
        .query(&format!(
            "SET search_path = {schema}; SET synchronous_commit = off"
        ))
        .await?;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let rows_per_tick = f64::from(load.rows_per_second) * TICK.as_secs_f64();
    let mut due = 0.0;
    loop {
        tokio::select! {
            _ = ticks.tick() => (),
            () = stop.cancelled() => return Ok(()),
        }
        due += rows_per_tick;
        let mut sql = String::new();
        while due >= 1.0 {
            due -= f64::from(push_statement(&mut sql));
        }
        if !sql.is_empty() {
            connection.query(&sql).await?;
        }
    }
}

/// Appends one statement and returns how many rows it changes, about; what is sent together is one
/// transaction.
fn push_statement(sql: &mut String) -> u32 {
    let mut random = rand::rng();
    let dice = random.random_range(0..100);
    match dice {
        0..50 => {
            let customer = random.random_range(1..=100);
            let (quantity, cents) = (random.random_range(1..5), random.random_range(100..50_000));
            let price = format!("{}.{:02}", cents / 100, cents % 100);
            let note = match dice {
                0..5 => format!("repeat('handle with care. ', {})", LONG_NOTE_BYTES / 18),
                5..20 => "'leave at the door'".to_owned(),
                _ => "NULL".to_owned(),
            };
            sql.push_str(&format!(
                "WITH placed AS (INSERT INTO orders (customer_id, total, details, note) VALUES \
                 ({customer}, {quantity} * {price}, \
                 '{{\"channel\": \"web\", \"gift\": {}}}', {note}) RETURNING id) \
                 INSERT INTO items SELECT id, 1, 'sku-{}', {quantity}, {price} FROM placed;\n",
                dice % 2 == 0,
                random.random_range(1..1_000),
            ));
            2
        }
        50..92 => {
            let status = if dice % 2 == 0 { "paid" } else { "shipped" };
            sql.push_str(&format!(
                "UPDATE orders SET status = '{status}' WHERE id = \
                 (SELECT max(id) FROM orders) - {};\n",
                random.random_range(0..50)
            ));
            1
        }
        92..96 => {
            sql.push_str(&format!(
                "UPDATE customers SET tags = array_append(tags[1:3], 'seen') WHERE id = {};\n",
                random.random_range(1..=100)
            ));
            1
        }
        _ => {
            // The oldest order goes: the tables stay small however long the load runs.
            sql.push_str(
                "DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY id LIMIT 12);\n",
            );
            24
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_written_as_table_and_rate() {
        let load: Load = "orders:500/s".parse().unwrap();
        assert_eq!(
            load,
            Load {
                rows_per_second: 500
            }
        );
        assert_eq!(load.to_string().parse(), Ok(load));
        for bad in [
            "",
            "orders",
            "orders:0/s",
            "orders:-1/s",
            "other:5/s",
            "orders:999999999/s",
        ] {
            assert!(bad.parse::<Load>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_push_is_one_statement() {
        let mut sql = String::new();
        let rows: u32 = (0..200).map(|_| push_statement(&mut sql)).sum();
        assert!(rows >= 200);
        assert_eq!(sql.matches(";\n").count(), 200);
    }
}

//! Moves money between accounts, two to four accounts in one transaction; the sum never changes.
//!
//! Nothing is journaled: the sum alone is judged.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rand::{Rng, rngs::StdRng};
use tokio::sync::watch;

use super::{
    load::{Phase, Shared},
    schema::{ACCOUNTS, BALANCE},
};
use crate::harness::sql::{Sql, is_connection_lost};

/// Pause between two transfers.
const PAUSE: Duration = Duration::from_millis(20);

/// Fills the accounts, in one transaction; once, after the capture has begun.
///
/// # Errors
///
/// When the source refuses it.
pub async fn open_accounts(sql: &Sql) -> Result<()> {
    let statement =
        "INSERT INTO public.accounts SELECT g, $1 FROM generate_series(1, $2::int) AS g";
    let count = i32::try_from(ACCOUNTS)?;
    sql.execute(statement, &[&BALANCE, &count])
        .await
        .context("open the accounts")?;
    Ok(())
}

/// Transfers until told to stop.
///
/// # Errors
///
/// When the source refuses a transfer, or does not come back.
pub async fn transfer(
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
    mut rng: StdRng,
) -> Result<()> {
    let mut sql = Sql::connect_again(&shared.dsn).await?;
    loop {
        let turn = phase.wait_for(|phase| *phase != Phase::Idle).await;
        if !turn.is_ok_and(|phase| *phase == Phase::Busy) {
            return Ok(());
        }
        match transfer_once(&sql, &mut rng).await {
            Ok(()) => {}
            Err(error) if is_connection_lost(&error) => {
                sql = Sql::connect_again(&shared.dsn).await?;
            }
            Err(error) => return Err(error).context("transfer"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn transfer_once(sql: &Sql, rng: &mut StdRng) -> Result<(), tokio_postgres::Error> {
    sql.client.batch_execute("BEGIN").await?;
    let transfers = rng.random_range(1..=2);
    for _ in 0..transfers {
        let from = rng.random_range(1..=ACCOUNTS);
        let to = 1 + from % ACCOUNTS;
        let amount = rng.random_range(1..=50_i64);
        for (account, change) in [(from, -amount), (to, amount)] {
            let account = i32::try_from(account).unwrap_or(1);
            let statement = "UPDATE public.accounts SET balance = balance + $1 WHERE id = $2";
            sql.execute(statement, &[&change, &account]).await?;
        }
    }
    sql.client.batch_execute("COMMIT").await
}

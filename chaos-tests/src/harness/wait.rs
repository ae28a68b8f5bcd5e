//! The only polling helper.
//!
//! Waits for a fact, with a deadline, and reports the last status seen when it does not come.

use std::{fmt::Debug, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Pause between two looks: short beside everything that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a look found.
#[derive(Debug)]
pub enum Look<T, S> {
    /// The fact is there.
    Ready(T),
    /// Not yet; the status is reported when time is up.
    NotYet(S),
}

/// Looks until the fact is there.
///
/// # Errors
///
/// When it is not there within `limit`; names what was waited for and the last status.
pub async fn until<T, S, F>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    S: Debug,
    F: AsyncFnMut() -> Look<T, S>,
{
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Look::Ready(fact) => return Ok(fact),
            Look::NotYet(status) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what}; last: {status:?}")
            }
            Look::NotYet(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

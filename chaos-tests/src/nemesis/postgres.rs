//! Faults of the source: its walsender killed, its postmaster killed, crashed, restarted.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{Strike, World};

/// Longest that we may hold up a fast shutdown. The promise is 2 seconds; the rest is for the
/// server's own checkpoint on a busy machine.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(8);

/// Kills the walsender.
pub(super) async fn kill_walsender(world: &mut World) -> Result<Strike> {
    let is_killed = world.postgres.kill_walsender().await?;
    Ok(if is_killed {
        Strike::INSTALLED
    } else {
        Strike::SKIPPED
    })
}

/// Kills the postmaster and starts it again.
pub(super) async fn kill_postmaster(world: &mut World) -> Result<Strike> {
    world.postgres.kill().await?;
    world.postgres.start_again().await?;
    Ok(Strike::INSTALLED)
}

/// Shuts PostgreSQL down immediately and starts it again.
pub(super) async fn crash(world: &mut World) -> Result<Strike> {
    world.postgres.stop_immediately().await?;
    world.postgres.start_again().await?;
    Ok(Strike::INSTALLED)
}

/// Shuts PostgreSQL down fast, which waits for walsenders, and starts it again.
pub(super) async fn restart(world: &mut World) -> Result<Strike> {
    let began = Instant::now();
    world.postgres.stop_fast().await?;
    let took = began.elapsed();
    world.postgres.start_again().await?;
    if took > SHUTDOWN_WITHIN {
        let what = format!("a fast shutdown took {took:?}");
        return Ok(Strike::with_trouble("source/shutdown_held_up", what));
    }
    Ok(Strike::INSTALLED)
}

//! Faults of the node: killed, killed while it starts, ended politely, frozen.

use std::time::Duration;

use anyhow::Result;
use rand::{Rng, rngs::StdRng};

use super::{Strike, World};

/// How long a polite end may take.
pub const END_WITHIN: Duration = Duration::from_secs(10);

/// How far into its start a node is killed again, at most.
const STARTING_MS: u64 = 400;

/// How long a node is frozen.
const FROZEN_MS: std::ops::Range<u64> = 500..8_000;

/// Kills the node and starts it again.
pub(super) async fn kill(world: &mut World) -> Result<Strike> {
    world.node.kill().await?;
    world.node.launch()?;
    Ok(Strike::INSTALLED)
}

/// Kills the node, and kills the next one at a random moment of its start.
pub(super) async fn kill_starting(world: &mut World, rng: &mut StdRng) -> Result<Strike> {
    world.node.kill().await?;
    world.node.launch()?;
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..STARTING_MS))).await;
    if let Some(status) = world.node.status()? {
        world.node.launch()?;
        let what = format!("it ended with {status} while starting");
        return Ok(Strike::with_trouble("node/died", what));
    }
    world.node.kill().await?;
    world.node.launch()?;
    Ok(Strike::INSTALLED)
}

/// Ends the node politely and starts it again.
pub(super) async fn restart(world: &mut World) -> Result<Strike> {
    let trouble = world.node.end_politely(END_WITHIN).await?;
    world.node.launch()?;
    Ok(trouble.map_or(Strike::INSTALLED, |what| {
        Strike::with_trouble("node/unclean_end", what)
    }))
}

/// Freezes the node and lets it go on.
pub(super) async fn freeze(world: &mut World, rng: &mut StdRng) -> Result<Strike> {
    world.node.freeze(true)?;
    tokio::time::sleep(Duration::from_millis(rng.random_range(FROZEN_MS))).await;
    world.node.freeze(false)?;
    Ok(Strike::INSTALLED)
}

//! Takes a slot from whoever has it, if it is ours to take.
//!
//! Judges every holder by its name (the engine's decision): an older agent of this cluster is ended,
//! its walsender as well as the sessions of a catch-up, their lock and their temporary copies. A
//! newer one ends us. Anybody else is reported and left alone.

use std::time::Duration;

use pgcapture_engine::fence::{AgentName, Holder};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::error::AgentError;
use crate::postgres::{
    Connection,
    catalog::{self, SlotHolder},
};

/// Time for an ended session to let go: some ten milliseconds, 62 were measured when its socket was
/// full; a server that is short of everything takes longer.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// How often the slot is looked at meanwhile: PostgreSQL tells nobody. A look costs the server a
/// tenth of a millisecond, and each millisecond here is one without changes.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Frees the slot. Returns whether somebody had it.
pub(crate) async fn free_slot(
    connection: &mut Connection,
    name: &AgentName,
    slot: &str,
) -> Result<bool, AgentError> {
    let holders = catalog::slot_holders(connection, slot).await?;
    free_from(connection, name, slot, holders).await
}

/// Frees the slot from `holders`, who were found a moment ago.
pub(super) async fn free_from(
    connection: &mut Connection,
    name: &AgentName,
    slot: &str,
    mut holders: Vec<SlotHolder>,
) -> Result<bool, AgentError> {
    let had_holder = !holders.is_empty();
    let deadline = Instant::now() + RELEASE_MAX;
    let mut ended = Vec::new();
    while let Some(first) = holders.first() {
        if Instant::now() > deadline {
            return Err(catalog::slot_in_use_error(slot, first).into());
        }
        check_holders(name, slot, &holders)?;
        for holder in &holders {
            if ended.contains(&holder.pid) {
                continue;
            }
            let (pid, application) = (holder.pid, holder.application_name.as_str());
            warn!(
                slot,
                pid, application, "ending an older agent that has the slot"
            );
            catalog::terminate_holder(connection, holder).await?;
            ended.push(pid);
        }
        sleep(LOOK_EVERY).await;
        holders = catalog::slot_holders(connection, slot).await?;
    }
    Ok(had_holder)
}

/// Nobody is ended while a single one of them must not be.
fn check_holders(name: &AgentName, slot: &str, holders: &[SlotHolder]) -> Result<(), AgentError> {
    for holder in holders {
        match name.judge(&holder.application_name) {
            Holder::Older => {}
            Holder::Newer(held) => {
                return Err(AgentError::Fenced {
                    slot: slot.to_owned(),
                    held,
                    own: name.epoch(),
                });
            }
            Holder::Foreign => return Err(catalog::slot_in_use_error(slot, holder).into()),
        }
    }
    Ok(())
}

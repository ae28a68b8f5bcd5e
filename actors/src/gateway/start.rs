//! Turns what a consumer asked for into a position of the log, and a position into a reader.
//!
//! Everything goes through *after this checkpoint*, so that the position that is saved and the
//! position that is read are the same one.

use std::sync::Arc;

use pgcapture_engine::{
    capture_options::StartAt,
    checkpoint::Checkpoint,
    ledger::{Position, before},
    lsn::PgTime,
};

use crate::{
    clock::now,
    log::{ChangeLog, LogError, LogReader, Start},
};

/// Finds the last checkpoint before what `start` names. A moment after the newest transaction means
/// the tail.
pub(super) async fn find_position(
    log: &Arc<dyn ChangeLog>,
    start: StartAt,
) -> Result<Position, LogError> {
    let floor = match start {
        StartAt::Latest => tail(log),
        StartAt::Earliest => log.extent().earliest.map(before).unwrap_or_default(),
        StartAt::Lsn(lsn) => {
            drop(log.open_reader(Start::AtLsn(lsn)).await?);
            before(Checkpoint::new(lsn, 0))
        }
        StartAt::Time(time) => find_time(log, time).await?,
        StartAt::Ago(ago) => {
            let ago = i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
            find_time(log, PgTime(now().0.saturating_sub(ago))).await?
        }
    };
    Ok(Position {
        floor,
        acked_above: Vec::new(),
    })
}

async fn find_time(log: &Arc<dyn ChangeLog>, time: PgTime) -> Result<Checkpoint, LogError> {
    let at_tail = tail(log);
    let mut reader = log.open_reader(Start::AtTime(time)).await?;
    while let Some(batch) = reader.try_next().await? {
        if let Some((first, _)) = batch.span {
            return Ok(before(first));
        }
    }
    Ok(at_tail)
}

fn tail(log: &Arc<dyn ChangeLog>) -> Checkpoint {
    log.tail().borrow().last.unwrap_or_default()
}

/// Opens a reader after `floor`.
///
/// A floor just before the earliest entry loses nothing, though the log itself cannot know what
/// lay there before retention came.
pub(super) async fn open_after(
    log: &Arc<dyn ChangeLog>,
    floor: Checkpoint,
) -> Result<Box<dyn LogReader>, LogError> {
    match log.open_reader(Start::After(floor)).await {
        Err(LogError::Removed { asked, earliest }) if before(earliest) <= floor => {
            let reader = log.open_reader(Start::Earliest).await?;
            // Retention may have gone on between the two calls.
            match log.extent().earliest {
                Some(earliest) if before(earliest) > floor => {
                    Err(LogError::Removed { asked, earliest })
                }
                _ => Ok(reader),
            }
        }
        opened => opened,
    }
}

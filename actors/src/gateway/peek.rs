//! A read-only look at a stream: no subscription, no cursor, nothing to acknowledge.
//!
//! Owns a reader of its own; consumers of the stream do not notice it.

use std::sync::Arc;

use pgcapture_engine::{
    capture_options::{CaptureOptions, EndAt},
    checkpoint::Checkpoint,
    filter::Filter,
    ledger::Room,
};
use tokio::sync::mpsc;

use super::{
    error::CaptureError,
    feed::{Fed, Feed, NO_LIMIT},
    membership::{Pulled, Rows},
    session::Flow,
    start,
    writer::{Chunk, FrameWriter},
};
use crate::log::ChangeLog;

/// Most that a peek takes at once.
const ROOM: Room = Room {
    messages: 1_024,
    bytes: 256 * 1024,
};

/// Delivers until the end that was asked for, or for ever.
pub(super) async fn deliver(
    log: &Arc<dyn ChangeLog>,
    options: &CaptureOptions,
    flow: &Flow,
    outbound: &mpsc::Sender<Chunk>,
) -> Result<(), CaptureError> {
    let end = options.end.map(|end| match end {
        EndAt::Tail => log.tail().borrow().last.unwrap_or_default(),
        EndAt::Lsn(lsn) => Checkpoint::new(lsn, u32::MAX),
    });
    let position = start::find_position(log, options.start).await?;
    let mut reached = position.floor;
    let reader = start::open_after(log, position.floor).await?;
    let mut feed = Feed::new(Arc::clone(log), reader, &[]);
    let mut filter = Filter::new(options.clone());
    let mut writer = FrameWriter::new(options);
    while end.is_none_or(|end| reached < end) {
        let Ok(permit) = outbound.reserve().await else {
            return Ok(());
        };
        let credit = flow.credit();
        if credit == 0 {
            flow.wake.notified().await;
            continue;
        }
        let room = Room {
            messages: ROOM.messages.min(credit),
            ..ROOM
        };
        let Fed::Part(mut part) = feed.next(&mut filter, room, NO_LIMIT).await? else {
            continue;
        };
        reached = part.last;
        if let Some(end) = end
            && reached > end
        {
            let body = Arc::unwrap_or_clone(part.body);
            part.body = Arc::new(body.truncated(end));
        }
        if part.body.slots.is_empty() {
            continue;
        }
        let chunk = writer.write(&Pulled {
            rows: Rows::Part(part.body),
            commit_time: part.commit_time,
        });
        flow.spend(chunk.message_count);
        permit.send(chunk);
    }
    Ok(())
}

//! What every consumer of a stream has done with: the least of its cursors, as nodes agree on it.
//!
//! In a cluster the slot is the durable truth, and may be let go only so far.

use std::{fmt::Debug, sync::Arc};

use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use pgcapture_engine::checkpoint::Checkpoint;
use tokio::sync::watch;

/// Where the cursors of all subscriptions are.
pub trait Floors: Debug + Send + Sync {
    /// Returns the least cursor of a stream; `None` when it has no subscription.
    fn floor(&self, stream: &str) -> Option<Checkpoint>;

    /// Watches a number that grows whenever a cursor has moved.
    fn moves(&self) -> watch::Receiver<u64>;
}

/// The floor of one stream, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Floor {
    pub(super) least: watch::Receiver<Option<Checkpoint>>,
    _task: Task<()>,
}

impl Floor {
    /// Follows the cursors of a stream.
    pub(super) fn follow(floors: Arc<dyn Floors>, stream: &str) -> Self {
        let mut moves = floors.moves();
        let (least_tx, least) = watch::channel(floors.floor(stream));
        let of = stream.to_owned();
        let task = spawn(TaskKind::Sources, stream, async move {
            while moves.changed().await.is_ok() {
                let now = floors.floor(&of);
                least_tx.send_if_modified(|before| std::mem::replace(before, now) != now);
            }
        });
        Self { least, _task: task }
    }
}

//! What every consumer of a stream has done with: the least of its cursors, as nodes agree on it, and
//! of what readers on other nodes have taken, as this node knows it.
//!
//! In a cluster the slot is the durable truth, and may be let go only so far.

use std::{fmt::Debug, sync::Arc};

use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use pgcapture_engine::{checkpoint::Checkpoint, cluster::Source};
use tokio::sync::watch;

use crate::peer_log::readers::RemoteReaders;

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
    /// Follows the cursors of a source's stream, and the readers on other nodes.
    pub(super) fn follow(floors: Arc<dyn Floors>, readers: RemoteReaders, source: &Source) -> Self {
        let (mut moves, mut reads) = (floors.moves(), readers.moves());
        let (stream, name) = (source.stream.clone(), source.name.clone());
        let floor = move || {
            let both = [floors.floor(&stream), readers.floor(&name)];
            both.into_iter().flatten().min()
        };
        let (least_tx, least) = watch::channel(floor());
        let task = spawn(TaskKind::Sources, &source.name, async move {
            loop {
                tokio::select! {
                    changed = moves.changed() => if changed.is_err() { return },
                    changed = reads.changed() => if changed.is_err() { return },
                }
                let now = floor();
                least_tx.send_if_modified(|before| std::mem::replace(before, now) != now);
            }
        });
        Self { least, _task: task }
    }
}

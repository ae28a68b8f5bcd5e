//! Applying the common log to what this node keeps, as openraft wants it.
//!
//! Entries come as a stream; a chunk of them is one transaction, together with the place in the log
//! and the members at that place. Whoever waits for an entry is answered after it.

use std::io;

use futures_util::{Stream, StreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    entry::RaftEntry as _,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};

use super::{
    snapshot::{SnapshotFile, Snapshots},
    types::{LogId, Reply, Snapshot, SnapshotMeta, StoredMembership, Types, from_bytes, to_bytes},
};
use crate::store::{Batch, Mark, Store};

/// Entries that are applied in one transaction.
const APPLY_CHUNK: usize = 256;

/// What the log is applied to. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct StateMachine {
    store: Store,
    snapshots: Snapshots,
}

impl StateMachine {
    pub(crate) const fn new(store: Store, snapshots: Snapshots) -> Self {
        Self { store, snapshots }
    }

    async fn apply_chunk(&self, chunk: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let mut batch = Batch::default();
        let mut waiting: Vec<(bool, Option<ApplyResponder<Types>>)> = Vec::new();
        let mut last = None;
        for (entry, responder) in chunk {
            let log_id = entry.log_id();
            last = Some(log_id);
            let is_request = match entry.payload {
                EntryPayload::Normal(request) => {
                    batch.requests.push(request);
                    true
                }
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(log_id), membership);
                    batch.marks.push((Mark::Membership, to_bytes(&stored)?));
                    false
                }
                EntryPayload::Blank => false,
            };
            waiting.push((is_request, responder));
        }
        batch.marks.push((Mark::Applied, to_bytes(&last)?));
        let applied_index = last.map_or(0, |last| last.index());
        let store = self.store.clone();
        let applied = tokio::task::spawn_blocking(move || store.apply(batch)).await;
        let outcomes = applied
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        metrics::gauge!("pgcapture_raft_applied_index").set(applied_index as f64);
        let mut outcomes = outcomes.into_iter();
        for (is_request, responder) in waiting {
            let outcome = if is_request { outcomes.next() } else { None };
            if let Some(responder) = responder {
                responder.send(Reply(outcome));
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        place(|mark| self.store.mark(mark).map_err(io::Error::other))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(APPLY_CHUNK);
        while let Some(chunk) = chunks.next().await {
            self.apply_chunk(chunk.into_iter().collect::<io::Result<_>>()?)
                .await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let (store, snapshots, meta) = (self.store.clone(), self.snapshots.clone(), meta.clone());
        let installed =
            tokio::task::spawn_blocking(move || snapshots.install(&store, &meta, &snapshot)).await;
        installed.map_err(io::Error::other)?
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshots = self.snapshots.clone();
        let found = tokio::task::spawn_blocking(move || snapshots.newest()).await;
        found.map_err(io::Error::other)?
    }
}

impl RaftSnapshotBuilder<Types> for StateMachine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (store, snapshots) = (self.store.clone(), self.snapshots.clone());
        let built = tokio::task::spawn_blocking(move || snapshots.build(&store)).await;
        built.map_err(io::Error::other)?
    }
}

/// Reads up to where the log is applied, and who belongs to the cluster there.
pub(super) fn place(
    mark: impl Fn(Mark) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<(Option<LogId>, StoredMembership)> {
    let applied = match mark(Mark::Applied)? {
        Some(bytes) => from_bytes(&bytes)?,
        None => None,
    };
    let membership = mark(Mark::Membership)?.map(|bytes| from_bytes(&bytes));
    Ok((applied, membership.transpose()?.unwrap_or_default()))
}

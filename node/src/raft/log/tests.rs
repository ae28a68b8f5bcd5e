//! openraft's own suite, group commit, and what happens when the disk fails.

use openraft::{
    entry::RaftEntry as _,
    impls::leader_id_adv::LeaderId,
    storage::RaftLogStorageExt as _,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::*;
use crate::{
    raft::{machine::StateMachine, snapshot::Snapshots},
    store::ClusterId,
};

struct Builder;

impl StoreBuilder<Types, Log, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, StateMachine), openraft::StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let snapshots = Snapshots::open(folder.path(), ClusterId(1)).unwrap();
        let machine = StateMachine::new(store.clone(), snapshots);
        Ok((folder, Log::open(store), machine))
    }
}

#[tokio::test]
async fn it_keeps_what_openraft_asks_of_a_store() {
    Suite::test_all(Builder).await.unwrap();
}

fn log_id(index: u64) -> LogId {
    let leader = LeaderId {
        term: 1,
        node_id: 1,
    };
    LogId::new(leader, index)
}

fn blank(index: u64) -> Entry {
    Entry::new_blank(log_id(index))
}

async fn appended(log: &mut Log, indexes: std::ops::Range<u64>) -> io::Result<()> {
    let appended = log.blocking_append(indexes.map(blank)).await;
    appended.map_err(io::Error::other)
}

#[tokio::test]
async fn entries_are_read_before_they_are_durable_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::open(Store::open(folder.path()).unwrap());
    let entries = vec![blank(0), blank(1)];
    log.append(entries.clone(), IOFlushed::noop())
        .await
        .unwrap();
    assert_eq!(log.try_get_log_entries(0..9).await.unwrap(), entries);
    appended(&mut log, 2..4).await.unwrap();
    let vote = Vote::new(3, 1);
    log.save_vote(&vote).await.unwrap();
    // The file as a crash leaves it: copied while open, without the marks of a clean close.
    let crashed = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder.path().join("node.redb"),
        crashed.path().join("node.redb"),
    )
    .unwrap();
    let mut log = Log::open(Store::open(crashed.path()).unwrap());
    assert_eq!(log.try_get_log_entries(0..9).await.unwrap().len(), 4);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    log.truncate_after(Some(log_id(2))).await.unwrap();
    log.purge(log_id(0)).await.unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_log_id, Some(log_id(2)));
    assert_eq!(state.last_purged_log_id, Some(log_id(0)));
}

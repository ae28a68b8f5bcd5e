//! A snapshot is whole and ours, or it is left out.

use pgcapture_actors::consensus::Consensus as _;
use pgcapture_engine::cluster::{Command, Node, Proposal, Request, RequestId};
use pgcapture_engine::lsn::PgTime;

use super::*;
use crate::{
    raft::RaftConsensus,
    store::{Batch, FORMAT_PROTOCOL_FIRST},
};

fn add_node(number: u64) -> Command {
    Command::AddNode(Node {
        name: format!("n{number}"),
        id: number,
        address: format!("n{number}:7700"),
        joined_at: PgTime(1),
    })
}

/// A store that agreed on something, without what runs on it.
async fn store(folder: &Path, nodes: std::ops::Range<u64>) -> Store {
    let path = folder.to_owned();
    crate::raft::tests::life(async move {
        let raft = RaftConsensus::alone(&path, "n1").await.unwrap();
        for number in nodes {
            raft.propose(add_node(number)).await.unwrap();
        }
    })
    .await;
    Store::open(folder).unwrap()
}

fn cluster(store: &Store) -> ClusterId {
    store.identity().unwrap().unwrap().cluster
}

fn flip(path: &Path, place: usize) {
    let mut bytes = fs::read(path).unwrap();
    let place = bytes.len() * place / 100;
    bytes[place] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_damaged_snapshot_is_left_out_and_the_one_before_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let first = store(folder.path(), 2..5).await;
    let snapshots = Snapshots::open(other.path(), cluster(&first)).unwrap();
    let older = snapshots.build(&first).unwrap().meta;
    drop(first);
    let second = store(folder.path(), 5..8).await;
    let newer = snapshots.build(&second).unwrap().meta;
    assert!(newer.last_log_id > older.last_log_id);
    let newest = || snapshots.newest().unwrap().map(|snapshot| snapshot.meta);
    assert_eq!(newest(), Some(newer));
    let path = snapshots.files().unwrap().remove(0);
    for place in [0, 1, 30, 60, 99] {
        flip(&path, place);
        assert_eq!(newest(), Some(older.clone()), "a bit at {place} %");
        flip(&path, place);
    }
    fs::write(&path, b"short").unwrap();
    assert_eq!(newest(), Some(older));
}

#[tokio::test]
async fn a_snapshot_of_another_cluster_is_refused_and_changes_nothing() {
    let (mine, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let my_store = store(mine.path(), 2..4).await;
    let their_store = store(theirs.path(), 2..6).await;
    let their_snapshots = Snapshots::open(theirs.path(), cluster(&their_store)).unwrap();
    let foreign = their_snapshots.build(&their_store).unwrap();
    let snapshots = Snapshots::open(mine.path(), cluster(&my_store)).unwrap();
    let before = my_store.state().borrow().clone();
    let refused = snapshots.install(&my_store, &foreign.meta, &foreign.snapshot);
    assert_eq!(refused.unwrap_err().to_string(), "it is of another cluster");
    assert_eq!(*my_store.state().borrow(), before);
    // Nor is it taken for ours when somebody copies it here.
    let name = their_snapshots.files().unwrap().remove(0);
    let copied = snapshots.folder.join("99999999999999999999.snapshot");
    fs::copy(name, copied).unwrap();
    let newest = snapshots.newest().unwrap();
    assert!(newest.is_none_or(|newest| newest.meta != foreign.meta));
}

#[tokio::test]
async fn what_a_snapshot_brings_is_everything_and_survives() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = store(from.path(), 2..7).await;
    let target = Store::open(to.path()).unwrap();
    let from_here = Snapshots::open(from.path(), cluster(&source)).unwrap();
    let snapshot = from_here.build(&source).unwrap();
    let to_here = Snapshots::open(to.path(), cluster(&source)).unwrap();
    to_here
        .install(&target, &snapshot.meta, &snapshot.snapshot)
        .unwrap();
    assert_eq!(*target.state().borrow(), *source.state().borrow());
    drop(target);
    let target = Store::open(to.path()).unwrap();
    assert_eq!(*target.state().borrow(), *source.state().borrow());
    let place = place(|mark| target.mark(mark).map_err(io::Error::other)).unwrap();
    assert_eq!(place.0, snapshot.meta.last_log_id);
    assert_eq!(to_here.newest().unwrap().unwrap().meta, snapshot.meta);
}

#[test]
fn what_a_crash_left_unfinished_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(folder.path(), ClusterId(1)).unwrap();
    drop(snapshots.receive().unwrap());
    assert_eq!(fs::read_dir(&snapshots.folder).unwrap().count(), 1);
    let snapshots = Snapshots::open(folder.path(), ClusterId(1)).unwrap();
    assert_eq!(fs::read_dir(&snapshots.folder).unwrap().count(), 0);
}

/// Writes a snapshot as version 4 did: its state ended before what version 5 adds, which is empty here
/// and has one byte.
fn write_version_4(snapshots: &Snapshots, store: &Store, path: &Path) -> SnapshotMeta {
    let meta = snapshots.build(store).unwrap().meta;
    let mut writer = Writer::create(path).unwrap();
    let header = Header {
        cluster: snapshots.cluster,
        format: 4,
        meta: meta.clone(),
    };
    writer.frame(&to_bytes(&header).unwrap()).unwrap();
    let written = store.view().unwrap().each(|mut row| {
        if let Row::State(bytes) = &mut row {
            // `wal_wishes`, `let_go`, `reached` and `since`.
            let shorter = bytes.len() - 4;
            assert_eq!(bytes.split_off(shorter), [0; 4]);
        }
        writer.frame(&to_bytes(&row)?).map_err(RowError::from)
    });
    written.map_err(|RowError(error)| error).unwrap();
    writer.finish().unwrap();
    meta
}

#[tokio::test]
async fn a_snapshot_of_the_version_before_is_brought_forward() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = store(from.path(), 2..5).await;
    let snapshots = Snapshots::open(from.path(), cluster(&source)).unwrap();
    let path = from.path().join("old");
    let meta = write_version_4(&snapshots, &source, &path);
    let old = SnapshotFile::open(&path).unwrap();
    let target = Store::open(to.path()).unwrap();
    let to_here = Snapshots::open(to.path(), cluster(&source)).unwrap();
    to_here.install(&target, &meta, &old).unwrap();
    assert_eq!(*target.state().borrow(), *source.state().borrow());
    drop(target);
    let target = Store::open(to.path()).unwrap();
    assert_eq!(*target.state().borrow(), *source.state().borrow());
}

#[tokio::test]
async fn a_snapshot_has_the_form_of_the_agreed_version() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = store(from.path(), 2..4).await;
    let target = Store::open(to.path()).unwrap();
    let snapshots = Snapshots::open(from.path(), cluster(&source)).unwrap();
    let to_here = Snapshots::open(to.path(), cluster(&source)).unwrap();
    for (protocol, format) in [(1, FORMAT_PROTOCOL_FIRST), (2, FORMAT_VERSION)] {
        let nodes = [1, 2, 3].into();
        let raise = Command::RaiseProtocol {
            to: protocol,
            nodes,
        };
        let request = Request {
            id: RequestId(protocol.into()),
            proposal: Proposal::State(raise),
        };
        let batch = Batch {
            requests: vec![request],
            marks: Vec::new(),
        };
        source.apply(batch).unwrap();
        let Snapshot { meta, snapshot } = snapshots.build(&source).unwrap();
        let rows = snapshots.open_rows(&snapshot, None).unwrap();
        assert_eq!(rows.version, format);
        to_here.install(&target, &meta, &snapshot).unwrap();
        assert_eq!(target.state().borrow().protocol(), protocol);
        assert_eq!(target.view().unwrap().version().unwrap(), format);
    }
}

#[test]
fn a_row_that_the_store_may_hold_can_be_read_from_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(folder.path(), ClusterId(1)).unwrap();
    let row = |bytes: usize| Row::DumpTable((1, 2), vec![7; bytes]);
    let path = folder.path().join("large");
    let written = |bytes: usize| {
        let mut writer = Writer::create(&path)?;
        writer.frame(&to_bytes(&Header {
            cluster: ClusterId(1),
            format: FORMAT_VERSION,
            meta: SnapshotMeta::default(),
        })?)?;
        writer.frame(&to_bytes(&row(bytes))?)?;
        writer.finish()?;
        SnapshotFile::open(&path)
    };
    let longest = crate::store::VALUE_BYTES_MAX;
    let snapshot = written(longest).unwrap();
    let rows = snapshots.open_rows(&snapshot, None).unwrap();
    let rows: Vec<Row> = rows.collect::<io::Result<_>>().unwrap();
    assert!(rows == [row(longest)]);
    written(ROW_BYTES_MAX).unwrap_err();
}

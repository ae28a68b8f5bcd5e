//! A node that is alone: what a proposal costs, and what ends it.

use std::sync::{Arc, atomic::Ordering};

use pgcapture_actors::{
    consensus::{Consensus as _, ProposeError},
    cursors::{Cursor, CursorStore, SubscriptionId},
};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{
        Answer, Command, HomeClaim, HomeCommand, OnGap, Origin, Proposal, Refusal, RequestId,
        Source,
    },
    lsn::{Lsn, PgTime},
};
use tempfile::TempDir;

use super::{
    propose::{STATE_BYTES_MAX, room_for},
    *,
};
use crate::store::Disk;

fn add_node(number: u64, address: &str) -> Command {
    Command::AddNode(Node {
        name: format!("n{number}"),
        id: number,
        address: address.to_owned(),
        joined_at: PgTime(1),
    })
}

fn claim_home(consumer: usize) -> Command {
    claim_home_of(consumer, None)
}

/// A claim instead of a dead home, or of none.
fn claim_home_of(consumer: usize, dead: Option<&str>) -> Command {
    let claim = HomeClaim {
        id: subscription(consumer),
        instead_of: dead.map(str::to_owned),
    };
    Command::Home(HomeCommand::Claim {
        node: "n1".to_owned(),
        claims: vec![claim],
    })
}

/// The source whose consumers have cursors.
fn add_shop() -> Command {
    Command::AddSource(Box::new(Source {
        name: "shop".to_owned(),
        stream: "shop".to_owned(),
        url: "postgres://pgcapture@db/shop".to_owned(),
        password: None,
        slot: "shop_pgcapture".to_owned(),
        publication: "pgcapture_shop".to_owned(),
        tables: vec!["public.*".to_owned()],
        exclude: Vec::new(),
        paused: false,
        epoch: Epoch(0),
        created_at: PgTime(1),
        on_gap: OnGap::Halt,
        origin: Origin::Command,
        owns_publication: true,
    }))
}

async fn on_disk(disk: &Arc<Disk>) -> (TempDir, RaftConsensus) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_failing(folder.path(), disk);
    bootstrap(&store, "n1", "").unwrap();
    // Nothing is agreed on by itself meanwhile.
    let spoken = Spoken::told(1, 1);
    let (pace, peers) = (Pace::default(), Peers::default());
    let raft = RaftConsensus::start_speaking(store, pace, peers, spoken).await;
    let raft = raft.unwrap();
    raft.recover().await.unwrap();
    (folder, raft)
}

/// Runs a node as a process does: at its end nothing of it is left, not even the lock on its folder.
pub(super) async fn life<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let lived = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(work)
    });
    lived.await.unwrap()
}

fn subscription(consumer: usize) -> SubscriptionId {
    SubscriptionId {
        stream: "shop".to_owned(),
        consumer: format!("c{consumer}"),
    }
}

fn cursor(runs: u64) -> Cursor {
    let run = |n| (Checkpoint::new(Lsn(n), 1), Checkpoint::new(Lsn(n), 2));
    Cursor {
        floor: Checkpoint::new(Lsn(1), 1),
        acked_above: (1 << 40..(1 << 40) + runs).map(run).collect(),
    }
}

#[tokio::test]
async fn a_proposal_costs_one_durable_transaction() {
    let disk = Arc::default();
    let (_folder, raft) = on_disk(&disk).await;
    let before = disk.syncs.load(Ordering::SeqCst);
    let resizes = disk.resizes.load(Ordering::SeqCst);
    for number in 20..30 {
        // No new node: the members follow those, which is an entry of its own.
        let answer = raft.propose(claim_home(number)).await.unwrap();
        assert_eq!(answer, Answer::Done);
    }
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    let resizes = disk.resizes.load(Ordering::SeqCst) - resizes;
    // The entry's own; applying it waits for nothing. One more may make the file longer.
    assert!(
        (10..=11).contains(&syncs),
        "{syncs} syncs, {resizes} resizes for 10 proposals"
    );
}

#[tokio::test]
async fn proposals_that_come_together_share_a_sync() {
    let disk = Arc::default();
    let (_folder, raft) = on_disk(&disk).await;
    let before = disk.syncs.load(Ordering::SeqCst);
    let proposals = (0..64_u64).map(|n| raft.propose(add_node(2, &format!("a:{n}"))));
    for answer in futures_util::future::join_all(proposals).await {
        answer.unwrap();
    }
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs <= 32, "{syncs} syncs for 64 proposals");
}

#[tokio::test]
async fn a_disk_that_fails_ends_the_node() {
    let disk = Arc::default();
    let (_folder, raft) = on_disk(&disk).await;
    disk.is_failing.store(true, Ordering::SeqCst);
    let refused = raft.propose(add_node(2, "a:1")).await;
    assert!(
        matches!(
            refused,
            Err(ProposeError::Store { .. } | ProposeError::Unavailable { .. })
        ),
        "{refused:?}"
    );
    let reason = raft.failed().await;
    assert!(reason.contains("on fire"), "{reason}");
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let raft = RaftConsensus::alone(folder.path(), "n1").await.unwrap();
    raft.propose(add_shop()).await.unwrap();
    let saved = vec![(subscription(1), cursor(3))];
    raft.save(saved.clone()).await.unwrap();
    raft.propose(add_node(2, "a:1")).await.unwrap();
    // The folder as a crash leaves it.
    let crashed = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder.path().join("node.redb"),
        crashed.path().join("node.redb"),
    )
    .unwrap();
    let raft = RaftConsensus::alone(crashed.path(), "n1").await.unwrap();
    assert!(raft.state().borrow().nodes.contains_key("n2"));
    assert_eq!(raft.list().await.unwrap(), saved);
    CursorStore::remove(&raft, &subscription(1)).await.unwrap();
    assert_eq!(raft.load(&subscription(1)).await.unwrap(), None);
}

#[test]
fn nothing_is_added_to_a_state_that_a_node_could_not_read_again() {
    let room = |command, bytes| room_for(&Proposal::State(command), bytes);
    for adds in [add_shop(), claim_home(1)] {
        assert!(room(adds.clone(), STATE_BYTES_MAX - 1).is_ok());
        let refused = room(adds, STATE_BYTES_MAX).unwrap_err();
        assert_eq!(refused.explanation().code, "PGC-R18", "{refused}");
    }
    let name = || "shop".to_owned();
    let pause = Command::SetPaused {
        name: name(),
        paused: true,
    };
    let replace = claim_home_of(1, Some("n2"));
    for goes_on in [pause, Command::RemoveSource { name: name() }, replace] {
        assert!(room(goes_on, usize::MAX).is_ok());
    }
}

#[tokio::test]
async fn the_size_of_the_state_is_known_while_it_runs_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let of = folder.path().to_owned();
    let (before, after) = life(async move {
        let raft = RaftConsensus::alone(&of, "n1").await.unwrap();
        let before = raft.inner.store.state_bytes();
        raft.propose(add_shop()).await.unwrap();
        let after = raft.inner.store.state_bytes();
        raft.stop().await;
        (before, after)
    })
    .await;
    assert!(before < after, "{before} {after}");
    let again = Store::open(folder.path()).unwrap();
    assert_eq!(again.state_bytes(), after);
}

#[tokio::test]
async fn too_much_for_an_entry_is_refused_and_cursors_are_parted() {
    let folder = tempfile::tempdir().unwrap();
    let raft = RaftConsensus::alone(folder.path(), "n1").await.unwrap();
    let refused = raft
        .propose(add_node(2, &"x".repeat(ENTRY_BYTES_MAX)))
        .await;
    assert!(
        matches!(refused, Err(ProposeError::TooLarge { .. })),
        "{refused:?}"
    );
    raft.propose(add_shop()).await.unwrap();
    let many: Vec<_> = (0..300).map(|n| (subscription(n), cursor(900))).collect();
    raft.save(many).await.unwrap();
    assert_eq!(raft.list().await.unwrap().len(), 300);
}

#[tokio::test]
async fn the_log_is_cut_and_a_snapshot_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let before = life(async move {
        let raft = RaftConsensus::alone(&path, "n1").await.unwrap();
        for round in 0..6_u64 {
            let address = |n: u64| format!("a:{}", round * 1_000 + n);
            let proposals = (0..1_000).map(|n| raft.propose(add_node(2, &address(n))));
            let proposals: Vec<_> = proposals.collect();
            for answer in futures_util::future::join_all(proposals).await {
                answer.unwrap();
            }
        }
        let is_cut = |metrics: &openraft::RaftMetrics<Types>| {
            metrics.purged.is_some_and(|id| id.index() > 1_000)
        };
        let wait = raft.inner.raft.wait(Some(SNAPSHOT_MAX));
        wait.metrics(is_cut, "the log is cut").await.unwrap();
        raft.hash().await.unwrap()
    })
    .await;
    let path = folder.path().to_owned();
    let after = life(async move {
        let raft = RaftConsensus::alone(&path, "n1").await.unwrap();
        raft.hash().await.unwrap()
    });
    assert_eq!(after.await.sum, before.sum);
}

#[tokio::test]
async fn a_number_that_is_taken_meanwhile_is_not_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let raft = RaftConsensus::alone(folder.path(), "n1").await.unwrap();
    let (x, y) = (RequestId(7), RequestId(8));
    let let_in =
        async |name: &'static str, request| raft.let_in(name, "a:1", request, Spoken::OURS).await;
    assert_eq!(let_in("x", x).await.unwrap(), LetIn::Joined(2));
    // What a leader proposes that has not heard of the last one yet.
    let stale = raft.let_in_as(2, "y", "a:1", y).await;
    assert!(
        matches!(
            stale,
            Err(ProposeError::Refused(Refusal::NodeNumber { next: 3, .. }))
        ),
        "{stale:?}"
    );
    assert_eq!(let_in("y", y).await.unwrap(), LetIn::Joined(3));
    assert_eq!(let_in("x", x).await.unwrap(), LetIn::Joined(2), "as before");
}

#[tokio::test]
async fn a_node_that_was_removed_is_told_so_when_it_asks_again() {
    let folder = tempfile::tempdir().unwrap();
    let raft = RaftConsensus::alone(folder.path(), "n1").await.unwrap();
    let request = RequestId(7);
    let joined = raft
        .let_in("x", "a:1", request, Spoken::OURS)
        .await
        .unwrap();
    assert_eq!(joined, LetIn::Joined(2));
    let name = "x".to_owned();
    raft.propose(Command::RemoveNode { name }).await.unwrap();
    let again = raft
        .let_in("x", "a:1", request, Spoken::OURS)
        .await
        .unwrap();
    assert_eq!(again, LetIn::Removed);
}

#[tokio::test]
async fn a_cursor_goes_back_by_order_only() {
    let folder = tempfile::tempdir().unwrap();
    let raft = RaftConsensus::alone(folder.path(), "n1").await.unwrap();
    raft.propose(add_shop()).await.unwrap();
    let id = subscription(1);
    let at = |lsn| Cursor {
        floor: Checkpoint::new(Lsn(lsn), 1),
        acked_above: Vec::new(),
    };
    let save = async |lsn| raft.save(vec![(id.clone(), at(lsn))]).await.unwrap();
    assert_eq!(save(9).await, []);
    assert_eq!(save(4).await, std::slice::from_ref(&id));
    assert_eq!(raft.load(&id).await.unwrap(), Some(at(9)));
    assert!(raft.seek(&id, at(4)).await.unwrap());
    assert_eq!(raft.load(&id).await.unwrap(), Some(at(4)));
    assert_eq!(save(5).await, []);
    let unknown = SubscriptionId {
        stream: "nope".to_owned(),
        consumer: "a".to_owned(),
    };
    assert!(!raft.seek(&unknown, at(1)).await.unwrap());
}

#[tokio::test]
async fn a_node_that_has_changed_its_name_saves_under_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let raft = RaftConsensus::alone(folder.path(), "old").await.unwrap();
    raft.propose(add_shop()).await.unwrap();
    let wish = Wish {
        name: "new".to_owned(),
        address: "a:1".to_owned(),
        peers: Vec::new(),
    };
    raft.introduce(&wish).await.unwrap();
    let cursors = vec![(subscription(1), cursor(3))];
    assert_eq!(raft.save(cursors).await.unwrap(), []);
}

#[tokio::test]
async fn a_node_that_was_renamed_while_it_was_alone_starts_when_it_has_companions() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().to_owned();
    let wish = |name: &str| Wish {
        name: name.to_owned(),
        address: "127.0.0.1:2".to_owned(),
        peers: Vec::new(),
    };
    let (before, renamed) = (directory.clone(), wish("new"));
    life(async move {
        let raft = RaftConsensus::alone(&before, "old").await.unwrap();
        raft.introduce(&renamed).await.unwrap();
        raft.propose(add_node(2, "127.0.0.1:1")).await.unwrap();
    })
    .await;
    let store = Store::open(&directory).unwrap();
    let door = Door::of(&wish("new"), &store).unwrap();
    let peers = Peers::default();
    // It tells the name that it has now, not the one that it had.
    for name in ["other", "old"] {
        let refused = enter(&store, &wish(name), &peers, &door).await.map(drop);
        let text = refused.unwrap_err().to_string();
        assert!(text.starts_with("PGC-R07"), "{text}");
        assert!(text.contains("\"new\" of a cluster"), "{text}");
    }
    enter(&store, &wish("new"), &peers, &door).await.unwrap();
    assert_eq!(store.identity().unwrap().unwrap().name, "new");
}

//! A publication that is made again while nobody looks, and a gap that waits for a decision: the next
//! owner declares both, whatever its own log holds.

use std::sync::{Arc, atomic::Ordering};

use pgcapture_actors::agent::{AgentHandle, AgentState};
use pgcapture_engine::{
    batch::EntryKind,
    checkpoint::{Checkpoint, Epoch},
    cluster::Gap,
    codes,
    lsn::PgTime,
};

use crate::{
    cluster::{Agreed, Cluster},
    slot_truth::next_after,
    world::{PATIENCE, World, on_node_runtime, wait_for},
};

/// Row 2 is written while there is no publication.
async fn remake_publication(world: &World) {
    world.sql("DROP PUBLICATION p").await;
    world.sql("INSERT INTO t VALUES (2)").await;
    world.sql("CREATE PUBLICATION p FOR TABLE t").await;
}

/// Captures row 1 on the first node and ends its agent; the consumer has got it.
async fn captured_one(cluster: &mut Cluster) -> Checkpoint {
    let agent = cluster.start(0, 1);
    cluster.write("INSERT INTO t VALUES (1)").await;
    let cursor = cluster.consume_all();
    agent.drain().await;
    cursor
}

fn declared(agreed: &Agreed) -> Vec<Gap> {
    agreed.gaps.lock().expect("no test panics under it").clone()
}

async fn halted_by(agent: &AgentHandle) -> &'static str {
    let halted = wait_for(agent, AgentState::Halted).await;
    halted.trouble.expect("a reason").code
}

/// Takes the source to the second node, which must halt with `code`, and goes on after the gap.
async fn halts_and_goes_on(cluster: &mut Cluster, cursor: Option<Checkpoint>, code: &str) {
    let agent = cluster.start(1, 2);
    assert_eq!(halted_by(&agent).await, code);
    assert_eq!(cluster.world.inserted_ids().await, []);
    let open = cluster.world.gaps().await;
    let ends: Vec<u64> = open.iter().map(|gap| gap.to_lsn).collect();
    assert_eq!(ends, [0], "{open:?}");
    // Nothing is passed by coming again.
    agent.drain().await;
    let agent = cluster.start(1, 3);
    wait_for(&agent, AgentState::Halted).await;
    assert_eq!(cluster.world.gaps().await.len(), 1);
    assert!(agent.accept_gap());
    wait_for(&agent, AgentState::Following).await;
    cluster.write("INSERT INTO t VALUES (9)").await;
    if let Some(cursor) = cursor {
        let next = next_after(cluster, cursor).await;
        assert_eq!(next.first(), Some(&EntryKind::Gap));
    }
    assert_eq!(cluster.world.inserted_ids().await, [9]);
    cluster.consume_all();
    agent.drain().await;
    // It was passed for every later owner.
    let before = declared(&cluster.agreed).len();
    let agent = cluster.start(0, 4);
    wait_for(&agent, AgentState::Following).await;
    cluster.write("INSERT INTO t VALUES (10)").await;
    assert_eq!(declared(&cluster.agreed).len(), before);
    agent.drain().await;
}

#[test]
fn a_publication_remade_while_a_source_moves_is_a_declared_gap() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let cursor = captured_one(&mut cluster).await;
        let before = *cluster.agreed.publication.borrow();
        remake_publication(&cluster.world).await;
        let code = codes::source::PUBLICATION_DROPPED.code;
        halts_and_goes_on(&mut cluster, Some(cursor), code).await;
        let gaps = declared(&cluster.agreed);
        assert!(gaps.iter().all(|gap| gap.reason == "publication_dropped"));
        let after = *cluster.agreed.publication.borrow();
        assert!(before.is_some() && after.is_some() && before != after);
    });
}

#[test]
fn a_decision_counts_until_the_gap_is_passed() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        captured_one(&mut cluster).await;
        remake_publication(&cluster.world).await;
        let agent = cluster.start(1, 2);
        wait_for(&agent, AgentState::Halted).await;
        // The slot is made anew, and then nobody agrees on the publication.
        cluster.agreed.keep_failures.store(1, Ordering::SeqCst);
        assert!(agent.accept_gap());
        wait_for(&agent, AgentState::Following).await;
        assert_eq!(cluster.agreed.keep_failures.load(Ordering::SeqCst), 0);
        cluster.write("INSERT INTO t VALUES (9)").await;
        assert_eq!(cluster.world.inserted_ids().await, [9]);
        let gaps = cluster.world.gaps().await;
        assert!(gaps.last().is_some_and(|gap| gap.to_lsn > gap.from_lsn));
        agent.drain().await;
    });
}

#[test]
fn a_publication_that_could_not_be_kept_is_kept_later() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        // A state of an earlier version, in a cluster that is being upgraded.
        cluster
            .agreed
            .keeps_publication
            .store(false, Ordering::SeqCst);
        let agent = cluster.start(0, 1);
        cluster.write("INSERT INTO t VALUES (1)").await;
        assert_eq!(*cluster.agreed.publication.borrow(), None);
        cluster
            .agreed
            .keeps_publication
            .store(true, Ordering::SeqCst);
        let mut kept = cluster.agreed.publication.subscribe();
        let kept = tokio::time::timeout(PATIENCE, kept.wait_for(Option::is_some)).await;
        assert!(matches!(kept, Ok(Ok(_))), "it is kept without a new start");
        assert_eq!(agent.status().borrow().state, AgentState::Following);
        agent.drain().await;
    });
}

#[test]
fn a_publication_that_was_altered_is_the_same() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        captured_one(&mut cluster).await;
        cluster
            .world
            .sql("CREATE TABLE u (id bigint PRIMARY KEY)")
            .await;
        for statement in [
            "ALTER PUBLICATION p ADD TABLE u",
            "ALTER PUBLICATION p SET (publish = 'insert, update')",
            "ALTER PUBLICATION p RENAME TO q",
            "ALTER PUBLICATION q RENAME TO p",
        ] {
            cluster.world.sql(statement).await;
        }
        let agent = cluster.start(1, 2);
        wait_for(&agent, AgentState::Following).await;
        cluster.write("INSERT INTO t VALUES (2)").await;
        assert_eq!(declared(&cluster.agreed).len(), 0);
        agent.drain().await;
    });
}

/// A gap that an owner has declared before it died with its log.
fn declare_open(agreed: &Agreed, cursor: Checkpoint) {
    let mut gaps = agreed.gaps.lock().expect("no test panics under it");
    gaps.push(Gap {
        from: cursor.lsn,
        to: None,
        reason: "publication_dropped".to_owned(),
        declared_at: PgTime(0),
    });
}

#[test]
fn a_gap_that_nobody_accepted_halts_the_next_owner() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let cursor = captured_one(&mut cluster).await;
        declare_open(&cluster.agreed, cursor);
        let code = codes::source::POSITION_AHEAD.code;
        halts_and_goes_on(&mut cluster, Some(cursor), code).await;
    });
}

#[test]
fn a_gap_that_nobody_accepted_is_there_without_consumers_too() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let cursor = captured_one(&mut cluster).await;
        cluster.agreed.floor.send_replace(None);
        declare_open(&cluster.agreed, cursor);
        let code = codes::source::POSITION_AHEAD.code;
        halts_and_goes_on(&mut cluster, None, code).await;
    });
}

#[test]
fn a_publication_remade_while_a_single_node_is_down_is_a_declared_gap() {
    on_node_runtime(async {
        let cluster = Cluster::new().await;
        let start = |epoch| {
            let mut spec = World::spec();
            spec.epoch = Epoch(epoch);
            let host = Arc::<Agreed>::clone(&cluster.agreed);
            cluster.world.start_at(spec, host)
        };
        let agent = start(1);
        cluster.write("INSERT INTO t VALUES (1)").await;
        agent.drain().await;
        remake_publication(&cluster.world).await;
        let agent = start(2);
        let code = codes::source::PUBLICATION_DROPPED.code;
        assert_eq!(halted_by(&agent).await, code);
        assert!(agent.accept_gap());
        wait_for(&agent, AgentState::Following).await;
        cluster.write("INSERT INTO t VALUES (9)").await;
        let gaps = cluster.world.gaps().await;
        assert!(gaps.last().is_some_and(|gap| gap.to_lsn > gap.from_lsn));
        assert_eq!(cluster.world.inserted_ids().await, [1, 9]);
        agent.drain().await;
        let agent = start(3);
        wait_for(&agent, AgentState::Following).await;
        assert_eq!(cluster.world.gaps().await.len(), gaps.len());
        agent.drain().await;
    });
}

//! The slot is the truth: consumers hold it, an idle source frees its WAL, a node without the log
//! starts it anew, and what was let go too early is a gap.

use std::sync::atomic::Ordering;

use pgcapture_actors::{
    agent::{AgentHandle, AgentState, AgentStatus},
    log::{LogError, Start},
    postgres::StopMode,
};
use pgcapture_engine::{
    batch::EntryKind,
    checkpoint::{Checkpoint, Epoch},
    codes,
    lsn::Lsn,
    wal_guard::{WalGuard, WalPolicy},
};

use crate::{
    cluster::Cluster,
    world::{PATIENCE, World, on_node_runtime, wait_for},
};

async fn wait_until(agent: &AgentHandle, is_so: impl FnMut(&AgentStatus) -> bool) -> AgentStatus {
    let mut status = agent.status();
    let reached = tokio::time::timeout(PATIENCE, status.wait_for(is_so)).await;
    let Ok(Ok(found)) = reached.map(|found| found.map(|found| found.clone())) else {
        panic!("the agent stays at {:?}", agent.status().borrow())
    };
    found
}

/// WAL that brings nothing to the stream, and its end but for what is not worth attesting.
async fn void(world: &World) -> Lsn {
    world
        .sql("CREATE TABLE IF NOT EXISTS elsewhere (v text)")
        .await;
    world
        .sql("INSERT INTO elsewhere SELECT repeat('x', 1000) FROM generate_series(1, 3000)")
        .await;
    near(world.wal_end().await)
}

/// Less than a MiB beyond the cursors is not worth an entry of the agreed state.
const fn near(end: Lsn) -> Lsn {
    Lsn(end.0 - (1 << 20))
}

#[test]
fn consumers_hold_the_slot_and_let_it_go() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        cluster.world.sql("INSERT INTO t VALUES (0)").await;
        let agent = cluster.start(0, 1);
        cluster.world.caught_up().await;
        let first = cluster.consume_all();
        cluster
            .write("INSERT INTO t SELECT generate_series(1, 100)")
            .await;
        agent.drain().await;
        let held = cluster.world.confirmed().await;
        assert!(held <= first.lsn, "{held} {first}");
        let agent = cluster.start(0, 2);
        wait_for(&agent, AgentState::Following).await;
        let last = cluster.consume_all();
        wait_until(&agent, |status| status.confirmed_lsn >= last.lsn).await;
        // Nobody writes to the table any more: the rest is let go once it was attested.
        let end = void(&cluster.world).await;
        let freed = wait_until(&agent, |status| status.confirmed_lsn >= end).await;
        assert!(freed.confirmed_lsn <= freed.durable_lsn);
        let attested = cluster.agreed.attested().expect("it is agreed on");
        assert!(
            attested.resume_lsn >= end && attested.previous == Some(last),
            "{attested:?}"
        );
        agent.drain().await;
        assert!(cluster.world.confirmed().await >= end);
        assert_eq!(cluster.agreed.gaps.lock().unwrap().len(), 0);
    });
}

#[test]
fn an_idle_source_moves_to_a_node_without_its_log() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster
            .write("INSERT INTO t SELECT generate_series(1, 10)")
            .await;
        let cursor = cluster.consume_all();
        let end = void(&cluster.world).await;
        wait_until(&agent, |status| status.confirmed_lsn >= end).await;
        agent.drain().await;
        assert!(
            cluster.world.confirmed().await > cursor.lsn,
            "beyond every cursor"
        );

        let agent = cluster.start(1, 2);
        wait_for(&agent, AgentState::Following).await;
        assert_eq!(cluster.agreed.gaps.lock().unwrap().len(), 0);
        cluster.write("INSERT INTO t VALUES (11)").await;
        let log = &cluster.world.log;
        let reader = log.open_reader(Start::After(cursor)).await;
        let batch = reader.expect("nothing is missing").next().await;
        assert!(batch.expect("the next ones").entry_count >= 3);
        // What lies before is refused, never begun later in silence.
        let before = Checkpoint::new(cursor.lsn, cursor.seq - 1);
        let refused = log.open_reader(Start::After(before)).await.err();
        assert!(
            matches!(refused, Some(LogError::Removed { .. })),
            "{refused:?}"
        );
        assert_eq!(cluster.world.inserted_ids().await, [11]);
        agent.drain().await;
    });
}

#[test]
fn a_slot_that_was_moved_over_a_consumer_is_a_gap_behind_it() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster.write("INSERT INTO t VALUES (1)").await;
        let cursor = cluster.consume_all();
        agent.drain().await;
        cluster.world.sql("INSERT INTO t VALUES (2)").await;
        cluster
            .world
            .sql("SELECT pg_replication_slot_advance('s', pg_current_wal_flush_lsn())")
            .await;
        let agent = cluster.start(1, 2);
        let halted = wait_for(&agent, AgentState::Halted).await;
        assert_eq!(
            halted.trouble.expect("a reason").code,
            codes::source::POSITION_AHEAD.code
        );
        assert!(agent.accept_gap());
        wait_for(&agent, AgentState::Following).await;
        cluster.write("INSERT INTO t VALUES (9)").await;
        // The consumer meets the gap right behind what it has got.
        let mut reader = cluster
            .world
            .log
            .open_reader(Start::After(cursor))
            .await
            .expect("it is there");
        let batch = reader.next().await.expect("the gap");
        assert!(batch.span.is_some_and(|(first, _)| first > cursor));
        let gaps = cluster.world.gaps().await;
        assert!(gaps.iter().any(|gap| gap.to_lsn > gap.from_lsn), "{gaps:?}");
        assert!(
            gaps.iter().all(|gap| gap.from_lsn >= cursor.lsn.0),
            "{gaps:?}"
        );
        assert_eq!(cluster.world.inserted_ids().await, [9]);
        agent.drain().await;
    });
}

/// What a consumer reads next after its cursor.
pub(crate) async fn next_after(cluster: &Cluster, cursor: Checkpoint) -> Vec<EntryKind> {
    let log = &cluster.world.log;
    let reader = log.open_reader(Start::After(cursor)).await;
    let batch = reader.expect("it is there").next().await;
    let batch = batch.expect("something follows");
    let kinds = batch.iter().map(|entry| entry.expect("well formed").kind);
    kinds.collect()
}

#[test]
fn a_gap_that_was_accepted_halts_no_later_owner() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster.write("INSERT INTO t VALUES (1)").await;
        let cursor = cluster.consume_all();
        agent.drain().await;
        cluster
            .world
            .sql("SELECT pg_drop_replication_slot('s')")
            .await;
        let agent = cluster.start(0, 2);
        wait_for(&agent, AgentState::Halted).await;
        assert!(agent.accept_gap());
        wait_for(&agent, AgentState::Following).await;
        cluster.write("INSERT INTO t VALUES (2)").await;
        // The consumer has not read the gap yet when another node, without that log, takes over.
        agent.drain().await;
        let agent = cluster.start(1, 3);
        wait_for(&agent, AgentState::Following).await;
        cluster.world.caught_up().await;
        let gaps = cluster.world.gaps().await;
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert_eq!(gaps[0].reason, "slot_dropped");
        assert!(gaps[0].to_lsn > gaps[0].from_lsn, "{gaps:?}");
        assert_eq!(next_after(&cluster, cursor).await[0], EntryKind::Gap);
        assert_eq!(cluster.world.inserted_ids().await, [2]);
        agent.drain().await;
    });
}

#[test]
fn a_consumer_that_went_back_is_refused_by_the_next_owner_and_halts_nothing() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster.write("INSERT INTO t VALUES (1)").await;
        let early = cluster.consume_all();
        cluster.write("INSERT INTO t VALUES (2)").await;
        let late = cluster.consume_all();
        wait_until(&agent, |status| status.confirmed_lsn >= late.lsn).await;
        cluster.agreed.seek(early);
        cluster.write("INSERT INTO t VALUES (3)").await;
        agent.drain().await;
        let agent = cluster.start(1, 2);
        wait_for(&agent, AgentState::Following).await;
        cluster.world.caught_up().await;
        assert_eq!(cluster.agreed.gaps.lock().unwrap().len(), 0);
        let log = &cluster.world.log;
        let refused = log.open_reader(Start::After(early)).await.err();
        assert!(
            matches!(refused, Some(LogError::Removed { .. })),
            "{refused:?}"
        );
        // The others miss nothing.
        assert_eq!(cluster.world.inserted_ids().await.last(), Some(&3));
        next_after(&cluster, late).await;
        agent.drain().await;
    });
}

#[test]
fn a_budget_that_spills_frees_the_slot_and_tells_the_slow_consumer() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let mut spec = cluster.spec(0, 1);
        spec.wal_guard = Some(WalGuard {
            limit_bytes: 8 << 20,
            alert_percent: 25,
            policy: WalPolicy::Spill,
        });
        let agent = cluster.start_with(0, spec.clone());
        cluster.write("INSERT INTO t VALUES (1)").await;
        let slow = cluster.consume_all();
        cluster
            .write("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(2, 8000) i")
            .await;
        let lost = cluster.world.log.tail().borrow().last.expect("an entry");
        cluster
            .write("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(8001, 11000) i")
            .await;
        let freed = wait_until(&agent, |status| status.confirmed_lsn > lost.lsn).await;
        let let_go = cluster.agreed.behind().let_go.expect("it is agreed on");
        assert_eq!(let_go.reason, "wal_guard");
        assert!(freed.confirmed_lsn <= let_go.to && let_go.to <= freed.durable_lsn);
        // On this node the slow consumer reads on as if nothing had happened.
        assert_ne!(next_after(&cluster, slow).await[0], EntryKind::Gap);
        assert_eq!(cluster.world.gaps().await.len(), 0);
        agent.drain().await;

        spec.epoch = Epoch(2);
        spec.node = "n1".to_owned();
        let agent = cluster.start_with(1, spec);
        wait_for(&agent, AgentState::Following).await;
        cluster.write("INSERT INTO t VALUES (-1)").await;
        let gaps = cluster.world.gaps().await;
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert_eq!(gaps[0].reason, "wal_guard");
        assert!(
            gaps[0].from_lsn <= slow.lsn.0 + (1 << 20),
            "{gaps:?} {slow}"
        );
        assert_eq!(next_after(&cluster, slow).await[0], EntryKind::Gap);
        // What the alert allows was kept for those who are near.
        let kept: Vec<i64> = (8_001..=11_000).chain([-1]).collect();
        assert_eq!(cluster.world.inserted_ids().await, kept);
        agent.drain().await;
    });
}

#[test]
fn without_subscriptions_the_log_counts() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster
            .write("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 10000) i")
            .await;
        let end = void(&cluster.world).await;
        wait_until(&agent, |status| status.confirmed_lsn >= end).await;
        assert!(cluster.agreed.attest_count.load(Ordering::SeqCst) >= 2);
        assert!(Some(end) > cluster.world.log.tail().borrow().last.map(|last| last.lsn));
        agent.drain().await;
        let agent = cluster.start(1, 2);
        wait_for(&agent, AgentState::Following).await;
        cluster.write("INSERT INTO t VALUES (-1)").await;
        assert_eq!(cluster.world.inserted_ids().await, [-1]);
        agent.drain().await;
    });
}

#[test]
fn a_held_slot_does_not_delay_a_shutdown_of_the_server() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster.write("INSERT INTO t VALUES (1)").await;
        let cursor = cluster.consume_all();
        cluster
            .write("INSERT INTO t SELECT generate_series(2, 1000)")
            .await;
        assert!(agent.status().borrow().confirmed_lsn <= cursor.lsn);
        let began = std::time::Instant::now();
        cluster
            .world
            .server
            .stop(StopMode::Fast)
            .await
            .expect("it stops");
        let took = began.elapsed();
        assert!(
            took.as_secs() < 10,
            "the default wal_sender_timeout is 60 s; it took {took:?}"
        );
        cluster.world.server.restart().await.expect("it starts");
        cluster.write("INSERT INTO t VALUES (1001)").await;
        assert_eq!(
            cluster.world.inserted_ids().await,
            (1..=1_001).collect::<Vec<i64>>()
        );
        agent.drain().await;
    });
}

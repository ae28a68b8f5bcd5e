//! The slot is the truth: consumers hold it, an idle source frees its WAL, a node without the log
//! starts it anew, and what was let go too early is a gap.

use std::sync::atomic::Ordering;

use pgcapture_actors::{
    agent::{AgentHandle, AgentState, AgentStatus},
    log::{LogError, Start},
    postgres::StopMode,
};
use pgcapture_engine::{checkpoint::Checkpoint, codes, lsn::Lsn};

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
            .world
            .sql("INSERT INTO t SELECT generate_series(1, 100)")
            .await;
        cluster.world.caught_up().await;
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
            .world
            .sql("INSERT INTO t SELECT generate_series(1, 10)")
            .await;
        cluster.world.caught_up().await;
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
        cluster.world.sql("INSERT INTO t VALUES (11)").await;
        cluster.world.caught_up().await;
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
        cluster.world.sql("INSERT INTO t VALUES (1)").await;
        cluster.world.caught_up().await;
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
        cluster.world.sql("INSERT INTO t VALUES (9)").await;
        cluster.world.caught_up().await;
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

#[test]
fn without_subscriptions_the_log_counts() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster
            .world
            .sql("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 10000) i")
            .await;
        cluster.world.caught_up().await;
        let end = void(&cluster.world).await;
        wait_until(&agent, |status| status.confirmed_lsn >= end).await;
        assert!(cluster.agreed.attest_count.load(Ordering::SeqCst) >= 2);
        assert!(Some(end) > cluster.world.log.tail().borrow().last.map(|last| last.lsn));
        agent.drain().await;
        let agent = cluster.start(1, 2);
        wait_for(&agent, AgentState::Following).await;
        cluster.world.sql("INSERT INTO t VALUES (-1)").await;
        cluster.world.caught_up().await;
        assert_eq!(cluster.world.inserted_ids().await, [-1]);
        agent.drain().await;
    });
}

#[test]
fn a_held_slot_does_not_delay_a_shutdown_of_the_server() {
    on_node_runtime(async {
        let mut cluster = Cluster::new().await;
        let agent = cluster.start(0, 1);
        cluster.world.sql("INSERT INTO t VALUES (1)").await;
        cluster.world.caught_up().await;
        let cursor = cluster.consume_all();
        cluster
            .world
            .sql("INSERT INTO t SELECT generate_series(2, 1000)")
            .await;
        cluster.world.caught_up().await;
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
        cluster.world.sql("INSERT INTO t VALUES (1001)").await;
        cluster.world.caught_up().await;
        assert_eq!(
            cluster.world.inserted_ids().await,
            (1..=1_001).collect::<Vec<i64>>()
        );
        agent.drain().await;
    });
}

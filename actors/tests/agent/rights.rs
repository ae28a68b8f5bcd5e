//! A lease that is lost and comes back, and a source that keeps more WAL than it may.

use std::sync::Arc;

use pgcapture_actors::{
    agent::{AgentHandle, AgentState, Lease},
    log::{ChangeLog, memory::MemoryLog},
};
use pgcapture_engine::{
    codes,
    wal_guard::{WalGuard, WalLevel, WalPolicy},
};
use tokio::sync::watch;

use crate::world::{PATIENCE, World, on_node_runtime, wait_for};

fn with_lease() -> (watch::Sender<bool>, pgcapture_actors::agent::AgentSpec) {
    let (keeper, lease) = watch::channel(true);
    let mut spec = World::spec();
    spec.lease = Lease::watched(lease);
    (keeper, spec)
}

async fn wait_for_code(agent: &AgentHandle, code: &str) {
    let mut status = agent.status();
    let told = status.wait_for(|status| {
        let trouble = status.trouble.as_ref();
        trouble.is_some_and(|trouble| trouble.code == code)
    });
    let told = tokio::time::timeout(PATIENCE, told).await;
    drop(told.expect("it is told").expect("it lives"));
}

async fn is_slot_free(world: &World) -> bool {
    let rows = world
        .sql("SELECT active FROM pg_replication_slots WHERE slot_name = 's'")
        .await;
    let active = rows.into_iter().flatten().next().flatten();
    active.as_deref() == Some("f")
}

#[test]
fn without_the_lease_nothing_is_published_and_the_slot_is_free() {
    on_node_runtime(async {
        let world = World::new().await;
        let (keeper, spec) = with_lease();
        let agent = world.start(spec);
        world.sql("INSERT INTO t VALUES (1)").await;
        world.caught_up().await;
        keeper.send_replace(false);
        wait_for_code(&agent, codes::source::LEASE_LOST.code).await;
        while !is_slot_free(&world).await {}
        let before = *world.log.tail().borrow();
        world.sql("INSERT INTO t VALUES (2)").await;
        assert_eq!(*world.log.tail().borrow(), before);
        keeper.send_replace(true);
        world.caught_up().await;
        assert_eq!(world.inserted_ids().await, [1, 2]);
        // A keeper that is gone proves nothing: the same.
        drop(keeper);
        wait_for_code(&agent, codes::source::LEASE_LOST.code).await;
        while !is_slot_free(&world).await {}
        agent.drain().await;
    });
}

#[test]
fn a_lease_lost_inside_a_transaction_leaves_no_half_of_it() {
    on_node_runtime(async {
        let mut world = World::new().await;
        let memory = MemoryLog::new(Default::default());
        world.log = Arc::clone(&memory) as Arc<dyn ChangeLog>;
        let (keeper, spec) = with_lease();
        let agent = world.start(spec);
        wait_for(&agent, AgentState::Following).await;
        let mut tail = world.log.tail();
        tail.mark_unchanged();
        world
            .sql("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 200000) i")
            .await;
        // A part of it is in the log.
        let some = tail.wait_for(|tail| tail.last.is_some_and(|last| last.seq > 1_000));
        let some = tokio::time::timeout(PATIENCE, some).await;
        drop(some.expect("it comes").expect("it lives"));
        keeper.send_replace(false);
        wait_for_code(&agent, codes::source::LEASE_LOST.code).await;
        let end = world.wal_end().await;
        let tail = *world.log.tail().borrow();
        assert!(
            tail.resume_lsn < end,
            "resuming finds the transaction again: {tail:?}"
        );
        keeper.send_replace(true);
        world.caught_up().await;
        // Contiguous, each once: the order of the log is checked by the reading of it.
        assert_eq!(
            world.inserted_ids().await,
            (1..=200_000).collect::<Vec<i64>>()
        );
        agent.drain().await;
    });
}

fn guard(policy: WalPolicy) -> Option<WalGuard> {
    Some(WalGuard {
        limit_bytes: 20 << 20,
        alert_percent: 50,
        policy,
    })
}

/// More WAL than the guard allows, none of it for us.
async fn fill(world: &World) {
    for _ in 0..2 {
        world
            .sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 12000000))")
            .await;
    }
}

async fn wait_for_level(agent: &AgentHandle, level: WalLevel) {
    let mut status = agent.status();
    let reached = status.wait_for(|status| status.wal_outlook.level == level);
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    drop(reached.expect("it is reached").expect("it lives"));
}

#[test]
fn the_guard_that_alerts_keeps_the_slot() {
    on_node_runtime(async {
        let mut world = World::new().await;
        let memory = MemoryLog::new(Default::default());
        world.log = Arc::clone(&memory) as Arc<dyn ChangeLog>;
        let mut spec = World::spec();
        spec.wal_guard = guard(WalPolicy::Alert);
        let agent = world.start(spec);
        wait_for(&agent, AgentState::Following).await;
        memory.hold();
        world.sql("INSERT INTO t VALUES (1)").await;
        fill(&world).await;
        wait_for_level(&agent, WalLevel::Reached).await;
        memory.release();
        world.caught_up().await;
        assert_eq!(world.inserted_ids().await, [1]);
        assert_eq!(world.gaps().await.len(), 0);
        agent.drain().await;
    });
}

#[test]
fn the_guard_that_protects_lets_the_slot_go_with_a_gap() {
    on_node_runtime(async {
        let world = World::new().await;
        // An open transaction keeps the WAL of the slot, whatever is confirmed.
        let config = world.server.config("postgres");
        let open = pgcapture_actors::postgres::Connection::connect(
            &config,
            pgcapture_actors::postgres::Replication::Off,
        );
        let mut open = open.await.expect("the server takes sessions");
        open.query("BEGIN; INSERT INTO t VALUES (0)")
            .await
            .expect("it runs");
        let mut spec = World::spec();
        spec.wal_guard = guard(WalPolicy::DropWithGap);
        let agent = world.start(spec);
        world.sql("INSERT INTO t VALUES (1)").await;
        world.caught_up().await;
        fill(&world).await;
        let halted = wait_for(&agent, AgentState::Halted).await;
        assert_eq!(
            halted.trouble.expect("a reason").code,
            codes::source::WAL_GUARD.code
        );
        let slots = world
            .sql("SELECT slot_name FROM pg_replication_slots")
            .await;
        assert!(slots.is_empty(), "{slots:?}");
        assert_eq!(world.gaps().await[0].reason, "wal_guard");
        open.query("ROLLBACK").await.expect("it runs");
        assert!(agent.accept_gap());
        wait_for(&agent, AgentState::Following).await;
        world.sql("INSERT INTO t VALUES (2)").await;
        world.caught_up().await;
        let gaps = world.gaps().await;
        assert!(
            gaps.last().is_some_and(|gap| gap.to_lsn > gap.from_lsn),
            "{gaps:?}"
        );
        assert_eq!(world.inserted_ids().await, [1, 2]);
        agent.drain().await;
    });
}

#[test]
fn a_source_is_protected_even_if_the_log_takes_nothing() {
    on_node_runtime(async {
        let mut world = World::new().await;
        let memory = MemoryLog::new(Default::default());
        world.log = Arc::clone(&memory) as Arc<dyn ChangeLog>;
        let mut spec = World::spec();
        spec.wal_guard = guard(WalPolicy::DropWithGap);
        spec.accepts_gap = true;
        let agent = world.start(spec);
        wait_for(&agent, AgentState::Following).await;
        world.sql("INSERT INTO t VALUES (1)").await;
        world.caught_up().await;
        memory.hold();
        world.sql("INSERT INTO t VALUES (2)").await;
        fill(&world).await;
        wait_for_code(&agent, codes::source::WAL_GUARD.code).await;
        memory.release();
        wait_for(&agent, AgentState::Following).await;
        world.sql("INSERT INTO t VALUES (3)").await;
        world.caught_up().await;
        let gaps = world.gaps().await;
        assert!(gaps.iter().any(|gap| gap.to_lsn > gap.from_lsn), "{gaps:?}");
        assert_eq!(world.inserted_ids().await.last(), Some(&3));
        agent.drain().await;
    });
}

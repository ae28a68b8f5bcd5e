//! What is committed is in the log, once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use pgcapture_actors::{
    agent::{AgentLimits, AgentState},
    log::{
        ChangeLog, LogError, LogExtent, LogHealth, LogReader, LogWriter, Start, Tail,
        memory::MemoryLog,
    },
    postgres::{Connection, Replication, StopMode},
};
use pgcapture_engine::{
    batch::{Batch, EntryKind},
    checkpoint::Epoch,
    confirm::Origin,
    lsn::Lsn,
};
use tokio::sync::watch;

use crate::world::{PATIENCE, World, on_node_runtime, wait_for};

#[test]
fn a_committed_row_reaches_the_log_and_frees_wal() {
    on_node_runtime(async {
        let world = World::new().await;
        let agent = world.start(World::spec());
        world.sql("INSERT INTO t VALUES (1, 'one')").await;
        world.sql("UPDATE t SET v = 'uno'; DELETE FROM t").await;
        world.caught_up().await;
        let kinds: Vec<_> = world
            .entries()
            .await
            .iter()
            .map(|(_, kind, _)| *kind)
            .collect();
        let changes = kinds
            .iter()
            .filter(|kind| **kind == EntryKind::Change)
            .count();
        assert_eq!((changes, kinds[0]), (3, EntryKind::Begin));
        agent.drain().await;
        let rows = world
            .sql("SELECT confirmed_flush_lsn, active FROM pg_replication_slots")
            .await;
        let confirmed = rows[0][0].as_deref().unwrap().parse().unwrap();
        assert_eq!(
            world.log.tail().borrow().resume_lsn,
            confirmed,
            "draining confirms everything"
        );
        assert_eq!(
            rows[0][1].as_deref(),
            Some("f"),
            "draining gives the slot back"
        );
    });
}

/// Answers of the server come while others are still on their way, often several in one read.
#[test]
fn what_readers_ask_about_an_idle_source_is_told_each_time() {
    on_node_runtime(async {
        let world = World::new().await;
        let agent = world.start(World::spec());
        wait_for(&agent, AgentState::Following).await;
        let mut tail = world.log.tail();
        for _ in 0..100 {
            // WAL that brings nothing to the stream.
            world.sql("SELECT txid_current()").await;
            let at = world.wal_end().await;
            world.log.ask_progress(at);
            world.log.ask_progress(Lsn(at.0 + 1));
            let told = tail.wait_for(|tail| tail.resume_lsn >= at);
            let told = tokio::time::timeout(PATIENCE, told).await;
            drop(told.expect("it is told").unwrap());
        }
        agent.drain().await;
    });
}

#[test]
fn nothing_is_lost_or_doubled_when_the_server_goes_away() {
    on_node_runtime(async {
        let mut world = World::new().await;
        let agent = world.start(World::spec());
        world
            .sql("INSERT INTO t SELECT i FROM generate_series(1, 5000) i")
            .await;
        wait_for(&agent, AgentState::Following).await;
        world
            .sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
            .await;
        world
            .sql("INSERT INTO t SELECT i FROM generate_series(5001, 10000) i")
            .await;
        world
            .server
            .stop(StopMode::Immediate)
            .await
            .expect("it stops");
        world.server.restart().await.expect("it starts");
        world
            .sql("INSERT INTO t SELECT i FROM generate_series(10001, 15000) i")
            .await;
        world.server.kill_postmaster();
        world.server.restart().await.expect("it starts");
        world
            .sql("INSERT INTO t SELECT i FROM generate_series(15001, 20000) i")
            .await;
        world.caught_up().await;
        assert_eq!(
            world.inserted_ids().await,
            (1..=20_000).collect::<Vec<i64>>()
        );
        agent.drain().await;
    });
}

#[test]
fn a_backlog_is_read_by_copy_and_then_followed() {
    on_node_runtime(async {
        let world = World::new().await;
        let rows = "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series";
        for first in [1, 20_001, 40_001] {
            world
                .sql(&format!("{rows}({first}, {}) i", first + 19_999))
                .await;
        }
        let mut spec = World::spec();
        spec.limits = AgentLimits {
            catch_up_above: 1 << 20,
            follow_below: 64 << 10,
            catch_up_chunk: 4 << 20,
            ..AgentLimits::default()
        };
        let agent = world.start(spec);
        let mut status = agent.status();
        status
            .wait_for(|status| status.state == AgentState::CatchingUp)
            .await
            .expect("it lives");
        wait_for(&agent, AgentState::Following).await;
        world.sql(&format!("{rows}(60001, 60010) i")).await;
        world.caught_up().await;
        assert_eq!(
            world.inserted_ids().await,
            (1..=60_010).collect::<Vec<i64>>()
        );
        agent.drain().await;
    });
}

/// The server collects a chunk before it sends any of it, and would go on for nobody.
#[test]
fn a_drain_in_the_middle_of_a_chunk_leaves_nothing_behind_on_the_server() {
    on_node_runtime(async {
        let mut world = World::new().await;
        let memory = MemoryLog::new(Default::default());
        world.log = Arc::clone(&memory) as Arc<dyn ChangeLog>;
        for step in 0..10 {
            let first = step * 20_000;
            let rows = format!("generate_series({first}, {}) i", first + 19_999);
            let sql = format!("INSERT INTO t SELECT i, repeat('x', 100) FROM {rows}");
            world.sql(&sql).await;
        }
        let mut spec = World::spec();
        spec.limits = AgentLimits {
            catch_up_above: 1 << 20,
            follow_below: 64 << 10,
            catch_up_chunk: 4 << 20,
            ..AgentLimits::default()
        };
        let agent = world.start(spec);
        wait_for(&agent, AgentState::CatchingUp).await;
        memory.hold();
        wait_for(&agent, AgentState::Blocked).await;
        // From here on no chunk can be decoded to its end.
        let config = world.server.config("postgres");
        let mut holder = Connection::connect(&config, Replication::Off)
            .await
            .expect("it connects");
        let lock = "ALTER PUBLICATION p SET (publish = 'insert, update, delete'); \
                    BEGIN; LOCK TABLE pg_publication";
        for statement in lock.split("; ") {
            holder.query(statement).await.expect("it is locked");
        }
        memory.release();
        let waits = "SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) \
                     WHERE NOT granted AND query LIKE 'COPY %'";
        let waits = async { while world.sql(waits).await.is_empty() {} };
        tokio::time::timeout(PATIENCE, waits)
            .await
            .expect("a chunk is being collected");
        agent.drain().await;
        let left = "SELECT slot_name FROM pg_replication_slots WHERE temporary OR active \
                    UNION ALL SELECT pid::text FROM pg_locks WHERE locktype = 'advisory'";
        assert_eq!(world.sql(left).await, [[None; 0]; 0]);
    });
}

#[test]
fn a_blocked_log_does_not_delay_a_shutdown_of_the_server() {
    on_node_runtime(async {
        let mut world = World::new().await;
        let memory = MemoryLog::new(Default::default());
        world.log = Arc::clone(&memory) as Arc<dyn ChangeLog>;
        let agent = world.start(World::spec());
        wait_for(&agent, AgentState::Following).await;
        memory.hold();
        world
            .sql("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 300000) i")
            .await;
        wait_for(&agent, AgentState::Blocked).await;
        let started = std::time::Instant::now();
        world.server.stop(StopMode::Fast).await.expect("it stops");
        let took = started.elapsed();
        assert!(
            took.as_secs() < 10,
            "the default wal_sender_timeout is 60 s; it took {took:?}"
        );
        memory.release();
        world.server.restart().await.expect("it starts");
        world.caught_up().await;
        assert_eq!(world.inserted_ids().await.len(), 300_000);
        agent.drain().await;
    });
}

#[test]
fn a_panicking_publisher_is_rebuilt_and_loses_nothing() {
    on_node_runtime(async {
        let mut world = World::new().await;
        let panics = Arc::new(AtomicBool::new(false));
        world.log = Arc::new(PanickingLog {
            log: Arc::clone(&world.log),
            panics: Arc::clone(&panics),
        });
        let agent = world.start(World::spec());
        world.sql("INSERT INTO t VALUES (1, 'one')").await;
        world.caught_up().await;
        panics.store(true, Ordering::SeqCst);
        world.sql("INSERT INTO t VALUES (2, 'two')").await;
        world.caught_up().await;
        assert!(!panics.load(Ordering::SeqCst), "it panicked");
        assert_eq!(world.inserted_ids().await, [1, 2]);
        assert_eq!(agent.status().borrow().rebuild_count, 1);
        agent.drain().await;
    });
}

/// A log whose writer panics once, when told.
#[derive(Debug)]
struct PanickingLog {
    log: Arc<dyn ChangeLog>,
    panics: Arc<AtomicBool>,
}

struct PanickingWriter {
    writer: Box<dyn LogWriter>,
    panics: Arc<AtomicBool>,
}

#[async_trait]
impl ChangeLog for PanickingLog {
    async fn open_writer(&self, epoch: Epoch) -> Result<Box<dyn LogWriter>, LogError> {
        let writer = self.log.open_writer(epoch).await?;
        Ok(Box::new(PanickingWriter {
            writer,
            panics: Arc::clone(&self.panics),
        }))
    }

    async fn open_reader(&self, start: Start) -> Result<Box<dyn LogReader>, LogError> {
        self.log.open_reader(start).await
    }

    fn tail(&self) -> watch::Receiver<Tail> {
        self.log.tail()
    }

    fn health(&self) -> watch::Receiver<LogHealth> {
        self.log.health()
    }

    fn extent(&self) -> LogExtent {
        self.log.extent()
    }
}

#[async_trait]
impl LogWriter for PanickingWriter {
    async fn append(&mut self, batch: Batch) -> Result<(), LogError> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "on purpose");
        self.writer.append(batch).await
    }

    async fn flush(&mut self) -> Result<Tail, LogError> {
        self.writer.flush().await
    }

    async fn reset(&mut self, origin: Origin) -> Result<Tail, LogError> {
        self.writer.reset(origin).await
    }
}

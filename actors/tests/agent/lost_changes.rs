//! What cannot be had any more is declared in the log, and nothing goes on without a decision.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use pgcapture_actors::{
    agent::{AgentHandle, AgentHost, AgentState, HostError},
    postgres::{Config, Connection, Replication, catalog},
};
use pgcapture_engine::{cluster::Gap, codes};

use crate::world::{World, on_node_runtime, wait_for};

/// An agent that has captured row 1.
async fn captured_one(world: &World) -> AgentHandle {
    let agent = world.start(World::spec());
    world.sql("INSERT INTO t VALUES (1, 'one')").await;
    world.caught_up().await;
    agent
}

/// Goes on after the gap and captures row 9.
async fn accept_gap(world: &World, halted: AgentHandle) {
    halted.drain().await;
    let agent = world.start(World::spec());
    wait_for(&agent, AgentState::Halted).await;
    agent.drain().await;
    let mut spec = World::spec();
    spec.accepts_gap = true;
    let agent = world.start(spec);
    wait_for(&agent, AgentState::Following).await;
    world.sql("INSERT INTO t VALUES (9, 'nine')").await;
    world.caught_up().await;
    let gaps = world.gaps().await;
    let last = gaps.last().expect("a gap is declared");
    assert!(last.to_lsn > last.from_lsn, "its end is known: {last:?}");
    assert_eq!(world.inserted_ids().await.last(), Some(&9));
    agent.drain().await;
}

/// Drops the slot under the agent, which comes back to it: again until the drop was faster.
async fn drop_slot(world: &World) {
    let config = world.server.config("postgres");
    let connection = Connection::connect(&config, Replication::Off).await;
    let mut connection = connection.expect("the server takes sessions");
    while let Err(error) = catalog::drop_slot(&mut connection, "s", true).await {
        assert_eq!(
            error.code(),
            "PGC-S12",
            "only an agent that came back is in the way: {error}"
        );
    }
}

#[test]
fn a_dropped_slot_is_a_declared_gap() {
    on_node_runtime(async {
        let world = World::new().await;
        let agent = captured_one(&world).await;
        drop_slot(&world).await;
        let halted = wait_for(&agent, AgentState::Halted).await;
        assert_eq!(halted.trouble.expect("a reason").code, "PGC-S13");
        let gaps = world.gaps().await;
        assert_eq!(
            (gaps.len(), gaps[0].reason.as_str(), gaps[0].to_lsn),
            (1, "slot_dropped", 0)
        );
        accept_gap(&world, agent).await;
    });
}

#[test]
fn a_slot_moved_by_someone_else_is_a_declared_gap() {
    on_node_runtime(async {
        let world = World::new().await;
        captured_one(&world).await.drain().await;
        world.sql("INSERT INTO t VALUES (2, 'lost')").await;
        world
            .sql("SELECT pg_replication_slot_advance('s', pg_current_wal_flush_lsn())")
            .await;
        let agent = world.start(World::spec());
        wait_for(&agent, AgentState::Halted).await;
        assert_eq!(world.gaps().await[0].reason, "slot_ahead");
        accept_gap(&world, agent).await;
        assert_eq!(world.inserted_ids().await, [1, 9]);
    });
}

#[test]
fn a_publication_dropped_while_running_is_a_declared_gap() {
    on_node_runtime(async {
        let world = World::new().await;
        let agent = captured_one(&world).await;
        world.sql("DROP PUBLICATION p").await;
        world.sql("INSERT INTO t VALUES (2, 'lost')").await;
        world.sql("CREATE PUBLICATION p FOR TABLE t").await;
        let halted = wait_for(&agent, AgentState::Halted).await;
        assert_eq!(halted.trouble.expect("a reason").code, "PGC-S33");
        assert_eq!(world.gaps().await[0].reason, "publication_dropped");
        accept_gap(&world, agent).await;
    });
}

#[test]
fn an_invalidated_slot_is_a_declared_gap() {
    on_node_runtime(async {
        let world = World::new().await;
        captured_one(&world).await.drain().await;
        world
            .sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
            .await;
        world.sql("SELECT pg_reload_conf()").await;
        for _ in 0..4 {
            world
                .sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 17000000))")
                .await;
            world.sql("SELECT pg_switch_wal()").await;
        }
        world.sql("CHECKPOINT").await;
        let agent = world.start(World::spec());
        let halted = wait_for(&agent, AgentState::Halted).await;
        assert_eq!(halted.trouble.expect("a reason").code, "PGC-S14");
        assert_eq!(world.gaps().await[0].reason, "slot_invalidated");
        accept_gap(&world, agent).await;
    });
}

/// A node that keeps what it is told, or cannot.
#[derive(Debug)]
struct Recorder {
    config: Config,
    is_failing: AtomicBool,
    gaps: Mutex<Vec<Gap>>,
}

impl Recorder {
    fn new(world: &World, is_failing: bool) -> Arc<Self> {
        Arc::new(Self {
            config: world.server.config("postgres"),
            is_failing: AtomicBool::new(is_failing),
            gaps: Mutex::default(),
        })
    }

    fn told(&self) -> Vec<Gap> {
        self.gaps.lock().expect("no test panics under it").clone()
    }
}

#[async_trait]
impl AgentHost for Recorder {
    async fn connection(&self) -> Result<Config, HostError> {
        Ok(self.config.clone())
    }

    async fn record_gap(&self, gap: Gap) -> Result<(), HostError> {
        if self.is_failing.load(Ordering::SeqCst) {
            return Err(HostError {
                explanation: &codes::node::STORE_FAILED,
                text: "the disk is full".to_owned(),
            });
        }
        self.gaps.lock().expect("no test panics under it").push(gap);
        Ok(())
    }
}

#[test]
fn a_gap_of_the_log_is_recorded_even_if_a_failure_came_in_between() {
    on_node_runtime(async {
        let world = World::new().await;
        captured_one(&world).await.drain().await;
        drop_slot(&world).await;
        let host = Recorder::new(&world, true);
        let agent = world.start_at(World::spec(), Arc::<Recorder>::clone(&host));
        let waiting = wait_for(&agent, AgentState::Retrying).await;
        let trouble = waiting.trouble.expect("a reason");
        assert_eq!(trouble.code, codes::node::STORE_FAILED.code);
        assert_eq!(world.gaps().await.len(), 1, "the log has it");
        host.is_failing.store(false, Ordering::SeqCst);
        wait_for(&agent, AgentState::Halted).await;
        agent.drain().await;
        let gap = host.told().pop().expect("it was told");
        assert_eq!((gap.reason.as_str(), gap.to), ("slot_dropped", None));

        // Another life, as after a crash: the log tells it again, and then its end.
        let host = Recorder::new(&world, false);
        let mut spec = World::spec();
        spec.accepts_gap = true;
        let agent = world.start_at(spec.clone(), Arc::<Recorder>::clone(&host));
        wait_for(&agent, AgentState::Following).await;
        agent.drain().await;
        let told = host.told();
        let [open, closed] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!((open.from, open.to), (gap.from, None));
        assert_eq!(
            (closed.from, closed.reason.as_str()),
            (gap.from, "slot_dropped")
        );
        assert!(closed.to > Some(closed.from), "{closed:?}");

        // Nothing was read since: the same end is told once more.
        let host = Recorder::new(&world, false);
        let agent = world.start_at(spec, Arc::<Recorder>::clone(&host));
        wait_for(&agent, AgentState::Following).await;
        agent.drain().await;
        let ends: Vec<_> = host.told().iter().map(|gap| gap.to).collect();
        assert_eq!(ends, [closed.to]);
    });
}

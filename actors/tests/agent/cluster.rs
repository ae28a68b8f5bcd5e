//! Two nodes with a log each, one slot, and what they agree on: in one process, with a real server.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use pgcapture_actors::{
    agent::{self, AgentHandle, AgentHost, AgentSpec, Behind, Durability, HostError},
    log::{
        ChangeLog,
        embedded::{EmbeddedLog, EmbeddedLogOptions},
    },
    postgres::{Config, Connection, Replication, ReplicationOptions, ReplicationStream},
};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{Gap, LetGo, State},
    codes,
    confirm::Origin,
    fence::ClusterId,
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::world::World;

/// The cluster of these tests.
pub(crate) const OURS: ClusterId = ClusterId(0xC1);

/// What a cluster agrees on about one source.
#[derive(Debug)]
pub(crate) struct Agreed {
    config: Config,
    attested: Mutex<(Epoch, Option<Origin>)>,
    behind: Mutex<Behind>,
    pub(crate) attest_count: AtomicUsize,
    pub(crate) floor: watch::Sender<Option<Checkpoint>>,
    pub(crate) gaps: Mutex<Vec<Gap>>,
    /// The publication that the source is captured with.
    pub(crate) publication: watch::Sender<Option<u32>>,
    /// Whether that can be kept.
    pub(crate) keeps_publication: AtomicBool,
    /// So often that fails.
    pub(crate) keep_failures: AtomicUsize,
}

impl Agreed {
    pub(crate) fn behind(&self) -> Behind {
        let behind = self.behind.lock().expect("no test panics under it").clone();
        // As the state of a cluster finds it.
        let mut state = State::default();
        let gaps = self.gaps.lock().expect("no test panics under it").clone();
        state.gaps.insert(String::new(), gaps);
        let let_go = behind.let_go.clone().map(|it| (String::new(), it));
        state.let_go.extend(let_go);
        let open_gap = state.open_gap("").cloned();
        Behind { open_gap, ..behind }
    }

    /// A consumer goes back: from now on this is the least cursor, and it was further.
    pub(crate) fn seek(&self, to: Checkpoint) {
        let before = self.floor.send_replace(Some(to));
        let mut behind = self.behind.lock().expect("no test panics under it");
        behind.reached = behind.reached.max(before);
    }

    pub(crate) fn attested(&self) -> Option<Origin> {
        self.attested.lock().expect("no test panics under it").1
    }
}

#[async_trait]
impl AgentHost for Agreed {
    async fn connection(&self) -> Result<Config, HostError> {
        Ok(self.config.clone())
    }

    async fn record_gap(&self, gap: Gap) -> Result<(), HostError> {
        let mut gaps = self.gaps.lock().expect("no test panics under it");
        let known = gaps.iter_mut().find(|known| known.from == gap.from);
        match known {
            Some(known) => known.to = gap.to.or(known.to),
            None => gaps.push(gap),
        }
        Ok(())
    }

    async fn attested(&self) -> Result<Option<Origin>, HostError> {
        Ok(Self::attested(self))
    }

    async fn attest(&self, epoch: Epoch, origin: Origin) -> Result<(), HostError> {
        let mut attested = self.attested.lock().expect("no test panics under it");
        if epoch < attested.0 {
            return Err(HostError {
                explanation: &codes::source::NOT_ATTESTED,
                text: format!("epoch {epoch} is over"),
            });
        }
        *attested = (epoch, Some(origin));
        self.attest_count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn publication(&self) -> Result<Option<u32>, HostError> {
        Ok(*self.publication.borrow())
    }

    async fn keep_publication(&self, _: Epoch, oid: u32) -> Result<bool, HostError> {
        let failures = &self.keep_failures;
        let fails = |left: usize| left.checked_sub(1);
        if failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails)
            .is_ok()
        {
            return Err(HostError {
                explanation: &codes::cluster::NO_QUORUM,
                text: "nobody agrees".to_owned(),
            });
        }
        let is_kept = self.keeps_publication.load(Ordering::SeqCst);
        if is_kept {
            self.publication.send_replace(Some(oid));
        }
        Ok(is_kept)
    }

    async fn behind(&self) -> Result<Behind, HostError> {
        Ok(Self::behind(self))
    }

    async fn let_go(&self, _: Epoch, let_go: LetGo) -> Result<(), HostError> {
        let mut behind = self.behind.lock().expect("no test panics under it");
        behind.let_go = Some(let_go);
        Ok(())
    }
}

pub(crate) struct Cluster {
    /// Its log is that of the node which is looked at.
    pub(crate) world: World,
    pub(crate) agreed: Arc<Agreed>,
    pub(crate) logs: [Arc<dyn ChangeLog>; 2],
    _directories: [TempDir; 2],
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        let world = World::new().await;
        let agreed = Agreed {
            config: world.server.config("postgres"),
            attested: Mutex::default(),
            behind: Mutex::default(),
            attest_count: AtomicUsize::new(0),
            floor: watch::Sender::new(None),
            gaps: Mutex::default(),
            publication: watch::Sender::new(None),
            keeps_publication: AtomicBool::new(true),
            keep_failures: AtomicUsize::new(0),
        };
        let directory = || tempfile::tempdir().expect("a temporary directory can be made");
        let directories = [directory(), directory()];
        let logs = directories.each_ref().map(|directory| {
            let options = EmbeddedLogOptions {
                segment_bytes: 1 << 20,
                ..EmbeddedLogOptions::default()
            };
            let log = EmbeddedLog::open(directory.path(), options).expect("a new log opens");
            log as Arc<dyn ChangeLog>
        });
        let mut cluster = Self {
            world,
            agreed: Arc::new(agreed),
            logs,
            _directories: directories,
        };
        cluster.look_at(0);
        cluster
    }

    fn log(&self, node: usize) -> Arc<dyn ChangeLog> {
        Arc::clone(self.logs.get(node).expect("one of two nodes"))
    }

    /// From now on the world's questions are about the log of this node.
    pub(crate) fn look_at(&mut self, node: usize) {
        self.world.log = self.log(node);
    }

    pub(crate) fn spec(&self, node: usize, epoch: u64) -> AgentSpec {
        AgentSpec {
            node: format!("n{node}"),
            epoch: Epoch(epoch),
            cluster: OURS,
            durability: Durability::Slot {
                floor: self.agreed.floor.subscribe(),
            },
            ..World::spec()
        }
    }

    /// Starts the agent of a node and looks at its log.
    pub(crate) fn start(&mut self, node: usize, epoch: u64) -> AgentHandle {
        self.start_with(node, self.spec(node, epoch))
    }

    pub(crate) fn start_with(&mut self, node: usize, spec: AgentSpec) -> AgentHandle {
        self.look_at(node);
        let host = Arc::<Agreed>::clone(&self.agreed);
        agent::start(spec, host, self.log(node))
    }

    /// Runs a statement and waits until the log has what it changed.
    pub(crate) async fn write(&self, statement: &str) {
        self.world.sql(statement).await;
        self.world.caught_up().await;
    }

    /// Every consumer has got what the log holds now.
    pub(crate) fn consume_all(&self) -> Checkpoint {
        let last = self.world.log.tail().borrow().last.expect("an entry");
        self.agreed.floor.send_replace(Some(last));
        last
    }

    /// Reads the slot under a name and does nothing with it: a client that hangs.
    pub(crate) async fn hold_slot(&self, application_name: &str) -> ReplicationStream {
        let config = self.world.server.config("postgres");
        let config = config.with_application_name(application_name);
        let connection = Connection::connect(&config, Replication::Database).await;
        let connection = connection.expect("the server takes sessions");
        let options = ReplicationOptions::new("s", "p");
        let stream = connection.start_replication(&options).await;
        stream.expect("the slot is free")
    }

    /// Who reads the slot.
    pub(crate) async fn holder(&self) -> Option<String> {
        let sql = "SELECT application_name FROM pg_replication_slots s \
                   JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE slot_name = 's'";
        let rows = self.world.sql(sql).await;
        rows.into_iter().flatten().next().flatten()
    }
}

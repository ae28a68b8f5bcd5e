//! One server, one log, one agent: what every test of the agent begins with.

use std::{path::Path, sync::Arc, time::Duration};

use pgcapture_actors::{
    agent::{
        self, AgentHandle, AgentHost, AgentLimits, AgentSpec, AgentState, AgentStatus, Durability,
        Lease,
    },
    log::{
        ChangeLog, LogError, Start,
        embedded::{Disk, EmbeddedLog, EmbeddedLogOptions, RealDisk},
    },
    postgres::{Connection, LocalServer, LocalServerOptions, Replication},
};
use pgcapture_engine::{
    batch::EntryKind,
    checkpoint::{Checkpoint, Epoch},
    fence::ClusterId,
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::{Change, Gap, field};
use prost::Message as _;
use tempfile::TempDir;

/// Longest wait for a fact. Far beyond what any step takes, so that it only ends a hung test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on the runtime of a node: actors on this thread, tasks on workers.
pub(crate) fn on_node_runtime(test: impl Future<Output = ()>) {
    actix_rt::System::with_tokio_rt(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime can be built")
    })
    .block_on(test);
}

pub(crate) struct World {
    pub(crate) server: LocalServer,
    pub(crate) log: Arc<dyn ChangeLog>,
    directory: TempDir,
}

impl World {
    /// A server with table `t`, publication `p` and slot `s`, and an empty embedded log.
    pub(crate) async fn new() -> Self {
        Self::on(Arc::new(RealDisk)).await
    }

    /// The same with the log on this disk.
    pub(crate) async fn on(disk: Arc<dyn Disk>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let log = open(directory.path(), disk).expect("a new log opens");
        let server = LocalServer::start(LocalServerOptions::default())
            .await
            .expect("it starts");
        let world = Self {
            server,
            log,
            directory,
        };
        world
            .sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
            .await;
        world.sql("CREATE PUBLICATION p FOR TABLE t").await;
        world
            .sql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
            .await;
        world
    }

    /// Opens the log again, as another life of the node does, on a disk that works.
    pub(crate) async fn reopen(&mut self) {
        self.log = loop {
            match open(self.directory.path(), Arc::new(RealDisk)) {
                // The thread of the log before is about to end.
                Err(LogError::InUse { .. }) => tokio::task::yield_now().await,
                opened => break opened.expect("what it holds is whole"),
            }
        };
    }

    pub(crate) fn spec() -> AgentSpec {
        AgentSpec {
            source: "test".to_owned(),
            node: "n1".to_owned(),
            epoch: Epoch(1),
            slot: "s".to_owned(),
            publication: "p".to_owned(),
            is_binary: true,
            accepts_gap: false,
            cluster: ClusterId::default(),
            durability: Durability::Log,
            lease: Lease::permanent(),
            wal_guard: None,
            limits: AgentLimits::default(),
        }
    }

    pub(crate) fn start(&self, spec: AgentSpec) -> AgentHandle {
        self.start_at(spec, Arc::new(self.server.config("postgres")))
    }

    pub(crate) fn start_at(&self, spec: AgentSpec, host: Arc<dyn AgentHost>) -> AgentHandle {
        agent::start(spec, host, Arc::clone(&self.log))
    }

    pub(crate) async fn sql(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let config = self.server.config("postgres");
        let mut connection = Connection::connect(&config, Replication::Off)
            .await
            .expect("the server takes sessions");
        connection.query(sql).await.expect("the statement runs")
    }

    /// The end of the server's WAL.
    pub(crate) async fn wal_end(&self) -> Lsn {
        let rows = self.sql("SELECT pg_current_wal_flush_lsn()").await;
        let row = rows.first().expect("a row");
        row.first()
            .and_then(Option::as_deref)
            .expect("an LSN")
            .parse()
            .expect("an LSN")
    }

    /// What the slot may let go of.
    pub(crate) async fn confirmed(&self) -> Lsn {
        let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 's'";
        let rows = self.sql(sql).await;
        let position = rows.first().and_then(|row| row.first());
        let position = position.and_then(Option::as_deref).expect("a position");
        position.parse().expect("an LSN")
    }

    /// Waits until the log is durable up to everything that is committed now.
    pub(crate) async fn caught_up(&self) {
        self.sql("SELECT pg_logical_emit_message(true, 'mark', '')")
            .await;
        let end = self.wal_end().await;
        let mut tail = self.log.tail();
        let reached = tokio::time::timeout(PATIENCE, tail.wait_for(|tail| tail.resume_lsn >= end));
        let found = reached.await.map(|found| found.map(|_| ()));
        assert!(
            matches!(found, Ok(Ok(()))),
            "the log stays at {:?}, wanted {end}",
            self.log.tail().borrow()
        );
    }

    /// Everything in the log.
    pub(crate) async fn entries(&self) -> Vec<(Checkpoint, EntryKind, Vec<u8>)> {
        let mut entries = Vec::new();
        let Some(last) = self.log.tail().borrow().last else {
            return entries;
        };
        let mut reader = self
            .log
            .open_reader(Start::Earliest)
            .await
            .expect("it can be read");
        while entries
            .last()
            .is_none_or(|(checkpoint, ..)| *checkpoint < last)
        {
            let batch = reader.next().await.expect("it can be read");
            for entry in &batch {
                let entry = entry.expect("well formed");
                let inner = entry.inner().expect("well formed").to_vec();
                entries.push((entry.checkpoint, entry.kind, inner));
            }
        }
        assert!(
            entries.is_sorted_by(|one, next| one.0 < next.0),
            "checkpoints grow"
        );
        entries
    }

    /// The ids of all inserted rows, in log order.
    pub(crate) async fn inserted_ids(&self) -> Vec<i64> {
        let entries = self.entries().await;
        let changes = entries
            .iter()
            .filter(|(_, kind, _)| *kind == EntryKind::Change);
        let changes =
            changes.map(|(.., bytes)| Change::decode(bytes.as_slice()).expect("a change"));
        changes
            .filter(|change| change.op == 0)
            .map(|change| id(&change))
            .collect()
    }

    pub(crate) async fn gaps(&self) -> Vec<Gap> {
        let entries = self.entries().await;
        let gaps = entries
            .iter()
            .filter(|(_, kind, _)| *kind == EntryKind::Gap);
        gaps.map(|(.., bytes)| Gap::decode(bytes.as_slice()).expect("a gap"))
            .collect()
    }
}

fn open(directory: &Path, disk: Arc<dyn Disk>) -> Result<Arc<EmbeddedLog>, LogError> {
    let options = EmbeddedLogOptions {
        segment_bytes: 1 << 20,
        disk,
        ..Default::default()
    };
    EmbeddedLog::open(directory, options)
}

fn id(change: &Change) -> i64 {
    let first = change.new.first().expect("a column");
    let Some(field::Value::Binary(bytes)) = &first.value else {
        panic!("a binary id")
    };
    i64::from_be_bytes(bytes.as_ref().try_into().expect("eight bytes"))
}

/// Waits until the agent is in a state and returns its status.
pub(crate) async fn wait_for(agent: &AgentHandle, state: AgentState) -> AgentStatus {
    let mut status = agent.status();
    let reached = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.state == state));
    match reached.await {
        Ok(Ok(status)) => status.clone(),
        _ => panic!(
            "wanted {state:?}, the agent stays at {:?}",
            agent.status().borrow()
        ),
    }
}

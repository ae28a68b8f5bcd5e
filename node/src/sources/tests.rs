//! What a node does with the logs of sources that came, went, and came again; what it leaves in
//! PostgreSQL when a source cannot be added.

use async_trait::async_trait;
use pgcapture_actors::{
    consensus::{Leadership, ProposeError},
    postgres::{Connection, LocalServer, LocalServerOptions, Replication, catalog},
};
use pgcapture_engine::{
    batch::Batch,
    checkpoint::Checkpoint,
    cluster::{Node, Origin, Refusal},
    lsn::{Lsn, PgTime},
};
use tempfile::TempDir;

use super::*;
use crate::config::SourceSection;

/// A state that others change.
#[derive(Debug, Default)]
struct Given {
    state: watch::Sender<Arc<State>>,
    /// What a proposal is answered instead of being tried.
    refusal: Mutex<Option<fn() -> ProposeError>>,
}

impl Given {
    fn apply(&self, commands: impl IntoIterator<Item = Command>) {
        self.state.send_modify(|state| {
            for command in commands {
                Arc::make_mut(state).apply(command).unwrap();
            }
        });
    }
}

#[async_trait]
impl Consensus for Given {
    async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        if let Some(refusal) = *self.refusal.lock().unwrap() {
            return Err(refusal());
        }
        let mut answer = None;
        self.state
            .send_modify(|state| answer = Some(Arc::make_mut(state).apply(command)));
        Ok(answer.unwrap()?)
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        watch::channel(Leadership::alone("n1")).1
    }

    async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        Ok(())
    }
}

/// Nobody consumes anything.
#[derive(Debug)]
struct NoFloors;

impl Floors for NoFloors {
    fn floor(&self, _: &str) -> Option<Checkpoint> {
        None
    }

    fn moves(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

/// The sources of node `n2`.
fn sources(consensus: &Arc<Given>) -> (TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "[node]\nname = \"n2\"\ndata_dir = \"{}\"",
        folder.path().display()
    );
    let config = Config::from_text("test.toml", &text).unwrap();
    let consensus: Arc<dyn Consensus> = Arc::<Given>::clone(consensus);
    let logs = Arc::new(Logs::new(&config));
    let cluster = ClusterId(1);
    let sources = Sources::new(&config, consensus, Arc::new(NoFloors), cluster, logs);
    (folder, sources)
}

fn add(name: &str) -> Command {
    Command::AddSource(Box::new(Source {
        name: name.to_owned(),
        stream: name.to_owned(),
        url: format!("postgres://pgcapture@db/{name}"),
        password: None,
        slot: format!("{name}_pgcapture"),
        publication: format!("pgcapture_{name}"),
        tables: vec!["public.*".to_owned()],
        exclude: Vec::new(),
        paused: false,
        epoch: Epoch(0),
        created_at: PgTime(0),
        on_gap: OnGap::Halt,
        origin: Origin::Command,
        owns_publication: true,
    }))
}

fn assign(name: &str, node: &str, after: u64) -> Command {
    Command::Assign {
        name: name.to_owned(),
        node: node.to_owned(),
        after: Epoch(after),
    }
}

fn remove(name: &str) -> Command {
    let name = name.to_owned();
    Command::RemoveSource { name }
}

/// Two nodes, and a source that this one had: its log ends at 5/0.
async fn a_log_was_left() -> (Arc<Given>, TempDir, Sources) {
    let consensus = Arc::<Given>::default();
    let node = |name: &str, id| {
        Command::AddNode(Node {
            name: name.to_owned(),
            id,
            address: format!("{name}:7700"),
            joined_at: PgTime(0),
        })
    };
    consensus.apply([node("n1", 1), node("n2", 2), add("shop")]);
    consensus.apply([assign("shop", "n2", 0)]);
    let (folder, sources) = sources(&consensus);
    assert!(sources.open_log("shop").await);
    let log = sources.logs.get("shop").unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    let end = Batch::progress(Lsn(5 << 32), PgTime(0));
    writer.append(end).await.unwrap();
    writer.flush().await.unwrap();
    consensus.apply([assign("shop", "n1", 1)]);
    (consensus, folder, sources)
}

fn resume_lsn(sources: &Sources) -> Lsn {
    sources.logs.get("shop").unwrap().tail().borrow().resume_lsn
}

#[tokio::test]
async fn a_source_of_the_same_name_does_not_go_on_in_the_log_of_another() {
    let (consensus, _folder, sources) = a_log_was_left().await;
    // Back again, it is still its own.
    consensus.apply([assign("shop", "n2", 2)]);
    assert!(sources.open_log("shop").await);
    assert_eq!(resume_lsn(&sources), Lsn(5 << 32));
    // The server was built anew, and this node hears of it all at once.
    consensus.apply([remove("shop"), add("shop"), assign("shop", "n2", 3)]);
    assert!(sources.open_log("shop").await);
    assert_eq!(resume_lsn(&sources), Lsn(0));
}

#[tokio::test]
async fn the_log_of_a_source_that_others_removed_leaves_the_disk() {
    let (consensus, folder, sources) = a_log_was_left().await;
    let left = || folder.path().join("logs/shop").exists();
    assert!(sources.sweep_logs().await);
    assert!(left(), "it may come back");
    consensus.apply([remove("shop")]);
    // After a restart, too.
    sources.logs.close().await;
    assert!(sources.sweep_logs().await);
    assert!(!left() && sources.logs.get("shop").is_none());
}

fn definition_of(server: &LocalServer) -> Definition {
    let section = SourceSection {
        url: server.url("postgres"),
        password: None,
        stream: String::new(),
        slot: String::new(),
        publication: String::new(),
        tables: Vec::new(),
        exclude: Vec::new(),
        wal_guard: Default::default(),
    };
    Definition::new("shop", section, "", Origin::Command).unwrap()
}

/// Adds `shop` where the nodes answer so; returns the error, and whether the slot is there afterwards.
async fn add_where(
    server: &LocalServer,
    sources: &Sources,
    consensus: &Given,
    refusal: fn() -> ProposeError,
) -> (SourceError, bool) {
    *consensus.refusal.lock().unwrap() = Some(refusal);
    let definition = definition_of(server);
    let slot = definition.slot.clone();
    let error = sources.add(definition).await.unwrap_err();
    let config = server.config("postgres");
    let connection = Connection::connect(&config, Replication::Off).await;
    let slot = catalog::slot(&mut connection.unwrap(), &slot).await;
    (error, slot.unwrap().is_some())
}

#[tokio::test]
async fn a_slot_stays_when_its_source_may_have_been_added() {
    let server = LocalServer::start(LocalServerOptions::default());
    let server = server.await.unwrap();
    let config = server.config("postgres");
    let connection = Connection::connect(&config, Replication::Off).await;
    let table = "CREATE TABLE t (id int PRIMARY KEY)";
    connection.unwrap().query(table).await.unwrap();
    let consensus = Arc::<Given>::default();
    let (_folder, sources) = sources(&consensus);

    let refused = || ProposeError::Refused(Refusal::TooManySources);
    let too_large = || ProposeError::TooLarge {
        bytes: 2,
        bytes_max: 1,
    };
    for answer in [refused as fn() -> ProposeError, too_large] {
        let (error, is_left) = add_where(&server, &sources, &consensus, answer).await;
        assert!(!is_left, "{error}");
    }
    let unknown = || ProposeError::Unavailable {
        reason: String::new(),
    };
    let failed = || ProposeError::Store {
        reason: "PGC-N04: the disk is full".to_owned(),
    };
    for answer in [unknown as fn() -> ProposeError, failed] {
        let (error, is_left) = add_where(&server, &sources, &consensus, answer).await;
        assert!(is_left, "{error}");
        assert!(matches!(error, SourceError::Unsettled { .. }), "{error:?}");
        assert!(error.to_string().contains("may have been added"), "{error}");
        assert!(!error.to_string().contains("PGC-"), "{error}");
        assert!(error.next().contains("again, which is safe"), "{error:?}");
    }
    // Nothing stands against the next try.
    let plan = sources.plan(&definition_of(&server)).await.unwrap();
    assert!(!plan.has_errors(), "{plan:?}");
}

//! What was confirmed is there after a reopening; what cannot be used says why.

use pgcapture_actors::consensus::ProposeError;
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{
        ACKED_RUNS_MAX, Answer, Command, Cursor, CursorCommand, OnGap, Origin, Outcome, Proposal,
        Refusal, Request, RequestId, SecretRef, Source, SubscriptionId,
    },
    lsn::{Lsn, PgTime},
};
use redb::Database;

use super::{
    format::{FORMAT_KEY, META, StateV1, StateV2, StateV4},
    *,
};

mod damage;
mod dumps;
mod failing;

pub(crate) use failing::Disk;

/// What Raft does with a store, without Raft.
#[expect(
    clippy::unused_async,
    reason = "tests await them as the seams of the store"
)]
impl Store {
    async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        let mut outcomes = self.agree(Proposal::State(command)).unwrap();
        Ok(outcomes.remove(0)?)
    }

    fn agree(&self, proposal: Proposal) -> Result<Vec<Outcome>, StoreError> {
        let id = RequestId(rand::random());
        self.apply(Batch {
            requests: vec![Request { id, proposal }],
            marks: Vec::new(),
        })
    }

    /// With the stream whose cursors are saved.
    fn open_with_shop(directory: &Path) -> Self {
        let store = Self::open(directory).unwrap();
        let add = Command::AddSource(Box::new(source("shop")));
        store.agree(Proposal::State(add)).unwrap();
        store
    }

    async fn save(&self, cursors: Vec<(SubscriptionId, Cursor)>) -> Result<(), StoreError> {
        self.agree(Proposal::Cursors(CursorCommand::Save {
            by: "n1".to_owned(),
            cursors,
        }))?;
        // What follows an entry in the log makes it durable.
        self.write_log(&[])
    }

    async fn remove(&self, id: &SubscriptionId) -> Result<(), StoreError> {
        self.agree(Proposal::Cursors(CursorCommand::Remove(id.clone())))
            .map(drop)
    }

    async fn load(&self, id: &SubscriptionId) -> Result<Option<Cursor>, StoreError> {
        Ok(self.with_cursors(|cursors| cursors.get(id).map(|cursor| Cursor::clone(cursor))))
    }

    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, StoreError> {
        let owned =
            |(id, cursor): (&SubscriptionId, &Arc<Cursor>)| (id.clone(), Cursor::clone(cursor));
        Ok(self.with_cursors(|cursors| cursors.iter().map(owned).collect()))
    }
}

fn source(name: &str) -> Source {
    Source {
        name: name.to_owned(),
        stream: name.to_owned(),
        url: "postgres://pgcapture@db/shop".to_owned(),
        password: Some(SecretRef::File("/run/secrets/shop".to_owned())),
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
    }
}

fn cursor(lsn: u64) -> Cursor {
    Cursor {
        floor: Checkpoint::new(Lsn(lsn), 3),
        acked_above: vec![(
            Checkpoint::new(Lsn(lsn), 5),
            Checkpoint::new(Lsn(lsn + 9), 6),
        )],
    }
}

fn subscription(consumer: &str) -> SubscriptionId {
    SubscriptionId {
        stream: "shop".to_owned(),
        consumer: consumer.to_owned(),
    }
}

#[tokio::test]
async fn what_was_agreed_on_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let add = Command::AddSource(Box::new(source("shop")));
    assert_eq!(store.propose(add).await.unwrap(), Answer::Done);
    let assign = Command::Assign {
        name: "shop".to_owned(),
        node: "n1".to_owned(),
        after: Epoch(0),
    };
    assert_eq!(
        store.propose(assign).await.unwrap(),
        Answer::Assigned(Epoch(1))
    );
    let before = State::clone(&store.state().borrow());
    drop(store);

    let store = Store::open(directory.path()).unwrap();
    assert_eq!(**store.state().borrow(), before);
    assert_eq!(before.sources["shop"].epoch, Epoch(1));
}

#[tokio::test]
async fn a_refusal_comes_back_typed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let removal = Command::RemoveSource {
        name: "nope".to_owned(),
    };
    assert!(matches!(
        store.propose(removal).await,
        Err(ProposeError::Refused(Refusal::UnknownSource { .. }))
    ));
}

#[tokio::test]
async fn cursors_are_saved_together_and_survive() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_with_shop(directory.path());
    assert_eq!(store.load(&subscription("a")).await.unwrap(), None);
    let both = vec![
        (subscription("a"), cursor(1)),
        (subscription("b"), cursor(2)),
    ];
    store.save(both.clone()).await.unwrap();
    drop(store);

    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.list().await.unwrap(), both);
    store.remove(&subscription("a")).await.unwrap();
    store.remove(&subscription("a")).await.unwrap();
    assert_eq!(store.load(&subscription("a")).await.unwrap(), None);
    assert_eq!(
        store.load(&subscription("b")).await.unwrap(),
        Some(cursor(2))
    );
}

#[tokio::test]
async fn runs_beyond_the_bound_are_forgotten_on_save() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_with_shop(directory.path());
    let run = |n| (Checkpoint::new(Lsn(n), 1), Checkpoint::new(Lsn(n), 2));
    let large = Cursor {
        floor: Checkpoint::default(),
        acked_above: (1..=5_000).map(run).collect(),
    };
    store.save(vec![(subscription("a"), large)]).await.unwrap();
    let saved = store.load(&subscription("a")).await.unwrap().unwrap();
    assert_eq!(saved.acked_above.len(), ACKED_RUNS_MAX);
    assert_eq!(saved.acked_above[0], run(1));
}

#[tokio::test]
async fn a_cut_off_writer_leaves_the_last_confirmed_state() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_with_shop(directory.path());
    for lsn in 1..=20 {
        store
            .save(vec![(subscription("a"), cursor(lsn))])
            .await
            .unwrap();
    }
    // The file as a crash leaves it: copied while open, without the marks of a clean close.
    let crashed = tempfile::tempdir().unwrap();
    fs::copy(
        directory.path().join("node.redb"),
        crashed.path().join("node.redb"),
    )
    .unwrap();
    let store = Store::open(crashed.path()).unwrap();
    assert_eq!(
        store.load(&subscription("a")).await.unwrap(),
        Some(cursor(20))
    );
}

#[test]
fn two_nodes_on_one_directory_fail_clearly() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path()).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }));
    assert!(error.to_string().starts_with("PGC-N01"), "{error}");
    drop(first);
    Store::open(directory.path()).unwrap();
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.redb");
    {
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert(FORMAT_KEY, FORMAT_VERSION + 1)
            .unwrap();
        transaction.commit().unwrap();
    }
    for _ in 0..2 {
        let error = Store::open(directory.path()).unwrap_err();
        assert!(
            matches!(error, StoreError::NewerVersion { found, .. } if found == FORMAT_VERSION + 1)
        );
        assert_eq!(error.explanation().code, "PGC-N02");
    }
}

#[test]
fn from_a_raised_version_on_an_older_program_finds_a_newer_format() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_with_shop(directory.path());
    let raise = Command::RaiseProtocol {
        to: 2,
        nodes: [].into(),
    };
    store.agree(Proposal::State(raise)).unwrap();
    // As a crash leaves it right then.
    let crashed = tempfile::tempdir().unwrap();
    let file = crashed.path().join("node.redb");
    fs::copy(directory.path().join("node.redb"), &file).unwrap();
    let version = {
        let database = Database::create(&file).unwrap();
        let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
        let meta = transaction.open_table(META).unwrap();
        meta.get(FORMAT_KEY).unwrap().unwrap().value()
    };
    assert_eq!(version, FORMAT_VERSION);
    let store = Store::open(crashed.path()).unwrap();
    assert_eq!(store.state().borrow().protocol(), 2);
}

#[test]
fn a_file_of_something_else_is_told_damaged() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("node.redb"),
        b"not a database at all".repeat(400),
    )
    .unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert_eq!(error.explanation().code, "PGC-N05", "{error:?}");
    assert!(fs::metadata(directory.path().join("node.redb")).is_ok());
}

#[test]
fn a_directory_that_cannot_be_made_is_told_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Store::open(&file.join("data")).unwrap_err();
    assert!(matches!(error, StoreError::Unwritable { .. }));
    assert!(error.to_string().contains("file/data"), "{error}");
}

//! Dumps survive; only what changed is written; older files open.

use std::{collections::BTreeMap, time::Duration};

use pgcapture_engine::{
    cluster::{
        DumpAction, DumpCommand, DumpOptions, DumpRule, FinishedRange, Gap, Homes, NewDump,
        PlannedTable, Replica, ReplicaKind, TableLayout, WantedPages,
    },
    confirm,
    dump::{DumpId, Extent, Heap, PageRange, TableName},
    wal_guard::WalWish,
};
use proptest::prelude::*;
use redb::ReadableDatabase as _;

use super::*;

fn replica() -> Replica {
    Replica {
        name: "r1".to_owned(),
        source: "shop".to_owned(),
        url: "postgres://pgcapture@standby/shop".to_owned(),
        password: Some(SecretRef::Env("PASSWORD".to_owned())),
        kind: ReplicaKind::Standby,
        system_identifier: 7,
        ranges_max: 2,
        lag_max: Duration::from_secs(30),
        created_at: PgTime(1),
    }
}

fn create(uri: &str, table_count: u32) -> Command {
    let table = |oid: u32| {
        let name = TableName {
            schema: "public".to_owned(),
            table: format!("t{oid}"),
        };
        PlannedTable {
            heap: Heap {
                label: name.clone(),
                name,
                oid,
                filenode: oid,
            },
            wanted: WantedPages::Whole,
            layout: TableLayout::default(),
            needs_sweep: true,
        }
    };
    let dump = NewDump {
        uri: uri.to_owned(),
        stream: "shop".to_owned(),
        consumer: uri.to_owned(),
        source: "shop".to_owned(),
        options: DumpOptions::default(),
        created_at: PgTime(1),
        tables: (1..=table_count).map(table).collect(),
    };
    Command::Dump(DumpCommand::Create {
        dump: Box::new(dump),
        rule: DumpRule::Idle,
    })
}

fn finish(dump: u64, table: u32, first: u32) -> Command {
    let last = first + 9;
    let range = FinishedRange {
        dump: DumpId(dump),
        table,
        generation: 0,
        extent: Extent::Pages(PageRange { first, last }),
        row_count: 10,
        bytes: 1_000,
    };
    Command::Dump(DumpCommand::FinishRanges {
        ranges: vec![range],
        at: PgTime(2),
    })
}

fn act(id: u64, action: DumpAction) -> Command {
    let (id, at) = (DumpId(id), PgTime(3));
    Command::Dump(DumpCommand::Act { id, action, at })
}

async fn with_source(directory: &Path) -> Store {
    let store = Store::open(directory).unwrap();
    for command in [
        Command::AddSource(Box::new(source("shop"))),
        Command::AddReplica(Box::new(replica())),
    ] {
        assert_eq!(store.propose(command).await.unwrap(), Answer::Done);
    }
    store
}

fn reopened(store: Store, directory: &Path) -> (State, Store) {
    drop(store);
    let store = Store::open(directory).unwrap();
    let state = State::clone(&store.state().borrow());
    (state, store)
}

#[tokio::test]
async fn dumps_and_replicas_are_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_source(directory.path()).await;
    let cool_down = Command::Dump(DumpCommand::SetCoolDown {
        stream: "shop".to_owned(),
        consumer: "a".to_owned(),
        cool_down: Duration::from_secs(2),
    });
    for command in [
        create("a", 3),
        create("b", 1),
        finish(1, 2, 0),
        finish(1, 2, 10),
        finish(2, 0, 40),
        act(2, DumpAction::Pause),
        cool_down,
    ] {
        store.propose(command).await.unwrap();
    }
    let before = State::clone(&store.state().borrow());
    let (after, store) = reopened(store, directory.path());
    assert_eq!(after, before);
    assert_eq!(after.dumps[&DumpId(1)].tables[2].done.count_below(100), 20);

    store.propose(act(2, DumpAction::Cancel)).await.unwrap();
    let id = DumpId(2);
    let remove = Command::Dump(DumpCommand::Remove { id });
    store.propose(remove).await.unwrap();
    let (after, store) = reopened(store, directory.path());
    assert_eq!(after.dumps.keys().collect::<Vec<_>>(), [&DumpId(1)]);
    let again = store.propose(create("b", 1)).await.unwrap();
    assert_eq!(again, Answer::DumpCreated(DumpId(3)), "numbers only grow");
}

#[tokio::test]
async fn a_finished_range_writes_one_dump_and_one_table() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_source(directory.path()).await;
    for command in [create("a", 100), create("b", 100)] {
        store.propose(command).await.unwrap();
    }
    let before = State::clone(&store.state().borrow());
    store.propose(finish(1, 50, 0)).await.unwrap();
    let after = State::clone(&store.state().borrow());
    let changes = super::super::dumps::changes(&before, &after).unwrap();
    assert_eq!(
        format!("{changes:?}").matches("DumpId").count(),
        1,
        "one header"
    );
    assert!(format!("{changes:?}").contains("(1, 50)"));
}

#[tokio::test]
async fn ten_thousand_ranges_stay_small_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_source(directory.path()).await;
    store.propose(create("a", 1)).await.unwrap();
    let ranges = |from: u32| {
        let range = |number: u32| FinishedRange {
            dump: DumpId(1),
            table: 0,
            generation: 0,
            // Every second range: the worst case, nothing merges.
            extent: Extent::Pages(PageRange {
                first: number * 20,
                last: number * 20 + 9,
            }),
            row_count: 10,
            bytes: 1_000,
        };
        Command::Dump(DumpCommand::FinishRanges {
            ranges: (from..from + 500).map(range).collect(),
            at: PgTime(2),
        })
    };
    for batch in 0..20 {
        store.propose(ranges(batch * 500)).await.unwrap();
    }
    let before = State::clone(&store.state().borrow());
    let (after, store) = reopened(store, directory.path());
    assert_eq!(after, before);
    assert_eq!(
        after.dumps[&DumpId(1)].tables[0].done.ranges().len(),
        10_000
    );
    drop(store);
    let bytes = fs::metadata(directory.path().join("node.redb"))
        .unwrap()
        .len();
    assert!(bytes < 8 << 20, "{bytes} bytes");
}

#[tokio::test]
async fn a_source_takes_its_rows_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_source(directory.path()).await;
    store.propose(create("a", 3)).await.unwrap();
    let name = "shop".to_owned();
    store.propose(Command::RemoveSource { name }).await.unwrap();
    let (after, _store) = reopened(store, directory.path());
    assert!(after.dumps.is_empty() && after.replicas.is_empty());
}

/// Makes a file as version 1 left it.
fn write_v1(path: &Path, old: &StateV1) {
    write_old(path, 1, old);
}

/// Makes a file of an older version, with a cursor in it.
fn write_old(path: &Path, version: u32, old: &impl Serialize) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert(FORMAT_KEY, version).unwrap();
        let bytes = encode(old).unwrap();
        let mut state = transaction.open_table(STATE).unwrap();
        state.insert(STATE_KEY, bytes.as_slice()).unwrap();
        let cursor = encode(&cursor(5)).unwrap();
        let mut cursors = transaction.open_table(CURSORS).unwrap();
        cursors.insert(("shop", "a"), cursor.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_file_of_version_one_is_brought_forward_whole() {
    let directory = tempfile::tempdir().unwrap();
    let gap = Gap {
        from: Lsn(1),
        to: None,
        reason: "slot_lost".to_owned(),
        declared_at: PgTime(4),
    };
    let old = StateV1 {
        sources: BTreeMap::from([("shop".to_owned(), source("shop"))]),
        gaps: BTreeMap::from([("shop".to_owned(), vec![gap.clone()])]),
        epochs: BTreeMap::from([("shop".to_owned(), Epoch(3))]),
    };
    write_v1(&directory.path().join("node.redb"), &old);

    let store = Store::open(directory.path()).unwrap();
    let (after, store) = reopened(store, directory.path());
    assert_eq!(after.sources["shop"], source("shop"));
    assert_eq!(after.gaps["shop"], [gap]);
    assert_eq!(after.epochs["shop"], Epoch(3));
    let cursor_found = store.load(&subscription("a")).await.unwrap();
    assert_eq!(cursor_found, Some(cursor(5)));
    let answer = store.propose(create("a", 1)).await.unwrap();
    assert_eq!(answer, Answer::DumpCreated(DumpId(1)));
}

#[tokio::test]
async fn a_file_of_version_two_is_brought_forward_whole() {
    let directory = tempfile::tempdir().unwrap();
    let old = StateV2 {
        sources: BTreeMap::from([("shop".to_owned(), source("shop"))]),
        epochs: BTreeMap::from([("shop".to_owned(), Epoch(3))]),
        replicas: BTreeMap::from([("r1".to_owned(), replica())]),
        last_dump: DumpId(7),
        ..StateV2::default()
    };
    write_old(&directory.path().join("node.redb"), 2, &old);

    let store = Store::open(directory.path()).unwrap();
    let (after, store) = reopened(store, directory.path());
    assert_eq!(after.sources["shop"], source("shop"));
    assert_eq!(after.replicas["r1"], replica());
    assert_eq!((after.owner("shop"), after.nodes.len()), (None, 0));
    let cursor_found = store.load(&subscription("a")).await.unwrap();
    assert_eq!(cursor_found, Some(cursor(5)));
    let answer = store.propose(create("a", 1)).await.unwrap();
    assert_eq!(answer, Answer::DumpCreated(DumpId(8)));
}

#[tokio::test]
async fn a_file_of_version_four_is_brought_forward_whole() {
    let directory = tempfile::tempdir().unwrap();
    let origin = confirm::Origin {
        previous: Some(Checkpoint::new(Lsn(5), 1)),
        resume_lsn: Lsn(9),
    };
    let mut homes = Homes::default();
    homes.insert(subscription("a"), "n2".to_owned());
    let old = StateV4 {
        sources: BTreeMap::from([("shop".to_owned(), source("shop"))]),
        replicas: BTreeMap::from([("r1".to_owned(), replica())]),
        epochs: BTreeMap::from([("shop".to_owned(), Epoch(3))]),
        last_node: 3,
        owners: BTreeMap::from([("shop".to_owned(), "n2".to_owned())]),
        attested: BTreeMap::from([("shop".to_owned(), origin)]),
        homes,
        ..StateV4::default()
    };
    write_old(&directory.path().join("node.redb"), 4, &old);

    let store = Store::open(directory.path()).unwrap();
    let (after, store) = reopened(store, directory.path());
    let wanted = State::from(old);
    assert_eq!(after, wanted);
    assert_eq!(after.attested["shop"], origin);
    assert!(after.wal_wishes.is_empty() && after.let_go.is_empty());
    // A source of then is given a limit now.
    let wish = WalWish {
        limit_bytes: Some(20 << 30),
        ..WalWish::default()
    };
    let name = "shop".to_owned();
    let set = Command::SetWalGuard { name, wish };
    assert_eq!(store.propose(set).await.unwrap(), Answer::Done);
    let (after, _store) = reopened(store, directory.path());
    assert_eq!(after.wal_wishes["shop"], wish);
    // Since when it has its name was not kept: its log is taken for its own.
    assert!(!after.is_former_log("shop", Epoch(3)));
}

#[test]
fn a_version_that_never_was_is_told_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.redb");
    write_v1(&path, &StateV1::default());
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut meta = transaction.open_table(META).unwrap();
    meta.insert(FORMAT_KEY, 0).unwrap();
    drop(meta);
    transaction.commit().unwrap();
    drop(database);
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn a_new_file_has_the_version_that_the_program_before_reads() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(directory.path()).unwrap());
    let database = Database::create(directory.path().join("node.redb")).unwrap();
    let transaction = database.begin_read().unwrap();
    let meta = transaction.open_table(META).unwrap();
    let version = meta.get(FORMAT_KEY).unwrap().unwrap().value();
    assert_eq!(version, FORMAT_PROTOCOL_FIRST);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever is done to dumps, the file holds what the memory holds.
    #[test]
    fn the_file_and_the_memory_agree(
        steps in proptest::collection::vec((0_u8..5, 1_u64..4, 0_u32..3), 1..12)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let store = with_source(directory.path()).await;
            for (kind, id, number) in steps {
                let id_of = DumpId(id);
                let command = match kind {
                    0 => create(&format!("u{number}"), 3),
                    1 => finish(id, number, number * 10),
                    2 => act(id, DumpAction::Pause),
                    3 => act(id, DumpAction::Cancel),
                    _ => Command::Dump(DumpCommand::Remove { id: id_of }),
                };
                // A refusal is an answer too.
                drop(store.propose(command).await);
            }
            let before = State::clone(&store.state().borrow());
            let (after, _store) = reopened(store, directory.path());
            prop_assert_eq!(after, before);
            Ok(())
        })?;
    }
}

//! The position of a snapshot is right, under load, on a standby and on the source.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pgcapture_actors::{
    postgres::{
        SlotCopy, SlotCopyOptions, catalog,
        dump::{Place, ReadError, ReplicaKind},
    },
    supervise::{self, Task, TaskKind},
};
use pgcapture_engine::{
    decoder::{Decoder, DecoderOptions},
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::{Message, field::Value, message::Type};
use prost::Message as _;

use crate::world::{World, changes_in, connect, table, whole};

const WRITERS: i32 = 6;

/// Each writer counts up its own row, one transaction a step.
fn write(world: &World, stop: &Arc<AtomicBool>) -> Vec<Task<()>> {
    let start = |id: i32| {
        let (stop, config) = (Arc::clone(stop), world.source.config("postgres"));
        supervise::spawn(TaskKind::Tool, "writer", async move {
            let mut sql = pgcapture_actors::postgres::Connection::connect(
                &config,
                pgcapture_actors::postgres::Replication::Off,
            )
            .await
            .unwrap();
            let statement = format!("UPDATE t SET n = n + 1 WHERE id = {id}");
            while !stop.load(Ordering::Relaxed) {
                sql.query(&statement).await.unwrap();
            }
        })
    };
    (0..WRITERS).map(start).collect()
}

/// The commits of each row, in order, from the slot.
async fn commits(world: &mut World) -> BTreeMap<i32, Vec<Lsn>> {
    let end = world.insert_lsn().await;
    let config = world.source.config("postgres");
    let mut copy = SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap();
    let mut chunk = copy.chunk(end).await.unwrap();
    let options = DecoderOptions {
        row_bytes_max: 1 << 20,
    };
    let mut decoder = Decoder::new(options, None, Lsn::ZERO);
    let mut commits: BTreeMap<i32, Vec<Lsn>> = BTreeMap::new();
    while let Some(rows) = chunk.receive().await.unwrap() {
        for row in rows {
            decoder.decode(row.payload).unwrap();
        }
    }
    for entry in &decoder.take().unwrap() {
        let entry = entry.unwrap();
        let message = Message::decode(entry.payload).unwrap();
        if let Some(Type::Change(change)) = message.r#type {
            commits
                .entry(number(&change.new[0]))
                .or_default()
                .push(entry.checkpoint.lsn);
        }
    }
    commits
}

fn number(field: &pgcapture_proto::pgcapture::Field) -> i32 {
    let Some(Value::Binary(bytes)) = &field.value else {
        panic!("{field:?} is no number");
    };
    i32::from_be_bytes(bytes[..].try_into().unwrap())
}

async fn is_a_prefix(kind: ReplicaKind, reads: usize) {
    let mut world = World::with_standby(&[]).await;
    world
        .run(&[
            "CREATE TABLE t (id int PRIMARY KEY, n int)",
            "INSERT INTO t SELECT i, 0 FROM generate_series(0, 5) i",
            "CREATE PUBLICATION p FOR TABLE t",
        ])
        .await;
    catalog::create_slot(&mut world.sql, "s").await.unwrap();
    world.catch_up().await;
    let replica = world.replica(kind).await;
    let request = whole(&table(&replica, "t").await);
    let stop = Arc::new(AtomicBool::new(false));
    let writers = write(&world, &stop);
    let mut seen = Vec::new();
    let mut at_least = Lsn::ZERO;
    while seen.len() < reads {
        let mut request = request.clone();
        request.at_least = at_least;
        let mut reader = match replica.open(request).await {
            // A machine with much else to do.
            Err(ReadError::Behind { .. } | ReadError::SnapshotWaits { .. }) => continue,
            opened => opened.unwrap(),
        };
        assert!(reader.at() >= at_least);
        let mut rows = Vec::new();
        while let Some(batch) = reader.next().await.unwrap() {
            rows.extend(changes_in(&batch));
        }
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (number(&row.new[0]), number(&row.new[1])))
            .collect();
        assert_eq!(rows.len(), 6);
        seen.push((reader.at(), reader.place(), rows));
        at_least = world.insert_lsn().await;
    }
    stop.store(true, Ordering::Relaxed);
    for mut writer in writers {
        writer.join().await.unwrap();
    }
    let commits = commits(&mut world).await;
    let count = |wanted| seen.iter().filter(|(_, place, _)| *place == wanted).count();
    let (exact, loose) = (count(Place::Exact), count(Place::LowerBound));
    assert!(loose * 2 < reads, "{loose} of {reads} were not exact");
    assert!(
        exact * 10 > reads,
        "{exact} of {reads} were exact beyond doubt"
    );
    for (at, place, rows) in seen {
        for (id, n) in rows {
            let before = commits[&id].iter().filter(|lsn| **lsn < at).count();
            let n = usize::try_from(n).unwrap();
            // Nothing before the position may be missing, whatever happens.
            assert!(n >= before, "row {id} at {at}: {n} of {before}");
            assert!(
                place != Place::Exact || n == before,
                "row {id} at {at}: {n} instead of {before}"
            );
        }
    }
}

#[tokio::test]
async fn rows_of_a_standby_are_a_prefix_of_the_stream() {
    is_a_prefix(ReplicaKind::Standby, 300).await;
}

/// What was received and not replayed may be half applied: nobody can tell from outside.
#[tokio::test]
async fn a_place_is_sure_only_while_nothing_more_was_received() {
    let mut world = World::with_standby(&[]).await;
    world
        .run(&[
            "CREATE TABLE t (id int)",
            "CREATE PUBLICATION p FOR TABLE t",
        ])
        .await;
    world.catch_up().await;
    let replica = world.replica(ReplicaKind::Standby).await;
    let request = whole(&table(&replica, "t").await);
    let idle = replica.open(request.clone()).await.unwrap();
    assert_eq!((idle.place(), idle.snapshot_tries()), (Place::Exact, 1));
    drop(idle);
    world.standby().pause_replay().await.unwrap();
    world.run(&["INSERT INTO t VALUES (1)"]).await;
    let sent = world.insert_lsn().await;
    let mut standby = connect(world.standby()).await;
    let question = format!("SELECT pg_last_wal_receive_lsn() >= '{sent}'");
    while standby.query(&question).await.unwrap()[0][0].as_deref() != Some("t") {
        tokio::task::yield_now().await;
    }
    let behind = replica.open(request).await.unwrap();
    assert_eq!(behind.place(), Place::Probable);
    assert!(behind.snapshot_tries() > 1);
}

#[tokio::test]
async fn rows_of_the_source_are_a_prefix_of_the_stream() {
    is_a_prefix(ReplicaKind::Source, 60).await;
}

#[tokio::test]
async fn a_range_waits_for_a_standby_that_is_behind_and_gives_up_in_time() {
    let mut world = World::with_standby(&[]).await;
    world
        .run(&[
            "CREATE TABLE t (id int)",
            "CREATE PUBLICATION p FOR TABLE t",
        ])
        .await;
    world.catch_up().await;
    let replica = world.replica(ReplicaKind::Standby).await;
    let mut request = whole(&table(&replica, "t").await);
    world.standby().pause_replay().await.unwrap();
    world.run(&["INSERT INTO t VALUES (1)"]).await;
    request.at_least = world.insert_lsn().await;
    let error = replica.open(request.clone()).await.unwrap_err();
    let ReadError::Behind {
        replayed, wanted, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert!(replayed < wanted && *wanted == request.at_least);
    assert_eq!(error.explanation().code, "PGC-E23");
    assert!(error.is_about_replica());
    assert!(replica.health().await.unwrap().is_replay_paused);
    // Replay goes on while a range waits.
    let mut options = world.options(ReplicaKind::Standby).await;
    options.limits.behind_max = std::time::Duration::from_secs(60);
    let patient = pgcapture_actors::postgres::dump::Replica::new(options);
    let opened = patient.open(request.clone());
    tokio::pin!(opened);
    assert!(futures_util::poll!(&mut opened).is_pending());
    let (opened, resumed) = tokio::join!(opened, world.standby().resume_replay());
    resumed.unwrap();
    let mut reader = opened.unwrap();
    assert!(reader.at() >= request.at_least && reader.place() == Place::Exact);
    assert_eq!(crate::world::rest(&mut reader).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_open_transaction_holds_up_the_source_and_is_named() {
    let mut world = World::start(&[("max_prepared_transactions", "2")]).await;
    world
        .run(&[
            "CREATE TABLE t (id int)",
            "CREATE PUBLICATION p FOR TABLE t",
        ])
        .await;
    let replica = world.replica(ReplicaKind::Source).await;
    let request = whole(&table(&replica, "t").await);
    let mut open = connect(&world.source).await;
    open.query("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let error = replica.open(request.clone()).await.unwrap_err();
    assert_eq!(error.explanation().code, "PGC-E32", "{error}");
    let pid = open.backend_pid().to_string();
    assert!(error.to_string().contains(&pid), "{error} names {pid}");
    // Reading does not wait for those who write nothing.
    open.query("COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM t")
        .await
        .unwrap();
    let mut reader = replica.open(request.clone()).await.unwrap();
    assert_eq!(crate::world::rest(&mut reader).await.unwrap().len(), 1);
    open.query("COMMIT; BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'two'")
        .await
        .unwrap();
    let error = replica.open(request.clone()).await.unwrap_err();
    assert!(error.to_string().contains("\"two\""), "{error}");
    open.query("COMMIT PREPARED 'two'").await.unwrap();
    let mut reader = replica.open(request).await.unwrap();
    assert_eq!(crate::world::rest(&mut reader).await.unwrap().len(), 2);
    // The slots went with their sessions.
    while world
        .value("SELECT count(*) FROM pg_replication_slots")
        .await
        != "0"
    {}
}

//! What can go wrong while rows are read: each fault has its error, and nothing is read by halves.

use pgcapture_actors::{
    dump::{DumpError, RangeRemedy},
    postgres::{
        LocalServer, LocalServerOptions, StopMode,
        dump::{RangeRequest, ReadError, Replica, ReplicaKind},
    },
};

use crate::world::{World, connect, pages, read, rest, table, whole};

/// 60 MiB: more than fits into the buffers between the server and us.
const LARGE: &[&str] = &[
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "ALTER TABLE t ALTER v SET STORAGE EXTERNAL",
    "INSERT INTO t SELECT i, repeat('x', 60000) FROM generate_series(1, 1000) i",
    "CREATE PUBLICATION p FOR TABLE t",
];
const SMALL: &[&str] = &[
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t VALUES (1, 'one'), (2, 'two')",
    "CREATE PUBLICATION p FOR TABLE t",
];

fn assert_is(error: ReadError, code: &str, remedy: RangeRemedy) {
    assert_eq!(error.explanation().code, code, "{}", error.what());
    assert_eq!(error.remedy(), remedy, "{}", error.what());
    let error = DumpError::from(error);
    assert!(
        !error.what.contains("two"),
        "no value of a row: {}",
        error.what
    );
}

async fn fails(replica: &Replica, request: &RangeRequest, code: &str, remedy: RangeRemedy) {
    let error = read(replica, request.clone()).await.unwrap_err();
    assert_is(error, code, remedy);
}

#[tokio::test]
async fn a_conflict_with_replay_ends_the_range() {
    let mut world = World::with_standby(&[("max_standby_streaming_delay", "10ms")]).await;
    world.run(LARGE).await;
    world.catch_up().await;
    let replica = world.replica(ReplicaKind::Standby).await;
    let t = table(&replica, "t").await;
    let mut reader = replica.open(whole(&t)).await.unwrap();
    assert!(reader.next().await.unwrap().is_some());
    world.run(&["DELETE FROM t WHERE id > 3", "VACUUM t"]).await;
    world.catch_up().await;
    assert_is(
        rest(&mut reader).await.unwrap_err(),
        "PGC-E30",
        RangeRemedy::Retry,
    );
    // By a lock as well: nobody reads on while the table is dropped.
    world
        .run(&["INSERT INTO t SELECT i, repeat('x', 60000) FROM generate_series(4, 1000) i"])
        .await;
    world.catch_up().await;
    let mut reader = replica.open(whole(&t)).await.unwrap();
    assert!(reader.next().await.unwrap().is_some());
    world.run(&["DROP TABLE t"]).await;
    world.catch_up().await;
    assert_is(
        rest(&mut reader).await.unwrap_err(),
        "PGC-E30",
        RangeRemedy::Retry,
    );
    fails(&replica, &whole(&t), "PGC-E25", RangeRemedy::Fail).await;
}

#[tokio::test]
async fn a_cancelled_or_ended_statement_ends_the_range() {
    let mut world = World::start(&[]).await;
    world.run(LARGE).await;
    // A default of the role is none for us.
    world
        .run(&["ALTER ROLE postgres SET statement_timeout = '1ms'"])
        .await;
    let replica = world.replica(ReplicaKind::Source).await;
    let t = table(&replica, "t").await;
    assert_eq!(read(&replica, whole(&t)).await.unwrap().len(), 1_000);
    let ours = "FROM pg_stat_activity WHERE application_name = 'pgcapture/dump/d-41'";
    for (how, code) in [
        ("pg_cancel_backend", "PGC-E30"),
        ("pg_terminate_backend", "PGC-E31"),
    ] {
        let mut reader = replica.open(whole(&t)).await.unwrap();
        assert!(reader.next().await.unwrap().is_some());
        world.run(&[&format!("SELECT {how}(pid) {ours}")]).await;
        assert_is(
            rest(&mut reader).await.unwrap_err(),
            code,
            RangeRemedy::Retry,
        );
    }
}

#[tokio::test]
async fn a_standby_that_is_killed_ends_the_range_and_serves_the_next_when_it_is_back() {
    let mut world = World::with_standby(&[]).await;
    world.run(LARGE).await;
    world.catch_up().await;
    let replica = world.replica(ReplicaKind::Standby).await;
    let position = crate::world::plan(&replica, "t").await.position;
    let t = table(&replica, "t").await;
    read(&replica, pages(&t, 0, 0)).await.unwrap();
    let mut reader = replica.open(whole(&t)).await.unwrap();
    assert!(reader.next().await.unwrap().is_some());
    world
        .standby
        .as_mut()
        .unwrap()
        .stop(StopMode::Immediate)
        .await
        .unwrap();
    assert_is(
        rest(&mut reader).await.unwrap_err(),
        "PGC-E31",
        RangeRemedy::Retry,
    );
    fails(&replica, &whole(&t), "PGC-E20", RangeRemedy::Retry).await;
    assert_is(
        replica.health().await.unwrap_err(),
        "PGC-E20",
        RangeRemedy::Retry,
    );
    world.standby.as_mut().unwrap().restart().await.unwrap();
    // It serves queries again before it has replayed what it had.
    let mut request = whole(&t);
    request.at_least = position.at;
    let count = async || loop {
        match read(&replica, request.clone()).await {
            Err(ReadError::Behind { .. }) => {}
            rows => return rows.unwrap().len(),
        }
    };
    assert_eq!(count().await, 1_000);
    // A session that went stale while it was idle is replaced.
    world.standby.as_mut().unwrap().restart().await.unwrap();
    assert_eq!(count().await, 1_000);
    replica.health().await.unwrap();
}

#[tokio::test]
async fn a_promoted_standby_is_read_no_more() {
    let mut world = World::with_standby(&[]).await;
    world.run(SMALL).await;
    world.catch_up().await;
    let replica = world.replica(ReplicaKind::Standby).await;
    let request = whole(&table(&replica, "t").await);
    assert_eq!(read(&replica, request.clone()).await.unwrap().len(), 2);
    let status = replica.check().await.unwrap();
    assert_eq!((status.timeline, status.version / 10_000 >= 14), (1, true));
    world.standby().promote().await.unwrap();
    // By the session that was kept, by a new one, and by whoever asks how it is.
    fails(&replica, &request, "PGC-E21", RangeRemedy::Retry).await;
    fails(&replica, &request, "PGC-E21", RangeRemedy::Retry).await;
    for error in [
        replica.check().await.unwrap_err(),
        replica.health().await.unwrap_err(),
    ] {
        assert_is(error, "PGC-E21", RangeRemedy::Retry);
    }
}

#[tokio::test]
async fn a_server_that_is_no_replica_of_the_source_is_refused() {
    let mut world = World::with_standby(&[]).await;
    world.run(SMALL).await;
    let other = LocalServer::start(LocalServerOptions::default())
        .await
        .unwrap();
    let mut options = world.options(ReplicaKind::Standby).await;
    options.config = other.config("postgres");
    let replica = Replica::new(options.clone());
    assert_is(
        replica.check().await.unwrap_err(),
        "PGC-E22",
        RangeRemedy::Retry,
    );
    assert_is(
        replica.plan(&[]).await.unwrap_err(),
        "PGC-E22",
        RangeRemedy::Retry,
    );
    let subscribe = "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p WITH (connect = false)";
    connect(&other).await.query(subscribe).await.unwrap();
    let error = replica.check().await.unwrap_err();
    assert!(error.is_about_replica());
    assert_is(error, "PGC-E35", RangeRemedy::Retry);
    // Each is taken for what it is only.
    options.config = world.source.config("postgres");
    let error = Replica::new(options.clone()).check().await.unwrap_err();
    assert_is(error, "PGC-E21", RangeRemedy::Retry);
    options.config = world.standby().config("postgres");
    options.kind = ReplicaKind::Source;
    let error = Replica::new(options.clone()).check().await.unwrap_err();
    assert_is(error, "PGC-S06", RangeRemedy::Retry);
    options.config = world.source.config("nowhere");
    let error = Replica::new(options).check().await.unwrap_err();
    assert_is(error, "PGC-E20", RangeRemedy::Retry);
}

/// What makes a table ready for a plan, what happens after it, and how a range ends then.
const CHANGES: &[(&str, &str, &str, RangeRemedy)] = &[
    ("", "VACUUM FULL t", "PGC-E24", RangeRemedy::Replan),
    ("", "CLUSTER t USING t_pkey", "PGC-E24", RangeRemedy::Replan),
    ("", "TRUNCATE t", "PGC-E24", RangeRemedy::Replan),
    (
        "",
        "ALTER TABLE t ALTER id TYPE bigint",
        "PGC-E24",
        RangeRemedy::Replan,
    ),
    (
        "",
        "ALTER TABLE t RENAME TO u",
        "PGC-E26",
        RangeRemedy::Replan,
    ),
    (
        "ALTER TABLE u RENAME TO t; CREATE SCHEMA s",
        "ALTER TABLE t SET SCHEMA s",
        "PGC-E26",
        RangeRemedy::Replan,
    ),
    (
        "ALTER TABLE s.t SET SCHEMA public",
        "ALTER PUBLICATION p DROP TABLE t",
        "PGC-E27",
        RangeRemedy::Fail,
    ),
    (
        "ALTER PUBLICATION p ADD TABLE t",
        "DROP TABLE t; CREATE TABLE t (id int, v text); ALTER PUBLICATION p ADD TABLE t",
        "PGC-E26",
        RangeRemedy::Replan,
    ),
    (
        "",
        "ALTER TABLE root ATTACH PARTITION t FOR VALUES IN (1)",
        "PGC-E26",
        RangeRemedy::Replan,
    ),
    ("", "DROP TABLE t", "PGC-E25", RangeRemedy::Fail),
];

#[tokio::test]
async fn a_table_that_changed_since_the_plan_is_planned_anew_or_fails() {
    let mut world = World::with_standby(&[]).await;
    world.run(SMALL).await;
    world
        .run(&[
            "CREATE TABLE root (id int, v text) PARTITION BY LIST (id)",
            "ALTER PUBLICATION p ADD TABLE root",
            "ALTER PUBLICATION p SET (publish_via_partition_root)",
        ])
        .await;
    let source = world.replica(ReplicaKind::Source).await;
    let standby = world.replica(ReplicaKind::Standby).await;
    for (before, after, code, remedy) in CHANGES {
        change(&mut world, before).await;
        let request = whole(&table(&standby, "*.t").await);
        change(&mut world, after).await;
        for replica in [&source, &standby] {
            fails(replica, &request, code, *remedy).await;
        }
    }
}

async fn change(world: &mut World, sql: &str) {
    for statement in sql.split("; ").filter(|statement| !statement.is_empty()) {
        world.run(&[statement]).await;
    }
    world.catch_up().await;
}

#[tokio::test]
async fn a_column_that_was_added_is_there_and_a_dropped_one_is_not() {
    let mut world = World::start(&[]).await;
    world.run(SMALL).await;
    let replica = world.replica(ReplicaKind::Source).await;
    let request = whole(&table(&replica, "t").await);
    world
        .run(&["ALTER TABLE t ADD w int DEFAULT 7", "ALTER TABLE t DROP v"])
        .await;
    let rows = read(&replica, request).await.unwrap();
    let names: Vec<_> = rows[0]
        .new
        .iter()
        .map(|field| field.name.as_str())
        .collect();
    assert_eq!(names, ["id", "w"]);
}

#[tokio::test]
async fn a_locked_table_is_waited_for_and_given_up_in_time() {
    let mut world = World::with_standby(&[]).await;
    world.run(SMALL).await;
    world.catch_up().await;
    let mut holder = connect(&world.source).await;
    for kind in [ReplicaKind::Source, ReplicaKind::Standby] {
        let replica = world.replica(kind).await;
        let request = whole(&table(&replica, "t").await);
        holder.query("BEGIN; LOCK TABLE t").await.unwrap();
        world
            .run(&["CREATE TABLE IF NOT EXISTS noise (id int)"])
            .await;
        world.catch_up().await;
        let error = read(&replica, request.clone()).await.unwrap_err();
        assert!(
            matches!(error.explanation().code, "PGC-E30" | "PGC-E32"),
            "{}",
            error.what()
        );
        holder.query("ROLLBACK").await.unwrap();
        world.catch_up().await;
        assert_eq!(read(&replica, request).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn rights_that_are_missing_have_a_name_each() {
    let mut world = World::start(&[("max_replication_slots", "1")]).await;
    world.run(SMALL).await;
    world.run(&["CREATE ROLE reader LOGIN REPLICATION"]).await;
    let mut options = world.options(ReplicaKind::Source).await;
    let url = world.source.url("postgres").replace("postgres@", "reader@");
    options.config = pgcapture_actors::postgres::Config::parse(&url).unwrap();
    let replica = Replica::new(options);
    let plan = crate::world::plan(&replica, "t").await;
    assert_eq!(plan.problems[0].error.explanation().code, "PGC-E28");
    let owner = world.replica(ReplicaKind::Source).await;
    let request = whole(&table(&owner, "t").await);
    fails(&replica, &request, "PGC-E28", RangeRemedy::Fail).await;
    world.run(&["GRANT SELECT ON t TO reader"]).await;
    assert_eq!(read(&replica, request.clone()).await.unwrap().len(), 2);
    world
        .run(&["ALTER TABLE t ENABLE ROW LEVEL SECURITY"])
        .await;
    fails(&replica, &request, "PGC-E29", RangeRemedy::Fail).await;
    world.run(&["ALTER ROLE reader BYPASSRLS"]).await;
    assert_eq!(read(&replica, request.clone()).await.unwrap().len(), 2);
    world
        .run(&["SELECT pg_create_physical_replication_slot('taken')"])
        .await;
    fails(&replica, &request, "PGC-E33", RangeRemedy::Retry).await;
    replica.close_idle();
    world.run(&["ALTER ROLE reader NOREPLICATION"]).await;
    fails(&replica, &request, "PGC-E20", RangeRemedy::Retry).await;
}

#[tokio::test]
async fn a_value_that_cannot_be_sent_fails_the_table_with_the_servers_words() {
    let mut world = World::start(&[]).await;
    world
        .run(&[
            "CREATE TABLE t (id int, v aclitem[])",
            "INSERT INTO t VALUES (1, '{postgres=r/postgres}')",
            "CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')",
        ])
        .await;
    let replica = world.replica(ReplicaKind::Source).await;
    let request = whole(&table(&replica, "t").await);
    let error = read(&replica, request).await.unwrap_err();
    assert!(error.what().contains("aclitem"), "{}", error.what());
    assert_is(error, "PGC-E36", RangeRemedy::Fail);
}

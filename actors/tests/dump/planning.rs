//! What names lead to, and what stands against them.

use pgcapture_actors::postgres::dump::ReplicaKind;

use crate::world::World;

const TABLES: &[&str] = &[
    "CREATE EXTENSION IF NOT EXISTS postgres_fdw",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE TABLE t (id int, v text)",
    "INSERT INTO t SELECT i, repeat(md5(i::text), 200) FROM generate_series(1, 1000) i",
    "CREATE TABLE \"T x\" (id int)",
    "CREATE SCHEMA other",
    "CREATE TABLE other.t (id int)",
    "CREATE TABLE hidden (id int)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MATERIALIZED VIEW m AS SELECT 1",
    "CREATE SEQUENCE q",
    "CREATE FOREIGN TABLE f (id int) SERVER s",
    "CREATE UNLOGGED TABLE u (id int)",
    "CREATE TABLE root (id int) PARTITION BY RANGE (id)",
    "CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE high PARTITION OF root FOR VALUES FROM (10) TO (20) PARTITION BY LIST (id)",
    "CREATE TABLE ten PARTITION OF high FOR VALUES IN (10)",
    "CREATE TABLE childless (id int) PARTITION BY RANGE (id)",
    "INSERT INTO root VALUES (1), (2)",
    "ANALYZE t",
    "CREATE PUBLICATION p FOR TABLE t, \"T x\", other.t, root, childless",
];

#[tokio::test]
async fn names_and_patterns_lead_to_heaps_under_their_labels() {
    let mut world = World::with_standby(&[]).await;
    world.run(TABLES).await;
    for via_root in [false, true] {
        let set = format!("ALTER PUBLICATION p SET (publish_via_partition_root = {via_root})");
        world.run(&[&set]).await;
        world.catch_up().await;
        let replica = world.replica(ReplicaKind::Standby).await;
        let mut found = Vec::new();
        for name in [
            "*",
            "public.*",
            "t",
            "public.root",
            "high",
            "low",
            "childless",
            "public.T x",
        ] {
            let plan = replica.plan(&[name.to_owned()]).await.unwrap();
            assert!(plan.problems.is_empty(), "{name}: {:?}", plan.problems);
            let names = plan.tables.iter().map(|table| table.heap.name.to_string());
            let names: Vec<_> = names.collect();
            found.push(names.join(" "));
        }
        let all = if via_root {
            "other.t public.T x public.low public.ten public.t"
        } else {
            "other.t public.T x public.low public.t public.ten"
        };
        let public = all.trim_start_matches("other.t ");
        assert_eq!(
            found,
            [
                all,
                public,
                "other.t public.t",
                "public.low public.ten",
                "public.ten",
                "public.low",
                "",
                "public.T x"
            ]
        );
        let plan = crate::world::plan(&replica, "root").await;
        let label = if via_root {
            "public.root"
        } else {
            "public.low"
        };
        assert_eq!(plan.tables[0].heap.label.to_string(), label);
    }
}

#[tokio::test]
async fn tables_are_measured_and_the_moment_is_told() {
    let mut world = World::with_standby(&[]).await;
    world.run(TABLES).await;
    world.catch_up().await;
    for kind in [ReplicaKind::Source, ReplicaKind::Standby] {
        let replica = world.replica(kind).await;
        let plan = crate::world::plan(&replica, "public.t").await;
        let t = &plan.tables[0];
        let pages = world.value("SELECT pg_relation_size('t') / 8192").await;
        assert_eq!(t.page_count.to_string(), pages);
        assert_eq!(
            t.byte_count.to_string(),
            world.value("SELECT pg_table_size('t')").await
        );
        assert_eq!(
            (t.row_estimate, t.has_toast, plan.page_bytes),
            (Some(1_000), true, 8_192)
        );
        assert_eq!(
            t.heap.oid.to_string(),
            world.value("SELECT 't'::regclass::oid").await
        );
        assert!(plan.position.since_xid > 700);
        assert!(plan.position.at <= world.insert_lsn().await);
        let status = replica.check().await.unwrap();
        assert!(status.health.replayed >= plan.position.at);
        assert_eq!(status.health.waiting_count, 0);
        assert_eq!(
            status.health.received.is_some(),
            kind == ReplicaKind::Standby
        );
    }
}

#[tokio::test]
async fn what_cannot_be_dumped_is_told_apart() {
    let mut world = World::start(&[]).await;
    world.run(TABLES).await;
    world.run(&["CREATE TEMPORARY TABLE temp (id int)"]).await;
    let replica = world.replica(ReplicaKind::Source).await;
    for (name, code, word) in [
        ("public.nothing", "PGC-E25", "public.nothing"),
        ("nowhere.*", "PGC-E25", "nowhere.*"),
        ("hidden", "PGC-E27", "\"p\""),
        ("public.v", "PGC-E37", "is a view"),
        ("m", "PGC-E37", "materialized view"),
        ("f", "PGC-E37", "foreign table"),
        ("q", "PGC-E37", "sequence"),
        ("u", "PGC-E38", "unlogged"),
        ("temp", "PGC-E38", "temporary"),
    ] {
        let plan = replica
            .plan(&[name.to_owned(), "public.t".to_owned()])
            .await
            .unwrap();
        assert_eq!(plan.tables.len(), 1, "{name}");
        let [problem] = &plan.problems[..] else {
            panic!("{name}: {:?}", plan.problems);
        };
        let text = problem.error.what();
        assert_eq!(problem.error.explanation().code, code, "{text}");
        assert!(text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn waiting_and_long_statements_of_others_are_seen() {
    let mut world = World::start(&[]).await;
    world.run(TABLES).await;
    let replica = world.replica(ReplicaKind::Source).await;
    world.run(&["BEGIN", "LOCK TABLE t"]).await;
    let mut waits = crate::world::connect(&world.source).await;
    let waiting = waits.query("SELECT FROM t");
    let look = async {
        loop {
            let health = replica.health().await.unwrap();
            if health.waiting_count == 1 {
                return health;
            }
        }
    };
    tokio::pin!(waiting);
    let health = tokio::select! {
        _ = &mut waiting => panic!("the table is locked"),
        health = look => health,
    };
    assert_eq!(health.active_count, 1);
    assert!(health.longest_statement.is_some());
    world.run(&["COMMIT"]).await;
    waiting.await.unwrap();
}

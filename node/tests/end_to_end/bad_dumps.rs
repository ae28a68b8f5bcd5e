//! What cannot be dumped, and servers that are no replica: exit code, code, next step.

use pgcapture_actors::postgres::{LocalServer, StopMode};

use crate::{
    dumps::{DumpWorld, standby},
    process::Ended,
    world::{World, server, sql},
};

impl World {
    async fn try_dump(&self, args: &[&str]) -> Ended {
        self.ask(&[&["dump", "start", "shop", "--detach"], args].concat())
            .await
    }

    async fn try_replica(&self, url: &str, more: &[&str]) -> Ended {
        let args = ["replica", "add", "bad", "--source", "shop", "--url", url];
        self.ask(&[&args, more].concat()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_dumped_says_why_and_what_next() {
    let world = World::bare(&[], "").await;
    world
        .sql(
            "CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1); \
             CREATE TABLE empty (id bigint PRIMARY KEY); \
             CREATE VIEW v AS SELECT * FROM t; \
             CREATE UNLOGGED TABLE fast (id bigint PRIMARY KEY); \
             CREATE EXTENSION postgres_fdw; \
             CREATE SERVER away FOREIGN DATA WRAPPER postgres_fdw; \
             CREATE FOREIGN TABLE foreign_t (id bigint) SERVER away; \
             CREATE SEQUENCE s",
        )
        .await;
    world.add(&[]).await.expect(0);
    world.until("following").await;
    world
        .sql("CREATE TABLE uncaptured (id bigint PRIMARY KEY)")
        .await;
    let standby = standby(&world).await;
    world.add_replica("r1", &standby, &[]).await;
    for (table, exit, words) in [
        ("public.nope", 4, ["PGC-E25", "nope"]),
        ("nope.*", 4, ["PGC-E", "nope.*"]),
        ("public.v", 2, ["PGC-E37", "view"]),
        ("public.foreign_t", 2, ["PGC-E37", "foreign table"]),
        ("public.s", 2, ["PGC-E37", "sequence"]),
        ("public.fast", 2, ["PGC-E38", "unlogged"]),
        ("public.uncaptured", 3, ["PGC-E27", "publication"]),
    ] {
        world
            .try_dump(&["--table", table])
            .await
            .expect(exit)
            .says(&words);
    }
    bad_options_are_told(&world).await;
    unknown_and_second_dumps_are_told(&world).await;
    drop(standby);
}

async fn bad_options_are_told(world: &World) {
    let of_t = |pages: &'static str| ["--table", "public.t", "--pages", pages];
    world
        .try_dump(&of_t("9-3"))
        .await
        .expect_usage(&["backwards"]);
    world
        .try_dump(&of_t("x"))
        .await
        .expect_usage(&["page range"]);
    world
        .try_dump(&of_t("1000-2000"))
        .await
        .expect(2)
        .says(&["PGC-E03"]);
    world
        .try_dump(&["--table", "public.t", "--rate", "fast"])
        .await
        .expect_usage(&["50MiB/s"]);
    world
        .try_dump(&["--table", "public.t", "--parallel", "0"])
        .await
        .expect_usage(&["0"]);
    world
        .try_dump(&["--table", "public.t", "--parallel", "999"])
        .await
        .expect(2)
        .says(&["64"]);
    world.try_dump(&[]).await.expect_usage(&["--table"]);
    let two = ["--table", "public.t,public.empty", "--pages", "0-9"];
    world
        .try_dump(&two)
        .await
        .expect(2)
        .says(&["pages belong to one table"]);
    let unknown = world.ask(&["dump", "start", "nope", "--table", "t"]).await;
    unknown
        .expect(4)
        .says(&["unknown uri \"nope\"; known streams: shop"]);
}

async fn unknown_and_second_dumps_are_told(world: &World) {
    let dump = world.start_dump(&["--table", "public.t"]).await;
    world
        .try_dump(&["--table", "public.t"])
        .await
        .expect(7)
        .says(&["PGC-E04", &dump]);
    world
        .try_dump(&["--table", "public.t", "--consumer", "other"])
        .await
        .expect(0);
    for verb in ["show", "watch", "pause", "resume", "retry"] {
        world
            .ask(&["dump", verb, "d-999"])
            .await
            .expect(4)
            .says(&["PGC-E05", "d-999"]);
        world
            .ask(&["dump", verb, "x"])
            .await
            .expect(2)
            .says(&["such as d-41"]);
    }
    world
        .ask(&["dump", "cancel", "d-999", "--yes"])
        .await
        .expect(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_table_is_finished_without_rows() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    world.sql("TRUNCATE t").await;
    standby.catch_up_with(&world.server).await.unwrap();
    let dump = world.start_dump(&["--table", "public.t"]).await;
    let consumer = world.joined("shop").await;
    let ended = world
        .dump_when(&dump, |dump| dump["state"] == "finished")
        .await;
    assert_eq!(ended["rows"], 0);
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_is_told_what_to_grant() {
    let world = World::new().await;
    world.sql("CREATE ROLE reader LOGIN").await;
    let standby = standby(&world).await;
    let url = standby.url("postgres").replace("postgres@", "reader@");
    let added = world
        .ask(&["replica", "add", "r1", "--source", "shop", "--url", &url])
        .await;
    added
        .expect(0)
        .says(&["PGC-E28", "GRANT SELECT ON public.t"]);
    world
        .try_dump(&["--table", "public.t"])
        .await
        .expect(3)
        .says(&["PGC-E28", "GRANT SELECT"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_replica_of_the_source_is_taken() {
    let world = World::new().await;
    let (other, standby) = tokio::join!(server(&[]), standby(&world));
    sql(&other, "CREATE TABLE t (id bigint PRIMARY KEY)").await;
    let own = world.server.url("postgres");
    let nobody = "postgres://postgres@127.0.0.1:1/postgres";
    world
        .try_replica(&other.url("postgres"), &[])
        .await
        .expect(3)
        .says(&["PGC-E22"]);
    world
        .try_replica(&own, &[])
        .await
        .expect(3)
        .says(&["PGC-E21", "--kind source"]);
    let twisted = world
        .try_replica(&standby.url("postgres"), &["--kind", "source"])
        .await;
    twisted
        .expect(3)
        .says(&["PGC-E21", "leave --kind source out"]);
    let elsewhere = standby.url("template1");
    world
        .try_replica(&elsewhere, &[])
        .await
        .expect(3)
        .says(&["PGC-E22", "database template1"]);
    world
        .try_replica(nobody, &[])
        .await
        .expect(3)
        .says(&["PGC-S02", "cannot connect"]);
    world.try_replica("not a url", &[]).await.expect(3);
    world
        .try_replica(&own, &["--max-ranges", "0"])
        .await
        .expect_usage(&["0"]);
    let many = ["--kind", "source", "--max-ranges", "500"];
    world.try_replica(&own, &many).await.expect(2).says(&["64"]);
    let lost = ["replica", "add", "r", "--source", "nope", "--url", &own];
    world
        .ask(&lost)
        .await
        .expect(4)
        .says(&["unknown source \"nope\""]);
    let listed = world.ask(&["replica", "ls", "-o", "json"]).await.json();
    assert_eq!(listed, serde_json::json!([]), "none was taken");
    a_good_one_is_taken_once(&world, &standby).await;
    it_is_removed(&world).await;
}

async fn a_good_one_is_taken_once(world: &World, standby: &LocalServer) {
    let dry = world
        .try_replica(&standby.url("postgres"), &["--dry-run"])
        .await;
    assert!(dry.expect(0).data.contains("0 errors"));
    world
        .add_replica("r1", standby, &["--max-ranges", "3", "--max-lag", "10s"])
        .await;
    world
        .add_replica("r1", standby, &["--max-ranges", "3", "--max-lag", "10s"])
        .await;
    let url = standby.url("postgres");
    let changed = ["replica", "add", "r1", "--source", "shop", "--url", &url];
    world
        .ask(&changed)
        .await
        .expect(7)
        .says(&["exists already"]);
    let ready = ["replica", "show", "r1", "--until", "healthy", "-o", "json"];
    let shown = world.ask(&ready).await.json();
    assert_eq!(
        (&shown["state"], &shown["max_ranges"]),
        (&"ready".into(), &3.into())
    );
}

async fn it_is_removed(world: &World) {
    let refused = world.ask(&["replica", "rm", "r1"]).await;
    refused.expect(7).says(&["still there"]);
    let plan = world
        .ask(&["replica", "rm", "r1", "--dry-run"])
        .await
        .expect(0)
        .data;
    assert!(
        plan.contains("leave source shop without a replica"),
        "{plan}"
    );
    world.ask(&["replica", "rm", "r1", "--yes"]).await.expect(0);
    world
        .ask(&["replica", "rm", "r1", "--yes"])
        .await
        .expect(4)
        .says(&["unknown replica"]);
    world.ask(&["replica", "show", "r1"]).await.expect(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_or_lost_standby_is_told() {
    let DumpWorld { world, mut standby } = DumpWorld::new().await;
    standby.promote().await.unwrap();
    let shown = world.replica_when("r1", "unusable").await;
    assert!(shown["trouble"]["code"] == "PGC-E21", "{shown}");
    standby.stop(StopMode::Immediate).await.unwrap();
    let lost = world.replica_code("r1", "PGC-E20").await;
    assert!(lost["trouble"]["next"].is_string(), "{lost}");
    let second = self::standby(&world).await;
    world.add_replica("r2", &second, &[]).await;
    world.replica_when("r2", "ready").await;
}

/// Kills the node at a step of a dump and returns what is told of the dump afterwards.
async fn after_a_crash(world: World, dump: &str) -> (World, serde_json::Value) {
    let world = world.crash("").await;
    let told = world.dump(dump).await;
    (world, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_at_any_step_goes_on_with_the_dump_as_it_was() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    let dump = world.start_dump(&["--table", "public.t"]).await;
    let (world, told) = after_a_crash(world, &dump).await;
    assert_eq!(told["state"], "active", "planned: {told}");

    // Delivered in part, answered in part.
    let mut consumer = world.joined("shop").await;
    for _ in 0..100 {
        let row = consumer.next().await;
        consumer.ack(&row).await;
    }
    let (world, told) = after_a_crash(world, &dump).await;
    assert_eq!(
        (&told["state"], &told["rows"]),
        (&"active".into(), &0.into())
    );
    drop(consumer);

    world.ask(&["dump", "pause", &dump]).await.expect(0);
    let (world, told) = after_a_crash(world, &dump).await;
    assert_eq!(told["state"], "paused", "{told}");
    world.ask(&["dump", "resume", &dump]).await.expect(0);

    // Everything delivered, nothing answered: all of it comes again.
    let mut consumer = world.joined("shop").await;
    for _ in 0..500 {
        consumer.next().await;
    }
    let (world, told) = after_a_crash(world, &dump).await;
    assert_eq!(told["state"], "active", "{told}");
    drop(consumer);
    let mut consumer = world.joined("shop").await;
    for _ in 0..500 {
        let row = consumer.next().await;
        consumer.ack(&row).await;
    }
    let is_finished = |dump: &serde_json::Value| dump["state"] == "finished";
    world.dump_when(&dump, is_finished).await;
    let (world, told) = after_a_crash(world, &dump).await;
    assert_eq!(
        (&told["state"], &told["rows"]),
        (&"finished".into(), &500.into())
    );
    drop(consumer);

    // Nothing of it comes again, and what is cancelled stays so.
    let mut consumer = world.joined("shop").await;
    world.sql("INSERT INTO t VALUES (1001, 'after')").await;
    let next = consumer.next().await;
    assert!(!crate::dumps::is_dump_row(&next), "{next:?}");
    let second = world
        .start_dump(&["--table", "public.t", "--consumer", "other"])
        .await;
    let cancel = ["dump", "cancel", &second, "--yes"];
    world.ask(&cancel).await.expect(0);
    let (_world, told) = after_a_crash(world, &second).await;
    assert_eq!(told["state"], "cancelled", "{told}");
    drop(standby);
}

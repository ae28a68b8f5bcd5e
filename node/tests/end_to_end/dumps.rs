//! Existing rows on the real binary, read from a real standby.

use pgcapture_actors::postgres::{LocalServer, StandbyOptions};
use pgcapture_proto::pgcapture::{CaptureMessage, change::Operation};
use serde_json::Value;

use crate::{
    consumer::{Consumer, id},
    process::{eventually, run},
    world::World,
};

/// Rows of `t` before anything is captured.
const ROW_COUNT: i64 = 500;

/// A world whose source has rows from before, and a standby of it.
pub(crate) struct DumpWorld {
    pub(crate) world: World,
    pub(crate) standby: LocalServer,
}

/// Makes a standby of the world's server.
pub(crate) async fn standby(world: &World) -> LocalServer {
    let options = StandbyOptions {
        hot_standby_feedback: true,
        ..StandbyOptions::default()
    };
    world.server.start_standby(options).await.unwrap()
}

impl World {
    /// Registers a server as a replica of source `shop`.
    pub(crate) async fn add_replica(
        &self,
        name: &str,
        server: &LocalServer,
        more: &[&str],
    ) -> Value {
        let url = server.url("postgres");
        let args = [
            "replica", "add", name, "--source", "shop", "--url", &url, "-o", "json",
        ];
        self.ask(&[&args, more].concat()).await.json()
    }

    /// Waits until a replica is as wanted.
    async fn replica_with(&self, name: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        eventually("the replica", async || {
            let replica = self
                .ask(&["replica", "show", name, "-o", "json"])
                .await
                .json();
            let is_there = is_wanted(&replica);
            is_there
                .then(|| replica.clone())
                .ok_or_else(|| replica.to_string())
        })
        .await
    }

    pub(crate) async fn replica_when(&self, name: &str, state: &str) -> Value {
        self.replica_with(name, |replica| replica["state"] == state)
            .await
    }

    pub(crate) async fn replica_code(&self, name: &str, code: &str) -> Value {
        self.replica_with(name, |replica| replica["trouble"]["code"] == code)
            .await
    }

    /// Starts a dump in the background and returns its id.
    pub(crate) async fn start_dump(&self, args: &[&str]) -> String {
        let first = ["dump", "start", "shop", "--detach", "-o", "json"];
        let started = self.ask(&[&first, args].concat()).await.json();
        started["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn dump(&self, id: &str) -> Value {
        self.ask(&["dump", "show", id, "-o", "json"]).await.json()
    }

    /// Waits until a dump is as wanted.
    pub(crate) async fn dump_when(&self, id: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        eventually("the dump", async || {
            let dump = self.dump(id).await;
            let is_there = is_wanted(&dump);
            is_there
                .then(|| dump.clone())
                .ok_or_else(|| dump.to_string())
        })
        .await
    }
}

impl DumpWorld {
    /// Table `t` with rows, captured, and a standby as replica `r1`.
    pub(crate) async fn new() -> Self {
        let world = World::bare(&[], "").await;
        world
            .sql(&format!(
                "CREATE TABLE t (id bigint PRIMARY KEY, v text); \
                 INSERT INTO t SELECT n, 'old' FROM generate_series(1, {ROW_COUNT}) AS n; ANALYZE t"
            ))
            .await;
        world.add(&[]).await.expect(0);
        world.until("following").await;
        let standby = standby(&world).await;
        // A standby that has not replayed the rows yet would bring them once more in the sweep.
        standby.catch_up_with(&world.server).await.unwrap();
        let added = world.add_replica("r1", &standby, &[]).await;
        assert_eq!(
            (&added["name"], &added["kind"]),
            (&"r1".into(), &"standby".into())
        );
        Self { world, standby }
    }
}

/// Whether a message is an existing row, as wire.md has it.
pub(crate) fn is_dump_row(message: &CaptureMessage) -> bool {
    let checkpoint = message.checkpoint.as_ref().unwrap();
    let change = message.change.as_ref().unwrap();
    if checkpoint.lsn != 0 {
        return false;
    }
    assert_eq!((change.op(), change.old.len()), (Operation::Update, 0));
    assert!(checkpoint.data.is_empty() || checkpoint.data.as_ref() == [1]);
    true
}

/// Takes and acknowledges existing rows up to the last of a range; returns their ids in order.
async fn take_range(consumer: &mut Consumer) -> Vec<i64> {
    let mut ids = Vec::new();
    loop {
        let message = consumer.next().await;
        assert!(is_dump_row(&message), "{message:?}");
        ids.push(id(&message));
        consumer.ack(&message).await;
        if !message.checkpoint.unwrap().data.is_empty() {
            return ids;
        }
    }
}

fn all_ids() -> Vec<i64> {
    (1..=ROW_COUNT).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_standby_arrive_between_changes() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    let mut consumer = world.joined("shop/search").await;
    world.sql("INSERT INTO t VALUES (1001, 'before')").await;
    let before = consumer.next().await;
    assert_eq!((is_dump_row(&before), id(&before)), (false, 1_001));
    consumer.ack(&before).await;

    let dump = world
        .start_dump(&["--table", "public.t", "--consumer", "search"])
        .await;
    let mut rows = take_range(&mut consumer).await;
    rows.sort_unstable();
    let mut wanted = all_ids();
    wanted.push(1_001);
    assert_eq!(
        rows, wanted,
        "the row that was committed before is a part of the snapshot"
    );
    world.sql("INSERT INTO t VALUES (1002, 'after')").await;
    let after = consumer.next().await;
    assert_eq!((is_dump_row(&after), id(&after)), (false, 1_002));
    consumer.ack(&after).await;

    let ended = world
        .dump_when(&dump, |dump| dump["state"] == "finished")
        .await;
    assert_eq!(
        (&ended["rows"], &ended["uri"]),
        (&(ROW_COUNT + 1).into(), &"shop/search".into())
    );
    assert_eq!(ended["progress_ratio"], 1.0, "{ended}");
    let listed = world.ask(&["dump", "ls"]).await.expect(0).data;
    assert!(
        listed.contains("finished") && listed.contains("public.t"),
        "{listed}"
    );
    let shown = world
        .ask(&["source", "show", "shop", "-o", "json"])
        .await
        .json();
    assert_eq!(shown["replicas"], serde_json::json!(["r1"]));
    let metrics = world.page("/metrics").await;
    for name in [
        "pgcapture_dumps{state=\"finished\"} 1",
        "pgcapture_dump_rows_total 501",
        "pgcapture_dump_bytes_total ",
        "pgcapture_dump_chunks_total{result=\"finished\"} 1",
        "pgcapture_dump_chunk_duration_seconds",
        "pgcapture_dump_progress_ratio",
        "pgcapture_replica_lag_seconds{replica=\"r1\"",
        "pgcapture_replica_busy_ratio{replica=\"r1\"",
    ] {
        assert!(metrics.contains(name), "no {name}: {metrics}");
    }
    drop(standby);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_comes_later_gets_the_rows_then() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    let dump = world.start_dump(&["--table", "t"]).await;
    world
        .dump_when(&dump, |dump| dump["waiting_for"] == "a consumer of shop")
        .await;
    let mut consumer = world.joined("shop").await;
    let open = world
        .ask(&["consumer", "show", "shop", "-o", "json"])
        .await
        .json();
    assert_eq!(open["open_dumps"], serde_json::json!([dump]));
    let mut rows = take_range(&mut consumer).await;
    rows.sort_unstable();
    assert_eq!(rows, all_ids());
    world
        .dump_when(&dump, |dump| dump["state"] == "finished")
        .await;
    drop(standby);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_itself_may_be_the_replica() {
    let world = World::new().await;
    world
        .sql("INSERT INTO t SELECT n, 'old' FROM generate_series(1, 50) AS n")
        .await;
    world.caught_up().await;
    let refused = world
        .ask(&["dump", "start", "shop", "--table", "public.t"])
        .await;
    refused
        .expect(3)
        .says(&["PGC-E01", "next: add one: pgcapture replica add"]);
    world
        .add_replica("self", &world.server, &["--kind", "source"])
        .await;
    let mut consumer = world.joined("shop").await;
    let dump = world.start_dump(&["--table", "public.*"]).await;
    assert_eq!(take_range(&mut consumer).await.len(), 50);
    world
        .dump_when(&dump, |dump| dump["state"] == "finished")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_rests_goes_on_and_is_given_up() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    let dump = world.start_dump(&["--table", "public.t"]).await;
    let paused = world
        .ask(&["dump", "pause", &dump, "-o", "json"])
        .await
        .json();
    assert_eq!(paused["state"], "paused");
    let mut consumer = world.joined("shop").await;
    world.sql("INSERT INTO t VALUES (1001, 'meanwhile')").await;
    let message = consumer.next().await;
    assert!(
        !is_dump_row(&message),
        "nothing comes while it rests: {message:?}"
    );
    consumer.ack(&message).await;
    world.ask(&["dump", "resume", &dump]).await.expect(0);
    assert!(is_dump_row(&consumer.next().await));
    let unconfirmed = world.ask(&["dump", "cancel", &dump]).await;
    unconfirmed.expect(7).says(&["nothing was done"]);
    let cancelled = world
        .ask(&["dump", "cancel", &dump, "--yes", "-o", "json"])
        .await
        .json();
    assert_eq!(cancelled["state"], "cancelled");
    world
        .ask(&["dump", "resume", &dump])
        .await
        .expect(7)
        .says(&["PGC-E06"]);
    world.ask(&["dump", "retry", &dump]).await.expect(7);
    drop(standby);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_tried_again() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    let dump = world.start_dump(&["--table", "public.t"]).await;
    world.sql("ALTER TABLE t RENAME TO u; DROP TABLE u").await;
    standby.catch_up_with(&world.server).await.unwrap();
    let consumer = world.joined("shop").await;
    let failed = world
        .dump_when(&dump, |dump| dump["state"] == "failed")
        .await;
    let code = failed["trouble"]["code"].as_str().unwrap();
    assert!(code.starts_with("PGC-E"), "{failed}");
    let watched = world.ask(&["dump", "watch", &dump]).await;
    watched
        .expect(1)
        .says(&[code, &format!("pgcapture dump retry {dump}")]);
    world.ask(&["dump", "ls"]).await.expect(0).says(&[code]);
    let retried = world
        .ask(&["dump", "retry", &dump, "-o", "json"])
        .await
        .json();
    assert_eq!(retried["state"], "active", "{retried}");
    world
        .dump_when(&dump, |dump| dump["state"] == "failed")
        .await;
    world
        .sql("CREATE TABLE after_all (id bigint PRIMARY KEY)")
        .await;
    assert_eq!(world.status().await.state, "following");
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_goes_on_where_ranges_were_finished() {
    let world = World::bare(&[], "").await;
    for table in ["a", "b", "c"] {
        world
            .sql(&format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY); \
                 INSERT INTO {table} SELECT n FROM generate_series(1, 20) AS n"
            ))
            .await;
    }
    world.add(&[]).await.expect(0);
    world.until("following").await;
    let standby = standby(&world).await;
    world.add_replica("r1", &standby, &[]).await;
    let mut consumer = world.joined("shop").await;
    let dump = world
        .start_dump(&["--table", "public.*", "--parallel", "1"])
        .await;
    take_range(&mut consumer).await;
    world
        .dump_when(&dump, |dump| dump["ranges_finished"] == 1)
        .await;
    let half = consumer.next().await;
    assert!(is_dump_row(&half));
    let table = half.change.unwrap().table;

    let world = world.crash("").await;
    drop(consumer);
    let mut consumer = world.joined("shop").await;
    let mut tables = Vec::new();
    for _ in 0..2 {
        let first = consumer.next().await;
        tables.push(first.change.as_ref().unwrap().table.clone());
        consumer.ack(&first).await;
        assert_eq!(take_range(&mut consumer).await.len(), 19);
    }
    assert!(
        tables.contains(&table),
        "what was not acknowledged comes again: {tables:?}"
    );
    let ended = world
        .dump_when(&dump, |dump| dump["state"] == "finished")
        .await;
    assert_eq!(
        (&ended["rows"], &ended["ranges_finished"]),
        (&60.into(), &3.into())
    );
    drop(standby);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_dump_is_shown_to_its_end() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    let mut consumer = world.joined("shop").await;
    let endpoint = world.node.listen.clone();
    let order = [
        "dump", "start", "shop", "--table", "public.t", "-o", "ndjson",
    ];
    let taken = async {
        loop {
            take_range(&mut consumer).await;
        }
    };
    let followed = tokio::select! {
        followed = run(&endpoint, &order) => followed.expect(0),
        () = taken => unreachable!("it goes on until the dump ends"),
    };
    let last: Value = serde_json::from_str(followed.data.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["state"], &last["rows"]),
        (&"finished".into(), &ROW_COUNT.into())
    );
    assert!(
        followed.talk.contains("dump d-1  shop"),
        "{}",
        followed.talk
    );
    let again = world.ask(&["dump", "watch", "d-1"]).await.expect(0).data;
    assert!(again.starts_with("dump d-1 finished in "), "{again}");
    drop(standby);
}

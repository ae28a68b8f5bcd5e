//! Dumps at the limits: a range far larger than memory may grow, a full disk, a source that must not
//! notice.

use std::collections::{BTreeMap, BTreeSet};

use pgcapture_actors::postgres::{LocalServer, StandbyOptions};
use pgcapture_proto::pgcapture::{CaptureMessage, field};

use crate::{
    consumer::{Consumer, id},
    disk::Disk,
    dumps::{is_dump_row, standby},
    process::{Node, Place, eventually},
    world::{World, server, sql},
};

/// Rows of a mebibyte each: together one gibibyte.
const WIDE_ROWS: i64 = 1_024;
const WIDE_BYTES: usize = 1 << 20;

/// How much a node may grow while it reads them: what may be in flight to a consumer, and as much
/// again in buffers. The set is sixteen times as large.
const GROWTH_MAX: u64 = 64 << 20;

/// The second column of a row, unless it is NULL.
fn body(message: &CaptureMessage) -> &[u8] {
    let change = message.change.as_ref().expect("a change");
    let Some(field::Value::Binary(bytes)) = &change.new[1].value else {
        panic!("no binary value: {:?}", change.new[1].name)
    };
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_in_one_range_flows_whole_through_flat_memory() {
    let world = World::bare(&[], "").await;
    // The server compresses them: a gibibyte on the wire, a few megabytes on the disk.
    world
        .sql(&format!(
            "CREATE TABLE wide (id bigint PRIMARY KEY, body bytea); \
             INSERT INTO wide SELECT n, convert_to(repeat(chr(97 + n % 26), {WIDE_BYTES}), 'UTF8') \
             FROM generate_series(1, {WIDE_ROWS}) AS n"
        ))
        .await;
    world.add(&[]).await.expect(0);
    world.until("following").await;
    let standby = standby(&world).await;
    standby.catch_up_with(&world.server).await.unwrap();
    world.add_replica("r1", &standby, &[]).await;
    let mut consumer = world.joined("shop").await;
    let before = world.node.rss();
    let dump = world
        .start_dump(&["--table", "public.wide", "--pages", "0-"])
        .await;
    let bodies: Vec<_> = (b'a'..=b'z')
        .map(|letter| vec![letter; WIDE_BYTES])
        .collect();
    let mut ids = BTreeSet::new();
    let mut highest = before;
    for _ in 0..WIDE_ROWS {
        let message = consumer.next().await;
        assert!(is_dump_row(&message));
        let (id, body) = (id(&message), body(&message));
        let wanted = &bodies[usize::try_from(id % 26).unwrap()];
        assert!(body == wanted, "row {id} of {} bytes", body.len());
        ids.insert(id);
        consumer.ack(&message).await;
        highest = highest.max(world.node.rss());
    }
    assert!(ids.into_iter().eq(1..=WIDE_ROWS), "each row once");
    let ended = world
        .dump_when(&dump, |dump| dump["state"] == "finished")
        .await;
    assert_eq!(
        (&ended["rows"], &ended["ranges_finished"]),
        (&WIDE_ROWS.into(), &1.into())
    );
    let grown = highest - before;
    println!("the node grew by {} MiB", grown >> 20);
    assert!(grown < GROWTH_MAX, "{grown} bytes, from {before}");
    drop(standby);
}

/// What a consumer has that takes everything.
#[derive(Debug, Default)]
struct Taken {
    /// Existing rows by table, each with how often it came.
    rows: BTreeMap<String, BTreeMap<i64, u32>>,
    changes: BTreeSet<i64>,
}

impl Taken {
    async fn take(&mut self, consumer: &mut Consumer) {
        let message = consumer.next().await;
        let table = message.change.as_ref().unwrap().table.clone();
        if is_dump_row(&message) {
            let rows = self.rows.entry(table).or_default();
            *rows.entry(id(&message)).or_default() += 1;
        } else {
            self.changes.insert(id(&message));
        }
        consumer.ack(&message).await;
    }

    fn row_count(&self) -> usize {
        self.rows.values().map(BTreeMap::len).sum()
    }
}

/// Tables of 20 rows, each a range, beside the table `t` that changes.
const TABLES: [&str; 4] = ["a", "b", "c", "d"];

async fn world_of_tables(disk: &Disk) -> (World, LocalServer) {
    let place = Place::at(disk.path());
    let file = place.configure("[log]\nsegment = \"1MiB\"\nqueue = \"1MiB\"\n");
    let server = server(&[]).await;
    let node = Node::start(&file).await;
    let world = World::of(server, node, place);
    for table in TABLES {
        world
            .sql(&format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY); \
                 INSERT INTO {table} SELECT n FROM generate_series(1, 20) AS n"
            ))
            .await;
    }
    world
        .sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
        .await;
    world.add(&[]).await.expect(0);
    world.until("following").await;
    let standby = standby(&world).await;
    standby.catch_up_with(&world.server).await.unwrap();
    world.add_replica("r1", &standby, &[]).await;
    (world, standby)
}

/// Orders dumps for other consumers until the store has no page left; each is refused with a code then,
/// and nothing of it is left.
async fn refused_by_the_full_disk(world: &World) {
    eventually("a refusal", async || {
        let listed = world.ask(&["dump", "ls", "-o", "json"]).await.json();
        let count = listed.as_array().map_or(0, Vec::len);
        let consumer = format!("c{count}");
        let order = ["dump", "start", "shop", "--table", "public.*", "--detach"];
        let ended = world
            .ask(&[&order[..], &["--consumer", &consumer]].concat())
            .await;
        if ended.succeeded() {
            return Err(format!("{count} dumps were taken"));
        }
        ended.expect(6).says(&["PGC-E12", "PGC-N04", "disk full"]);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_waits_while_the_disk_is_full_and_goes_on_by_itself() {
    let disk = Disk::new("24m");
    let (world, standby) = world_of_tables(&disk).await;
    let mut consumer = world.joined("shop").await;
    let tables = ["--table", "a,b,c,d", "--parallel", "1"];
    let dump = world.start_dump(&tables).await;
    let mut taken = Taken::default();
    while taken.row_count() < 20 {
        taken.take(&mut consumer).await;
    }
    world
        .dump_when(&dump, |dump| dump["ranges_finished"] == 1)
        .await;

    disk.fill();
    let insert = "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 8000) i";
    world.sql(insert).await;
    world.until("blocked").await;
    refused_by_the_full_disk(&world).await;
    let during = world.dump(&dump).await;
    assert_eq!(during["state"], "active", "{during}");

    disk.empty();
    while taken.row_count() < 80 || taken.changes.len() < 8_000 {
        taken.take(&mut consumer).await;
    }
    let ended = world
        .dump_when(&dump, |dump| dump["state"] == "finished")
        .await;
    assert_eq!(
        (&ended["rows"], &ended["ranges_finished"]),
        (&80.into(), &4.into()),
        "each range counts once: {ended}"
    );
    for (table, rows) in &taken.rows {
        assert!(rows.keys().copied().eq(1..=20), "{table}: {rows:?}");
    }
    let rows_once = |rows: &&BTreeMap<i64, u32>| rows.values().all(|count| *count == 1);
    let ran_once = taken.rows.values().filter(rows_once).count();
    assert!(ran_once >= 1, "what was finished before does not run again");
    // The store takes orders again, without a restart.
    let more = ["--table", "public.a", "--consumer", "later"];
    world.start_dump(&more).await;
    consumer.close().await;
    let (exit, log) = world.node.stop().await;
    assert_eq!(exit, Some(0), "{log}");
    drop(standby);
}

/// The server's log, each session's name at the head of its lines.
const LOG_ALL: [(&str, &str); 3] = [
    ("log_statement", "all"),
    ("log_replication_commands", "on"),
    ("log_line_prefix", "<%a> "),
];

/// The statements in a server's log, each with the name of its session.
fn statements(log: &str) -> Vec<(&str, &str)> {
    log.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix('<')?.split_once("> LOG:")?;
            let rest = rest.trim_start();
            let is_one = rest.starts_with("statement:")
                || rest.starts_with("execute ")
                || rest.starts_with("received replication command:");
            is_one.then_some((name, rest))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_executes_no_statement_of_a_dump_that_reads_a_standby() {
    let world = World::bare(&LOG_ALL, "").await;
    world
        .sql(
            "CREATE TABLE watched (id bigint PRIMARY KEY, v text); \
             ALTER TABLE watched ALTER v SET STORAGE EXTERNAL; \
             INSERT INTO watched SELECT n, repeat('x', 3000) FROM generate_series(1, 300) AS n",
        )
        .await;
    world.add(&[]).await.expect(0);
    world.until("following").await;
    let options = StandbyOptions {
        hot_standby_feedback: true,
        ..StandbyOptions::default()
    };
    let standby = world.server.start_standby(options).await.unwrap();
    standby.catch_up_with(&world.server).await.unwrap();
    world.add_replica("r1", &standby, &[]).await;
    world.replica_when("r1", "ready").await;
    let mut consumer = world.joined("shop").await;
    let before = world.server.log().len();

    let dump = world.start_dump(&["--table", "public.watched"]).await;
    let mut taken = Taken::default();
    let mut is_changed = false;
    let finished = async {
        loop {
            taken.take(&mut consumer).await;
            // The sweep has something to bring.
            if !is_changed && taken.row_count() > 10 {
                is_changed = true;
                let update = "/* by hand */ UPDATE watched SET id = id + 1000 WHERE id <= 5";
                sql(&world.server, update).await;
            }
        }
    };
    let ended = tokio::select! {
        ended = world.dump_when(&dump, |dump| dump["state"] == "finished") => ended,
        () = finished => unreachable!("it goes on until the dump has ended"),
    };
    assert!(ended["rows"].as_u64().unwrap() >= 300, "{ended}");

    let log = world.server.log();
    let on_source = statements(&log[before..]);
    for (name, statement) in &on_source {
        let is_by_hand = statement.contains("/* by hand */");
        let is_of_dump = name.starts_with("pgcapture/dump") || statement.contains("watched");
        assert!(is_by_hand || !is_of_dump, "<{name}> {statement}");
    }
    let by_hand = on_source
        .iter()
        .filter(|(_, text)| text.contains("watched"));
    assert_eq!(by_hand.count(), 1, "the log has what is executed");
    let log = standby.log();
    let name = format!("pgcapture/dump/{dump}");
    let on_standby = statements(&log);
    let of_dump = on_standby.iter().filter(|(session, _)| *session == name);
    assert!(
        of_dump.clone().any(|(_, text)| text.contains("watched")),
        "the standby executed them: {on_standby:?}"
    );
}

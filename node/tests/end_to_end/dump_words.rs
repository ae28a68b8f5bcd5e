//! What a dump says of itself: its events in the node's log, its numbers, its bar on a terminal.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::{
    consumer::Consumer,
    dumps::{DumpWorld, is_dump_row, standby},
    process::{PATIENCE, run},
    world::World,
};

/// Tables of 20 rows, each a range of its own.
async fn world_of_ranges() -> (World, pgcapture_actors::postgres::LocalServer) {
    let world = World::bare(&[], "").await;
    for table in ["a", "b", "c", "d"] {
        world
            .sql(&format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY); \
                 INSERT INTO {table} SELECT n FROM generate_series(1, 20) AS n; ANALYZE {table}"
            ))
            .await;
    }
    world.add(&[]).await.expect(0);
    world.until("following").await;
    let standby = standby(&world).await;
    standby.catch_up_with(&world.server).await.unwrap();
    world.add_replica("r1", &standby, &[]).await;
    (world, standby)
}

/// Takes everything; the first row is sent back once.
async fn take_all(consumer: &mut Consumer) {
    let first = consumer.next().await;
    assert!(is_dump_row(&first));
    consumer.answer(&first, "the index is away").await;
    loop {
        let message = consumer.next().await;
        consumer.ack(&message).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_the_metrics_tell_the_life_of_a_dump() {
    let DumpWorld { world, standby } = DumpWorld::new().await;
    let dump = world.start_dump(&["--table", "public.t"]).await;
    world.ask(&["dump", "pause", &dump]).await.expect(0);
    let of_dump = |message: &'static str| {
        let dump = dump.clone();
        let node = &world.node;
        async move {
            let is_it = |line: &Value| line["message"] == message && line["dump"] == dump.as_str();
            node.logged(is_it).await
        }
    };
    let created = of_dump("dump created").await;
    assert_eq!(
        (&created["uri"], &created["source"], &created["level"]),
        (&"shop".into(), &"shop".into(), &"INFO".into()),
        "{created}"
    );
    of_dump("dump paused").await;
    world.ask(&["dump", "resume", &dump]).await.expect(0);
    of_dump("dump goes on").await;
    let mut consumer = world.joined("shop").await;
    let refused = async {
        let is_it = |line: &Value| line["message"] == "dump range given back";
        world.node.logged(is_it).await
    };
    let refused = tokio::select! {
        refused = refused => refused,
        () = take_all(&mut consumer) => unreachable!("it goes on"),
    };
    assert_eq!(
        (&refused["level"], &refused["result"], &refused["replica"]),
        (&"WARN".into(), &"requeued".into(), &"r1".into()),
        "{refused}"
    );
    assert_eq!(refused["table"], "public.t");
    let is_refused = |metrics: &str| {
        metrics.contains("pgcapture_dump_chunks_total{result=\"requeued\"} 1")
            && metrics.contains("pgcapture_dumps{state=\"active\"} 1")
    };
    let metrics = world.page("/metrics").await;
    assert!(is_refused(&metrics), "{metrics}");
    let ended = async {
        loop {
            let message = consumer.next().await;
            consumer.ack(&message).await;
        }
    };
    let finished = tokio::select! {
        finished = of_dump("dump finished") => finished,
        () = ended => unreachable!("it goes on"),
    };
    assert_eq!(finished["rows"], 500, "{finished}");

    let second = world.start_dump(&["--table", "public.t"]).await;
    let cancel = ["dump", "cancel", &second, "--yes"];
    world.ask(&cancel).await.expect(0);
    let is_cancelled =
        |line: &Value| line["message"] == "dump cancelled" && line["dump"] == second.as_str();
    world.node.logged(is_cancelled).await;
    let metrics = world.page("/metrics").await;
    for name in [
        "pgcapture_dumps{state=\"finished\"} 1",
        "pgcapture_dumps{state=\"cancelled\"} 1",
        "pgcapture_dumps{state=\"active\"} 0",
        "pgcapture_dump_rows_total 500",
        "pgcapture_dump_chunks_total{result=\"finished\"} 1",
    ] {
        assert!(metrics.contains(name), "no {name}: {metrics}");
    }
    drop(standby);
}

/// What a terminal of so many columns got, piece by piece between the movements of its cursor.
async fn on_a_terminal(columns: usize, endpoint: &str, args: &str) -> (String, Vec<String>) {
    let binary = env!("CARGO_BIN_EXE_pgcapture");
    let line = format!("stty cols {columns} rows 24 && exec {binary} {args}");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("PGCAPTURE_ENDPOINT", endpoint)
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output);
    let output = output.await.expect("it ends").expect("script is installed");
    let raw = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{raw:?}");
    let pieces = raw.split(['\r', '\n']).map(without_escapes);
    let pieces = pieces.filter(|piece| !piece.trim().is_empty()).collect();
    (raw, pieces)
}

/// The text between escape sequences.
fn without_escapes(text: &str) -> String {
    let mut pieces = text.split('\u{1b}');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|letter: char| letter.is_ascii_alphabetic());
        plain.push_str(&piece[end.map_or(piece.len(), |end| end + 1)..]);
    }
    plain
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_a_bar_shows_rows_rate_time_left_and_retries() {
    let (world, standby) = world_of_ranges().await;
    let mut consumer = world.joined("shop").await;
    let start = "dump start shop --table 'public.*' --parallel 1";
    for columns in [120, 50] {
        let shown = tokio::select! {
            shown = on_a_terminal(columns, &world.node.listen, start) => shown,
            () = take_all(&mut consumer) => unreachable!("it goes on"),
        };
        let (raw, pieces) = shown;
        let is_bar = |piece: &&String| piece.contains('[') && piece.contains('%');
        let bars: Vec<_> = pieces.iter().filter(is_bar).collect();
        let width = bars.iter().map(|bar| bar.chars().count()).max();
        assert!(width.is_some_and(|width| width <= columns), "{raw:?}");
        if columns == 120 {
            for word in [" / 80 rows", " rows/s", "eta ", "1 range(s) retried"] {
                assert!(
                    bars.iter().any(|bar| bar.contains(word)),
                    "no {word}: {pieces:#?}"
                );
            }
        }
        // Nothing of the bar is left behind: its line is cleared, then the result stands alone.
        let last = pieces.last().unwrap();
        assert!(last.contains(" finished in "), "{raw:?}");
        let after = raw.rsplit_once("%").unwrap().1;
        assert!(after.contains("\u{1b}[2K"), "{raw:?}");
    }
    let plain = ["dump", "start", "shop", "--table", "public.*"];
    let plain = tokio::select! {
        plain = run(&world.node.listen, &plain) => plain.expect(0),
        () = take_all(&mut consumer) => unreachable!("it goes on"),
    };
    let all = format!("{}{}", plain.talk, plain.data);
    assert!(!all.contains(['\u{1b}', '\r']), "{all:?}");
    assert!(plain.talk.contains(" rows"), "{all}");
    drop(standby);
}

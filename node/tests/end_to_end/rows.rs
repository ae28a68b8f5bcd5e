//! Rows of every kind on their way from SQL to `tail` and to consumers.

use pgcapture_proto::pgcapture::field;
use serde_json::json;

use crate::{
    consumer::{Consumer, YES, id, text},
    world::World,
};

/// A row for the limit of the test; compression must not help.
const LARGE_ROW: &str = "INSERT INTO t SELECT 2, string_agg(md5(i::text), '') \
                         FROM generate_series(1, 60000) i";

#[tokio::test(flavor = "multi_thread")]
async fn types_come_through_as_they_were_written() {
    let world = World::bare(&[], "").await;
    world.sql("CREATE TYPE mood AS ENUM ('sad', 'happy')").await;
    world
        .sql(
            "CREATE TABLE kinds (id bigint PRIMARY KEY, n numeric, j jsonb, a int[], m mood, \
             at timestamptz, b bytea, f boolean, u uuid, d date, missing text, large text); \
             ALTER TABLE kinds ALTER large SET STORAGE EXTERNAL",
        )
        .await;
    world.add(&[]).await.expect(0);
    world
        .sql(
            "INSERT INTO kinds VALUES (1, 12345678901234567890.000123, '{\"k\": [1, null]}', \
             '{1,NULL,3}', 'happy', '2026-01-31 08:00:00.123456+00', '\\x00ff', true, \
             'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2026-02-28', NULL, repeat('x', 100000))",
        )
        .await;
    world.sql("UPDATE kinds SET f = false").await;
    world.sql("ALTER TABLE kinds REPLICA IDENTITY FULL").await;
    world.sql("UPDATE kinds SET n = 'NaN'").await;
    world.caught_up().await;
    let lines = world.tail().await;
    let new = &lines[0]["new"];
    assert_eq!(new["id"], 1);
    assert_eq!(
        new["n"].to_string().trim_matches('"'),
        "12345678901234567890.000123"
    );
    assert_eq!(new["j"], json!({"k": [1, null]}));
    assert_eq!(new["a"], json!([1, null, 3]), "{new}");
    assert_eq!((&new["m"], &new["f"]), (&json!("happy"), &json!(true)));
    assert_eq!(new["u"], "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    assert_eq!(new["d"], "2026-02-28");
    let at = new["at"].as_str().unwrap();
    assert!(
        at.starts_with("2026-01-31") && at.contains("08:00:00.123456"),
        "{at}"
    );
    assert!(new["b"].as_str().unwrap().ends_with("00ff"), "{}", new["b"]);
    assert!(new["missing"].is_null());
    assert_eq!(new["large"].as_str().unwrap().len(), 100_000);
    let update = &lines[1];
    assert_eq!(update["op"], "UPDATE");
    assert_ne!(
        update["new"]["large"], new["large"],
        "it is unchanged and was not sent"
    );
    let full = &lines[2];
    assert_eq!(
        full["new"]["large"], new["large"],
        "filled from the old row"
    );
    assert_eq!(full["old"]["large"], new["large"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_without_binary_form_makes_its_source_text() {
    let world = World::bare(&[], "").await;
    world
        .sql("CREATE TABLE t (id bigint PRIMARY KEY, acl aclitem, more aclitem[])")
        .await;
    world.add(&[]).await.expect(0);
    let mut consumer = world.joined("shop").await;
    let row = "INSERT INTO t VALUES (7, 'postgres=r/postgres', '{postgres=r/postgres}')";
    world.sql(row).await;
    let change = consumer.next().await.change.unwrap();
    let value = |index: usize| change.new[index].value.clone().unwrap();
    assert_eq!(value(0), field::Value::Text("7".to_owned()));
    assert_eq!(
        value(2),
        field::Value::Text("{postgres=r/postgres}".to_owned())
    );
    assert!(world.node.log().contains("PGC-S20"), "{}", world.node.log());

    // The same for a column that comes while the source is read.
    world
        .sql("ALTER TABLE t DROP COLUMN acl, DROP COLUMN more")
        .await;
    world.ask(&["source", "pause", "shop"]).await.expect(0);
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    world.until("following").await;
    world.sql("ALTER TABLE t ADD COLUMN late aclitem[]").await;
    world
        .sql("INSERT INTO t VALUES (8, '{postgres=r/postgres}')")
        .await;
    let change = consumer.next().await.change.unwrap();
    assert_eq!(
        change.new[0].value,
        Some(field::Value::Text("8".to_owned()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn boundaries_truncates_and_messages_come_to_those_who_ask() {
    let world = World::new().await;
    let all = [
        ("Boundaries", YES),
        ("Truncate", YES),
        ("LogicalMessages", YES),
        ("Start", text("earliest")),
    ];
    let mut curious = Consumer::open(&world.node.listen, "shop/curious", &all).await;
    let mut old = world.joined("shop/old").await;
    world
        .sql(
            "BEGIN; INSERT INTO t VALUES (1); \
             SELECT pg_logical_emit_message(true, 'app', 'hello'); TRUNCATE t; COMMIT",
        )
        .await;
    world.sql("INSERT INTO t VALUES (2)").await;
    let mut seen = Vec::new();
    let logical = loop {
        let message = curious.next().await;
        curious.ack(&message).await;
        let kind = if message.begin.is_some() {
            "begin"
        } else if message.commit.is_some() {
            "commit"
        } else if message.truncate.is_some() {
            "truncate"
        } else if message.logical.is_some() {
            "logical"
        } else {
            "change"
        };
        seen.push((kind, message.logical));
        if kind == "commit" && seen.iter().any(|(kind, _)| *kind == "change") {
            break seen
                .iter()
                .find_map(|(_, logical)| logical.clone())
                .unwrap();
        }
    };
    let kinds: Vec<_> = seen.iter().map(|(kind, _)| *kind).collect();
    assert!(
        kinds.ends_with(&["begin", "change", "logical", "truncate", "commit"]),
        "{kinds:?}"
    );
    assert_eq!(
        (logical.prefix.as_str(), &logical.content[..]),
        ("app", &b"hello"[..])
    );
    assert_eq!(id(&old.next().await), 1);
    assert_eq!(id(&old.next().await), 2, "an old client sees changes only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_above_the_limit_halts_by_name_and_passes_once_the_limit_is_raised() {
    let world = World::with(&[], "[limits]\nmax_row = \"1MiB\"\n").await;
    world.sql("INSERT INTO t VALUES (1)").await;
    world.sql(LARGE_ROW).await;
    world.sql("INSERT INTO t VALUES (3)").await;
    world.until("halted").await;
    let status = world.status().await;
    let trouble = status.trouble.unwrap();
    assert!(trouble.text.contains("public.t"), "{trouble:?}");
    assert!(
        trouble.text.contains("1048576") || trouble.text.contains("1 MiB"),
        "{trouble:?}"
    );
    assert!(trouble.next.contains("limits.max_row"), "{trouble:?}");
    let world = world.crash("[limits]\nmax_row = \"4MiB\"\n").await;
    world.until("following").await;
    assert_eq!(world.logged_ids().await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_passes_with_flat_memory() {
    let rows = std::env::var("PGCAPTURE_TEST_TX_ROWS");
    let rows: i64 = rows.map_or(1_000_000, |text| text.parse().unwrap());
    let world = World::new().await;
    let parameters = [
        ("BatchSize", prost_types::value::Kind::NumberValue(1_000.0)),
        ("Start", text("earliest")),
    ];
    let mut consumer = Consumer::open(&world.node.listen, "shop", &parameters).await;
    world.sql("INSERT INTO t VALUES (0)").await;
    assert_eq!(consumer.next().await.batch.unwrap().messages.len(), 1);
    let before = world.node.rss();
    let insert = format!("INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, {rows}) i");
    world.sql(&insert).await;
    let (mut count, mut most) = (0, before);
    while count < rows {
        let message = consumer.next().await;
        let batch = message.batch.clone().unwrap();
        for change in &batch.messages {
            count += 1;
            assert_eq!(id(change), count);
        }
        consumer.ack_up_to(batch.messages.last().unwrap()).await;
        if count % 50_000 < 1_000 {
            most = most.max(world.node.rss());
        }
    }
    let grown = most.saturating_sub(before) >> 20;
    println!(
        "{rows} rows: {} MiB before, {} MiB at most",
        before >> 20,
        most >> 20
    );
    assert!(
        grown < 192,
        "grown by {grown} MiB from {} MiB",
        before >> 20
    );
}

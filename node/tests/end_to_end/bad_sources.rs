//! Databases that cannot be captured as they are: refused with code and next step, nothing left
//! behind, and captured once they are mended.

use pgcapture_actors::postgres::{
    Config, Connection, Replication, ReplicationOptions, ReplicationStream,
};

use crate::{
    consumer::id,
    world::{World, files_with},
};

/// A password that nothing but its file may hold.
const CANARY: &str = "canary-5d1e88";

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, v text)";

/// A client of somebody else that reads the slot.
async fn foreign_reader(config: Config, slot: &str) -> ReplicationStream {
    let config = config.with_application_name("somebody");
    let connection = Connection::connect(&config, Replication::Database).await;
    let options = ReplicationOptions::new(slot, "pgcapture_shop");
    connection
        .unwrap()
        .start_replication(&options)
        .await
        .unwrap()
}

/// Neither publication nor slot of ours is on the server, and the node knows no source.
async fn nothing_was_made(world: &World) {
    let left = "SELECT 1 FROM pg_publication UNION ALL \
                SELECT 2 FROM pg_replication_slots WHERE slot_name = 'shop_pgcapture' \
                AND plugin = 'pgoutput' AND database = 'postgres'";
    assert!(world.sql(left).await.is_empty());
    world.ask(&["source", "show", "shop"]).await.expect(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_level_replica_is_refused() {
    let world = World::bare(&[("wal_level", "replica")], "").await;
    world.sql(TABLE).await;
    let refused = world.add(&[]).await.expect(3);
    refused.says(&["PGC-S07", "ALTER SYSTEM SET wal_level = logical"]);
    nothing_was_made(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_databases_tables_and_servers_are_refused() {
    let world = World::bare(&[], "").await;
    world.sql(TABLE).await;
    world.sql("CREATE ROLE plain LOGIN").await;
    let url = world.server.url("postgres");
    let plain = url.replace("postgres@", "plain@");
    world
        .add_at(&plain, &[])
        .await
        .expect(3)
        .says(&["PGC-S08", "REPLICATION"]);
    let nowhere = world.server.url("nowhere");
    world
        .add_at(&nowhere, &[])
        .await
        .expect(3)
        .says(&["PGC-S05"]);
    world
        .add(&["--tables", "none.*"])
        .await
        .expect(3)
        .says(&["no table matches"]);
    world
        .add_at("postgres://postgres@127.0.0.1:1/postgres", &[])
        .await
        .says(&["PGC-S02"]);
    world
        .add_at("mysql://localhost/shop", &[])
        .await
        .says(&["PGC-S01"]);
    nothing_was_made(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_are_not_ours_are_refused() {
    let world = World::bare(&[("max_replication_slots", "1")], "").await;
    world.sql(TABLE).await;
    let slot = |plugin: &str| {
        format!("SELECT pg_create_logical_replication_slot('shop_pgcapture', '{plugin}')")
    };
    world.sql(&slot("test_decoding")).await;
    world
        .add(&[])
        .await
        .expect(3)
        .says(&["PGC-S15", "Choose another slot name"]);
    world
        .add(&["--slot", "free_name"])
        .await
        .expect(3)
        .says(&["PGC-S10", "max_replication_slots"]);
    world
        .sql("SELECT pg_drop_replication_slot('shop_pgcapture')")
        .await;
    world.sql("CREATE DATABASE other").await;
    let config = world.server.config("other");
    let other = Connection::connect(&config, Replication::Off).await;
    other.unwrap().query(&slot("pgoutput")).await.unwrap();
    world
        .add(&[])
        .await
        .expect(3)
        .says(&["PGC-S16", "database"]);
    nothing_was_made(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_by_somebody_else_is_left_to_them_and_taken_when_they_go() {
    let world = World::new().await;
    world.ask(&["source", "pause", "shop"]).await.expect(0);
    let foreign = foreign_reader(world.server.config("postgres"), "shop_pgcapture").await;
    world.sql("INSERT INTO t VALUES (1)").await;
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    let trouble = world.until_trouble("PGC-S12").await;
    assert!(trouble.text.contains("somebody"), "{trouble:?}");
    let shown = world.ask(&["source", "show", "shop"]).await.expect(0);
    assert!(
        shown.talk.contains("PGC-S12") && shown.talk.contains("next: "),
        "{shown:?}"
    );
    let ready = world.page("/readyz").await;
    assert!(ready.contains("PGC-S12"), "{ready}");
    let holder = "SELECT application_name FROM pg_stat_replication";
    assert_eq!(world.sql(holder).await, [[Some("somebody".to_owned())]]);
    drop(foreign);
    world.until("following").await;
    assert_eq!(world.logged_ids().await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_walsender_the_source_waits_for_one() {
    let world = World::bare(&[("max_wal_senders", "1")], "").await;
    world.sql(TABLE).await;
    let config = world.server.config("postgres");
    let taken = Connection::connect(&config, Replication::Database)
        .await
        .unwrap();
    let added = world.add(&[]).await;
    assert!(
        added.talk.contains("PGC-S11") || added.data.contains("PGC-S11"),
        "{added:?}"
    );
    drop(taken);
    if world.ask(&["source", "show", "shop"]).await.data.is_empty() {
        world.add(&[]).await.expect(0);
    }
    world.until("following").await;
    world.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(world.logged_ids().await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_replica_identity_is_left_out_and_stays_usable() {
    let world = World::bare(&[], "").await;
    world.sql(TABLE).await;
    world.sql("CREATE TABLE bare (id int)").await;
    let added = world.add(&[]).await.expect(0);
    added.says(&["PGC-S19", "bare", "REPLICA IDENTITY FULL"]);
    world.sql("INSERT INTO bare VALUES (1)").await;
    world.sql("UPDATE bare SET id = 2").await;
    world.sql("DELETE FROM bare").await;
    world.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(world.logged_ids().await, [1]);
    assert_eq!(world.tail().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_breaks_updates_of_the_application_is_refused() {
    let world = World::bare(&[], "").await;
    world.sql(TABLE).await;
    world.sql("CREATE TABLE bare (id int)").await;
    world.sql("CREATE PUBLICATION mine FOR TABLE t, bare").await;
    let refused = world.add(&["--publication", "mine"]).await.expect(3);
    refused.says(&["PGC-S19", "bare"]);
    world
        .sql("ALTER PUBLICATION mine SET (publish = 'insert')")
        .await;
    world.add(&["--publication", "mine"]).await.expect(0);
    world.until("following").await;
    world
        .ask(&["source", "rm", "shop", "--yes"])
        .await
        .expect(0);
    let left = world.sql("SELECT pubname FROM pg_publication").await;
    assert_eq!(left, [[Some("mine".to_owned())]], "theirs stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_older_than_its_publication_never_loses_silently() {
    let world = World::bare(&[], "").await;
    world.sql(TABLE).await;
    world
        .sql("SELECT pg_create_logical_replication_slot('shop_pgcapture', 'pgoutput')")
        .await;
    world.sql("INSERT INTO t VALUES (1)").await;
    let refused = world.add(&[]).await.expect(3);
    refused.says(&["PGC-S18", "shop_pgcapture"]);
    let left = world.sql("SELECT pubname FROM pg_publication").await;
    assert!(left.is_empty(), "{left:?}");
    world
        .sql("SELECT pg_drop_replication_slot('shop_pgcapture')")
        .await;
    world.add(&[]).await.expect(0);
    world.sql("INSERT INTO t VALUES (2)").await;
    assert_eq!(world.logged_ids().await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_stops_working_is_told_without_being_told() {
    let world = World::bare(&[], "").await;
    world.sql(TABLE).await;
    let right = format!("{CANARY}-right");
    world
        .sql(&format!(
            "CREATE ROLE reader LOGIN REPLICATION SUPERUSER PASSWORD '{right}'"
        ))
        .await;
    let hba = world.server.data_dir().join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("host all reader all scram-sha-256\n{lines}")).unwrap();
    world.sql("SELECT pg_reload_conf()").await;
    let secret = world.place.data().with_file_name("secret");
    std::fs::write(&secret, &right).unwrap();
    let reference = format!("file:{}", secret.display());
    let url = world.server.url("postgres").replace("postgres@", "reader@");
    world
        .add_at(&url, &["--password", &reference])
        .await
        .expect(0);
    let mut consumer = world.joined("shop").await;
    world
        .sql(&format!("ALTER ROLE reader PASSWORD '{CANARY}-new'"))
        .await;
    world
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        .await;
    let trouble = world.until_trouble("PGC-S03").await;
    world.sql("INSERT INTO t VALUES (1)").await;
    std::fs::write(&secret, format!("{CANARY}-new\n")).unwrap();
    // The running agent keeps the password it was started with: say so to the node.
    world.ask(&["source", "pause", "shop"]).await.expect(0);
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    assert_eq!(id(&consumer.next().await), 1, "nothing was lost");
    let said = [
        format!("{trouble:?}"),
        world
            .ask(&["source", "show", "shop", "-o", "json"])
            .await
            .data,
        world.ask(&["slot", "ls", "-o", "yaml"]).await.data,
        world.page("/metrics").await,
        world.page("/readyz").await,
        world.node.log(),
    ];
    assert!(!said.concat().contains(CANARY));
    let (_, log) = world.node.stop().await;
    assert!(!log.contains(CANARY), "{log}");
    assert_eq!(files_with(&world.place.data(), CANARY), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused() {
    let world = World::bare(&[], "").await;
    world
        .sql("CREATE ROLE reader LOGIN REPLICATION PASSWORD 'right'")
        .await;
    let hba = world.server.data_dir().join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("host all reader all scram-sha-256\n{lines}")).unwrap();
    world.sql("SELECT pg_reload_conf()").await;
    let port = world.server.port();
    let url = format!("postgres://reader:{CANARY}@127.0.0.1:{port}/postgres");
    let refused = world.add_at(&url, &[]).await.expect(3);
    assert!(!refused.talk.contains(CANARY), "{refused:?}");
    refused.says(&["PGC-S03", "password"]);
    assert_eq!(files_with(&world.place.data(), CANARY), [""; 0]);
    assert!(!world.node.log().contains(CANARY));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_is_found_in_its_file() {
    let world = World::bare(&[], "").await;
    let password = |word: &str| format!("ALTER ROLE capturer PASSWORD '{word}'");
    world.sql(TABLE).await;
    world
        .sql("CREATE ROLE capturer LOGIN SUPERUSER REPLICATION")
        .await;
    world.sql(&password("first")).await;
    // Who comes as the capturer needs a password; the test itself does not.
    let rules = world.server.data_dir().join("pg_hba.conf");
    let open = std::fs::read_to_string(&rules).unwrap();
    let closed = format!("host all,replication capturer 127.0.0.1/32 scram-sha-256\n{open}");
    std::fs::write(&rules, closed).unwrap();
    world.sql("SELECT pg_reload_conf()").await;
    let file = world.place.data().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let url = world.server.url("postgres");
    let url = url.replace("postgres@", "capturer@");
    let reference = format!("file:{}", file.display());
    let added = world.add_at(&url, &["--password", &reference]).await;
    added.expect(0);
    world.until("following").await;

    world.sql(&password("second")).await;
    world
        .sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
             WHERE usename = 'capturer'",
        )
        .await;
    let trouble = world.until_trouble("PGC-S03").await;
    assert!(trouble.next.contains("password"), "{trouble:?}");
    assert!(!trouble.text.contains("first"), "{trouble:?}");
    std::fs::remove_file(&file).unwrap();
    let trouble = world.until_trouble("PGC-C007").await;
    assert!(trouble.text.contains("password"), "{trouble:?}");
    std::fs::write(&file, "second\n").unwrap();
    world.until("following").await;
    world.sql("INSERT INTO t VALUES (1)").await;
    assert_eq!(world.logged_ids().await, [1]);
}

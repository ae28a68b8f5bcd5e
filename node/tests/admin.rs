//! A password that came in by a url is in one file, readable by the node only, and nowhere else.

#[path = "cli/harness.rs"]
mod harness;

use std::{fs, path::Path};

use harness::{Running, free_directory, run};
use pgcapture_actors::postgres::{
    Connection, LocalServer, LocalServerOptions, Replication, Secret, StopMode,
};

const CANARY: &str = "canary-71f3a9c2";

/// Every file under a folder that holds the canary.
fn files_with_canary(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it is there").path();
        if path.is_dir() {
            files_with_canary(&path, found);
        } else if fs::read(&path)
            .expect("it is there")
            .windows(CANARY.len())
            .any(|window| window == CANARY.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
}

/// A server with one table that asks everybody for the canary.
async fn protected_server() -> (LocalServer, Connection) {
    let server = LocalServer::start(LocalServerOptions {
        password: Some(Secret::new(CANARY)),
        ..LocalServerOptions::default()
    });
    let server = server.await.expect("PostgreSQL is installed");
    let config = server.config("postgres").with_password(Secret::new(CANARY));
    let connection = Connection::connect(&config, Replication::Off).await;
    let mut connection = connection.expect("the password is right");
    let made = connection
        .query("CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    made.expect("the table is new");
    (server, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_reaches_no_state_log_error_or_answer() {
    let (mut server, mut connection) = protected_server().await;
    let directory = free_directory();
    let data = directory.path().to_str().unwrap();
    let mut node = Running::start(&[
        "start",
        "-vv",
        "--data-dir",
        data,
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
    ]);
    node.wait_for("is ready: gRPC").await;
    let endpoint = node.endpoint();
    let port = server.port();
    let url = format!("postgres://postgres:{CANARY}@127.0.0.1:{port}/postgres");
    let wrong = format!("postgres://postgres:{CANARY}x@127.0.0.1:{port}/postgres");

    let mut said = String::new();
    let mut ask = |args: &[&str], exit: i32| {
        let ended = run(&endpoint, args);
        said.push_str(&ended.talk);
        said.push_str(&ended.expect(exit));
    };
    ask(&["source", "add", "bad", "--url", &wrong], 3);
    ask(&["source", "add", "shop", "--url", &url, "--dry-run"], 0);
    ask(&["source", "add", "shop", "--url", &url], 0);
    ask(&["source", "add", "shop", "--url", &url], 0);
    ask(
        &["source", "add", "shop", "--url", &url, "--slot", "other"],
        7,
    );
    ask(
        &["source", "add", "two", "--url", &url, "--tables", "none.*"],
        3,
    );
    ask(&["source", "show", "shop", "-o", "json"], 0);
    ask(&["source", "ls", "-o", "wide"], 0);
    ask(&["slot", "ls", "-o", "yaml"], 0);
    assert!(!said.contains(CANARY), "{said}");

    let mut found = Vec::new();
    files_with_canary(directory.path(), &mut found);
    assert_eq!(found, [format!("{data}/secrets/shop")]);

    let removed = run(&endpoint, &["source", "rm", "shop", "--yes"]).expect(0);
    assert!(removed.contains("drop slot shop_pgcapture"), "{removed}");
    let slots = connection
        .query("SELECT slot_name FROM pg_replication_slots UNION ALL SELECT pubname FROM pg_publication")
        .await
        .unwrap();
    assert!(slots.is_empty(), "{slots:?}");
    found.clear();
    files_with_canary(directory.path(), &mut found);
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(node.stop().await, Some(0));
    assert!(!node.seen.borrow().contains(CANARY));
    drop(connection);
    server.stop(StopMode::Fast).await.unwrap();
}

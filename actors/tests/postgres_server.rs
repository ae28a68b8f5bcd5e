//! The throw-away server: it starts, stops, restarts and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, time::Duration};

use pgcapture_actors::postgres::{
    Connection, LocalServer, LocalServerOptions, PgError, Replication, Secret, StandbyOptions,
    StopMode,
};

async fn ask(server: &LocalServer, sql: &str) -> Result<Vec<Vec<Option<String>>>, PgError> {
    let config = server.config("postgres");
    Connection::connect(&config, Replication::Off)
        .await?
        .query(sql)
        .await
}

fn is_alive(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn it_serves_over_tcp_and_unix_and_leaves_nothing_behind() {
    let server = LocalServer::start(LocalServerOptions::default())
        .await
        .unwrap();
    let rows = ask(&server, "SHOW wal_level; SELECT NULL, 2")
        .await
        .unwrap();
    assert_eq!(
        rows,
        [
            vec![Some("logical".to_owned())],
            vec![None, Some("2".to_owned())]
        ]
    );
    let unix = server.unix_config("postgres");
    let mut unix = Connection::connect(&unix, Replication::Off).await.unwrap();
    assert!(unix.is_unix());
    let rows = unix.query("SELECT inet_server_addr()").await.unwrap();
    assert_eq!(rows, [[None]]);
    let (pid, directory) = (server.pid().unwrap(), server.socket_dir().to_owned());
    drop(server);
    assert!(!is_alive(pid));
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_panic_leaves_nothing_behind() {
    let server = LocalServer::start(LocalServerOptions::default())
        .await
        .unwrap();
    let (pid, directory) = (server.pid().unwrap(), server.socket_dir().to_owned());
    let task = std::thread::spawn(move || {
        let _server = server;
        panic!("on purpose");
    });
    assert!(task.join().is_err());
    assert!(!is_alive(pid) && !directory.exists());
}

#[tokio::test]
async fn it_survives_stops_and_a_killed_postmaster() {
    let options = LocalServerOptions {
        settings: vec![("max_replication_slots".to_owned(), "3".to_owned())],
        ..LocalServerOptions::default()
    };
    let mut server = LocalServer::start(options).await.unwrap();
    let port = server.port();
    ask(&server, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    for mode in [StopMode::Fast, StopMode::Immediate] {
        server.stop(mode).await.unwrap();
        server.stop(mode).await.unwrap();
        assert!(ask(&server, "SELECT 1").await.is_err());
        server.restart().await.unwrap();
    }
    server.kill_postmaster();
    assert_eq!(server.pid(), None);
    server.restart().await.unwrap();
    assert_eq!(server.port(), port);
    let rows = ask(&server, "TABLE t; SHOW max_replication_slots")
        .await
        .unwrap();
    assert_eq!(rows, [[Some("1".to_owned())], [Some("3".to_owned())]]);
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_told_with_the_servers_words() {
    let options = LocalServerOptions {
        settings: vec![("wal_level".to_owned(), "sideways".to_owned())],
        ..LocalServerOptions::default()
    };
    let error = LocalServer::start(options).await.unwrap_err().to_string();
    assert!(error.contains("sideways"), "{error}");
}

#[tokio::test]
async fn it_asks_for_the_password_it_was_given() {
    let options = LocalServerOptions {
        password: Some(Secret::new("right")),
        ..LocalServerOptions::default()
    };
    let server = LocalServer::start(options).await.unwrap();
    ask(&server, "SELECT 1").await.unwrap();
    let wrong = server
        .config("postgres")
        .with_password(Secret::new("wrong"));
    let error = Connection::connect(&wrong, Replication::Off)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PGC-S03", "{error}");
    let mut none = server.config("postgres");
    none.take_password();
    let error = Connection::connect(&none, Replication::Off)
        .await
        .unwrap_err();
    assert!(matches!(error, PgError::NoPassword { .. }), "{error}");
}

#[tokio::test]
async fn it_starts_within_a_second_or_so() {
    let began = std::time::Instant::now();
    let _server = LocalServer::start(LocalServerOptions::default())
        .await
        .unwrap();
    // Ten times what it takes on a quiet machine.
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_standby_follows_stops_and_becomes_a_primary() {
    let primary = LocalServer::start(LocalServerOptions {
        password: Some(Secret::new("word")),
        ..LocalServerOptions::default()
    })
    .await
    .unwrap();
    ask(&primary, "CREATE TABLE t (a int)").await.unwrap();
    let mut standby = primary
        .start_standby(StandbyOptions {
            hot_standby_feedback: true,
            slot: Some("kept".to_owned()),
            settings: vec![("max_standby_streaming_delay".to_owned(), "1s".to_owned())],
        })
        .await
        .unwrap();
    let shown = "SELECT pg_is_in_recovery(); SHOW hot_standby_feedback; \
                 SHOW max_standby_streaming_delay";
    let shown = ask(&standby, shown).await.unwrap();
    let on = |text: &str| vec![Some(text.to_owned())];
    assert_eq!(shown, [on("t"), on("on"), on("1s")]);
    standby.stop(StopMode::Fast).await.unwrap();
    ask(&primary, "INSERT INTO t VALUES (1)").await.unwrap();
    standby.restart().await.unwrap();
    standby.catch_up_with(&primary).await.unwrap();
    let count = "SELECT count(*) FROM t";
    assert_eq!(ask(&standby, count).await.unwrap(), [on("1")]);
    standby.pause_replay().await.unwrap();
    ask(&primary, "INSERT INTO t VALUES (2)").await.unwrap();
    assert_eq!(ask(&standby, count).await.unwrap(), [on("1")]);
    standby.resume_replay().await.unwrap();
    standby.catch_up_with(&primary).await.unwrap();
    assert_eq!(ask(&standby, count).await.unwrap(), [on("2")]);
    standby.promote().await.unwrap();
    ask(&standby, "INSERT INTO t VALUES (3)").await.unwrap();
    let error = primary.promote().await.unwrap_err();
    assert!(error.has_sqlstate("55000"), "{error}");
    let (pid, directory) = (standby.pid().unwrap(), standby.socket_dir().to_owned());
    drop(standby);
    assert!(!is_alive(pid) && !directory.exists());
}

//! Following a slot by walsender, on real servers: the round trip, the faults, the shutdown.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "postgres/support.rs"]
mod support;

use std::time::{Duration, Instant};

use pgcapture_actors::postgres::{
    Connection, PgError, Remedy, Replication, ReplicationEvent, ReplicationOptions,
    ReplicationStream, StopMode, catalog,
};
use pgcapture_engine::lsn::Lsn;

use self::support::{Source, cutting_proxy};

/// Reads until the transaction that inserted `marker` has been seen, and returns the payloads.
async fn read_until(stream: &mut ReplicationStream, marker: &str) -> Result<Vec<Vec<u8>>, PgError> {
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    let mut is_seen = false;
    loop {
        for event in stream.receive().await? {
            if let ReplicationEvent::Data { payload, .. } = event {
                is_seen |= payload
                    .windows(marker.len())
                    .any(|part| part == marker.as_bytes());
                payloads.push(payload.to_vec());
                if is_seen && payload.first() == Some(&b'C') {
                    return Ok(payloads);
                }
            }
        }
    }
}

/// Reads keepalives and confirms them until the slot stands at `to` at least.
async fn confirm_until(stream: &mut ReplicationStream, source: &mut Source, to: Lsn) {
    let status = stream.status();
    loop {
        let reached = source.slot().await.confirmed_flush_lsn.unwrap();
        if reached >= to {
            return;
        }
        let received = tokio::time::timeout(Duration::from_millis(50), stream.receive()).await;
        for event in received.into_iter().flatten().flatten() {
            if let ReplicationEvent::KeepAlive { server_end, .. } = event {
                status.confirm(server_end);
            }
        }
    }
}

#[tokio::test]
async fn changes_arrive_and_the_confirmed_position_reaches_the_slot() {
    let mut source = Source::start().await;
    for config in [
        source.server.config("postgres"),
        source.server.unix_config("postgres"),
    ] {
        let mut stream = source.stream(&config).await.unwrap();
        source.insert("first").await;
        let payloads = read_until(&mut stream, "first").await.unwrap();
        let kinds: Vec<u8> = payloads.iter().map(|payload| payload[0]).collect();
        assert!(kinds.ends_with(b"BRIC"), "{kinds:?}");
        // A position that only the idle server's keepalives tell.
        let now = source.flush_lsn().await;
        confirm_until(&mut stream, &mut source, now).await;
    }
}

#[tokio::test]
async fn nothing_is_confirmed_that_was_not_asked_for() {
    let mut source = Source::start().await;
    let before = source.slot().await.confirmed_flush_lsn;
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    source.insert("x").await;
    read_until(&mut stream, "x").await.unwrap();
    drop(stream.stop().await.unwrap());
    assert_eq!(source.slot().await.confirmed_flush_lsn, before);
    let mut again = source.stream(&config).await.unwrap();
    read_until(&mut again, "x").await.unwrap();
}

#[tokio::test]
async fn a_stopped_stream_frees_the_slot_and_gives_its_connection_back_for_sql() {
    let mut source = Source::start().await;
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    for round in ["one", "two", "three"] {
        source.insert(round).await;
        read_until(&mut stream, round).await.unwrap();
        let mut connection = stream.stop().await.unwrap();
        let rows = connection.query("SELECT 1").await.unwrap();
        assert_eq!(rows, [[Some("1".to_owned())]]);
        assert_eq!(source.slot().await.active_pid, None);
        let again = connection.start_replication(&source.options()).await;
        assert!(again.is_err(), "the server would end it at once");
        stream = source.stream(&config).await.unwrap();
    }
}

#[tokio::test]
async fn a_dropped_stream_frees_the_slot() {
    let mut source = Source::start().await;
    let config = source.server.config("postgres");
    for _ in 0..3 {
        drop(source.stream(&config).await.unwrap());
        source.wait_free().await;
    }
}

#[tokio::test]
async fn a_slot_in_use_names_who_has_it() {
    let mut source = Source::start().await;
    let config = source
        .server
        .config("postgres")
        .with_application_name("holder");
    let stream = source.stream(&config).await.unwrap();
    let error = source.stream(&config).await.unwrap_err();
    assert_eq!(error.code(), "PGC-S12", "{error}");
    let holder = catalog::slot_holder(&mut source.sql, "s")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(holder.application_name, "holder");
    let text = catalog::slot_in_use_error("s", &holder).to_string();
    assert!(
        text.contains(&holder.pid.to_string()) && text.contains("holder"),
        "{text}"
    );
    drop(stream);
}

#[tokio::test]
async fn a_take_over_ends_the_walsender_and_its_client_hears_of_it() {
    let mut source = Source::start().await;
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    let holder = catalog::terminate_walsender(&mut source.sql, "s")
        .await
        .unwrap();
    assert!(holder.is_some());
    let error = loop {
        if let Err(error) = stream.receive().await {
            break error;
        }
    };
    assert!(
        matches!(error.remedy(), Remedy::Retry | Remedy::Rebuild),
        "{error}"
    );
    source.stream(&config).await.unwrap();
}

#[tokio::test]
async fn a_killed_postmaster_is_an_error_that_rebuilds_and_the_stream_goes_on_after_it() {
    let mut source = Source::start().await;
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    source.insert("before").await;
    source.server.kill_postmaster();
    let error = loop {
        if let Err(error) = stream.receive().await {
            break error;
        }
    };
    assert!(
        matches!(error.remedy(), Remedy::Retry | Remedy::Rebuild),
        "{error}"
    );
    let refused = Connection::connect(&config, Replication::Off)
        .await
        .unwrap_err();
    assert_eq!(refused.remedy(), Remedy::Retry, "{refused}");
    source.server.restart().await.unwrap();
    source.reconnect().await;
    source.insert("after").await;
    let mut stream = source.stream(&config).await.unwrap();
    let payloads = read_until(&mut stream, "after").await.unwrap();
    assert!(payloads.iter().any(|payload| payload.ends_with(b"before")));
}

#[tokio::test]
async fn a_fast_shutdown_is_not_delayed_by_a_drained_stream() {
    let mut source = Source::start().await;
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    source.insert("last").await;
    read_until(&mut stream, "last").await.unwrap();
    let status = stream.status();
    let reader = async {
        loop {
            match stream.receive().await {
                Ok(received) => {
                    for event in received {
                        if let ReplicationEvent::KeepAlive { server_end, .. } = event {
                            status.confirm(server_end);
                        }
                    }
                }
                Err(error) => return error,
            }
        }
    };
    let began = Instant::now();
    let (error, stopped) = tokio::join!(reader, source.server.stop(StopMode::Fast));
    stopped.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(
        matches!(error, PgError::Closed | PgError::Server(_)),
        "{error}"
    );
}

#[tokio::test]
async fn a_reader_that_waits_for_its_log_stays_connected() {
    let mut source = Source::start_with(&[("wal_sender_timeout", "3s")]).await;
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    source.insert("x").await;
    read_until(&mut stream, "x").await.unwrap();
    let pid = source.slot().await.active_pid;
    // Twice the server's patience without a single read.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert_eq!(source.slot().await.active_pid, pid);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    source.insert("y").await;
    read_until(&mut stream, "y").await.unwrap();
}

#[tokio::test]
async fn a_connection_cut_at_any_byte_is_an_error_and_nothing_is_lost() {
    let mut source = Source::start().await;
    source
        .sql
        .query("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 300) i")
        .await
        .unwrap();
    source.insert("end").await;
    let direct = source.server.config("postgres");
    let mut stream = source.stream(&direct).await.unwrap();
    let wanted = read_until(&mut stream, "end").await.unwrap();
    drop(stream);
    for bytes in [700, 1_500, 4_097, 20_000, 65_536] {
        source.wait_free().await;
        let (port, _proxy) = cutting_proxy(source.server.port(), bytes).await;
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
        let config = pgcapture_actors::postgres::Config::parse(&url).unwrap();
        let error = match source.stream(&config).await {
            Ok(mut stream) => read_until(&mut stream, "end").await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.remedy(), Remedy::Rebuild, "{bytes}: {error}");
    }
    source.wait_free().await;
    let mut stream = source.stream(&direct).await.unwrap();
    assert_eq!(read_until(&mut stream, "end").await.unwrap(), wanted);
}

#[tokio::test]
async fn a_message_above_the_limit_is_a_clear_error() {
    let mut source = Source::start().await;
    source
        .sql
        .query("INSERT INTO t VALUES (1, repeat('x', 200000))")
        .await
        .unwrap();
    let config = source.server.config("postgres");
    let connection = Connection::connect(&config, Replication::Database)
        .await
        .unwrap();
    let mut options = source.options();
    options.message_bytes_max = 100_000;
    let mut stream = connection.start_replication(&options).await.unwrap();
    let error = read_until(&mut stream, "nothing").await.unwrap_err();
    assert!(
        matches!(error, PgError::MessageTooLarge { limit: 100_000, .. }),
        "{error}"
    );
    assert_eq!(error.remedy(), Remedy::Halt);
}

#[tokio::test]
async fn a_huge_row_passes_and_so_does_what_follows() {
    let mut source = Source::start().await;
    source
        .sql
        .query("INSERT INTO t VALUES (1, repeat('x', 20000000))")
        .await
        .unwrap();
    source.insert("small").await;
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    let payloads = read_until(&mut stream, "small").await.unwrap();
    assert!(payloads.iter().any(|payload| payload.len() > 20_000_000));
}

#[tokio::test]
async fn an_old_position_is_forwarded_and_a_missing_slot_halts() {
    let source = Source::start().await;
    let config = source.server.config("postgres");
    let connection = Connection::connect(&config, Replication::Database)
        .await
        .unwrap();
    let options = ReplicationOptions::new("nowhere", "p");
    let error = connection.start_replication(&options).await.unwrap_err();
    assert_eq!(
        (error.code(), error.remedy()),
        ("PGC-S13", Remedy::Halt),
        "{error}"
    );
}

//! Catching up a slot by COPY, on real servers: the same bytes as the walsender's, and the real
//! slot never moves.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "postgres/support.rs"]
mod support;

use std::time::Duration;

use pgcapture_actors::postgres::{
    Config, Connection, PgError, Replication, ReplicationEvent, SlotCopies, SlotCopy,
    SlotCopyError, SlotCopyOptions, advance_slot, catalog,
};
use pgcapture_engine::lsn::Lsn;

use self::support::Source;

/// From 18 on a publication that is missing is a warning in the server's log; the agent's watch
/// notices it by SQL.
const PUBLICATION_SKIPPED_SINCE: u32 = 180_000;

type Messages = Vec<(Lsn, Vec<u8>)>;

async fn fill(source: &mut Source) {
    for step in 0..20 {
        let sql = format!(
            "INSERT INTO t SELECT i, repeat('{step}', i % 700) FROM generate_series(1, 200) i; \
             SELECT pg_logical_emit_message(true, 'note', 'step {step}')"
        );
        source.sql.query(&sql).await.unwrap();
    }
    source
        .sql
        .query("ALTER TABLE t ADD COLUMN more numeric DEFAULT 1")
        .await
        .unwrap();
    source
        .insert_sql("INSERT INTO t VALUES (9, 'last', 3.5)")
        .await;
}

/// Reads chunks until `end`.
async fn copied(copy: &mut SlotCopy, end: Lsn, chunk: u64) -> Messages {
    let mut messages = Vec::new();
    while copy.position() < end {
        let upto = Lsn((copy.position().0 + chunk).min(end.0));
        let mut reader = copy.chunk(upto).await.unwrap();
        assert_eq!(reader.reached(), None);
        while let Some(rows) = reader.receive().await.unwrap() {
            messages.extend(rows.map(|row| (row.lsn, row.payload.to_vec())));
        }
        assert!(reader.reached().unwrap() >= upto);
        assert!(
            reader.receive().await.unwrap().is_none(),
            "the end stays the end"
        );
    }
    messages
}

/// Reads chunks of two copies that take turns until `end`; returns how many were asked for ahead.
async fn copied_in_turns(copies: &mut SlotCopies, end: Lsn, chunk: u64) -> (Messages, usize) {
    let (mut messages, mut ahead_count) = (Vec::new(), 0);
    while copies.is_requested() || copies.position() < end {
        if !copies.is_requested() {
            let upto = Lsn((copies.position().0 + chunk).min(end.0));
            copies.request(upto).await.unwrap();
        }
        let (mut reader, next) = copies.begin().await.unwrap();
        let mut next = Some(next);
        while let Some(rows) = reader.receive().await.unwrap() {
            if let Some(mut next) = next.take()
                && let Some(from) = next.place().await.unwrap().filter(|from| *from < end)
            {
                let upto = Lsn((from.0 + chunk).min(end.0));
                next.request(upto).await.unwrap();
                ahead_count += 1;
            }
            messages.extend(rows.map(|row| (row.lsn, row.payload.to_vec())));
        }
        copies.turn().unwrap();
    }
    (messages, ahead_count)
}

async fn followed(source: &Source, count: usize) -> Messages {
    let config = source.server.config("postgres");
    let mut stream = source.stream(&config).await.unwrap();
    let mut messages = Vec::new();
    while messages.len() < count {
        for event in stream.receive().await.unwrap() {
            if let ReplicationEvent::Data {
                wal_start, payload, ..
            } = event
            {
                messages.push((wal_start, payload.to_vec()));
            }
        }
    }
    messages
}

/// Opens a copy of the slot, once the session of an earlier one has ended on the server too.
async fn opened(config: &Config) -> SlotCopy {
    loop {
        match SlotCopy::open(config, SlotCopyOptions::new("s", "p")).await {
            Err(SlotCopyError::Locked { .. }) => {}
            opened => return opened.unwrap(),
        }
    }
}

#[tokio::test]
async fn chunks_hold_the_bytes_of_the_walsender_whatever_their_size() {
    let mut source = Source::start().await;
    fill(&mut source).await;
    let before = source.slot().await;
    let end = source.flush_lsn().await;
    let mut all = Vec::new();
    for (config, chunk) in [
        (source.server.config("postgres"), 1 << 30),
        (source.server.unix_config("postgres"), 100_000),
    ] {
        let mut copy = opened(&config).await;
        all.push(copied(&mut copy, end, chunk).await);
    }
    let whole = &all[0];
    assert!(whole.len() > 4_000);
    let stream = followed(&source, whole.len()).await;
    assert_eq!(whole.len(), stream.len());
    for (copied, streamed) in whole.iter().zip(&stream) {
        assert!(copied.1 == streamed.1, "payloads differ at {}", copied.0);
        // The walsender gives descriptions of tables no position.
        let position = if streamed.1[0] == b'R' {
            Lsn::ZERO
        } else {
            copied.0
        };
        assert_eq!(position, streamed.0);
    }
    source.wait_free().await;
    assert!(
        rows_of(&all[1]) == rows_of(whole),
        "small chunks differ from a large one"
    );
    let after = source.slot().await;
    assert_eq!(after.confirmed_flush_lsn, before.confirmed_flush_lsn);
    assert_eq!(after.restart_lsn, before.restart_lsn);
}

/// Each call describes the table anew; everything else is the same.
fn rows_of(messages: &Messages) -> Messages {
    let rows = messages
        .iter()
        .filter(|(_, payload)| !payload.starts_with(b"R"));
    rows.cloned().collect()
}

#[tokio::test]
async fn two_copies_in_turns_read_what_one_reads_and_the_real_slot_stays() {
    let mut source = Source::start().await;
    fill(&mut source).await;
    let before = source.slot().await;
    let end = source.flush_lsn().await;
    let config = source.server.config("postgres");
    let options = SlotCopyOptions::new("s", "p");
    let mut copies = SlotCopies::open(&config, options.clone()).await.unwrap();
    let (in_turns, ahead_count) = copied_in_turns(&mut copies, end, 100_000).await;
    assert!(ahead_count > 5, "{ahead_count} chunks were asked for ahead");
    drop(copies);
    while catalog::slots(&mut source.sql).await.unwrap().len() > 1 {
        tokio::task::yield_now().await;
    }
    let mut copy = SlotCopy::open(&config, options).await.unwrap();
    let whole = copied(&mut copy, end, 1 << 30).await;
    assert!(rows_of(&in_turns) == rows_of(&whole));
    let after = source.slot().await;
    assert_eq!(after.confirmed_flush_lsn, before.confirmed_flush_lsn);
}

#[tokio::test]
async fn with_one_free_slot_one_copy_does_alone() {
    let mut source = Source::start_with(&[("max_replication_slots", "2")]).await;
    fill(&mut source).await;
    let end = source.flush_lsn().await;
    let config = source.server.config("postgres");
    let options = SlotCopyOptions::new("s", "p");
    let mut copies = SlotCopies::open(&config, options).await.unwrap();
    assert_eq!(copies.chunk_count_max(), 2);
    let (messages, ahead_count) = copied_in_turns(&mut copies, end, 100_000).await;
    assert_eq!((copies.chunk_count_max(), ahead_count), (1, 0));
    let rows = rows_of(&messages);
    assert_eq!(
        rows.iter()
            .filter(|(_, payload)| payload[0] == b'I')
            .count(),
        4_001
    );
}

#[tokio::test]
async fn the_real_slot_is_advanced_on_its_own_and_never_back() {
    let mut source = Source::start().await;
    fill(&mut source).await;
    let config = source.server.config("postgres");
    let end = source.flush_lsn().await;
    let mut copy = SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap();
    copied(&mut copy, end, 1 << 30).await;
    let reached = advance_slot(&mut source.sql, "s", copy.position())
        .await
        .unwrap();
    assert!(reached >= end);
    assert_eq!(source.slot().await.confirmed_flush_lsn, Some(reached));
    let again = advance_slot(&mut source.sql, "s", Lsn(1)).await.unwrap();
    assert_eq!(again, reached);
    let missing = advance_slot(&mut source.sql, "nowhere", end)
        .await
        .unwrap_err();
    assert_eq!(missing.code(), "PGC-S13");
}

#[tokio::test]
async fn the_copy_ends_with_its_session_and_two_cannot_be() {
    let mut source = Source::start().await;
    let config = source
        .server
        .config("postgres")
        .with_application_name("first");
    let copy = SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap();
    let error = SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap_err();
    assert!(matches!(error, SlotCopyError::Locked { .. }), "{error}");
    let holder = catalog::slot_holder(&mut source.sql, "s")
        .await
        .unwrap()
        .unwrap();
    assert!(
        holder.is_catching_up && holder.application_name == "first",
        "{holder:?}"
    );
    let ended = catalog::terminate_walsender(&mut source.sql, "s")
        .await
        .unwrap();
    assert_eq!(ended, Some(holder));
    drop(copy);
    let names: Vec<_> = catalog::slots(&mut source.sql).await.unwrap();
    let names: Vec<_> = names.iter().map(|slot| slot.name.as_str()).collect();
    assert_eq!(names, ["s"]);
    SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap();
}

/// A session that collects a chunk sends nothing, and so does not notice that nobody listens.
#[tokio::test]
async fn a_copy_that_is_dropped_while_the_server_collects_does_not_outlive_it() {
    let mut source = Source::start().await;
    fill(&mut source).await;
    let end = source.flush_lsn().await;
    let config = source.server.config("postgres");
    let mut copy = opened(&config).await;
    let mut holder = Connection::connect(&config, Replication::Off)
        .await
        .unwrap();
    holder
        .query("BEGIN; LOCK TABLE pg_publication")
        .await
        .unwrap();
    let waits = "SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) \
                 WHERE NOT granted AND query LIKE 'COPY %'";
    let collects = async { while source.sql.query(waits).await.unwrap().is_empty() {} };
    tokio::select! {
        chunk = copy.chunk(end) => panic!("it cannot be collected: {:?}", chunk.is_ok()),
        () = collects => {}
    }
    drop(copy);
    let ends = async {
        while catalog::slots(&mut source.sql).await.unwrap().len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), ends).await;
    ended.expect("the server looks for us");
    opened(&config).await;
}

#[tokio::test]
async fn without_a_free_slot_it_says_unavailable_and_the_slot_can_be_followed() {
    let mut source = Source::start_with(&[("max_replication_slots", "1")]).await;
    let config = source.server.config("postgres");
    let error = SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SlotCopyError::Unavailable { .. }),
        "{error}"
    );
    assert_eq!(error.explanation().code, "PGC-S30");
    source.insert("x").await;
    assert!(!followed(&source, 1).await.is_empty());
}

#[tokio::test]
async fn a_role_with_replication_alone_can_catch_up() {
    let mut source = Source::start().await;
    source.insert("x").await;
    source
        .sql
        .query("CREATE ROLE reader LOGIN REPLICATION")
        .await
        .unwrap();
    let end = source.flush_lsn().await;
    let url = source
        .server
        .url("postgres")
        .replace("postgres@", "reader@");
    let config = pgcapture_actors::postgres::Config::parse(&url).unwrap();
    let mut copy = SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap();
    assert!(!copied(&mut copy, end, 1 << 30).await.is_empty());
    source
        .sql
        .query("ALTER ROLE reader NOREPLICATION")
        .await
        .unwrap();
    drop(copy);
    while catalog::slots(&mut source.sql).await.unwrap().len() > 1 {
        tokio::task::yield_now().await;
    }
    let error = SlotCopy::open(&config, SlotCopyOptions::new("s", "p"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SlotCopyError::Unavailable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_error_inside_a_chunk_is_told_and_the_real_slot_stays() {
    let mut source = Source::start().await;
    source.insert("x").await;
    let before = source.slot().await.confirmed_flush_lsn;
    let end = source.flush_lsn().await;
    let config = source.server.config("postgres");
    let options = SlotCopyOptions::new("s", "no_such_publication");
    let mut copy = SlotCopy::open(&config, options).await.unwrap();
    let mut reader = copy.chunk(end).await.unwrap();
    let received = reader.receive().await;
    if source.sql.server_version() < PUBLICATION_SKIPPED_SINCE {
        let error: PgError = received.unwrap_err();
        assert_eq!(error.code(), "PGC-S18", "{error}");
    } else {
        received.unwrap();
    }
    assert_eq!(source.slot().await.confirmed_flush_lsn, before);
    let config = source.server.config("nowhere");
    let error = Connection::connect(&config, Replication::Off)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PGC-S05", "{error}");
}

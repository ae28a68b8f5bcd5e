//! Retention of the embedded log: what is removed, and what readers are told.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/rows.rs"]
mod rows;

use std::{path::Path, sync::Arc, time::Duration};

use pgcapture_actors::log::{
    ChangeLog as _, LogError, Start,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};
use rows::{append_all, checkpoints, commit_lsn, commit_time, read_durable};

fn open(directory: &Path) -> Arc<EmbeddedLog> {
    let options = EmbeddedLogOptions {
        segment_bytes: 64 << 10,
        retention_bytes: Some(256 << 10),
        tail_cache_bytes: 0,
        ..EmbeddedLogOptions::default()
    };
    EmbeddedLog::open(directory, options).unwrap()
}

/// Lengths of the segments in a directory, oldest first.
fn lengths(directory: &Path) -> Vec<u64> {
    let files = std::fs::read_dir(directory).unwrap().flatten();
    let segments = files.filter(|file| file.path().extension().is_some_and(|it| it == "segment"));
    let mut lengths: Vec<_> = segments
        .map(|file| (file.file_name(), file.metadata().unwrap().len()))
        .collect();
    lengths.sort();
    lengths.into_iter().map(|(_, length)| length).collect()
}

#[tokio::test]
async fn an_idle_log_takes_little_space_and_one_that_fills_has_large_segments() {
    let directory = tempfile::tempdir().unwrap();
    let open = || EmbeddedLog::open(directory.path(), EmbeddedLogOptions::default()).unwrap();
    let newest = || lengths(directory.path()).last().copied();
    let log = open();
    assert_eq!(lengths(directory.path()), [1 << 20]);
    for epoch in 1..=6 {
        drop(log.open_writer(Epoch(epoch)).await.unwrap());
        assert_eq!(
            newest(),
            Some(1 << 20),
            "who reads it changes, and it stays idle"
        );
    }
    let mut writer = log.open_writer(Epoch(7)).await.unwrap();
    let mut number = 0;
    for wanted in [2 << 20, 4 << 20] {
        while newest() != Some(wanted) {
            append_all(&mut writer, number + 1..=number + 500, 4).await;
            number += 500;
            assert!(newest() <= Some(wanted), "{:?}", lengths(directory.path()));
        }
    }
    drop(writer);
    log.close().await;
    // The next one goes on growing after a restart.
    let log = open();
    let mut writer = log.open_writer(Epoch(7)).await.unwrap();
    while newest() == Some(4 << 20) {
        append_all(&mut writer, number + 1..=number + 500, 4).await;
        number += 500;
    }
    assert_eq!(newest(), Some(8 << 20));
}

#[tokio::test]
async fn size_removes_whole_segments_and_the_start_tells_so() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    let mut overtaken = log.open_reader(Start::Earliest).await.unwrap();
    append_all(&mut writer, 1..=1_000, 4).await;

    for reopened in [false, true] {
        let log = if reopened {
            log.close().await;
            open(directory.path())
        } else {
            Arc::clone(&log)
        };
        let extent = log.extent();
        assert!(extent.bytes <= 320 << 10, "{extent:?}");
        let earliest = extent.earliest.unwrap();
        let first = earliest.lsn.0 / 100;
        assert!(first > 100 && earliest.seq == 0, "{earliest}");
        assert_eq!(extent.earliest_time, commit_time(first));
        let last_removed = Checkpoint::new(commit_lsn(first - 1), 5);

        for start in [
            Start::Earliest,
            Start::After(last_removed),
            Start::AtLsn(Lsn(last_removed.lsn.0 + 1)),
            Start::AtTime(PgTime(commit_time(first - 1).0 + 1)),
        ] {
            let mut reader = log.open_reader(start).await.unwrap();
            let seen = read_durable(&mut reader).await;
            assert_eq!(seen, checkpoints(first..=1_000, 4), "{start:?}");
        }
        for start in [
            Start::After(Checkpoint::new(commit_lsn(first - 1), 4)),
            Start::After(Checkpoint::new(commit_lsn(1), 0)),
            Start::AtLsn(last_removed.lsn),
            Start::AtTime(commit_time(first - 1)),
        ] {
            match log.open_reader(start).await.map(drop) {
                Err(LogError::Removed { earliest: told, .. }) => assert_eq!(told, earliest),
                other => panic!("{start:?}: {other:?}"),
            }
        }
    }
    let error = overtaken.next().await.unwrap_err();
    assert!(matches!(error, LogError::Removed { .. }), "{error}");
}

#[tokio::test]
async fn a_reader_that_has_everything_removed_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=200, 4).await;
    let mut reader = log.open_reader(Start::Latest).await.unwrap();
    let mut seen = Vec::new();
    for number in 201..=1_500 {
        append_all(&mut writer, [number], 4).await;
        seen.extend(read_durable(&mut reader).await);
    }
    assert_eq!(seen, checkpoints(201..=1_500, 4));
}

#[tokio::test]
async fn age_removes_closed_segments_while_the_log_is_idle() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedLogOptions {
        segment_bytes: 64 << 10,
        retention_time: Some(Duration::from_millis(1)),
        ..EmbeddedLogOptions::default()
    };
    let log = EmbeddedLog::open(directory.path(), options).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=500, 4).await;
    // A later rotation meets segments that are older than the limit.
    append_all(&mut writer, 501..=1_000, 4).await;
    assert!(log.extent().segments < 10, "{:?}", log.extent());
    let mut reader = log
        .open_reader(Start::AtLsn(commit_lsn(1_000)))
        .await
        .unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints([1_000], 4));
}

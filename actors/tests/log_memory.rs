//! What the log in memory does for tests beyond the contract.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/rows.rs"]
mod rows;

use futures_util::FutureExt as _;
use pgcapture_actors::log::{
    ChangeLog as _, LogError, LogHealth, Start,
    memory::{MemoryLog, MemoryLogOptions},
};
use pgcapture_engine::checkpoint::{Checkpoint, Epoch};
use rows::{append_all, checkpoints, commit_lsn, read_durable, transaction};

#[tokio::test]
async fn what_is_held_is_accepted_and_not_visible_until_released() {
    let log = MemoryLog::new(MemoryLogOptions {
        queue_batches_max: 2,
        ..MemoryLogOptions::default()
    });
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    log.block("PGC-L01: no space left");
    assert!(matches!(*log.health().borrow(), LogHealth::Blocked { .. }));
    writer.append(transaction(1, 1)).await.unwrap();
    writer.append(transaction(2, 1)).await.unwrap();
    assert!(
        writer.append(transaction(3, 1)).now_or_never().is_none(),
        "the queue is full"
    );
    assert!(writer.flush().now_or_never().is_none());
    assert_eq!(reader.try_next().await.unwrap(), None);
    assert_eq!(log.tail().borrow().last, None);
    log.release();
    assert_eq!(*log.health().borrow(), LogHealth::Writable);
    append_all(&mut writer, [3], 1).await;
    assert_eq!(read_durable(&mut reader).await, checkpoints(1..=3, 1));
}

#[tokio::test]
async fn retention_removes_the_oldest_and_tells_readers() {
    let log = MemoryLog::new(MemoryLogOptions {
        batches_max: 5,
        ..MemoryLogOptions::default()
    });
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    let mut overtaken = log.open_reader(Start::Earliest).await.unwrap();
    append_all(&mut writer, 1..=10, 1).await;
    let floor = Checkpoint::new(commit_lsn(5), 2);
    let mut reader = log.open_reader(Start::After(floor)).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(6..=10, 1));
    let missing = Start::After(Checkpoint::new(commit_lsn(5), 1));
    for error in [
        log.open_reader(missing).await.map(drop).unwrap_err(),
        overtaken.next().await.unwrap_err(),
    ] {
        assert!(
            matches!(error, LogError::Removed { earliest, .. } if earliest == Checkpoint::new(commit_lsn(6), 0)),
            "{error}"
        );
    }
    log.retain(1);
    assert_eq!(
        log.extent().earliest,
        Some(Checkpoint::new(commit_lsn(10), 0))
    );
}

#[tokio::test]
async fn a_failed_log_loses_what_was_accepted_only() {
    let log = MemoryLog::new(MemoryLogOptions::default());
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, [1], 1).await;
    log.hold();
    writer.append(transaction(2, 1)).await.unwrap();
    log.fail("the test says so");
    let refused = writer.append(transaction(3, 1)).await;
    assert!(
        matches!(refused, Err(LogError::Closed { .. })),
        "{refused:?}"
    );
    assert!(matches!(writer.flush().await, Err(LogError::Closed { .. })));
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints([1], 1));
}

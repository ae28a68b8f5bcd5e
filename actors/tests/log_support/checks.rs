//! The checks that every backend passes. Each takes an empty log.

use std::sync::Arc;

use futures_util::FutureExt as _;
use pgcapture_actors::log::{ChangeLog, LogError, Start};
use pgcapture_engine::{
    batch::Batch,
    checkpoint::{Checkpoint, Epoch},
    confirm::Origin,
    lsn::{Lsn, PgTime},
};

use super::rows::{
    append_all, checkpoints, collect, commit_lsn, commit_time, read_durable, transaction,
};

type Log = Arc<dyn ChangeLog>;

pub(crate) async fn batches_are_read_in_the_order_of_acceptance(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=200, 3).await;
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(1..=200, 3));
    assert_eq!(reader.try_next().await.unwrap(), None);
}

pub(crate) async fn flush_returns_the_tail_of_what_was_accepted(log: Log) {
    assert_eq!(log.extent().tail.last, None);
    assert_eq!(log.extent().earliest, None);
    let mut writer = log.open_writer(Epoch(3)).await.unwrap();
    writer.append(transaction(1, 2)).await.unwrap();
    let tail = writer.flush().await.unwrap();
    assert_eq!(tail.epoch, Epoch(3));
    assert_eq!(tail.last, Some(Checkpoint::new(commit_lsn(1), 3)));
    assert_eq!(tail.resume_lsn, Lsn(commit_lsn(1).0 + 8));
    assert_eq!(tail.commit_time, commit_time(1));
    assert!(tail.offset > 0);
    assert_eq!(*log.tail().borrow(), tail);
    assert_eq!(log.extent().tail, tail);
    assert_eq!(
        log.extent().earliest,
        Some(Checkpoint::new(commit_lsn(1), 0))
    );
    assert_eq!(log.extent().earliest_time, commit_time(1));
}

pub(crate) async fn an_older_epoch_is_refused(log: Log) {
    log.open_writer(Epoch(5)).await.unwrap();
    let refused = log.open_writer(Epoch(4)).await.err();
    assert!(
        matches!(
            refused,
            Some(LogError::Fenced {
                asked: Epoch(4),
                held: Epoch(5)
            })
        ),
        "{refused:?}"
    );
    assert_eq!(log.tail().borrow().epoch, Epoch(5));
}

pub(crate) async fn a_newer_epoch_fences_the_writer_before(log: Log) {
    let mut old = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut old, 1..=1, 1).await;
    let mut new = log.open_writer(Epoch(2)).await.unwrap();
    let refused = old.append(transaction(2, 1)).await;
    assert!(
        matches!(
            refused,
            Err(LogError::Fenced {
                asked: Epoch(1),
                held: Epoch(2)
            })
        ),
        "{refused:?}"
    );
    assert!(matches!(old.flush().await, Err(LogError::Fenced { .. })));
    append_all(&mut new, 2..=2, 1).await;
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(1..=2, 1));
}

pub(crate) async fn the_same_epoch_opened_again_fences_the_writer_before(log: Log) {
    let mut old = log.open_writer(Epoch(1)).await.unwrap();
    let mut new = log.open_writer(Epoch(1)).await.unwrap();
    let refused = old.append(transaction(1, 1)).await;
    assert!(
        matches!(refused, Err(LogError::Fenced { .. })),
        "{refused:?}"
    );
    append_all(&mut new, 1..=1, 1).await;
}

pub(crate) async fn a_batch_that_does_not_follow_is_refused(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, [5], 1).await;
    for number in [5, 4] {
        let mut writer = log.open_writer(Epoch(1)).await.unwrap();
        let refused = writer.append(transaction(number, 1)).await;
        assert!(
            matches!(refused, Err(LogError::OutOfOrder { last, .. }) if last == Checkpoint::new(commit_lsn(5), 2)),
            "{refused:?}"
        );
    }
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, [6], 1).await;
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints([5, 6], 1));
}

pub(crate) async fn a_batch_without_entries_makes_its_resume_lsn_durable(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, [1], 1).await;
    writer
        .append(Batch::progress(Lsn(5_000), commit_time(1)))
        .await
        .unwrap();
    let tail = writer.flush().await.unwrap();
    assert_eq!(tail.resume_lsn, Lsn(5_000));
    assert_eq!(tail.last, Some(Checkpoint::new(commit_lsn(1), 2)));
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints([1], 1));
}

pub(crate) async fn a_reader_at_the_tail_waits_for_the_next_batch(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=3, 1).await;
    let mut reader = log.open_reader(Start::Latest).await.unwrap();
    assert!(reader.next().now_or_never().is_none());
    let (batch, ()) = tokio::join!(reader.next(), append_all(&mut writer, [4], 1));
    let mut seen = Vec::new();
    collect(&batch.unwrap(), &mut seen);
    assert_eq!(seen, checkpoints([4], 1));
}

pub(crate) async fn a_dropped_call_of_next_loses_nothing(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=300, 2).await;
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    let mut seen = Vec::new();
    let wanted = checkpoints(1..=300, 2);
    let mut dropped = 0;
    while seen.len() < wanted.len() {
        // Polled once and dropped; every second call is awaited so that the test ends.
        match reader.next().now_or_never() {
            Some(batch) => collect(&batch.unwrap(), &mut seen),
            None => {
                dropped += 1;
                collect(&reader.next().await.unwrap(), &mut seen);
            }
        }
        assert!(dropped <= wanted.len());
    }
    assert_eq!(seen, wanted);
}

pub(crate) async fn a_reader_starts_where_it_is_told(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=50, 2).await;
    let middle = Checkpoint::new(commit_lsn(20), 1);
    for (start, wanted) in [
        (Start::Earliest, checkpoints(1..=50, 2)),
        (Start::Latest, vec![]),
        (Start::After(middle), {
            let all = checkpoints(20..=50, 2);
            all.into_iter().filter(|at| *at > middle).collect()
        }),
        (
            Start::After(Checkpoint::new(Lsn(1), 0)),
            checkpoints(1..=50, 2),
        ),
        (Start::After(Checkpoint::new(commit_lsn(50), 3)), vec![]),
        (Start::AtLsn(Lsn(0)), checkpoints(1..=50, 2)),
        (Start::AtLsn(commit_lsn(30)), checkpoints(30..=50, 2)),
        (
            Start::AtLsn(Lsn(commit_lsn(30).0 + 1)),
            checkpoints(31..=50, 2),
        ),
        (Start::AtLsn(commit_lsn(51)), vec![]),
        (Start::AtTime(PgTime(0)), checkpoints(1..=50, 2)),
        (Start::AtTime(commit_time(40)), checkpoints(40..=50, 2)),
        (
            Start::AtTime(PgTime(commit_time(40).0 + 1)),
            checkpoints(41..=50, 2),
        ),
    ] {
        let mut reader = log.open_reader(start).await.unwrap();
        assert_eq!(read_durable(&mut reader).await, wanted, "{start:?}");
    }
}

pub(crate) async fn many_readers_see_the_same_entries(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..100 {
        readers.push(log.open_reader(Start::Earliest).await.unwrap());
    }
    append_all(&mut writer, 1..=20, 2).await;
    for reader in &mut readers {
        assert_eq!(read_durable(reader).await, checkpoints(1..=20, 2));
    }
}

pub(crate) async fn the_order_survives_a_change_of_epoch(log: Log) {
    for epoch in 1..=5 {
        let mut writer = log.open_writer(Epoch(epoch)).await.unwrap();
        append_all(&mut writer, epoch * 10..epoch * 10 + 10, 1).await;
    }
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(10..60, 1));
    let mut reader = log.open_reader(Start::AtLsn(commit_lsn(35))).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(35..60, 1));
}

/// The place before the transaction `number`; everything earlier is unknown there.
const fn before(number: u64) -> Origin {
    let lsn = commit_lsn(number);
    Origin {
        previous: Some(Checkpoint::new(Lsn(lsn.0 - 1), u32::MAX)),
        resume_lsn: lsn,
    }
}

pub(crate) async fn a_log_started_anew_refuses_what_was_before(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=30, 1).await;
    let before_tail = *log.tail().borrow();
    let tail = writer.reset(before(50)).await.unwrap();
    assert_eq!(tail.origin(), before(50));
    assert!(tail.offset > before_tail.offset);
    assert_eq!(*log.tail().borrow(), tail);
    let first = Checkpoint::new(commit_lsn(50), 0);
    assert_eq!(log.extent().earliest, Some(first), "nothing there yet");
    let early = [
        Start::After(Checkpoint::new(commit_lsn(30), 2)),
        Start::After(Checkpoint::new(commit_lsn(49), 7)),
        Start::AtLsn(commit_lsn(30)),
        Start::AtTime(commit_time(30)),
    ];
    for filled in [false, true] {
        for start in early {
            let refused = log.open_reader(start).await.err();
            assert!(
                matches!(refused, Some(LogError::Removed { .. })),
                "{start:?} {filled}: {refused:?}"
            );
        }
        if !filled {
            append_all(&mut writer, 50..=60, 1).await;
        }
    }
    assert_eq!(log.extent().earliest, Some(first));
    for start in [Start::Earliest, Start::AtLsn(commit_lsn(50))] {
        let mut reader = log.open_reader(start).await.unwrap();
        assert_eq!(read_durable(&mut reader).await, checkpoints(50..=60, 1));
    }
}

pub(crate) async fn readers_of_a_log_started_anew_are_told_or_go_on(log: Log) {
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=30, 1).await;
    let mut at_the_tail = log.open_reader(Start::Latest).await.unwrap();
    let mut behind = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(at_the_tail.try_next().await.unwrap(), None);
    let ahead = Start::After(Checkpoint::new(commit_lsn(52), 0));
    let mut ahead = log.open_reader(ahead).await.unwrap();
    assert_eq!(ahead.try_next().await.unwrap(), None);
    let waiting = at_the_tail.next();
    let (told, _) = tokio::join!(waiting, writer.reset(before(50)));
    assert!(matches!(told, Err(LogError::Removed { .. })), "{told:?}");
    // What it had read already may come; then it is told.
    let told = loop {
        match behind.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(told, LogError::Removed { .. }), "{told:?}");
    assert_eq!(ahead.try_next().await.unwrap(), None);

    // Where nothing lay between, a reader at the tail lacks nothing.
    append_all(&mut writer, 50..=60, 1).await;
    let mut at_the_tail = log.open_reader(Start::Latest).await.unwrap();
    let last = log.tail().borrow().last;
    let void = Origin {
        previous: last,
        resume_lsn: commit_lsn(70),
    };
    writer.reset(void).await.unwrap();
    assert_eq!(at_the_tail.try_next().await.unwrap(), None);
    append_all(&mut writer, 70..=72, 1).await;
    assert_eq!(
        read_durable(&mut at_the_tail).await,
        checkpoints(70..=72, 1)
    );
    let after = Start::After(last.unwrap());
    let mut reader = log.open_reader(after).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(70..=72, 1));
    // What it had fetched already may come, whole; else it is told.
    match ahead.next().await {
        Ok(batch) => {
            let first = batch.span.map(|(first, _)| first);
            assert_eq!(first, Some(Checkpoint::new(commit_lsn(52), 1)));
        }
        Err(told) => assert!(matches!(told, LogError::Removed { .. }), "{told:?}"),
    }
}

pub(crate) async fn a_log_is_started_anew_only_ahead_and_by_its_writer(log: Log) {
    let mut old = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut old, 1..=30, 1).await;
    let refused = old.reset(before(30)).await;
    assert!(
        matches!(refused, Err(LogError::OutOfOrder { .. })),
        "{refused:?}"
    );
    let mut new = log.open_writer(Epoch(2)).await.unwrap();
    let refused = old.reset(before(50)).await;
    assert!(
        matches!(refused, Err(LogError::Fenced { .. })),
        "{refused:?}"
    );
    let refused = new.append(transaction(30, 1)).await;
    assert!(
        matches!(refused, Err(LogError::OutOfOrder { .. })),
        "{refused:?}"
    );
    let mut new = log.open_writer(Epoch(2)).await.unwrap();
    assert_eq!(new.reset(before(50)).await.unwrap().epoch, Epoch(2));
    let refused = new.append(transaction(49, 1)).await;
    assert!(
        matches!(refused, Err(LogError::OutOfOrder { .. })),
        "{refused:?}"
    );
    let mut new = log.open_writer(Epoch(2)).await.unwrap();
    append_all(&mut new, 50..=50, 1).await;
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints([50], 1));
}

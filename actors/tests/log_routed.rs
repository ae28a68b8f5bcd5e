//! A log that moves from node to node: its readers return every entry once, in order.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/apart.rs"]
mod apart;
#[path = "log_support/checks.rs"]
mod checks;
#[path = "log_support/rows.rs"]
mod rows;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use pgcapture_actors::{
    log::{
        ChangeLog, LogError, LogHealth, LogReader, LogWriter, Start,
        memory::{MemoryLog, MemoryLogOptions},
        routed::{Place, RoutedLog, Site},
    },
    supervise::{TaskKind, spawn},
};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    lsn::Lsn,
};
use tokio::sync::watch;

use rows::{append_all, checkpoints, collect, commit_lsn, transaction};

macro_rules! contract {
    ($($check:ident)*) => {
        mod contract {
            use super::*;

            $(
                #[tokio::test]
                async fn $check() {
                    let log = memory();
                    let world = World::at(&log, 1, true);
                    let read: Arc<dyn ChangeLog> = Arc::<RoutedLog>::clone(&world.routed);
                    let written: Arc<dyn ChangeLog> = log;
                    checks::$check(Arc::new(apart::Apart { written, read })).await;
                }
            )*
        }
    };
}

contract!(
    batches_are_read_in_the_order_of_acceptance
    flush_returns_the_tail_of_what_was_accepted
    an_older_epoch_is_refused
    a_newer_epoch_fences_the_writer_before
    the_same_epoch_opened_again_fences_the_writer_before
    a_batch_that_does_not_follow_is_refused
    a_batch_without_entries_makes_its_resume_lsn_durable
    a_reader_at_the_tail_waits_for_the_next_batch
    a_dropped_call_of_next_loses_nothing
    a_reader_starts_where_it_is_told
    many_readers_see_the_same_entries
    the_order_survives_a_change_of_epoch
    a_log_started_anew_refuses_what_was_before
    readers_of_a_log_started_anew_are_told_or_go_on
    a_log_is_started_anew_only_ahead_and_by_its_writer
);

/// A routed log and the hand that moves it.
struct World {
    routed: Arc<RoutedLog>,
    place: watch::Sender<Place>,
}

impl World {
    fn at(log: &Arc<MemoryLog>, epoch: u64, is_here: bool) -> Self {
        let (place, places) = watch::channel(site(log, epoch, is_here));
        let keeper = spawn(TaskKind::Tool, "keeper", std::future::pending());
        Self {
            routed: RoutedLog::start("shop", places, keeper),
            place,
        }
    }

    fn move_to(&self, log: &Arc<MemoryLog>, epoch: u64, is_here: bool) {
        self.place.send_replace(site(log, epoch, is_here));
    }

    fn nowhere(&self) {
        let reason = "nobody runs it".to_owned();
        self.place.send_replace(Place::Nowhere { reason });
    }
}

fn site(log: &Arc<MemoryLog>, epoch: u64, is_here: bool) -> Place {
    Place::At(Site {
        log: Arc::<MemoryLog>::clone(log),
        epoch: Epoch(epoch),
        is_here,
    })
}

fn memory() -> Arc<MemoryLog> {
    MemoryLog::new(MemoryLogOptions::default())
}

async fn writer(log: &Arc<MemoryLog>, epoch: u64) -> Box<dyn LogWriter> {
    log.open_writer(Epoch(epoch)).await.unwrap()
}

/// A log with the transactions `1..=count`, and its writer.
async fn filled(count: u64, epoch: u64) -> (Arc<MemoryLog>, Box<dyn LogWriter>) {
    let log = memory();
    let mut writer = writer(&log, epoch).await;
    append_all(&mut writer, 1..=count, 3).await;
    (log, writer)
}

async fn next(reader: &mut Box<dyn LogReader>, seen: &mut Vec<Checkpoint>) {
    collect(&reader.next().await.unwrap(), seen);
}

async fn read_until(reader: &mut Box<dyn LogReader>, seen: &mut Vec<Checkpoint>, count: usize) {
    while seen.len() < count {
        next(reader, seen).await;
    }
}

#[tokio::test]
async fn a_reader_goes_on_at_the_new_place_with_what_it_has_not_returned() {
    let (first, _writer) = filled(3, 1).await;
    let world = World::at(&first, 1, true);
    let mut reader = world.routed.open_reader(Start::Earliest).await.unwrap();
    let mut seen = Vec::new();
    read_until(&mut reader, &mut seen, checkpoints(1..=3, 3).len()).await;
    // Decoded again from the second transaction on.
    let second = memory();
    let mut writer = writer(&second, 2).await;
    world.move_to(&second, 2, false);
    append_all(&mut writer, 2..=3, 3).await;
    assert!(reader.next().now_or_never().is_none(), "nothing new");
    append_all(&mut writer, 4..=5, 3).await;
    read_until(&mut reader, &mut seen, checkpoints(1..=5, 3).len()).await;
    assert_eq!(seen, checkpoints(1..=5, 3));
    // And back again.
    let third = memory();
    let mut writer = self::writer(&third, 3).await;
    world.move_to(&third, 3, true);
    append_all(&mut writer, 5..=7, 3).await;
    read_until(&mut reader, &mut seen, checkpoints(1..=7, 3).len()).await;
    assert_eq!(seen, checkpoints(1..=7, 3));
}

#[tokio::test]
async fn a_move_in_the_middle_of_a_transaction_neither_repeats_nor_skips() {
    let whole = transaction(1, 9);
    let middle = Checkpoint::new(commit_lsn(1), 4);
    let (first, second) = (memory(), memory());
    // The first owner dies with half of the transaction durable.
    let mut half = pgcapture_engine::batch::BatchBuilder::default();
    for entry in whole.iter().map(Result::unwrap) {
        if entry.checkpoint <= middle {
            half.push(entry.checkpoint, entry.kind, entry.payload);
        }
    }
    let mut old = writer(&first, 1).await;
    old.append(half.finish(commit_lsn(1), rows::commit_time(1)))
        .await
        .unwrap();
    let world = World::at(&first, 1, false);
    let mut reader = world.routed.open_reader(Start::Earliest).await.unwrap();
    let mut seen = Vec::new();
    next(&mut reader, &mut seen).await;
    assert_eq!(seen.last(), Some(&middle));
    let mut new = writer(&second, 2).await;
    new.append(whole).await.unwrap();
    new.flush().await.unwrap();
    world.move_to(&second, 2, false);
    read_until(&mut reader, &mut seen, checkpoints([1], 9).len()).await;
    assert_eq!(seen, checkpoints([1], 9));
}

#[tokio::test(start_paused = true)]
async fn while_the_log_is_nowhere_readers_wait_and_its_health_says_why() {
    let (first, _writer) = filled(2, 1).await;
    let world = World::at(&first, 1, false);
    let mut reader = world.routed.open_reader(Start::Latest).await.unwrap();
    world.nowhere();
    let mut health = world.routed.health();
    let blocked = health
        .wait_for(|health| matches!(health, LogHealth::Blocked { .. }))
        .await
        .unwrap()
        .clone();
    assert!(format!("{blocked:?}").contains("PGC-L09: nobody runs it"));
    assert!(reader.next().now_or_never().is_none());
    let tail = *world.routed.tail().borrow();
    assert_eq!(tail.last, first.extent().tail.last, "what is known stays");
    assert_eq!(world.routed.extent().tail.last, tail.last);
    let (second, _writer) = filled(4, 2).await;
    world.move_to(&second, 2, true);
    let mut seen = Vec::new();
    read_until(&mut reader, &mut seen, checkpoints(3..=4, 3).len()).await;
    assert_eq!(seen, checkpoints(3..=4, 3));
    let writable = |health: &LogHealth| *health == LogHealth::Writable;
    drop(health.wait_for(writable).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_was_shown_as_the_end_comes_before_nothing_is_reported() {
    let (first, _writer) = filled(3, 1).await;
    let world = World::at(&first, 1, false);
    world.routed.ready(Duration::from_secs(1)).await.unwrap();
    let mut reader = world
        .routed
        .open_reader(Start::After(Checkpoint::new(commit_lsn(1), 9)))
        .await
        .unwrap();
    let second = memory();
    let mut writer = writer(&second, 2).await;
    append_all(&mut writer, 1..=2, 3).await;
    world.move_to(&second, 2, false);
    // Whatever of it comes from here or from there: `None` may not come before the third.
    let mut seen = Vec::new();
    let (read, ()) = tokio::join!(
        async {
            while let Some(batch) = reader.try_next().await.unwrap() {
                collect(&batch, &mut seen);
            }
            seen
        },
        async {
            tokio::task::yield_now().await;
            append_all(&mut writer, [3], 3).await;
        }
    );
    assert_eq!(read, checkpoints(2..=3, 3));
    let shown = world.routed.tail().borrow().last;
    assert_eq!(shown, first.extent().tail.last, "the end never goes back");
}

#[tokio::test(start_paused = true)]
async fn removed_is_told_with_the_earliest_entry() {
    let (first, _writer) = filled(2, 1).await;
    let world = World::at(&first, 1, false);
    let mut reader = world.routed.open_reader(Start::Earliest).await.unwrap();
    let mut seen = Vec::new();
    read_until(&mut reader, &mut seen, checkpoints(1..=2, 3).len()).await;
    let (second, mut writer) = filled(6, 2).await;
    second.retain(2);
    // Its agent has not taken it over: what an earlier life removed says nothing.
    world.move_to(&second, 3, false);
    assert!(reader.next().now_or_never().is_none());
    drop(second.open_writer(Epoch(3)).await.unwrap());
    let earliest = Checkpoint::new(commit_lsn(5), 0);
    match reader.next().await {
        Err(LogError::Removed { earliest: told, .. }) => assert_eq!(told, earliest),
        other => panic!("{other:?}"),
    }
    assert!(writer.flush().await.is_err(), "it was fenced");
    // Nothing is missing right before the earliest entry.
    let before = pgcapture_engine::ledger::before(earliest);
    let mut reader = world
        .routed
        .open_reader(Start::After(before))
        .await
        .unwrap();
    let mut seen = Vec::new();
    read_until(&mut reader, &mut seen, checkpoints(5..=6, 3).len()).await;
    assert_eq!(seen, checkpoints(5..=6, 3));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_closed_is_found_again_when_it_is_opened_anew() {
    let (first, _writer) = filled(2, 1).await;
    let world = World::at(&first, 1, true);
    let mut reader = world.routed.open_reader(Start::Latest).await.unwrap();
    first.fail("reset");
    let (second, _writer) = filled(3, 1).await;
    let (batch, ()) = tokio::join!(reader.next(), async {
        tokio::task::yield_now().await;
        world.move_to(&second, 1, true);
    });
    let mut seen = Vec::new();
    collect(&batch.unwrap(), &mut seen);
    assert_eq!(seen, checkpoints([3], 3));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_was_removed_ends_its_readers() {
    let (first, _writer) = filled(1, 1).await;
    let world = World::at(&first, 1, true);
    let mut reader = world.routed.open_reader(Start::Latest).await.unwrap();
    world.place.send_replace(Place::Gone);
    let ended = reader.next().await;
    assert!(matches!(ended, Err(LogError::Closed { .. })), "{ended:?}");
    let mut health = world.routed.health();
    let failed = health.wait_for(|health| matches!(health, LogHealth::Failed { .. }));
    drop(failed.await.unwrap());
    let refused = world.routed.open_writer(Epoch(1)).await;
    assert!(matches!(refused, Err(LogError::Closed { .. })));
    // A source of the same name that comes later is another one.
    let other = memory();
    let mut writer = writer(&other, 1).await;
    append_all(&mut writer, [1], 0).await;
    world.move_to(&other, 1, true);
    world.routed.ready(Duration::from_secs(1)).await.unwrap();
    assert_eq!(*world.routed.tail().borrow(), other.extent().tail);
}

#[tokio::test]
async fn what_is_asked_for_reaches_the_log_wherever_it_is() {
    let (first, _writer) = filled(1, 1).await;
    let world = World::at(&first, 1, true);
    world.routed.ask_progress(Lsn(500));
    let mut asked = first.asked_progress().unwrap();
    drop(asked.wait_for(|at| *at == Lsn(500)).await.unwrap());
    let (second, _writer) = filled(1, 2).await;
    world.move_to(&second, 2, false);
    let mut asked = second.asked_progress().unwrap();
    drop(asked.wait_for(|at| *at == Lsn(500)).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_nowhere_from_the_beginning_says_why() {
    let log = memory();
    let world = World::at(&log, 1, true);
    world.nowhere();
    let reason = world.routed.ready(Duration::from_secs(1)).await;
    assert_eq!(reason, Err("nobody runs it".to_owned()));
    world.move_to(&log, 1, true);
    world.routed.ready(Duration::from_secs(1)).await.unwrap();
}

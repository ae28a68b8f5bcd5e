//! The owner changes or dies: a reader elsewhere goes on with the next entry, at the new owner.

use std::{sync::Arc, time::Duration};

use pgcapture_actors::log::{ChangeLog, LogHealth, LogReader, Start};
use pgcapture_engine::{
    batch::BatchBuilder,
    checkpoint::Checkpoint,
    lsn::{Lsn, PgTime},
};

use super::{
    cluster::{Cluster, SOURCE},
    rows::{append_all, checkpoints, collect, commit_lsn, commit_time, transaction},
};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

async fn read_until(reader: &mut Box<dyn LogReader>, seen: &mut Vec<Checkpoint>, count: usize) {
    let read = async {
        while seen.len() < count {
            collect(&reader.next().await.unwrap(), seen);
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("it comes");
}

#[tokio::test]
async fn a_reader_follows_the_owner_through_every_kind_of_change() {
    let cluster = Cluster::start(&["a", "b", "c"]).await;
    let mut writer = cluster.writer("a").await;
    append_all(&mut writer, 1..=20, 3).await;
    let routed = cluster.node("b").routes.log(SOURCE);
    routed.ready(PATIENCE).await.unwrap();
    let mut reader = routed.open_reader(Start::Earliest).await.unwrap();
    let mut seen = Vec::new();
    read_until(&mut reader, &mut seen, checkpoints(1..=20, 3).len()).await;
    // Each owner decodes some of it again, and lies behind for a moment.
    for (step, owner) in (1..).zip(["c", "b", "a", "b", "c"]) {
        let begin = seen.last().unwrap().lsn.0 / 100;
        cluster.assign(owner);
        let log = cluster.log(owner);
        let held = log.extent().tail.last.map_or(0, |last| last.lsn.0 / 100);
        let mut writer = cluster.writer(owner).await;
        let from = (held + 1).max(if held == 0 { begin - 5 } else { 0 });
        append_all(&mut writer, from..=20 + step * 10, 3).await;
        let wanted = checkpoints(1..=20 + step * 10, 3);
        read_until(&mut reader, &mut seen, wanted.len()).await;
        assert_eq!(seen, wanted, "at {owner}");
    }
}

#[tokio::test]
async fn an_owner_that_dies_in_a_transaction_is_a_pause() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let mut old = cluster.writer("a").await;
    append_all(&mut old, 1..=3, 3).await;
    // Half of the fourth became durable.
    let whole = transaction(4, 50);
    let mut half = BatchBuilder::default();
    for entry in whole.iter().map(Result::unwrap).take(20) {
        half.push(entry.checkpoint, entry.kind, entry.payload);
    }
    old.append(half.finish(commit_lsn(4), commit_time(4)))
        .await
        .unwrap();
    old.flush().await.unwrap();
    let routed = cluster.node("b").routes.log(SOURCE);
    let mut reader = routed.open_reader(Start::Earliest).await.unwrap();
    let mut seen = Vec::new();
    read_until(&mut reader, &mut seen, checkpoints(1..=3, 3).len() + 20).await;
    let tail = *routed.tail().borrow();
    cluster.kill("a");
    let mut health = routed.health();
    let blocked = health.wait_for(|health| matches!(health, LogHealth::Blocked { .. }));
    let blocked = tokio::time::timeout(PATIENCE, blocked).await.unwrap();
    let blocked = format!("{:?}", *blocked.unwrap());
    assert!(blocked.contains("PGC-L09"), "{blocked}");
    assert_eq!(*routed.tail().borrow(), tail, "what is known stays");
    // The next owner decodes from the slot's confirmed position.
    cluster.assign("c");
    let mut new = cluster.writer("c").await;
    append_all(&mut new, 2..=3, 3).await;
    new.append(whole).await.unwrap();
    append_all(&mut new, 5..=9, 3).await;
    let mut wanted = checkpoints(1..=3, 3);
    wanted.extend(checkpoints([4], 50));
    wanted.extend(checkpoints(5..=9, 3));
    read_until(&mut reader, &mut seen, wanted.len()).await;
    assert_eq!(seen, wanted);
    let mut health = routed.health();
    let writable = health.wait_for(|health| *health == LogHealth::Writable);
    drop(tokio::time::timeout(PATIENCE, writable).await.unwrap());
}

#[tokio::test]
async fn a_slow_reader_holds_up_no_other_on_the_same_connection() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let mut writer = cluster.writer("a").await;
    let remote = cluster.remote(("b", "a"), 1).await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..4 {
        slow.push(remote.open_reader(Start::Earliest).await.unwrap());
    }
    // More than a reader's window, so that each of the slow ones has a full one.
    let numbers = 1..=200_u64;
    append_all(&mut writer, numbers.clone(), 100).await;
    let mut fast = remote.open_reader(Start::Earliest).await.unwrap();
    let (mut seen, wanted) = (Vec::new(), checkpoints(numbers, 100));
    read_until(&mut fast, &mut seen, wanted.len()).await;
    assert_eq!(seen, wanted);
    for reader in &mut slow {
        let mut seen = Vec::new();
        read_until(reader, &mut seen, wanted.len()).await;
        assert_eq!(seen, wanted);
    }
}

#[tokio::test]
async fn what_a_reader_waits_for_is_asked_of_the_agent() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let log = cluster.log("a");
    let routed = cluster.node("b").routes.log(SOURCE);
    routed.ready(PATIENCE).await.unwrap();
    routed.ask_progress(Lsn(77));
    let mut asked = log.asked_progress().unwrap();
    let came = asked.wait_for(|at| *at == Lsn(77));
    drop(tokio::time::timeout(PATIENCE, came).await.unwrap());
}

#[tokio::test]
async fn the_way_is_shared_while_somebody_reads() {
    let cluster = Cluster::start(&["a", "b"]).await;
    cluster.log("a");
    let routes = &cluster.node("b").routes;
    let (first, second) = (routes.log(SOURCE), routes.log(SOURCE));
    assert!(Arc::ptr_eq(&first, &second));
    let unknown = routes.log("none");
    let reason = unknown.ready(Duration::from_millis(1)).await.unwrap_err();
    assert!(
        reason.contains("removed") || reason.contains("looked for"),
        "{reason}"
    );
    let batch = pgcapture_engine::batch::Batch::progress(Lsn(900), PgTime(1));
    let mut writer = cluster.writer("a").await;
    writer.append(batch).await.unwrap();
    let mut tail = first.tail();
    let shown = tail.wait_for(|tail| tail.resume_lsn == Lsn(900));
    drop(tokio::time::timeout(PATIENCE, shown).await.unwrap());
}

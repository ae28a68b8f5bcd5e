//! Ranges of dumps from the leader's controller, for the sessions of another node; the rows come from the node
//! that the ticket names.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "peer_ranges/harness.rs"]
mod harness;

#[path = "peer_ranges/unanswered.rs"]
mod unanswered;

use std::{sync::Arc, time::Duration};

use harness::{Leader, batch, id, member, member_knowing, member_with, pull, soon};
use pgcapture_actors::dump::{
    Delivered, DumpError, GivenUp, OpenedRange, RangeRemedy, RangeSource as _, RangeTicket,
    RowEvent,
    scripted::{Ended, script},
};
use pgcapture_engine::{
    cluster::{Dump, DumpOptions, DumpState, State},
    dump::DumpId,
    lsn::{Lsn, PgTime},
};
use pgcapture_node::{peer_log::credit::READ_WINDOW_BYTES, peer_ranges::PeerRanges};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

#[tokio::test]
async fn a_range_goes_its_whole_way() {
    let (leading, _) = watch::channel(None);
    let mut leader = Leader::start(&leading).await;
    leader.schedule();
    let ranges = member(&leading, "b:1");
    assert_eq!(ranges.pull(&id()).await.unwrap(), None, "nobody leads");
    leading.send_replace(Some(leader.address.to_string()));
    let ticket = pull(&ranges).await;
    let (mut range, rows) = leader.opens(&ranges, &ticket, Lsn(11)).await;
    assert_eq!(range.at, Lsn(30));
    rows.send(batch(5)).await.unwrap();
    match soon("rows", range.rows.recv()).await {
        Some(RowEvent::Rows(batch)) => {
            assert_eq!(
                (&batch.bytes[..], &batch.rows[..]),
                (&[7; 5][..], &[(0, 5)][..])
            );
        }
        other => panic!("{other:?}"),
    }
    rows.send(RowEvent::End).await.unwrap();
    assert!(matches!(
        soon("the end", range.rows.recv()).await,
        Some(RowEvent::End)
    ));
    let delivered = Delivered {
        row_count: 1,
        bytes: 5,
    };
    assert!(matches!(leader.ended().await, Ended::Read(_)));
    ranges.finish(ticket.clone(), delivered).await.unwrap();
    assert!(matches!(leader.ended().await, Ended::Finished(_, told) if told == delivered));
    let again = ranges.finish(ticket, delivered).await.unwrap_err();
    assert!(again.what.contains("ended already"), "{again}");
}

#[tokio::test]
async fn failures_and_reasons_arrive_as_they_are() {
    let (leading, _) = watch::channel(None);
    let mut leader = Leader::start(&leading).await;
    leading.send_replace(Some(leader.address.to_string()));
    let ranges = member(&leading, "b:1");
    leader.schedule();
    let ticket = pull(&ranges).await;
    let refusing = async {
        let opening = soon("opening", leader.script.opening()).await.unwrap();
        opening.fail("no such replica");
    };
    let (refused, ()) = tokio::join!(ranges.open(&ticket, Lsn(1)), refusing);
    let refused = refused.unwrap_err();
    assert!(refused.what.contains("no such replica"), "{refused}");
    ranges
        .give_up(ticket, GivenUp::Requeued("busy".to_owned()))
        .await;
    match leader.ended().await {
        Ended::GivenUp(_, GivenUp::Requeued(why)) => assert_eq!(why, "busy"),
        other @ (Ended::Finished(..) | Ended::GivenUp(..) | Ended::Read(_)) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_leaders_death_ends_the_rows_and_the_next_one_serves() {
    let (leading, _) = watch::channel(None);
    let mut first = Leader::start(&leading).await;
    let mut second = Leader::start(&leading).await;
    leading.send_replace(Some(first.address.to_string()));
    let ranges = member(&leading, "b:1");
    first.schedule();
    let ticket = pull(&ranges).await;
    let (mut range, rows) = first.opens(&ranges, &ticket, Lsn(1)).await;
    rows.send(batch(5)).await.unwrap();
    assert!(soon("rows", range.rows.recv()).await.is_some());
    first.stop.cancel();
    let last = soon("the end of the rows", range.rows.recv()).await;
    let is_broken = matches!(last, None | Some(RowEvent::Failed(_)));
    assert!(is_broken, "no end was said: {last:?}");
    leading.send_replace(Some(second.address.to_string()));
    second.schedule();
    // The same number at the other controller is another range.
    let other = pull(&ranges).await;
    assert_ne!(other.number, ticket.number);
    let refused = ranges.finish(ticket.clone(), Delivered::default()).await;
    refused.unwrap_err();
    ranges
        .give_up(
            ticket,
            GivenUp::Failed(pgcapture_node::peer_ranges::wire::away("gone")),
        )
        .await;
    ranges.finish(other, Delivered::default()).await.unwrap();
    assert!(matches!(second.ended().await, Ended::Finished(..)));
    assert!(
        matches!(
            first.ended().await,
            Ended::GivenUp(_, GivenUp::Disconnected)
        ),
        "what the member held is given up with it"
    );
}

#[tokio::test]
async fn a_node_that_goes_away_gives_up_what_it_held() {
    let (leading, _) = watch::channel(None);
    let mut leader = Leader::start(&leading).await;
    leading.send_replace(Some(leader.address.to_string()));
    let ranges = member(&leading, "b:1");
    leader.schedule();
    pull(&ranges).await;
    drop(ranges);
    let ended = leader.ended().await;
    assert!(
        matches!(ended, Ended::GivenUp(_, GivenUp::Disconnected)),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_consumer_that_reads_nothing_stops_the_reading() {
    let (leading, _) = watch::channel(None);
    let mut leader = Leader::start(&leading).await;
    leading.send_replace(Some(leader.address.to_string()));
    let ranges = member(&leading, "b:1");
    leader.schedule();
    let ticket = pull(&ranges).await;
    let (mut range, rows) = leader.opens(&ranges, &ticket, Lsn(1)).await;
    let length = 256 << 10;
    let (mut sent, most) = (0, usize::try_from(READ_WINDOW_BYTES).unwrap() / length + 16);
    // A place that does not come in a second does not come.
    while let Ok(sending) = tokio::time::timeout(Duration::from_secs(1), rows.reserve()).await {
        sending.unwrap().send(batch(length));
        sent += 1;
        assert!(sent <= most, "{sent} batches are under way");
    }
    let finish = async {
        rows.send(RowEvent::End).await.unwrap();
    };
    let read = async {
        let mut count = 0;
        while let Some(RowEvent::Rows(_)) = soon("rows", range.rows.recv()).await {
            count += 1;
        }
        count
    };
    let (count, ()) = tokio::join!(read, finish);
    assert_eq!(count, sent, "and every row comes");
}

#[tokio::test]
async fn a_node_that_leads_asks_itself() {
    let (leading, _) = watch::channel(Some("b:1".to_owned()));
    let mut own = script();
    let ranges = member_with(&leading, "b:1", &own.ranges);
    own.schedule(&id());
    let ticket = pull(&ranges).await;
    ranges.finish(ticket, Delivered::default()).await.unwrap();
    let ended = soon("the end", own.ended()).await;
    assert!(matches!(ended, Some(Ended::Finished(..))));
    // Who does not lead lets nobody in.
    let leader = Leader::start(&leading).await;
    let (wrong, _) = watch::channel(Some(leader.address.to_string()));
    let stranger = member(&wrong, "c:1");
    assert_eq!(stranger.pull(&id()).await.unwrap(), None);
}

#[tokio::test]
async fn rows_come_straight_from_the_node_that_reads() {
    let (leading, _) = watch::channel(None);
    let mut leader = Leader::start(&leading).await;
    let mut worker = Leader::start(&leading).await;
    leading.send_replace(Some(leader.address.to_string()));
    let ranges = member(&leading, "b:1");
    leader.schedule_on(&worker);
    let ticket = pull(&ranges).await;
    let (range, rows) = tokio::join!(ranges.open(&ticket, Lsn(11)), worker.open(30));
    let mut range = range.unwrap();
    assert_eq!(range.at, Lsn(30));
    rows.send(batch(5)).await.unwrap();
    rows.send(RowEvent::End).await.unwrap();
    let first = soon("rows", range.rows.recv()).await;
    assert!(matches!(first, Some(RowEvent::Rows(_))), "{first:?}");
    assert!(
        matches!(leader.ended().await, Ended::Read(_)),
        "the leader hears it"
    );
    let last = soon("the end", range.rows.recv()).await;
    assert!(matches!(last, Some(RowEvent::End)), "{last:?}");
    ranges.finish(ticket, Delivered::default()).await.unwrap();
    assert!(matches!(leader.ended().await, Ended::Finished(..)));
}

/// A node that leads, and another one that reads.
async fn leader_and_worker() -> (watch::Sender<Option<String>>, Leader, Leader) {
    let (leading, _) = watch::channel(None);
    let leader = Leader::start(&leading).await;
    let worker = Leader::start(&leading).await;
    leading.send_replace(Some(leader.address.to_string()));
    (leading, leader, worker)
}

/// Has a range read by the worker until its first rows are there.
async fn read_at(
    leader: &mut Leader,
    worker: &mut Leader,
    ranges: &PeerRanges,
) -> (RangeTicket, OpenedRange, mpsc::Sender<RowEvent>) {
    leader.schedule_on(worker);
    let ticket = pull(ranges).await;
    let (range, rows) = tokio::join!(ranges.open(&ticket, Lsn(11)), worker.open(30));
    let mut range = range.unwrap();
    rows.send(batch(5)).await.unwrap();
    assert!(soon("rows", range.rows.recv()).await.is_some());
    (ticket, range, rows)
}

/// What is told of a range whose node went.
fn assert_lost(error: &DumpError) {
    let told = (error.explanation.code, error.remedy);
    assert_eq!(told, ("PGC-E18", RangeRemedy::Elsewhere), "{error}");
}

#[tokio::test]
async fn a_node_that_dies_while_it_reads_is_at_fault_and_not_the_range() {
    let (leading, mut leader, mut worker) = leader_and_worker().await;
    let ranges = member(&leading, "b:1");
    let (ticket, mut range, _rows) = read_at(&mut leader, &mut worker, &ranges).await;
    worker.stop.cancel();
    match soon("the end", range.rows.recv()).await {
        Some(RowEvent::Failed(error)) => assert_lost(&error),
        other => panic!("{other:?}"),
    }
    ranges.give_up(ticket, GivenUp::Disconnected).await;
    assert!(matches!(leader.ended().await, Ended::GivenUp(..)));
    // Nobody listens there at all.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    leader.script.schedule_on(&id(), "w", &address);
    let ticket = pull(&ranges).await;
    let refused = soon("an answer", ranges.open(&ticket, Lsn(11))).await;
    assert_lost(&refused.unwrap_err());
}

#[tokio::test]
async fn rows_of_an_old_leaders_ticket_end_with_its_leadership() {
    let (leading, mut leader, mut worker) = leader_and_worker().await;
    let ranges = member(&leading, "b:1");
    let (ticket, mut range, rows) = read_at(&mut leader, &mut worker, &ranges).await;
    leading.send_replace(None);
    let last = soon("the end of the rows", range.rows.recv()).await;
    assert!(last.is_none(), "no end was said: {last:?}");
    let late = ranges.finish(ticket, Delivered::default()).await;
    late.unwrap_err();
    soon("the reading", rows.closed()).await;
}

#[tokio::test]
async fn a_dump_that_the_leader_knew_first_is_asked_for_once_it_is_known_here() {
    let (leading, _) = watch::channel(None);
    let mut leader = Leader::start(&leading).await;
    leading.send_replace(Some(leader.address.to_string()));
    let (agreed, state) = watch::channel(Arc::new(State::default()));
    let ranges = member_knowing(&leading, "b:1", &script().ranges, Some(state));
    leader.schedule();
    let mut changes = ranges.changes();
    soon("the membership", changes.changed()).await.unwrap();
    assert_eq!(ranges.pull(&id()).await.unwrap(), None, "no dump is known");
    let dump = Dump {
        id: DumpId(1),
        uri: "shop/x".to_owned(),
        stream: id().stream,
        consumer: id().consumer,
        source: "shop".to_owned(),
        options: DumpOptions::default(),
        created_at: PgTime(1),
        ended_at: None,
        state: DumpState::Active,
        tables: Vec::new(),
    };
    changes.borrow_and_update();
    agreed.send_modify(|state| {
        Arc::make_mut(state).dumps.insert(DumpId(1), Arc::new(dump));
    });
    soon("a wake-up", changes.changed()).await.unwrap();
    pull(&ranges).await;
}

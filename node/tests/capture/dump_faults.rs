//! Ranges that do not end well: consumers that leave, refuse, say nothing or lie, readers that die.

use std::time::Duration;

use pgcapture_actors::{
    dump::{
        GivenUp, RowEvent,
        scripted::{Ended, Script, failure},
    },
    gateway::GatewayLimits,
};
use pgcapture_engine::lsn::Lsn;
use pgcapture_proto::status::CODE_KEY;
use prost_types::value::Kind;

use crate::{
    dumps::{dumping, ended, finished, open_whole, opening, rows, send},
    harness::{Node, earliest, id, node_with_ranges, position, run, text},
};

async fn given_up(script: &mut Script) -> GivenUp {
    match ended(script).await {
        Ended::GivenUp(_, reason) => reason,
        Ended::Finished(number, _) => panic!("{number} was finished"),
        Ended::Read(number) => panic!("{number} was read elsewhere"),
    }
}

/// A node whose stream `shop` has a change at 10, and a range that is due.
async fn due() -> (Node, Script) {
    let (mut node, mut script) = dumping().await;
    node.publish(10, &["a"]).await;
    script.schedule(&id("shop", "shop"));
    (node, script)
}

#[test]
fn a_consumer_that_leaves_in_the_middle_gives_the_range_to_the_next() {
    run(async {
        let (node, mut script) = due().await;
        let mut consumer = node.join("shop", &[]).await;
        let sender = opening(&mut script).await.at(Lsn(11));
        send(&sender, rows(&["t"; 5])).await;
        assert_eq!(consumer.positions(4).await, [(0, 1); 4]);
        drop(consumer);
        assert!(matches!(given_up(&mut script).await, GivenUp::Disconnected));
        sender.closed().await;

        script.schedule(&id("shop", "shop"));
        let mut consumer = node.join("shop", &[]).await;
        open_whole(&mut script, 11, &["t"]).await;
        let row = consumer.next().await;
        assert_eq!(position(&row).0, 0);
        consumer.ack(&row).await;
        finished(&mut script).await;
    });
}

#[test]
fn a_range_that_is_being_opened_is_cancelled_when_everybody_leaves() {
    run(async {
        let (node, mut script) = due().await;
        let consumer = node.join("shop", &[]).await;
        let mut opening = opening(&mut script).await;
        drop(consumer);
        assert!(matches!(given_up(&mut script).await, GivenUp::Disconnected));
        opening.cancelled().await;
    });
}

#[test]
fn a_row_that_is_refused_brings_its_range_again_and_again() {
    run(async {
        let (mut node, mut script) = due().await;
        let mut consumer = node.join("shop", &[]).await;
        let mut at = 11;
        for number in 1..=4 {
            let sender = opening(&mut script).await.at(Lsn(at));
            send(&sender, rows(&["t"; 4])).await;
            let first = consumer.next().await;
            assert_eq!(position(&first), (0, number));
            let rest = [consumer.next().await, consumer.next().await];
            consumer.answer(&first, "poisoned", false).await;
            sender.closed().await;
            for message in &rest {
                consumer.ack(message).await;
            }
            let reason = given_up(&mut script).await;
            assert!(
                matches!(&reason, GivenUp::Requeued(why) if why == "poisoned"),
                "{reason:?}"
            );
            // A late answer disturbs nobody, and changes go on.
            consumer.ack(&first).await;
            node.publish(at + 10, &["b"]).await;
            assert_eq!(consumer.positions(1).await, [(at + 10, 1)]);
            at += 11;
            script.schedule(&id("shop", "shop"));
        }
    });
}

#[test]
fn a_snapshot_that_is_too_old_is_not_delivered() {
    run(async {
        let (node, mut script) = due().await;
        let mut consumer = node.join("shop", &[]).await;
        let opening = opening(&mut script).await;
        assert_eq!(opening.at_least, Lsn(11));
        let sender = opening.at(Lsn(10));
        assert!(matches!(given_up(&mut script).await, GivenUp::TooOld));
        sender.closed().await;
        assert!(consumer.is_quiet().await);
    });
}

#[test]
fn a_consumer_that_never_answers_rows_pauses_at_its_limit_and_loses_them_in_time() {
    run(async {
        let (mut node, mut script) = due().await;
        let parameters = [("MaxUnacked", Kind::NumberValue(5.0))];
        let mut consumer = node.join("shop", &parameters).await;
        let sender = opening(&mut script).await.at(Lsn(11));
        send(&sender, rows(&["t"; 20])).await;
        assert_eq!(consumer.positions(5).await, [(0, 1); 5]);
        assert!(consumer.is_quiet().await);
        consumer.ack_at((0, 1)).await;
        assert_eq!(consumer.positions(1).await, [(0, 1)]);
        drop(consumer);
        assert!(matches!(given_up(&mut script).await, GivenUp::Disconnected));

        script.schedule(&id("shop", "shop"));
        let parameters = [("AckTimeout", text("40ms"))];
        let mut consumer = node.join("shop", &parameters).await;
        open_whole(&mut script, 11, &["t"; 2]).await;
        // Numbers begin anew when nobody was left to keep them.
        let rows = consumer.positions(2).await;
        assert!(rows.iter().all(|(lsn, _)| *lsn == 0), "{rows:?}");
        assert!(matches!(given_up(&mut script).await, GivenUp::Stalled));
        node.publish(20, &["b"]).await;
        assert_eq!(consumer.positions(1).await, [(20, 1)]);
    });
}

#[test]
fn answers_to_rows_that_were_never_sent_end_the_session() {
    for (seq, times) in [(0, 1), (2, 1), (1, 3)] {
        run(async move {
            let (node, mut script) = due().await;
            let mut consumer = node.join("shop", &[]).await;
            let sender = opening(&mut script).await.at(Lsn(11));
            send(&sender, rows(&["t"; 3])).await;
            assert_eq!(consumer.positions(2).await, [(0, 1); 2]);
            for _ in 0..times {
                consumer.ack_at((0, seq)).await;
            }
            let status = consumer.end().await;
            assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G05", "{seq}");
            assert!(matches!(given_up(&mut script).await, GivenUp::Disconnected));
        });
    }
}

#[test]
fn a_reader_that_fails_or_dies_brings_the_range_again_and_changes_go_on() {
    run(async {
        let (mut node, mut script) = due().await;
        let mut consumer = node.join("shop", &[]).await;
        opening(&mut script).await.fail("the replica is away");
        let reason = given_up(&mut script).await;
        assert!(matches!(&reason, GivenUp::Failed(error) if error.what.contains("away")));

        script.schedule(&id("shop", "shop"));
        let sender = opening(&mut script).await.at(Lsn(11));
        send(&sender, rows(&["t"; 2])).await;
        let row = consumer.next().await;
        send(&sender, RowEvent::Failed(failure("cancelled"))).await;
        consumer.ack(&row).await;
        let reason = given_up(&mut script).await;
        assert!(matches!(&reason, GivenUp::Failed(error) if error.what == "cancelled"));

        script.schedule(&id("shop", "shop"));
        drop(opening(&mut script).await.at(Lsn(11)));
        let reason = given_up(&mut script).await;
        assert!(matches!(&reason, GivenUp::Failed(error) if error.explanation.code == "PGC-G17"));
        node.publish(20, &["b"]).await;
        assert_eq!(consumer.positions(1).await, [(20, 1)]);
    });
}

#[test]
fn a_consumer_that_does_not_read_keeps_no_reader_when_it_is_dropped() {
    run(async {
        let (mut node, mut script) = due().await;
        let mut stuck = node.join("shop", &[]).await;
        let mut other = node.join("shop/other", &[earliest()]).await;
        let sender = opening(&mut script).await.at(Lsn(11));
        let wide = "t".repeat(100_000);
        let mut sent = 0;
        // Until nobody takes any more.
        while let Ok(permit) =
            tokio::time::timeout(Duration::from_millis(200), sender.reserve()).await
        {
            permit.unwrap().send(rows(&[wide.as_str(); 2]));
            sent += 1;
        }
        assert!(sent < 200, "what is in flight is bounded: {sent}");
        node.publish(20, &["b"]).await;
        assert_eq!(other.positions(2).await, [(10, 1), (20, 1)]);
        drop(stuck.requests);
        assert!(matches!(given_up(&mut script).await, GivenUp::Disconnected));
        sender.closed().await;
        assert!(stuck.stream.message().await.is_ok());
    });
}

#[test]
fn a_drain_finishes_what_is_answered_and_gives_the_rest_up() {
    run(async {
        let script = pgcapture_actors::dump::scripted::script();
        let limits = GatewayLimits {
            drain_grace: Duration::from_millis(300),
            ..GatewayLimits::default()
        };
        let mut node = node_with_ranges(std::sync::Arc::clone(&script.ranges) as _, limits).await;
        let mut script = script;
        node.publish(10, &["a"]).await;
        let mut consumer = node.join("shop", &[]).await;
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 11, &["t"]).await;
        let row = consumer.next().await;
        script.schedule(&id("shop", "shop"));
        let sender = opening(&mut script).await.at(Lsn(11));
        send(&sender, rows(&["t"; 3])).await;
        let rest = [consumer.next().await, consumer.next().await];
        assert_eq!(position(&rest[1]), (0, 2));
        let draining = node.gateway.clone();
        let drained = async { draining.drain().await.unwrap() };
        let answered = async {
            assert!(matches!(given_up(&mut script).await, GivenUp::Disconnected));
            consumer.ack(&row).await;
            assert_eq!(finished(&mut script).await.0, 1);
        };
        tokio::join!(drained, answered);
        assert_eq!(consumer.end().await.code(), tonic::Code::Unavailable);
    });
}

#[test]
fn an_ordered_session_that_takes_over_gets_the_changes_first_and_the_rows_anew() {
    run(async {
        let (mut node, mut script) = dumping().await;
        node.publish(10, &["a"]).await;
        let ordered = [earliest(), ("Mode", text("ordered"))];
        let mut active = node.join("shop", &ordered).await;
        let mut standby = node.join("shop", &ordered).await;
        assert_eq!(active.positions(1).await, [(10, 1)]);
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 11, &["t"]).await;
        let row = active.next().await;
        active.ack(&row).await;
        assert!(standby.is_quiet().await);
        drop(active);
        assert!(matches!(given_up(&mut script).await, GivenUp::Disconnected));
        script.schedule(&id("shop", "shop"));
        open_whole(&mut script, 11, &["t"]).await;
        assert_eq!(standby.positions(2).await, [(10, 1), (0, 2)]);
        standby.ack_at((10, 1)).await;
        standby.ack_at((0, 2)).await;
        finished(&mut script).await;
    });
}

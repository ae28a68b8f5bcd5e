//! What consumers may ask for beyond the old contract.

use pgcapture_proto::pgcapture::{Gap, LogicalMessage, message};
use prost_types::value::Kind;

use crate::harness::{earliest, list, node, position, run, text, truncate};

const YES: Kind = Kind::BoolValue(true);

#[test]
fn boundaries_and_other_kinds_come_to_those_who_ask() {
    run(async {
        let mut node = node().await;
        let messages = vec![
            truncate("orders"),
            message::Type::Logical(LogicalMessage::default()),
            message::Type::Gap(Gap::default()),
        ];
        node.publish_messages(7, messages).await;
        let parameters = [
            earliest(),
            ("Boundaries", YES),
            ("Truncate", YES),
            ("LogicalMessages", YES),
            ("Gaps", YES),
            ("CommitTime", YES),
        ];
        let mut consumer = node.open("shop", &parameters).await;
        let mut all = Vec::new();
        for seq in 0..5 {
            let message = consumer.next().await;
            assert_eq!(position(&message), (7, seq));
            assert_eq!(message.commit_time, 7_000_000);
            consumer.ack(&message).await;
            all.push(message);
        }
        assert!(all[0].begin.is_some() && all[4].commit.is_some());
        assert!(all[1].truncate.is_some());
        assert!(all[2].logical.is_some());
        assert!(all[3].gap.is_some());
        node.status_when("shop", |status| status.unacked == 0).await;
    });
}

#[test]
fn tables_and_operations_narrow_the_stream() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["shop.orders", "shop.audit", "hr.orders"])
            .await;
        let parameters = [
            earliest(),
            ("Tables", list(&["shop.*"])),
            ("ExcludeTables", list(&["*.audit"])),
            ("Operations", list(&["INSERT"])),
        ];
        let mut consumer = node.open("shop/a", &parameters).await;
        assert_eq!(consumer.positions(1).await, [(1, 1)]);
        assert!(consumer.is_quiet().await);
        let parameters = [earliest(), ("Operations", list(&["DELETE"]))];
        let mut consumer = node.open("shop/b", &parameters).await;
        assert!(consumer.is_quiet().await);
    });
}

#[test]
fn a_start_position_may_be_an_lsn_or_a_time() {
    run(async {
        let mut node = node().await;
        for lsn in 1..=4 {
            node.publish(lsn, &["t"]).await;
        }
        for (start, first) in [
            ("earliest", 1),
            ("0/3", 3),
            ("2000-01-01T00:00:02Z", 2),
            ("-1d", 5),
            ("latest", 5),
        ] {
            let uri = format!("shop/{}", start.replace(['/', ':'], "-"));
            let mut consumer = node.join(&uri, &[("Start", text(start))]).await;
            if first == 5 {
                assert!(consumer.is_quiet().await);
            } else {
                assert_eq!(consumer.positions(1).await, [(first, 1)], "{start}");
            }
        }
    });
}

#[test]
fn the_cursor_wins_over_the_start_position() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let first = consumer.next().await;
        consumer.ack(&first).await;
        node.status_when("shop", |status| status.floor.seq == 1)
            .await;
        drop(consumer);
        let mut consumer = node.open("shop", &[earliest()]).await;
        assert_eq!(consumer.positions(1).await, [(1, 2)]);
    });
}

#[test]
fn credits_bound_what_is_delivered() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["t"; 10]).await;
        let parameters = [earliest(), ("Credits", Kind::NumberValue(3.0))];
        let mut consumer = node.open("shop", &parameters).await;
        assert_eq!(consumer.positions(3).await, [(1, 1), (1, 2), (1, 3)]);
        assert!(consumer.is_quiet().await);
        consumer.grant(2).await;
        assert_eq!(consumer.positions(2).await, [(1, 4), (1, 5)]);
        assert!(consumer.is_quiet().await);
    });
}

#[test]
fn batches_are_acknowledged_by_their_last_message() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["t"; 250]).await;
        let parameters = [earliest(), ("BatchSize", Kind::NumberValue(100.0))];
        let mut consumer = node.open("shop", &parameters).await;
        for expected in [100, 100, 50] {
            let batch = consumer.next().await.batch.unwrap();
            assert_eq!(batch.messages.len(), expected);
            let last = batch.messages.last().unwrap();
            consumer.answer(last, "", true).await;
        }
        let status = node
            .status_when("shop", |status| status.floor.seq >= 250)
            .await;
        assert_eq!(status.unacked, 0);
    });
}

#[test]
fn a_peek_leaves_nothing_behind_and_may_end_at_the_tail() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b"]).await;
        node.publish(2, &["c"]).await;
        let parameters = [earliest(), ("Peek", YES), ("End", text("tail"))];
        let mut consumer = node.open("shop", &parameters).await;
        assert_eq!(consumer.positions(3).await, [(1, 1), (1, 2), (2, 1)]);
        assert_eq!(consumer.end().await.code(), tonic::Code::Ok);

        let parameters = [earliest(), ("Peek", YES), ("End", text("0/1"))];
        let mut consumer = node.open("shop", &parameters).await;
        assert_eq!(consumer.positions(2).await, [(1, 1), (1, 2)]);
        assert_eq!(consumer.end().await.code(), tonic::Code::Ok);
        assert_eq!(node.gateway.subscriptions().await.unwrap(), []);
    });
}

#[test]
fn a_peek_that_follows_goes_on_with_what_comes() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a"]).await;
        let parameters = [
            earliest(),
            ("Peek", YES),
            ("Credits", Kind::NumberValue(2.0)),
        ];
        let mut consumer = node.open("shop", &parameters).await;
        assert_eq!(consumer.positions(1).await, [(1, 1)]);
        node.publish(2, &["b", "c"]).await;
        assert_eq!(consumer.positions(1).await, [(2, 1)]);
        assert!(consumer.is_quiet().await, "two were granted");
        consumer.grant(1).await;
        assert_eq!(consumer.positions(1).await, [(2, 2)]);
    });
}

#[test]
fn parameters_of_other_versions_are_ignored() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a"]).await;
        let parameters = [earliest(), ("FancyNewThing", Kind::NumberValue(1.0))];
        let mut consumer = node.open("shop", &parameters).await;
        assert_eq!(consumer.positions(1).await, [(1, 1)]);
    });
}

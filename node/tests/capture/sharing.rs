//! Several consumers on one uri, slow ones beside fast ones, many at once.

use std::{collections::BTreeSet, time::Duration};

use pgcapture_actors::gateway::GatewayLimits;
use prost_types::value::Kind;

use crate::harness::{earliest, node, node_with, run, text};

#[test]
fn sessions_of_one_uri_share_its_messages_each_once() {
    run(async {
        let mut node = node().await;
        let mut first = node.join("shop", &[]).await;
        let mut second = node.join("shop", &[]).await;
        for lsn in 1..=4 {
            node.publish(lsn, &["t"; 500]).await;
        }
        let mut seen = BTreeSet::new();
        let mut counts = [0; 2];
        while seen.len() < 2_000 {
            let (index, message) = tokio::select! {
                message = first.next() => (0, message),
                message = second.next() => (1, message),
            };
            let position = crate::harness::position(&message);
            assert!(seen.insert(position), "{position:?} came twice");
            counts[index] += 1;
            let consumer = if index == 0 { &first } else { &second };
            consumer.ack(&message).await;
        }
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        node.status_when("shop", |status| status.unacked == 0).await;
    });
}

#[test]
fn what_a_session_leaves_is_delivered_to_the_others() {
    run(async {
        let mut node = node().await;
        let mut first = node.join("shop", &[]).await;
        node.publish(1, &["a", "b", "c"]).await;
        let all = first.positions(3).await;
        first.ack_at(all[1]).await;
        node.status_when("shop", |status| status.unacked == 2).await;
        let mut second = node.join("shop", &[]).await;
        assert!(second.is_quiet().await);
        drop(first);
        assert_eq!(second.positions(2).await, [(1, 1), (1, 3)]);
    });
}

#[test]
fn an_ordered_subscription_has_one_active_session_and_the_next_takes_over_in_order() {
    run(async {
        let mut node = node().await;
        let ordered = [("Mode", text("ordered"))];
        let mut active = node.join("shop", &ordered).await;
        let mut standby = node.join("shop", &ordered).await;
        node.publish(1, &["a", "b", "c"]).await;
        node.publish(2, &["d"]).await;
        let got = active.positions(4).await;
        assert_eq!(got, [(1, 1), (1, 2), (1, 3), (2, 1)]);
        assert!(standby.is_quiet().await);
        active.ack_at(got[0]).await;
        node.status_when("shop", |status| status.unacked == 3).await;
        drop(active);
        assert_eq!(standby.positions(3).await, got[1..]);
        node.publish(3, &["e"]).await;
        assert_eq!(standby.positions(1).await, [(3, 1)]);

        let mut other = node.open("shop", &[]).await;
        let status = other.end().await;
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    });
}

#[test]
fn in_order_a_requeue_brings_everything_behind_it_again() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b", "c"]).await;
        let parameters = [earliest(), ("Mode", text("ordered"))];
        let mut consumer = node.open("shop", &parameters).await;
        let first = consumer.next().await;
        let second = consumer.next().await;
        let third = consumer.next().await;
        consumer.ack(&first).await;
        consumer.answer(&second, "not now", false).await;
        assert_eq!(consumer.next().await, second);
        assert_eq!(consumer.next().await, third);
    });
}

#[test]
fn unanswered_messages_come_again_after_the_time_out() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b"]).await;
        let parameters = [earliest(), ("AckTimeout", text("40ms"))];
        let mut consumer = node.open("shop", &parameters).await;
        assert_eq!(consumer.positions(2).await, [(1, 1), (1, 2)]);
        consumer.ack_at((1, 1)).await;
        assert_eq!(consumer.positions(2).await, [(1, 2), (1, 2)]);
        consumer.ack_at((1, 2)).await;
        node.status_when("shop", |status| status.unacked == 0).await;
    });
}

#[test]
fn a_consumer_that_never_acknowledges_pauses_at_its_limit() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["t"; 20]).await;
        let parameters = [earliest(), ("MaxUnacked", Kind::NumberValue(5.0))];
        let mut consumer = node.open("shop", &parameters).await;
        let got = consumer.positions(5).await;
        assert!(consumer.is_quiet().await);
        consumer.ack_at(got[3]).await;
        assert_eq!(consumer.positions(1).await, [(1, 6)]);
        assert!(consumer.is_quiet().await);
    });
}

#[test]
fn a_stuck_consumer_holds_up_nobody_and_keeps_little_memory() {
    run(async {
        let limits = GatewayLimits {
            in_flight_bytes_max: 1 << 20,
            ..GatewayLimits::default()
        };
        let mut node = node_with(limits).await;
        let stuck = node.join("shop/stuck", &[]).await;
        let mut healthy = node.join("shop/healthy", &[]).await;
        for lsn in 1..=32 {
            node.publish_large(lsn, 64, 16 * 1024).await;
        }
        for _ in 0..32 * 64 {
            let message = healthy.next().await;
            healthy.ack(&message).await;
        }
        node.status_when("shop/healthy", |status| status.unacked == 0)
            .await;
        let status = node.status("shop/stuck").await.unwrap();
        assert!(status.unacked > 0, "it was served as far as it goes");
        assert!(status.retained_bytes <= 2 << 20, "{status:?}");
        drop(stuck);
        let gone = |status: &pgcapture_actors::gateway::SubscriptionStatus| {
            status.session_count == 0 && status.retained_bytes == 0
        };
        node.status_when("shop/stuck", gone).await;
    });
}

#[test]
fn a_thousand_sessions_open_idle_and_are_served() {
    run(async {
        let mut node = node().await;
        let mut consumers = Vec::new();
        for index in 0..1_000 {
            let uri = format!("shop/{index}");
            consumers.push(node.open(&uri, &[earliest()]).await);
        }
        node.publish(1, &["t"]).await;
        for consumer in &mut consumers {
            let message = consumer.next().await;
            consumer.ack(&message).await;
        }
        for index in [0, 499, 999] {
            node.status_when(&format!("shop/{index}"), |status| status.unacked == 0)
                .await;
        }
        let drained = tokio::time::timeout(Duration::from_secs(10), node.gateway.drain()).await;
        drained.expect("a drain is quick").unwrap();
    });
}

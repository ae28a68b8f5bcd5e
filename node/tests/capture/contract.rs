//! What consumers of the Go gateway rely on.

use pgcapture_actors::gateway::GatewayLimits;

use crate::harness::{earliest, node, position, run, text};

#[test]
fn an_old_client_gets_changes_only_and_goes_on_where_it_acknowledged() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["before"]).await;
        let mut consumer = node.join("shop", &[]).await;
        node.publish(2, &["orders", "pgcapture.sources", "pgcapture.ddl_logs"])
            .await;
        node.publish(3, &["items"]).await;

        let first = consumer.next().await;
        let change = first.change.clone().unwrap();
        assert_eq!(
            (change.schema.as_str(), change.table.as_str()),
            ("public", "orders")
        );
        assert!(first.checkpoint.as_ref().unwrap().data.is_empty());
        assert_eq!(first.commit_time, 0, "new fields are for those who ask");
        let second = consumer.next().await;
        let third = consumer.next().await;
        let positions = [&first, &second, &third].map(position);
        assert_eq!(positions, [(2, 1), (2, 3), (3, 1)]);

        consumer.ack(&first).await;
        consumer.ack(&third).await;
        node.status_when("shop", |status| status.unacked == 1).await;
        drop(consumer);

        let mut consumer = node.open("shop", &[]).await;
        assert_eq!(consumer.next().await, second, "with the same bytes");
        assert!(consumer.is_quiet().await, "the others were acknowledged");
    });
}

#[test]
fn the_table_regex_is_found_anywhere_in_the_name_and_the_rest_is_acknowledged() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["orders", "items", "old_orders"]).await;
        node.publish(2, &["items"]).await;
        let parameters = [earliest(), ("TableRegex", text("order"))];
        let mut consumer = node.open("shop", &parameters).await;
        let messages = [consumer.next().await, consumer.next().await];
        assert_eq!(messages.each_ref().map(position), [(1, 1), (1, 3)]);
        for message in &messages {
            consumer.ack(message).await;
        }
        let tail = (2, 2);
        node.status_when("shop", |status| {
            (status.floor.lsn.0, status.floor.seq) == tail
                && status.durable_floor == Some(status.floor)
        })
        .await;
    });
}

#[test]
fn a_requeued_message_is_delivered_again() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let first = consumer.next().await;
        let second = consumer.next().await;
        consumer.answer(&first, "try later", false).await;
        consumer.ack(&second).await;
        assert_eq!(consumer.next().await, first);
        consumer.answer(&first, "again", false).await;
        assert_eq!(consumer.next().await, first);
        consumer.ack(&first).await;
        let status = node.status_when("shop", |status| status.unacked == 0).await;
        assert_eq!(status.redelivered_count, 2);
        assert!(consumer.is_quiet().await);
    });
}

#[test]
fn an_ack_that_comes_twice_is_harmless() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b", "c"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let first = consumer.next().await;
        let second = consumer.next().await;
        for message in [&second, &second, &first, &first, &second] {
            consumer.ack(message).await;
        }
        consumer.answer(&first, "too late", false).await;
        node.status_when("shop", |status| status.unacked == 1).await;
        node.publish(2, &["d"]).await;
        assert_eq!(consumer.positions(2).await, [(1, 3), (2, 1)]);
    });
}

#[test]
fn acknowledgements_survive_a_node_that_is_not_drained() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a", "b", "c", "d"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let mut messages = Vec::new();
        for _ in 0..4 {
            messages.push(consumer.next().await);
        }
        for index in [0, 2] {
            consumer.ack(&messages[index]).await;
        }
        node.status_when("shop", |status| {
            status.unacked == 2 && status.durable_floor.is_some_and(|floor| floor.seq == 1)
        })
        .await;
        let mut node = node.restart(GatewayLimits::default()).await;
        let mut consumer = node.join("shop", &[]).await;
        node.publish(2, &["e"]).await;
        assert_eq!(consumer.positions(3).await, [(1, 2), (1, 4), (2, 1)]);
    });
}

#[test]
fn a_subscription_exists_from_its_first_use_though_nothing_was_acknowledged() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["before"]).await;
        drop(node.join("shop/reports", &[]).await);
        node.status_when("shop/reports", |status| status.session_count == 0)
            .await;
        let mut node = node.restart(GatewayLimits::default()).await;
        node.publish(2, &["between"]).await;
        let mut consumer = node.open("shop/reports", &[]).await;
        assert_eq!(consumer.positions(1).await, [(2, 1)]);
    });
}

#[test]
fn closing_the_requests_ends_the_stream_without_an_error() {
    run(async {
        let mut node = node().await;
        node.publish(1, &["a"]).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        let message = consumer.next().await;
        consumer.ack(&message).await;
        let (closed, _) = tokio::sync::mpsc::channel(1);
        consumer.requests = closed;
        assert_eq!(consumer.end().await.code(), tonic::Code::Ok);
        node.status_when("shop", |status| {
            status.unacked == 0 && status.floor.seq == 2 && status.session_count == 0
        })
        .await;
    });
}

#[test]
fn a_row_of_ten_mebibytes_passes() {
    run(async {
        let mut node = node().await;
        node.publish_large(1, 2, 10 << 20).await;
        let mut consumer = node.open("shop", &[earliest()]).await;
        for seq in [1, 2] {
            let message = consumer.next().await;
            assert_eq!(position(&message), (1, seq));
            assert_eq!(message.change.unwrap().table.len(), 10 << 20);
        }
    });
}

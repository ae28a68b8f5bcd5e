//! What the README promises to somebody with a database of his own.

use pgcapture_proto::pgcapture::{CaptureMessage, change::Operation};
use serde_json::Value;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    consumer::{Consumer, id},
    process::{Node, eventually},
    world::World,
};

fn operation(message: &CaptureMessage) -> Operation {
    message.change.as_ref().unwrap().op()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_added_looked_at_paused_and_removed() {
    let world = World::bare(&[], "").await;
    world
        .sql(
            "CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE tmp (id int PRIMARY KEY)",
        )
        .await;
    a_dry_run_changes_nothing(&world).await;
    let added = world.add(&["--exclude", "public.tmp", "-o", "json"]).await;
    assert_eq!(added.says(&["CREATE PUBLICATION"]).json()["name"], "shop");
    let mut consumer = world.joined("shop/search").await;
    three_operations_arrive(&world, &mut consumer).await;
    every_command_shows_it(&world).await;
    it_rests_and_goes_on(&world, &mut consumer).await;
    drop(consumer);
    it_is_removed_without_a_trace(&world).await;
}

async fn a_dry_run_changes_nothing(world: &World) {
    let plan = world.add(&["--exclude", "public.tmp", "--dry-run", "-o", "json"]);
    let plan = plan.await.json();
    let statements = plan["sql"].as_array().unwrap();
    assert!(
        statements[0]
            .as_str()
            .unwrap()
            .starts_with("CREATE PUBLICATION")
    );
    assert!(
        statements[1]
            .as_str()
            .unwrap()
            .contains("pg_create_logical_replication_slot")
    );
    let left =
        world.sql("SELECT 1 FROM pg_replication_slots UNION ALL SELECT 2 FROM pg_publication");
    assert!(left.await.is_empty(), "a dry run changes nothing");
}

async fn three_operations_arrive(world: &World, consumer: &mut Consumer) {
    world.sql("INSERT INTO tmp VALUES (1)").await;
    world.sql("INSERT INTO t VALUES (1, 'one')").await;
    world.sql("UPDATE t SET v = 'two'").await;
    world.sql("DELETE FROM t").await;
    let messages = [
        consumer.next().await,
        consumer.next().await,
        consumer.next().await,
    ];
    let seen = messages
        .each_ref()
        .map(|message| (operation(message), id(message)));
    assert_eq!(
        seen,
        [
            (Operation::Insert, 1),
            (Operation::Update, 1),
            (Operation::Delete, 1)
        ]
    );
    for message in &messages {
        consumer.ack(message).await;
    }
    world.caught_up().await;
}

async fn every_command_shows_it(world: &World) {
    let sources = world.ask(&["source", "ls", "-o", "json"]).await.json();
    assert_eq!(
        (sources[0]["state"].as_str(), sources[0]["rows"].as_u64()),
        (Some("following"), Some(3))
    );
    let shown = world
        .ask(&["source", "show", "shop", "-o", "json"])
        .await
        .json();
    assert_eq!(
        (&shown["trouble"], &shown["slot"]),
        (&Value::Null, &"shop_pgcapture".into())
    );
    let slots = world.ask(&["slot", "ls", "-o", "json"]).await.json();
    assert_eq!(slots[0]["slot"], "shop_pgcapture");
    let slot = world
        .ask(&["slot", "show", "shop_pgcapture", "-o", "json"])
        .await
        .json();
    assert_eq!(slot["source"], "shop", "{slot}");
    let streams = world.ask(&["stream", "ls", "-o", "json"]).await.json();
    assert_eq!(streams[0]["stream"], "shop", "{streams}");
    let consumers = world.ask(&["consumer", "ls", "-o", "json"]).await.json();
    assert_eq!(consumers[0]["uri"], "shop/search");
    let metrics = world.page("/metrics").await;
    assert!(metrics.contains("pgcapture_slot_state{"), "{metrics}");
    assert!(world.page("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(world.page("/readyz").await.starts_with("HTTP/1.1 200"));
}

async fn it_rests_and_goes_on(world: &World, consumer: &mut Consumer) {
    world.ask(&["source", "pause", "shop"]).await.expect(0);
    world
        .sql("INSERT INTO t VALUES (2, 'while it rests')")
        .await;
    let held = world.sql("SELECT active FROM pg_replication_slots").await;
    assert_eq!(held, [[Some("f".to_owned())]], "the slot is given back");
    world.ask(&["source", "resume", "shop"]).await.expect(0);
    assert_eq!(id(&consumer.next().await), 2);
}

async fn it_is_removed_without_a_trace(world: &World) {
    world
        .ask(&["source", "rm", "shop"])
        .await
        .expect(7)
        .says(&["--yes"]);
    let removed = world
        .ask(&["source", "rm", "shop", "--yes"])
        .await
        .expect(0);
    assert!(
        removed.data.contains("drop slot shop_pgcapture"),
        "{removed:?}"
    );
    let left =
        world.sql("SELECT 1 FROM pg_replication_slots UNION ALL SELECT 2 FROM pg_publication");
    assert!(left.await.is_empty());
    let consumers = world.ask(&["consumer", "ls", "-o", "json"]).await.json();
    assert_eq!(consumers, Value::Array(vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_is_moved_back_and_forgotten() {
    let world = World::new().await;
    let mut consumer = world.joined("shop/a").await;
    world
        .sql("INSERT INTO t SELECT i FROM generate_series(1, 10) i")
        .await;
    assert_eq!(consumer.take_until(10).await.len(), 10);
    world
        .ask(&["consumer", "seek", "shop/a", "--to", "earliest"])
        .await
        .expect(7);
    let args = ["consumer", "seek", "shop/a", "--to", "earliest", "--yes"];
    world.ask(&args).await.expect(0);
    assert_eq!(
        consumer.end().await.code(),
        tonic::Code::Aborted,
        "its session is ended"
    );
    let mut consumer = world.consumer("shop/a").await;
    assert_eq!(
        consumer.take_until(10).await,
        (1..=10).collect::<Vec<i64>>()
    );
    consumer.close().await;
    world.ask(&["consumer", "rm", "shop/a"]).await.expect(7);
    world
        .ask(&["consumer", "rm", "shop/a", "--yes"])
        .await
        .expect(0);
    world.ask(&["consumer", "show", "shop/a"]).await.expect(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_a_consumer_goes_on_where_its_acknowledgements_ended() {
    let mut world = World::new().await;
    let mut consumer = world.joined("shop").await;
    world
        .sql("INSERT INTO t SELECT i FROM generate_series(1, 100) i")
        .await;
    consumer.take_until(60).await;
    eventually("the acknowledgements", async || {
        let shown = world
            .ask(&["consumer", "show", "shop", "-o", "json"])
            .await
            .json();
        let unacked = shown["unacked"].as_u64().unwrap();
        (unacked == 40)
            .then_some(())
            .ok_or_else(|| shown.to_string())
    })
    .await;
    let (exit, log) = world.node.stop().await;
    assert_eq!(exit, Some(0), "{log}");
    assert!(log.contains("\"message\":\"stopped\""), "{log}");
    world.node = Node::start(&world.place.configure("")).await;
    let mut consumer = world.consumer("shop").await;
    assert_eq!(
        consumer.take_until(100).await,
        (61..=100).collect::<Vec<i64>>()
    );

    // The end of a stream is told once what was acknowledged is durable: nothing of it comes again.
    consumer.close().await;
    let world = world.crash("").await;
    world.sql("INSERT INTO t VALUES (101)").await;
    let mut consumer = world.consumer("shop").await;
    assert_eq!(consumer.take_until(101).await, [101]);
    assert_eq!(world.logged_ids().await, (1..=101).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_busy_node_within_seconds() {
    let world = World::new().await;
    let mut consumer = world.joined("shop").await;
    world
        .sql("INSERT INTO t SELECT i FROM generate_series(1, 200000) i")
        .await;
    consumer.next().await;
    let started = std::time::Instant::now();
    let (exit, log) = world.node.stop().await;
    assert_eq!(exit, Some(0), "{log}");
    assert!(
        started.elapsed().as_secs() < 10,
        "{:?}: {log}",
        started.elapsed()
    );
    assert_eq!(consumer.end().await.code(), tonic::Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    let world = World::bare(&[], "").await;
    let mut health = HealthClient::new(world.channel());
    for service in ["", "pgcapture.DBLogGateway", "pgcapture.admin.v1.Admin"] {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "serving");
    }
    let mut reflection = ServerReflectionClient::new(world.channel());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await;
    let answer = answers
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("a list: {answer:?}")
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(
        names.contains(&"pgcapture.DBLogGateway".to_owned()),
        "{names:?}"
    );
    assert!(
        names.contains(&"pgcapture.admin.v1.Admin".to_owned()),
        "{names:?}"
    );
}

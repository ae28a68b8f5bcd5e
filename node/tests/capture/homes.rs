//! Sessions of one subscription on several nodes: one ledger, at its home.

use std::collections::BTreeSet;

use pgcapture_actors::cursors::Cursor;
use pgcapture_engine::{
    checkpoint::Checkpoint,
    cluster::{Command, HomeClaim, HomeCommand},
    lsn::Lsn,
};
use pgcapture_proto::{
    pgcapture::{CaptureMessage, capture_request},
    status::CODE_KEY,
};
use tonic::Code;

use crate::{
    harness::{Consumer, earliest, eventually, id, position, run, text},
    members::Members,
};

/// Receives `count` messages and acknowledges each.
async fn take(consumer: &mut Consumer, count: usize) -> BTreeSet<(u64, u32)> {
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        let message = consumer.next().await;
        consumer.ack(&message).await;
        assert!(seen.insert(position(&message)), "delivered once");
    }
    seen
}

/// Publishes until the second consumer gets something; the first acknowledges what it gets.
async fn second_gets(
    members: &mut Members,
    first: &mut Consumer,
    second: &mut Consumer,
) -> CaptureMessage {
    for lsn in 100.. {
        members.writer().publish(lsn, &["t"]).await;
        tokio::select! {
            message = first.next() => first.ack(&message).await,
            message = second.next() => return message,
        }
    }
    unreachable!("it takes its turn")
}

#[test]
fn sessions_on_two_nodes_share_one_ledger() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        let mut first = members.node("a").join("shop", &[earliest()]).await;
        members.home_is(Some("a")).await;
        let second = members.node("b").open("shop", &[earliest()]).await;
        let two =
            |status: &pgcapture_actors::gateway::SubscriptionStatus| status.session_count == 2;
        members.node("a").status_when("shop", two).await;
        let elsewhere = members.node("b").status("shop").await;
        assert_eq!(elsewhere.map_or(0, |status| status.session_count), 0);
        let tables = vec!["t"; 400];
        for lsn in 1..=3 {
            members.writer().publish(lsn, &tables).await;
        }
        let mut second = second;
        let (mut here, mut there) = (BTreeSet::new(), BTreeSet::new());
        while here.len() + there.len() < 1_200 {
            tokio::select! {
                message = first.next() => {
                    first.ack(&message).await;
                    assert!(here.insert(position(&message)));
                }
                message = second.next() => {
                    second.ack(&message).await;
                    assert!(there.insert(position(&message)));
                }
            }
        }
        assert!(here.is_disjoint(&there));
        assert!(!here.is_empty() && !there.is_empty(), "both took part");
        let all_done = |status: &pgcapture_actors::gateway::SubscriptionStatus| status.unacked == 0;
        members.node("a").status_when("shop", all_done).await;
        // What one sends back comes again, to either.
        let message = second_gets(&mut members, &mut first, &mut second).await;
        let wanted = position(&message);
        second.answer(&message, "busy", false).await;
        let again = tokio::select! {
            message = first.next() => message,
            message = second.next() => message,
        };
        assert_eq!(position(&again), wanted);
    });
}

#[test]
fn a_forwarded_consumer_gets_what_a_local_one_gets() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        let _home = members.node("a").join("shop/x", &[earliest()]).await;
        members.home_is(Some("a")).await;
        drop(_home);
        let mut consumer = members.node("b").open("shop/x", &[earliest()]).await;
        members.writer().publish(1, &["t", "u"]).await;
        let seen = take(&mut consumer, 2).await;
        assert_eq!(seen, BTreeSet::from([(1, 1), (1, 2)]));
        // The same errors.
        consumer.ack_at((77, 7)).await;
        let status = consumer.end().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G05");
        // And the same good end, with everything that was acknowledged.
        let mut consumer = members.node("b").open("shop/x", &[earliest()]).await;
        members.writer().publish(2, &["t"]).await;
        let seen = take(&mut consumer, 1).await;
        assert_eq!(
            seen,
            BTreeSet::from([(2, 1)]),
            "what was acknowledged counts"
        );
        assert_eq!(consumer.close().await.code(), Code::Ok);
        // A mistake is refused by whoever it is made at.
        let bad = [("Mode", text("both"))];
        let status = members.node("b").open("shop/x", &bad).await.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G04");
        let status = members.node("b").open("none", &[]).await.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G01");
    });
}

#[test]
fn a_home_without_sessions_is_given_back_with_its_cursor() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        members.writer().publish(1, &["t", "u"]).await;
        let mut consumer = members.node("a").open("shop", &[earliest()]).await;
        take(&mut consumer, 2).await;
        members.home_is(Some("a")).await;
        assert_eq!(consumer.close().await.code(), Code::Ok);
        members.home_is(None).await;
        let cursors = members.node("a").cursors.cursors.lock().unwrap().clone();
        assert!(cursors[&id("shop", "shop")].floor.lsn.0 >= 1);
        assert_eq!(
            members
                .node("a")
                .status("shop")
                .await
                .map(|s| s.session_count),
            Some(0)
        );
        // The next one begins elsewhere, where this one ended.
        members.writer().publish(2, &["t"]).await;
        let mut consumer = members.node("b").open("shop", &[earliest()]).await;
        assert_eq!(take(&mut consumer, 1).await, BTreeSet::from([(2, 1)]));
        members.home_is(Some("b")).await;
        // And back, though the first has served it before.
        assert_eq!(consumer.close().await.code(), Code::Ok);
        members.home_is(None).await;
        members.writer().publish(3, &["t"]).await;
        let mut consumer = members.node("a").open("shop", &[earliest()]).await;
        assert_eq!(take(&mut consumer, 1).await, BTreeSet::from([(3, 1)]));
    });
}

#[test]
fn a_home_that_dies_before_it_delivered_is_replaced_inside_the_stream() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        let _home = members.node("a").join("shop", &[]).await;
        members.home_is(Some("a")).await;
        let mut waiting = members.node("b").open("shop", &[]).await;
        let two =
            |status: &pgcapture_actors::gateway::SubscriptionStatus| status.session_count == 2;
        members.node("a").status_when("shop", two).await;
        members.cut_off("a");
        members.home_is(Some("b")).await;
        let here =
            |status: &pgcapture_actors::gateway::SubscriptionStatus| status.session_count == 1;
        members.node("b").status_when("shop", here).await;
        members.writer().publish(5, &["t"]).await;
        assert_eq!(take(&mut waiting, 1).await, BTreeSet::from([(5, 1)]));
    });
}

#[test]
fn a_home_that_dies_after_it_delivered_ends_the_stream_with_a_next_step() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        let mut home = members.node("a").join("shop", &[]).await;
        members.home_is(Some("a")).await;
        let mut consumer = members.node("b").open("shop", &[]).await;
        let two =
            |status: &pgcapture_actors::gateway::SubscriptionStatus| status.session_count == 2;
        members.node("a").status_when("shop", two).await;
        let unanswered = second_gets(&mut members, &mut home, &mut consumer).await;
        members.cut_off("a");
        let status = consumer.end().await;
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G19");
        assert!(status.message().contains("next: reconnect"), "{status}");
        // The next attempt finds the home dead and takes it over.
        let mut again = members.node("b").open("shop", &[]).await;
        let message = again.next().await;
        assert_eq!(position(&message), position(&unanswered));
        members.home_is(Some("b")).await;
        // The old one, which lives, gives its sessions up.
        let status = home.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G18");
        assert_eq!(status.code(), Code::Unavailable);
    });
}

#[test]
fn a_node_that_stops_ends_what_it_forwards_and_gives_its_homes_back() {
    run(async {
        let members = Members::start(&["a", "b"]).await;
        let mut local = members.node("a").join("shop", &[]).await;
        members.home_is(Some("a")).await;
        let mut forwarded = members.node("b").open("shop", &[]).await;
        let two =
            |status: &pgcapture_actors::gateway::SubscriptionStatus| status.session_count == 2;
        members.node("a").status_when("shop", two).await;
        members.homes["b"].stop().cancel();
        let status = forwarded.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G09");
        members.homes["a"].stop().cancel();
        members.node("a").gateway.drain().await.unwrap();
        assert_eq!(
            local.end().await.metadata().get(CODE_KEY).unwrap(),
            "PGC-G09"
        );
        members.homes["a"].drain().await.unwrap();
        members.home_is(None).await;
    });
}

#[test]
fn who_comes_while_its_home_stops_is_served_by_the_next_one() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        members.writer().publish(1, &["t"]).await;
        let mut local = members.node("a").join("shop", &[earliest()]).await;
        members.home_is(Some("a")).await;
        members.homes["a"].stop().cancel();
        members.node("a").gateway.drain().await.unwrap();
        local.end().await;
        // Who asks the node itself is refused, and makes it nobody's home.
        let mut late = members.node("a").open("shop", &[earliest()]).await;
        let status = late.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G09");
        // Who asks another one waits inside its stream until the home is given back.
        let mut consumer = members.node("b").open("shop", &[earliest()]).await;
        let (message, drained) = tokio::join!(consumer.next(), members.homes["a"].drain());
        drained.unwrap();
        assert_eq!(position(&message), (1, 1));
        members.home_is(Some("b")).await;
    });
}

/// As a node finds itself after it was frozen: the others took its home over, moved the cursor and went.
#[test]
fn a_home_that_slept_goes_on_from_what_the_others_saved() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        members.writer().publish(1, &["t"]).await;
        let mut consumer = members.node("a").open("shop", &[earliest()]).await;
        take(&mut consumer, 1).await;
        members.home_is(Some("a")).await;
        let id = id("shop", "shop");
        eventually("what was acknowledged is saved", async || {
            let cursors = members.node("a").cursors.cursors.lock().unwrap();
            let floor = cursors.get(&id).map(|cursor| cursor.floor);
            let is_saved = floor >= Some(Checkpoint::new(Lsn(1), 1));
            is_saved.then_some(()).ok_or_else(|| format!("{floor:?}"))
        })
        .await;
        let moved = Cursor {
            floor: Checkpoint::new(Lsn(2), 2),
            acked_above: Vec::new(),
        };
        {
            let mut cursors = members.node("a").cursors.cursors.lock().unwrap();
            cursors.insert(id.clone(), moved.clone());
        }
        let node = || "b".to_owned();
        let claim = HomeClaim {
            id: id.clone(),
            instead_of: Some("a".to_owned()),
        };
        let claimed = HomeCommand::Claim {
            node: node(),
            claims: vec![claim],
        };
        let released = HomeCommand::Release {
            node: node(),
            ids: vec![id.clone()],
        };
        let commands = [claimed, released].map(Command::Home);
        members.agreement.agree_at_once(commands);
        let status = consumer.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G18");
        let cursors = members.node("a").cursors.cursors.lock().unwrap().clone();
        assert_eq!(cursors[&id], moved);
        members.writer().publish(2, &["t", "u"]).await;
        members.writer().publish(3, &["t"]).await;
        let mut again = members.node("a").open("shop", &[earliest()]).await;
        assert_eq!(again.positions(1).await, [(3, 1)]);
    });
}

#[test]
fn sessions_end_everywhere_when_their_source_is_removed() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        members.writer().publish(1, &["t"]).await;
        let mut consumer = members.node("b").open("shop", &[earliest()]).await;
        take(&mut consumer, 1).await;
        members.home_is(Some("b")).await;
        let name = "shop".to_owned();
        let removal = Command::RemoveSource { name };
        members.agreement.agree_at_once([removal]);
        let status = consumer.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G18");
        members.home_is(None).await;
    });
}

#[test]
fn a_peek_needs_no_home() {
    run(async {
        let mut members = Members::start(&["a", "b"]).await;
        members.writer().publish(1, &["t"]).await;
        let peek = ("Peek", prost_types::value::Kind::BoolValue(true));
        let mut consumer = members.node("b").open("shop", &[earliest(), peek]).await;
        assert_eq!(consumer.positions(1).await, [(1, 1)]);
        members.home_is(None).await;
        let mut bare = members.node("b").open_bare().await;
        bare.send(capture_request::Type::Credit(Default::default()))
            .await;
        let status = bare.end().await;
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G02");
    });
}

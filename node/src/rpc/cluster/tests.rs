//! What is told of the cluster, and how the memories of its nodes are put together.

use std::collections::BTreeMap;

use pgcapture_engine::cluster::State;
use pgcapture_proto::admin::v1::ClusterEvent;

use super::answer;
use crate::group::{Life, Member, Standing};

fn member(name: &str, is_voter: bool, lag: Option<u64>) -> Member {
    Member {
        name: name.to_owned(),
        id: 1,
        address: format!("{name}:7700"),
        is_voter,
        lag,
    }
}

fn standing() -> Standing {
    Standing {
        leader: Some("n1".to_owned()),
        committed: 90,
        members: vec![
            member("n1", true, Some(0)),
            member("n2", true, Some(6)),
            member("n3", false, None),
        ],
        ..Standing::default()
    }
}

fn state() -> State {
    State {
        owners: BTreeMap::from([("shop".to_owned(), "n2".to_owned())]),
        ..State::default()
    }
}

#[test]
fn the_leader_tells_lives_and_lags_and_others_say_that_they_do_not_know() {
    let lives = BTreeMap::from([
        ("n1".to_owned(), Life::Alive),
        ("n2".to_owned(), Life::Gone),
    ]);
    let status = answer::status("n1", &state(), standing(), Some(&lives));
    assert!(!status.stale);
    let told: Vec<_> = status
        .members
        .iter()
        .map(|it| (it.state.as_str(), it.lag_entries))
        .collect();
    assert_eq!(
        told,
        [("alive", Some(0)), ("gone", Some(6)), ("unknown", None)]
    );
    assert_eq!(status.members[1].sources, ["shop"]);
    assert_eq!(status.members[2].role, "learner");
    let status = answer::status("n3", &state(), standing(), None);
    assert!(status.stale);
    assert!(
        status
            .members
            .iter()
            .all(|member| member.state == "unknown")
    );
}

#[test]
fn a_removal_says_what_it_does_and_an_unknown_node_is_refused() {
    let actions = answer::removal(&state(), &standing(), "n2").unwrap();
    assert_eq!(
        actions,
        [
            "give source shop to another node",
            "take its vote; 1 voting nodes are left",
            "remove n2 (n2:7700) from the cluster",
        ]
    );
    let actions = answer::removal(&state(), &standing(), "n3").unwrap();
    assert_eq!(actions.len(), 1, "a learner has no vote: {actions:?}");
    let error = answer::removal(&state(), &standing(), "n9").unwrap_err();
    assert_eq!(error.explanation.code, "PGC-N10");
    assert!(error.text.contains("n1, n2, n3"), "{error}");
}

fn event(at: i64, node: &str, kind: &str, text: &str) -> ClusterEvent {
    ClusterEvent {
        at,
        node: node.to_owned(),
        kind: kind.to_owned(),
        text: text.to_owned(),
        ..ClusterEvent::default()
    }
}

#[test]
fn what_every_node_saw_is_told_once_and_what_one_did_is_kept() {
    let second = 1_000_000;
    let events = vec![
        event(2 * second, "n2", "elected", "n1 leads in term 3"),
        event(second, "n1", "elected", "n1 leads in term 3"),
        event(3 * second, "n2", "taken_over", "took shop over from n1"),
        event(3 * second, "n3", "taken_over", "took shop over from n1"),
        event(60 * second, "n3", "elected", "n1 leads in term 3"),
        event(4 * second, "n1", "assigned", "shop goes to n2, epoch 4"),
        event(60 * second, "n3", "assigned", "shop goes to n2, epoch 4"),
    ];
    let told = |limit| {
        let merged = answer::merged(events.clone(), limit).into_iter();
        merged
            .map(|event| (event.at / second, event.node))
            .collect::<Vec<_>>()
    };
    let named = |of: &[(i64, &str)]| {
        let named = of.iter().map(|(at, node)| (*at, (*node).to_owned()));
        named.collect::<Vec<_>>()
    };
    assert_eq!(
        told(0),
        named(&[(1, "n1"), (3, "n2"), (3, "n3"), (4, "n1"), (60, "n3")])
    );
    assert_eq!(told(2), named(&[(4, "n1"), (60, "n3")]));
}

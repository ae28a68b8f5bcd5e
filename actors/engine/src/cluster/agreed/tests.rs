//! Requests that come twice, late, or from a node that is not the home any more.

use super::*;
use crate::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{HomeClaim, HomeCommand, Node, tests::source},
    confirm::Origin,
    lsn::{Lsn, PgTime},
    wal_guard::WalWish,
};

fn add_node(request: u128, name: &str, id: u64) -> Request {
    Request {
        id: RequestId(request),
        proposal: Proposal::State(Command::AddNode(Node {
            name: name.to_owned(),
            id,
            address: format!("{name}:7700"),
            joined_at: PgTime(1),
        })),
    }
}

fn state(request: u128, command: Command) -> Request {
    Request {
        id: RequestId(request),
        proposal: Proposal::State(command),
    }
}

/// With one source, `shop`.
fn agreed() -> Agreed {
    let mut agreed = Agreed::default();
    let add = Command::AddSource(Box::new(source("shop")));
    agreed.apply(state(100, add)).0.unwrap();
    agreed
}

fn subscription() -> SubscriptionId {
    SubscriptionId {
        stream: "shop".to_owned(),
        consumer: "a".to_owned(),
    }
}

fn cursor(lsn: u64) -> Vec<(SubscriptionId, Cursor)> {
    let cursor = Cursor {
        floor: Checkpoint::new(Lsn(lsn), 1),
        acked_above: Vec::new(),
    };
    vec![(subscription(), cursor)]
}

fn save(request: u128, lsn: u64) -> Request {
    save_by("n1", request, lsn)
}

fn save_by(node: &str, request: u128, lsn: u64) -> Request {
    Request {
        id: RequestId(request),
        proposal: Proposal::Cursors(CursorCommand::Save {
            by: node.to_owned(),
            cursors: cursor(lsn),
        }),
    }
}

fn seek_by(node: &str, request: u128, lsn: u64) -> Request {
    Request {
        id: RequestId(request),
        proposal: Proposal::Cursors(CursorCommand::Seek {
            by: node.to_owned(),
            cursors: cursor(lsn),
        }),
    }
}

fn claim(request: u128, node: &str, instead_of: Option<&str>) -> Request {
    let claim = HomeCommand::Claim {
        node: node.to_owned(),
        claims: vec![HomeClaim {
            id: subscription(),
            instead_of: instead_of.map(str::to_owned),
        }],
    };
    state(request, Command::Home(claim))
}

/// With two nodes as well.
fn two_nodes() -> Agreed {
    let mut agreed = agreed();
    for (request, node) in [(101, "n1"), (102, "n2")] {
        let id = request as u64 - 100;
        agreed.apply(add_node(request, node, id)).0.unwrap();
    }
    agreed
}

#[test]
fn a_request_that_comes_twice_counts_once() {
    let mut agreed = agreed();
    assert_eq!(agreed.apply(save(1, 5)).0, Ok(Answer::Done));
    assert_eq!(agreed.apply(save(2, 9)).0, Ok(Answer::Done));
    // The first one again, late: it must not move the cursor back.
    let before = agreed.clone();
    let (outcome, touched) = agreed.apply(save(1, 5));
    assert_eq!((outcome, touched), (Ok(Answer::Done), Touched::default()));
    assert_eq!(agreed, before);
}

#[test]
fn a_refusal_leaves_no_trace_and_is_not_remembered() {
    let mut agreed = Agreed::default();
    assert_eq!(agreed.apply(add_node(1, "n1", 1)).0, Ok(Answer::Done));
    let before = agreed.clone();
    let (outcome, touched) = agreed.apply(add_node(2, "n1", 2));
    assert!(matches!(outcome, Err(Refusal::NodeExists { .. })));
    assert_eq!((touched, &agreed), (Touched::default(), &before));
}

#[test]
fn it_tells_what_was_touched() {
    let mut agreed = agreed();
    let (_, touched) = agreed.apply(add_node(1, "n1", 1));
    assert!(touched.state && touched.saved.is_empty());
    let (_, touched) = agreed.apply(save(2, 5));
    assert!(!touched.state && touched.removed.is_empty());
    assert_eq!(touched.saved.len(), 1);
    let remove = Request {
        id: RequestId(3),
        proposal: Proposal::Cursors(CursorCommand::Remove(subscription())),
    };
    let (_, touched) = agreed.apply(remove);
    assert_eq!(touched.removed, [subscription()]);
    assert_eq!(touched.answered, Some((3, RequestId(3), Answer::Done)));
}

/// Applies all and returns where the cursor is then.
fn position_after(agreed: &mut Agreed, requests: Vec<Request>) -> Option<u64> {
    for request in requests {
        agreed.apply(request).0.unwrap();
    }
    let cursor = agreed.cursors.get(&subscription())?;
    Some(cursor.floor.lsn.0)
}

#[test]
fn how_far_all_had_come_is_kept_when_one_goes_back() {
    let mut agreed = agreed();
    let reached = |agreed: &Agreed| agreed.state.reached.get("shop").copied();
    for (request, lsn, is_news, wanted) in [
        (1, 5, false, None),
        (2, 9, false, None),
        (3, 4, true, Some(9)),
        (4, 7, false, Some(9)),
        (5, 6, false, Some(9)),
        (6, 12, false, Some(9)),
        (7, 1, true, Some(12)),
    ] {
        let (_, touched) = agreed.apply(seek_by("n1", request, lsn));
        assert_eq!(touched.state, is_news, "{request}");
        let wanted = wanted.map(|lsn| Checkpoint::new(Lsn(lsn), 1));
        assert_eq!(reached(&agreed), wanted, "{request}");
    }
}

#[test]
fn what_is_attested_without_consumers_was_reached_by_all_that_come() {
    let mut agreed = agreed();
    let attest = |lsn| Command::Attest {
        name: "shop".to_owned(),
        epoch: Epoch(0),
        origin: Origin {
            previous: Some(Checkpoint::new(Lsn(lsn), 1)),
            resume_lsn: Lsn(lsn + 10),
        },
    };
    agreed.apply(state(101, attest(5))).0.unwrap();
    let reached = Some(Checkpoint::new(Lsn(5), 1));
    assert_eq!(agreed.state.reached.get("shop").copied(), reached);
    // With a consumer its cursor counts.
    agreed.apply(save(1, 3)).0.unwrap();
    agreed.apply(state(102, attest(20))).0.unwrap();
    assert_eq!(agreed.state.reached.get("shop").copied(), reached);
}

#[test]
fn a_source_that_is_added_again_with_another_limit_keeps_its_consumers() {
    let mut agreed = agreed();
    let add = |wish| {
        let source = Box::new(source("shop"));
        Command::AddGuardedSource { source, wish }
    };
    let wish = WalWish {
        limit_bytes: Some(1 << 30),
        ..WalWish::default()
    };
    let requests = vec![
        save(1, 5),
        state(2, add(wish)),
        state(3, add(WalWish::default())),
    ];
    assert_eq!(position_after(&mut agreed, requests), Some(5));
    // Saying nothing leaves what was said.
    assert_eq!(agreed.state.wal_wishes.get("shop"), Some(&wish));
}

#[test]
fn a_late_save_of_an_old_home_changes_nothing() {
    let mut agreed = two_nodes();
    let requests = vec![claim(1, "n1", None), save(2, 9), claim(3, "n2", Some("n1"))];
    assert_eq!(position_after(&mut agreed, requests), Some(9));
    let (outcome, touched) = agreed.apply(save(5, 14));
    assert_eq!((outcome, touched.saved.len()), (Ok(Answer::Done), 0));
    assert_eq!(position_after(&mut agreed, vec![]), Some(9));
}

#[test]
fn what_a_frozen_home_wakes_up_with_moves_no_cursor_back() {
    let mut agreed = two_nodes();
    let release = HomeCommand::Release {
        node: "n2".to_owned(),
        ids: vec![subscription()],
    };
    let requests = vec![
        claim(1, "n1", None),
        save(2, 5),
        claim(3, "n2", Some("n1")),
        save_by("n2", 4, 9),
        state(5, Command::Home(release)),
    ];
    assert_eq!(position_after(&mut agreed, requests), Some(9));
    // It is nobody's home now: nothing that it kept counts, old or not.
    let late = vec![save(6, 6), save(7, 12)];
    assert_eq!(position_after(&mut agreed, late), Some(9));
    // Nor does it once it is the home again, unless it goes on from there.
    let again = vec![claim(8, "n1", None), save(9, 6)];
    assert_eq!(position_after(&mut agreed, again), Some(9));
    assert_eq!(position_after(&mut agreed, vec![save(10, 12)]), Some(12));
}

#[test]
fn an_operator_moves_a_cursor_where_he_wants_it() {
    let mut agreed = two_nodes();
    let seek = |agreed: &mut Agreed, node, request, lsn| {
        position_after(agreed, vec![seek_by(node, request, lsn)])
    };
    assert_eq!(seek(&mut agreed, "n2", 1, 9), Some(9));
    assert_eq!(seek(&mut agreed, "n1", 2, 4), Some(4));
    position_after(&mut agreed, vec![claim(3, "n1", None)]);
    assert_eq!(seek(&mut agreed, "n2", 4, 1), Some(4), "not its home");
    assert_eq!(seek(&mut agreed, "n1", 5, 2), Some(2));
}

#[test]
fn a_node_without_others_needs_no_home() {
    let mut agreed = agreed();
    agreed.apply(add_node(1, "n1", 1)).0.unwrap();
    assert_eq!(position_after(&mut agreed, vec![save(2, 5)]), Some(5));
    let other = vec![save_by("n2", 3, 7)];
    assert_eq!(position_after(&mut agreed, other), Some(5));
}

#[test]
fn a_source_takes_its_consumers_with_it_wherever_they_are() {
    let mut agreed = two_nodes();
    let remove = |request| {
        let name = "shop".to_owned();
        state(request, Command::RemoveSource { name })
    };
    let requests = vec![claim(3, "n1", None), save(4, 9)];
    assert_eq!(position_after(&mut agreed, requests), Some(9));
    let (outcome, touched) = agreed.apply(remove(5));
    assert_eq!(outcome, Ok(Answer::Done));
    assert_eq!(touched.removed, [subscription()]);
    assert_eq!(agreed.cursors, CursorTable::default());
    assert!(agreed.state.homes.is_empty());
    // Its home has not heard of it yet.
    let (_, touched) = agreed.apply(save(6, 10));
    assert!(touched.saved.is_empty());
    let add = Command::AddSource(Box::new(source("shop")));
    agreed.apply(state(7, add)).0.unwrap();
    assert_eq!(agreed.cursors.floor("shop"), None);
}

#[test]
fn a_stream_begins_without_cursors_and_is_added_once() {
    let mut agreed = Agreed::default();
    // As an earlier version could leave it.
    let left = save(1, 9);
    if let Proposal::Cursors(command) = left.proposal {
        agreed.cursors.apply(command);
    }
    let add = || Command::AddSource(Box::new(source("shop")));
    let (_, touched) = agreed.apply(state(2, add()));
    assert_eq!(touched.removed, [subscription()]);
    agreed.apply(save(3, 4)).0.unwrap();
    let (outcome, touched) = agreed.apply(state(4, add()));
    assert_eq!((outcome, touched.removed), (Ok(Answer::Unchanged), vec![]));
    assert!(agreed.cursors.get(&subscription()).is_some());
}

//! The rules of the splice, one by one.

use super::*;

const S1: SessionId = SessionId(1);
const S2: SessionId = SessionId(2);
const START: Duration = Duration::ZERO;
const MS: Duration = Duration::from_millis(1);

fn splice(sessions: &[SessionId], is_ordered: bool) -> Splice {
    let mut splice = Splice::default();
    for session in sessions {
        splice.join(*session, is_ordered);
    }
    splice
}

fn entry(lsn: u64) -> Checkpoint {
    Checkpoint::new(Lsn(lsn), 3)
}

fn rows(row_count: u64) -> RowsSent {
    RowsSent {
        row_count,
        bytes: row_count * 10,
    }
}

/// A range at `at` that the session is being sent.
fn delivering(splice: &mut Splice, session: SessionId, at: u64) -> RangeNumber {
    let (number, _) = splice.request(entry(at - 1), START);
    assert!(splice.opened(number, Lsn(at), START));
    splice.reached(Lsn(at), START);
    assert_eq!(splice.take(session, START), Some(number));
    number
}

fn sent(splice: &mut Splice, session: SessionId, at: u64, count: u64) -> RangeNumber {
    let number = delivering(splice, session, at);
    assert!(splice.sent(number, session, rows(count), true, START));
    number
}

fn ended(splice: &mut Splice) -> Vec<RangeEnd> {
    splice.settle(|| None, START);
    splice
        .take_ended()
        .into_iter()
        .map(|(_, end)| end)
        .collect()
}

#[test]
fn an_opening_range_holds_the_feed_behind_the_transaction_that_it_is_in() {
    let mut splice = splice(&[S1], false);
    assert_eq!(splice.limit(), None);
    let (number, at_least) = splice.request(entry(50), START);
    assert_eq!((number, at_least), (RangeNumber(1), Lsn(51)));
    assert_eq!(splice.limit(), Some(Lsn(51)));
    assert!(!splice.is_held());
    splice.reached(Lsn(51), START);
    assert!(splice.is_held());
    assert!(splice.opened(number, Lsn(80), 2 * MS));
    assert_eq!(splice.limit(), Some(Lsn(80)));
    assert_eq!(splice.hold_ended(2 * MS), Some(2 * MS));
    assert_eq!(splice.take(S1, START), None, "changes before it come first");
    splice.reached(Lsn(80), START);
    assert_eq!(splice.take(S1, START), Some(number));
    assert_eq!(splice.limit(), Some(Lsn(80)));
}

#[test]
fn a_range_that_opens_too_old_is_given_up() {
    let mut splice = splice(&[S1], false);
    let (number, at_least) = splice.request(entry(50), START);
    assert!(!splice.opened(number, Lsn(at_least.0 - 1), START));
    assert_eq!(ended(&mut splice), [RangeEnd::TooOld]);
    assert!(!splice.opened(number, at_least, START), "it has ended");
}

#[test]
fn the_next_range_is_asked_for_where_the_feed_stands_for_the_first() {
    let mut splice = splice(&[S1], false);
    let first = delivering(&mut splice, S1, 100);
    let (second, at_least) = splice.request(entry(99), START);
    assert_eq!(at_least, Lsn(100));
    assert!(splice.opened(second, Lsn(100), START));
    assert_eq!(splice.take(S1, START), None, "one after the other");
    assert!(splice.sent(first, S1, rows(5), true, START));
    assert_eq!(
        splice.take(S1, START),
        Some(second),
        "its rows need no answer before"
    );
    assert!(splice.sent(second, S1, rows(0), true, START));
    assert_eq!(splice.limit(), None);
    assert_eq!(ended(&mut splice), [RangeEnd::Finished(rows(0))]);
}

#[test]
fn ranges_come_in_the_order_of_their_positions() {
    let mut splice = splice(&[S1], false);
    let (first, _) = splice.request(entry(50), START);
    let (second, _) = splice.request(entry(50), START);
    assert!(splice.opened(second, Lsn(60), START));
    splice.reached(Lsn(51), START);
    assert_eq!(splice.take(S1, START), None);
    assert!(splice.opened(first, Lsn(70), START));
    splice.reached(Lsn(60), START);
    assert_eq!(splice.take(S1, START), Some(second));
}

#[test]
fn beside_others_newer_changes_wait_for_the_answers() {
    let mut splice = splice(&[S1, S2], false);
    let number = sent(&mut splice, S1, 100, 2);
    assert_eq!(splice.limit(), Some(Lsn(100)));
    let (next, _) = splice.request(entry(99), START);
    assert!(splice.opened(next, Lsn(100), START));
    assert_eq!(
        splice.take(S2, START),
        None,
        "it may have a newer version of a row"
    );
    splice.ack(S1, number, RowAck::One, START).unwrap();
    assert_eq!(splice.limit(), Some(Lsn(100)));
    splice.ack(S1, number, RowAck::One, START).unwrap();
    assert_eq!(ended(&mut splice), [RangeEnd::Finished(rows(2))]);
    assert_eq!(splice.take(S2, START), Some(next));
}

#[test]
fn a_lone_session_goes_on_until_another_joins() {
    let mut splice = splice(&[S1], false);
    sent(&mut splice, S1, 100, 2);
    assert_eq!(splice.limit(), None);
    splice.join(S2, false);
    assert_eq!(splice.limit(), Some(Lsn(100)));
    splice.leave(S2, START);
    assert_eq!(splice.limit(), None);
}

#[test]
fn in_order_a_range_waits_for_the_changes_before_it_to_be_acknowledged() {
    let mut splice = splice(&[S1, S2], true);
    let number = sent(&mut splice, S1, 100, 1);
    assert_eq!(splice.limit(), None, "who stands by waits anyway");
    splice.ack(S1, number, RowAck::One, START).unwrap();
    splice.settle(|| Some(entry(99)), START);
    assert!(!splice.has_ended());
    splice.settle(|| Some(Checkpoint::new(Lsn(100), 0)), START);
    assert_eq!(ended(&mut splice), [RangeEnd::Finished(rows(1))]);
}

#[test]
fn in_order_rows_behind_a_change_that_comes_again_are_given_up() {
    let mut splice = splice(&[S1], true);
    sent(&mut splice, S1, 100, 1);
    let (waiting, _) = splice.request(entry(150), START);
    assert!(splice.opened(waiting, Lsn(200), START));
    splice.rewound(Lsn(100), START);
    assert_eq!(ended(&mut splice), [], "the change comes after them");
    splice.rewound(Lsn(99), START);
    assert_eq!(ended(&mut splice), [RangeEnd::Rewound]);
    assert_eq!(splice.counts(), (1, 1), "what is not delivered yet stays");
}

#[test]
fn answers_are_counted_and_never_more_than_was_sent() {
    let mut splice = splice(&[S1, S2], false);
    let number = delivering(&mut splice, S1, 100);
    assert!(splice.sent(number, S1, rows(3), false, START));
    assert_eq!(splice.unacked(S1), (3, 30));
    assert_eq!(
        splice.ack(S1, number, RowAck::UpTo(2), START),
        Ok((2, Some(Lsn(100))))
    );
    assert_eq!(splice.ack(S1, number, RowAck::UpTo(1), START).unwrap().0, 0);
    assert_eq!(splice.unacked(S1), (1, 10));
    for (session, number, ack) in [
        (S1, number, RowAck::UpTo(4)),
        (S1, number, RowAck::All),
        (S1, RangeNumber(0), RowAck::One),
        (S1, RangeNumber(9), RowAck::One),
        (S2, number, RowAck::One),
    ] {
        assert_eq!(
            splice.ack(session, number, ack, START),
            Err(UnknownRows),
            "{ack:?}"
        );
        assert!(ack != RowAck::One || splice.requeue(session, number, "", START).is_err());
    }
    assert_eq!(splice.ack(S1, number, RowAck::One, START), Ok((1, None)));
    assert_eq!(splice.ack(S1, number, RowAck::One, START), Err(UnknownRows));
    assert!(splice.sent(number, S1, rows(4), true, START));
    assert_eq!(splice.ack(S1, number, RowAck::All, START).unwrap().0, 4);
    assert_eq!(
        splice.ack(S1, number, RowAck::One, START),
        Ok((0, None)),
        "repeated"
    );
    assert_eq!(ended(&mut splice), [RangeEnd::Finished(rows(7))]);
    assert_eq!(
        splice.ack(S1, number, RowAck::One, START),
        Ok((0, None)),
        "late"
    );
}

#[test]
fn a_cumulative_answer_covers_what_the_session_got_before() {
    let mut splice = splice(&[S1], false);
    sent(&mut splice, S1, 100, 3);
    let second = sent(&mut splice, S1, 200, 4);
    sent(&mut splice, S1, 300, 5);
    assert_eq!(
        splice.ack(S1, second, RowAck::All, START),
        Ok((7, Some(Lsn(200))))
    );
    assert_eq!(splice.ack_before(S1, Lsn(299), START), 0);
    assert_eq!(splice.ack_before(S1, Lsn(300), START), 5);
    assert_eq!(ended(&mut splice).len(), 3);
}

#[test]
fn a_row_sent_back_stops_its_range_which_ends_with_the_last_answer() {
    let mut splice = splice(&[S1, S2], false);
    let number = delivering(&mut splice, S1, 100);
    assert!(splice.sent(number, S1, rows(3), false, START));
    splice.requeue(S1, number, "not now", START).unwrap();
    assert!(!splice.sent(number, S1, rows(1), true, START), "it stopped");
    splice.ack(S1, number, RowAck::One, START).unwrap();
    assert_eq!(ended(&mut splice), [], "one is still with the consumer");
    assert_eq!(splice.limit(), Some(Lsn(100)));
    splice.requeue(S1, number, "nor this", START).unwrap();
    let reason = "not now".to_owned();
    assert_eq!(ended(&mut splice), [RangeEnd::Requeued(reason)]);
    assert_eq!(splice.limit(), None);
    assert!(splice.requeue(S1, number, "late", START).is_ok());
}

#[test]
fn a_range_that_fails_keeps_its_place_until_what_is_out_was_answered() {
    let mut splice = splice(&[S1, S2], false);
    let number = delivering(&mut splice, S1, 100);
    assert!(splice.sent(number, S1, rows(1), false, START));
    splice.failed(number, START);
    assert_eq!(splice.limit(), Some(Lsn(100)));
    splice.ack(S1, number, RowAck::One, START).unwrap();
    assert_eq!(ended(&mut splice), [RangeEnd::Failed]);
    let (opening, _) = splice.request(entry(200), START);
    splice.failed(opening, START);
    splice.failed(opening, START);
    assert_eq!(ended(&mut splice), [RangeEnd::Failed]);
}

#[test]
fn a_session_that_leaves_gives_its_ranges_up_and_the_last_one_all() {
    let mut splice = splice(&[S1, S2], false);
    sent(&mut splice, S1, 100, 2);
    splice.request(entry(150), START);
    splice.leave(S1, START);
    assert_eq!(ended(&mut splice), [RangeEnd::Disconnected]);
    splice.leave(S2, START);
    assert_eq!(ended(&mut splice), [RangeEnd::Disconnected]);
    splice.join(S1, false);
    let (number, _) = splice.request(entry(10), START);
    assert_eq!(number, RangeNumber(3), "numbers go on");
    assert!(splice.opened(number, Lsn(20), START));
    assert_eq!(splice.take(S1, START), None, "the next life reads again");
}

#[test]
fn a_drain_keeps_only_what_is_wholly_sent() {
    let mut splice = splice(&[S1], false);
    sent(&mut splice, S1, 100, 2);
    delivering(&mut splice, S1, 200);
    splice.request(entry(250), START);
    splice.withdraw(START);
    assert_eq!(
        ended(&mut splice),
        [RangeEnd::Disconnected, RangeEnd::Disconnected]
    );
    assert_eq!(splice.counts(), (0, 1));
}

#[test]
fn every_wait_has_its_bound() {
    type Case = (&'static str, fn(&mut Splice), Option<Duration>, RangeEnd);
    let cases: [Case; 6] = [
        (
            "opening, changes wait",
            |splice| {
                splice.request(entry(50), START);
                splice.reached(Lsn(51), 10 * MS);
            },
            Some(10 * MS + HOLD_MAX),
            RangeEnd::TooOld,
        ),
        (
            "opening, nothing waits yet",
            |splice| {
                splice.request(entry(50), START);
            },
            None,
            RangeEnd::TooOld,
        ),
        (
            "delivered to one that takes nothing",
            |splice| {
                delivering(splice, S1, 100);
            },
            Some(STALL_ALONE_MAX),
            RangeEnd::Stalled,
        ),
        (
            "the same beside another",
            |splice| {
                delivering(splice, S1, 100);
                splice.join(S2, false);
            },
            Some(STALL_MAX),
            RangeEnd::Stalled,
        ),
        (
            "not answered, alone",
            |splice| {
                sent(splice, S1, 100, 1);
            },
            None,
            RangeEnd::Stalled,
        ),
        (
            "not answered, beside another",
            |splice| {
                sent(splice, S1, 100, 1);
                splice.join(S2, false);
            },
            Some(STALL_MAX),
            RangeEnd::Stalled,
        ),
    ];
    for (what, arrange, deadline, end) in cases {
        let mut splice = splice(&[S1], false);
        arrange(&mut splice);
        assert_eq!(splice.next_deadline(), deadline, "{what}");
        let Some(deadline) = deadline else { continue };
        splice.give_up_overdue(deadline - MS);
        assert!(!splice.has_ended(), "{what}");
        splice.give_up_overdue(deadline);
        assert_eq!(ended(&mut splice), [end], "{what}");
    }
}

#[test]
fn a_range_waits_only_so_long_for_the_changes_before_it() {
    let mut splice = splice(&[S1], false);
    let (number, _) = splice.request(entry(50), START);
    assert!(splice.opened(number, Lsn(90), 10 * MS));
    splice.give_up_overdue(10 * MS + WAIT_MAX - MS);
    assert!(!splice.has_ended());
    splice.give_up_overdue(10 * MS + WAIT_MAX);
    assert_eq!(ended(&mut splice), [RangeEnd::Stalled]);
}

#[test]
fn a_range_waits_for_as_long_as_others_before_it_are_delivered() {
    let mut splice = splice(&[S1], false);
    let first = delivering(&mut splice, S1, 100);
    let (second, _) = splice.request(entry(99), START);
    assert!(splice.opened(second, Lsn(150), START));
    // A slow consumer takes the first for longer than changes may take.
    let mut now = START;
    for _ in 0..4 {
        now += STALL_ALONE_MAX - MS;
        splice.give_up_overdue(now);
        assert!(splice.sent(first, S1, rows(1), false, now));
    }
    assert!(splice.sent(first, S1, rows(1), true, now));
    splice.give_up_overdue(now + WAIT_MAX - MS);
    assert!(!splice.has_ended());
    splice.give_up_overdue(now + WAIT_MAX);
    assert_eq!(ended(&mut splice), [RangeEnd::Stalled], "no change comes");
}

#[test]
fn waiting_behind_another_range_costs_no_time() {
    let mut splice = splice(&[S1], false);
    let first = delivering(&mut splice, S1, 100);
    let (second, _) = splice.request(entry(99), START);
    let (third, _) = splice.request(entry(99), START);
    assert!(splice.opened(second, Lsn(100), START));
    assert_eq!(
        splice.next_deadline(),
        Some(STALL_ALONE_MAX),
        "only the first can stall"
    );
    let late = HOLD_MAX * 20;
    assert!(splice.sent(first, S1, rows(1), true, late));
    assert_eq!(splice.next_deadline(), Some(late + HOLD_MAX));
    splice.give_up_overdue(late + HOLD_MAX);
    let ends = splice.take_ended();
    assert_eq!(ends, [(third, RangeEnd::TooOld)]);
}

#[test]
fn rows_left_unanswered_for_longer_than_the_session_allows_are_given_up() {
    let mut splice = splice(&[S1], false);
    let number = delivering(&mut splice, S1, 100);
    assert!(splice.sent(number, S1, rows(2), false, START));
    assert!(splice.sent(number, S1, rows(3), false, 50 * MS));
    assert_eq!(splice.expire(S1, 100 * MS, 99 * MS), 0);
    splice.ack(S1, number, RowAck::UpTo(2), 99 * MS).unwrap();
    assert_eq!(
        splice.expire(S1, 100 * MS, 100 * MS),
        0,
        "the second chunk has time"
    );
    assert_eq!(splice.expire(S2, 100 * MS, 150 * MS), 0);
    assert_eq!(splice.expire(S1, 100 * MS, 150 * MS), 3);
    assert_eq!(ended(&mut splice), [RangeEnd::Stalled]);
}

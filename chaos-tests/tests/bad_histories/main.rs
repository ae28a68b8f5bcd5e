//! A judge that cannot fail proves nothing: each bad history made here by hand must be caught by the
//! judge of the property it breaks, and the good one must pass.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod story;

use pgcapture_chaos_tests::{
    checkers::evidence::Evidence,
    history::{
        event::{Entry, Event, Item},
        recorder::{Recorder, read_history},
        row::Operation,
    },
    report::{Verdict, judge_files},
    workload::journal::{JournalWriter, Line, read_journal},
};

use story::{MARKER, Story, at_consumer, change, commit, marker, write};

#[test]
fn a_good_history_passes() {
    let verdict = Story::good().judged();
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.verdict, "pass");
    assert_eq!((verdict.committed, verdict.delivered), (4, 6));
    assert_eq!((verdict.lost, verdict.duplicated), (0, 0));
    assert_eq!((verdict.kills, verdict.redelivered), (1, 2));
}

#[test]
fn a_lost_row_is_caught() {
    let mut story = Story::good();
    // Renumbered, so that only the loss itself can be noticed.
    let at = story.position(200, 2);
    story.log.remove(at);
    story.log[at].1 = 2;
    let verdict = story.must_fail_by("no_loss/lost");
    assert_eq!(verdict.lost, 1);
}

#[test]
fn a_lost_transaction_is_caught() {
    let mut story = Story::good();
    story.log.retain(|at| at.0 != 300);
    assert_eq!(story.must_fail_by("no_loss/lost").lost, 2);
    // The consumer had it already: then it was not durable.
    story.must_fail_by("durable/delivered_but_not_in_log");
}

#[test]
fn a_row_of_a_rolled_back_transaction_is_caught() {
    let mut story = Story::good();
    let rolled_back = story.journal[1].kept[0];
    commit(&mut story.log, 700, vec![change(2, rolled_back)]);
    story.must_fail_by("no_loss/rolled_back_row_present");
}

#[test]
fn a_row_that_a_savepoint_took_back_is_caught() {
    let mut story = Story::good();
    let undone = story.journal[2].undone[0];
    commit(&mut story.log, 700, vec![change(3, undone)]);
    story.must_fail_by("no_loss/rolled_back_row_present");
}

#[test]
fn a_row_that_nobody_wrote_is_caught() {
    let mut story = Story::good();
    let phantom = write(Operation::Insert, 77, 77);
    commit(&mut story.log, 700, vec![change(9, phantom)]);
    story.must_fail_by("no_loss/never_written");
}

#[test]
fn an_unknown_transaction_may_be_absent_but_not_half_there() {
    let mut absent = Story::good();
    absent.log.retain(|at| at.0 != 500);
    absent.consumer.retain(
        |event| !matches!(event, Event::Delivered { place, .. } | Event::Acked(place) if place.lsn == 500),
    );
    assert_eq!(absent.judged().violations, []);

    let mut half = Story::good();
    let at = half.position(500, 2);
    half.log.remove(at);
    half.log[at].1 = 2;
    half.must_fail_by("no_loss/half_of_unknown");
}

#[test]
fn a_gap_is_caught() {
    let mut story = Story::good();
    let gap = Item::Gap {
        from_lsn: 310,
        to_lsn: 390,
        reason: "slot_lost".to_owned(),
    };
    let at = story.position(400, 0);
    story.log.insert(at, (390, 0, gap));
    story.must_fail_by("no_loss/gap_without_cause");
}

#[test]
fn a_position_twice_in_the_log_is_caught() {
    let mut story = Story::good();
    let at = story.position(300, 0);
    let again = story.log[at..at + 4].to_vec();
    story.log.splice(at..at, again);
    let verdict = story.must_fail_by("unique/position_twice");
    assert_eq!(verdict.duplicated, 4);
}

#[test]
fn a_write_under_two_positions_is_caught() {
    let mut story = Story::good();
    let doubled = story.journal[0].kept[0];
    commit(&mut story.log, 700, vec![change(1, doubled)]);
    assert_eq!(story.must_fail_by("unique/write_twice").duplicated, 1);
}

#[test]
fn transactions_in_the_wrong_order_are_caught() {
    let mut story = Story::good();
    let (second, third) = (story.position(300, 0), story.position(400, 0));
    let early = story.log[second..third].to_vec();
    story.log.drain(second..third);
    let first = story.position(200, 0);
    story.log.splice(first..first, early);
    story.must_fail_by("ordered/step_back");
    story.must_fail_by("ordered/writer_step_back");
}

#[test]
fn a_consumer_that_is_taken_back_within_a_session_is_caught() {
    let mut story = Story::good();
    let place = at_consumer(2, 200, 1);
    let item = change(1, story.journal[0].kept[0]);
    let at = story.consumer.len() - 1;
    story.consumer.insert(at, Event::Delivered { place, item });
    story.must_fail_by("ordered/step_back");
}

#[test]
fn a_torn_transaction_is_caught() {
    let mut story = Story::good();
    let at = story.position(300, 2);
    let torn = [
        (300, 2, Item::Commit { end_lsn: 308 }),
        (350, 0, Item::Begin),
    ];
    story.log.splice(at..at, torn);
    for (lsn, seq) in [(300, 2), (300, 3)] {
        let at = story.log.iter().rposition(|at| (at.0, at.1) == (lsn, seq));
        story.log[at.unwrap()].0 = 350;
    }
    story.must_fail_by("atomic/torn");
}

#[test]
fn a_transaction_without_its_commit_is_caught() {
    let mut story = Story::good();
    let at = story.position(300, 3);
    story.log.remove(at);
    story.must_fail_by("atomic/no_commit");
}

#[test]
fn a_hole_in_a_transaction_is_caught() {
    let mut story = Story::good();
    let at = story.position(400, 1);
    story.log.remove(at);
    story.must_fail_by("atomic/hole");
    story.must_fail_by("bank/sum");
}

#[test]
fn a_garbled_value_is_caught() {
    let mut story = Story::good();
    let at = story.position(200, 1);
    if let Item::Change { row, .. } = &mut story.log[at].2 {
        row.pad = Some(1);
    }
    story.must_fail_by("values/garbled");
}

#[test]
fn a_row_under_another_key_is_caught() {
    let mut story = Story::good();
    let at = story.position(300, 1);
    if let Item::Change { row, .. } = &mut story.log[at].2 {
        row.id = Some(2);
        row.pad = None;
    }
    story.must_fail_by("values/wrong_key");
}

#[test]
fn a_row_that_the_consumer_never_got_is_caught() {
    let mut story = Story::good();
    let is_of = |event: &Event| matches!(event, Event::Delivered { place, .. } | Event::Acked(place) if place.checkpoint() == (400, 1));
    story.consumer.retain(|event| !is_of(event));
    story.must_fail_by("at_least_once/never_delivered");
}

#[test]
fn a_redelivery_needs_a_cause() {
    let again = |story: &mut Story| {
        let place = at_consumer(2, 600, 1);
        let at = story.consumer.len() - 1;
        let item = marker(MARKER);
        story.consumer.insert(at, Event::Delivered { place, item });
    };
    let mut without = Story::good();
    again(&mut without);
    without.must_fail_by("at_least_once/again_without_cause");

    let mut sent_back = Story::good();
    let at = sent_back.consumer.len() - 1;
    sent_back.consumer[at - 1] = Event::Nacked(at_consumer(2, 600, 1));
    again(&mut sent_back);
    assert_eq!(sent_back.judged().violations, []);
}

#[test]
fn a_settled_ack_must_not_be_forgotten() {
    let story = Story::good();
    // Three seconds between two lines: what came again had been settled long before.
    let to_entry = |(index, event)| Entry {
        at_us: index as u64 * 3_000_000,
        event,
    };
    let entries = story.events().into_iter().enumerate().map(to_entry);
    let verdict = Verdict::of(&Evidence::new(entries.collect(), story.journal));
    assert_eq!(verdict.violations[0].kind, "at_least_once/again_after_ack");
}

#[test]
fn a_slot_that_is_ahead_of_the_log_is_caught() {
    let mut story = Story::good();
    // Ahead by position only: nothing committed in between, as on an idle database.
    story.samples.push((399, 300));
    assert_eq!(story.judged().violations, []);
    story.samples.push((408, 300));
    story.must_fail_by("confirmed/ahead_of_durable");
}

#[test]
fn a_run_that_proves_nothing_is_no_pass() {
    let mut idle = Story::good();
    idle.load.rows = 0;
    idle.must_fail_by("sound/too_little_load");
    let mut tame = Story::good();
    tame.header.faults_wanted = 2;
    tame.must_fail_by("sound/too_few_faults");
    let mut blind = Story::good();
    blind.samples.clear();
    blind.must_fail_by("sound/no_samples");
    let mut short = Story::good();
    short.log.retain(|at| at.0 != 600);
    short.must_fail_by("sound/not_read_to_the_end");
    let mut deaf = Story::good();
    deaf.consumer.clear();
    deaf.must_fail_by("at_least_once/nothing_delivered");
}

#[test]
fn a_stored_run_is_judged_as_the_fresh_one_was() {
    let mut story = Story::good();
    story.log.retain(|at| at.0 != 300);
    let dir = tempfile::tempdir().unwrap();
    let (history, journal) = (dir.path().join("history"), dir.path().join("journal"));
    let recorder = Recorder::create(&history).unwrap();
    for event in story.events() {
        recorder.record(event).unwrap();
    }
    recorder.finish().unwrap();
    let writer = JournalWriter::create(&journal).unwrap();
    for transaction in story.journal.iter().cloned() {
        writer.append(&Line::Transaction(transaction)).unwrap();
    }
    writer.finish().unwrap();
    let fresh = Verdict::of(&Evidence::new(
        read_history(&history).unwrap(),
        read_journal(&journal).unwrap(),
    ));
    let stored = judge_files(&history, &journal).unwrap();
    assert_eq!(stored.to_line().unwrap(), fresh.to_line().unwrap());
    assert!(stored.to_line().unwrap().contains("\"lost\":2"));
}

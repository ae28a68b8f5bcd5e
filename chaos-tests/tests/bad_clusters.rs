//! A judge that cannot fail proves nothing: each bad stream made here by hand must be caught, and the
//! good one must pass.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "bad_histories/story.rs"]
#[expect(dead_code, reason = "shared with the tests of one node")]
mod story;

use pgcapture_chaos_tests::{
    cluster::verdict::Verdict,
    history::event::{Entry, Event, FaultOutcome, Item, Reader},
};

use story::{Story, change, commit};

/// Microseconds between two lines of a history.
const LINE_US: u64 = 1_000;

/// A run of the good story: what its log holds came as one stream, while three nodes were struck.
struct Run {
    story: Story,
    faults: Vec<&'static str>,
    /// What else happened, at the end.
    more: Vec<Event>,
}

impl Run {
    fn good() -> Self {
        Self {
            story: Story::good(),
            faults: vec!["kill n1 owner", "restart n2 owner", "freeze n1 follower"],
            more: Vec::new(),
        }
    }

    fn entries(&self) -> Vec<Entry> {
        let reader = Reader::Log;
        let mut header = self.story.header.clone();
        header.faults_wanted = 3;
        let mut events = vec![Event::Run(header), Event::Opened { reader, session: 1 }];
        events.extend(self.faults.iter().map(|name| Event::Fault {
            name: (*name).to_owned(),
            outcome: FaultOutcome::Installed,
            made_progress: true,
        }));
        let of_story = self.story.events();
        let is_load = |event: &&Event| matches!(event, Event::Load(_));
        let is_stream = |event: &&Event| {
            let is_of_log =
                matches!(event, Event::Delivered { place, .. } if place.reader == reader);
            is_of_log || matches!(event, Event::Sampled { .. })
        };
        events.extend(of_story.iter().filter(is_stream).cloned());
        events.extend(of_story.iter().filter(is_load).cloned());
        events.extend(self.more.iter().cloned());
        let to_entry = |(event, line)| Entry {
            at_us: line * LINE_US,
            event,
        };
        events.into_iter().zip(0..).map(to_entry).collect()
    }

    fn judged(&self) -> Verdict {
        Verdict::of(self.entries(), self.story.journal.clone())
    }

    #[track_caller]
    fn must_fail_by(&self, kind: &str) -> Verdict {
        let verdict = self.judged();
        let kinds: Vec<&str> = verdict.violations.iter().map(|v| v.kind.as_str()).collect();
        assert_eq!(verdict.verdict, "fail");
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
        verdict
    }
}

#[test]
fn a_good_stream_passes() {
    let verdict = Run::good().judged();
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.verdict, "pass");
    assert_eq!((verdict.committed, verdict.delivered), (4, 4));
    assert_eq!(
        (verdict.lost, verdict.doubled, verdict.out_of_order),
        (0, 0, 0)
    );
    assert_eq!(
        (verdict.kills, verdict.restarts, verdict.freezes),
        (1, 1, 1)
    );
    assert_eq!((verdict.owner_struck, verdict.sessions), (2, 1));
    assert_eq!(verdict.longest_pause_ms, LINE_US / 1_000);
    let line = verdict.to_line().unwrap();
    assert!(!line.contains('\n') && line.contains("\"verdict\":\"pass\""));
}

#[test]
fn a_lost_transaction_is_caught() {
    let mut run = Run::good();
    run.story.log.retain(|at| at.0 != 300);
    let verdict = run.must_fail_by("no_loss/lost");
    assert_eq!((verdict.lost, verdict.delivered), (2, 2));
}

#[test]
fn a_lost_row_is_caught() {
    let mut run = Run::good();
    let at = run.story.position(200, 2);
    run.story.log.remove(at);
    run.must_fail_by("no_loss/lost");
    run.must_fail_by("atomic/hole");
}

#[test]
fn a_transaction_that_comes_again_after_a_failover_is_caught() {
    let mut run = Run::good();
    let (first, end) = (run.story.position(300, 0), run.story.position(400, 0));
    let again = run.story.log[first..end].to_vec();
    run.story.log.splice(end..end, again);
    let verdict = run.must_fail_by("unique/position_twice");
    assert_eq!(verdict.doubled, 4);
    run.must_fail_by("ordered/step_back");
}

#[test]
fn the_same_rows_under_new_positions_are_caught() {
    let mut run = Run::good();
    let doubled = run.story.journal[0].kept[0];
    commit(&mut run.story.log, 700, vec![change(1, doubled)]);
    run.must_fail_by("unique/write_twice");
}

#[test]
fn a_step_back_is_caught() {
    let mut run = Run::good();
    let (second, third) = (run.story.position(300, 0), run.story.position(400, 0));
    let early: Vec<_> = run.story.log.drain(second..third).collect();
    let first = run.story.position(200, 0);
    run.story.log.splice(first..first, early);
    assert!(run.must_fail_by("ordered/step_back").out_of_order > 0);
}

#[test]
fn half_a_transaction_at_a_failover_is_caught() {
    let mut run = Run::good();
    let at = run.story.position(300, 2);
    run.story.log.drain(at..at + 2);
    run.must_fail_by("atomic/no_commit");
}

#[test]
fn a_gap_is_caught() {
    let mut run = Run::good();
    let gap = Item::Gap {
        from_lsn: 310,
        to_lsn: 390,
        reason: "slot_lost".to_owned(),
    };
    let at = run.story.position(400, 0);
    run.story.log.insert(at, (390, 0, gap));
    run.must_fail_by("no_loss/gap_without_cause");
}

#[test]
fn a_slot_beyond_what_the_consumer_has_is_caught() {
    let mut run = Run::good();
    run.story.samples.push((401, 300));
    run.must_fail_by("confirmed/ahead_of_durable");
}

#[test]
fn a_stream_that_ended_is_caught() {
    let mut run = Run::good();
    run.more.push(Event::Ended {
        reader: Reader::Log,
        session: 1,
        cause: "the node closed the stream".to_owned(),
    });
    run.must_fail_by("stream/ended");
}

#[test]
fn a_pause_is_told_until_the_writers_ended() {
    let run = Run::good();
    let mut entries = run.entries();
    let load = entries
        .iter()
        .position(|it| matches!(it.event, Event::Load(_)));
    let load = load.unwrap();
    for entry in &mut entries[load..] {
        entry.at_us += 7_000_000;
    }
    let verdict = Verdict::of(entries.clone(), run.story.journal.clone());
    assert_eq!(verdict.longest_pause_ms, 7_001);
    for entry in &mut entries[load + 1..] {
        entry.at_us += 60_000_000;
    }
    let verdict = Verdict::of(entries, run.story.journal.clone());
    assert_eq!(verdict.longest_pause_ms, 7_001);
}

#[test]
fn a_run_that_proves_nothing_is_no_pass() {
    let mut followers = Run::good();
    followers.faults = vec!["kill n1 follower"; 3];
    followers.must_fail_by("sound/followers_struck");
    let mut few = Run::good();
    few.faults.truncate(2);
    few.must_fail_by("sound/too_few_faults");
    let mut idle = Run::good();
    idle.story.header.transactions_per_second_min = 50;
    idle.must_fail_by("sound/too_little_load");
    let mut short = Run::good();
    short.story.log.retain(|at| at.0 != 600);
    short.must_fail_by("sound/not_read_to_the_end");
    let mut blind = Run::good();
    blind.story.samples.clear();
    blind.must_fail_by("sound/no_samples");
}

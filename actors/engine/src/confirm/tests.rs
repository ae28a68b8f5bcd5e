//! What may be confirmed, as tables, and a model of two nodes that take a slot from one another.

use proptest::prelude::*;

use super::*;

const START: Duration = Duration::ZERO;

const fn at(lsn: u64, seq: u32) -> Option<Checkpoint> {
    Some(Checkpoint::new(Lsn(lsn), seq))
}

const fn origin(previous: Option<Checkpoint>, resume: u64) -> Origin {
    Origin {
        previous,
        resume_lsn: Lsn(resume),
    }
}

fn known(floor: Option<Checkpoint>, attested: Option<Origin>) -> Known {
    Known {
        floor,
        attested,
        ..Known::default()
    }
}

#[test]
fn a_single_node_confirms_what_its_log_holds() {
    let mut confirmation = Confirmation::by_log(Lsn(5));
    let durable = origin(at(20, 3), 30);
    assert_eq!(confirmation.advance(durable, None), Lsn(30));
    assert_eq!(confirmation.advance(durable, at(1, 0)), Lsn(30));
    assert_eq!(confirmation.attest(durable, None, START), None);
}

#[test]
fn a_cursor_inside_a_transaction_keeps_the_whole_of_it() {
    let mut confirmation = Confirmation::by_slot(Lsn(5), Lsn(0));
    let durable = origin(at(40, 3), 50);
    assert_eq!(confirmation.advance(durable, at(20, 2)), Lsn(20));
    assert_eq!(confirmation.advance(durable, at(40, 2)), Lsn(40));
    assert_eq!(
        confirmation.advance(durable, at(30, 1)),
        Lsn(40),
        "never back"
    );
}

#[test]
fn consumers_at_the_tail_do_not_hold_an_idle_source() {
    let mut confirmation = Confirmation::by_slot(Lsn(5), Lsn(0));
    let end = 50 + ATTEST_BYTES;
    let durable = origin(at(40, 3), end);
    let floor = at(40, 3);
    assert_eq!(confirmation.advance(durable, floor), Lsn(40));
    let attest = confirmation.attest(durable, floor, START);
    assert_eq!(attest, Some(durable));
    assert_eq!(
        confirmation.advance(durable, floor),
        Lsn(40),
        "not agreed on"
    );
    confirmation.attested(durable);
    assert_eq!(confirmation.advance(durable, floor), Lsn(end));
    assert_eq!(confirmation.attest(durable, floor, START), None);
    // Something new comes that nobody has consumed yet: what was let go stays so.
    let next = origin(at(end + 10, 3), end + 20);
    assert_eq!(confirmation.advance(next, floor), Lsn(end));
}

#[test]
fn attesting_is_rare_and_only_for_what_is_worth_it() {
    let mut confirmation = Confirmation::by_slot(Lsn(5), Lsn(0));
    let durable = |resume| origin(at(40, 3), resume);
    let (near, far) = (durable(40 + ATTEST_BYTES - 1), durable(40 + ATTEST_BYTES));
    assert_eq!(confirmation.attest(near, at(40, 3), START), None);
    assert_eq!(
        confirmation.attest(far, at(40, 2), START),
        None,
        "not consumed"
    );
    assert_eq!(confirmation.attest(far, at(40, 3), START), Some(far));
    let soon = ATTEST_INTERVAL / 2;
    assert_eq!(confirmation.attest(far, at(40, 3), soon), None);
    assert!(
        confirmation
            .attest(far, at(40, 3), ATTEST_INTERVAL)
            .is_some()
    );
    let mut confirmation = Confirmation::by_slot(Lsn(5), Lsn(0));
    let nobody = confirmation.attest(far, None, START);
    assert_eq!(nobody, Some(far), "no subscription: the log's end counts");
}

#[test]
fn a_log_goes_on_starts_anew_or_has_a_gap() {
    let tail = origin(at(40, 3), 50);
    let attested = Some(origin(at(60, 2), 90));
    let anew = |previous, resume| LogStart::Anew(origin(previous, resume));
    for (slot, floor, attested, wanted) in [
        (50, at(10, 0), None, LogStart::GoOn),
        (20, at(60, 0), None, LogStart::GoOn),
        // As far as the cursors: proved by them.
        (60, at(60, 0), None, anew(at(59, SEQ_LAST), 60)),
        (60, None, None, anew(at(59, SEQ_LAST), 60)),
        // Beyond the cursors, where nothing was.
        (80, at(60, 2), attested, anew(at(60, 2), 80)),
        (90, at(60, 2), attested, anew(at(60, 2), 90)),
        (60, at(60, 2), attested, anew(at(59, SEQ_LAST), 60)),
        // Somebody else has moved the slot.
        (
            91,
            at(60, 2),
            attested,
            LogStart::Gap(Some(origin(at(60, 2), 60))),
        ),
        (
            80,
            at(60, 1),
            attested,
            LogStart::Gap(Some(origin(at(60, 1), 60))),
        ),
        (80, at(40, 3), None, LogStart::Gap(None)),
        (80, at(30, 3), None, LogStart::Gap(None)),
        (
            80,
            at(70, SEQ_LAST),
            None,
            LogStart::Gap(Some(origin(at(70, SEQ_LAST), 71))),
        ),
    ] {
        let start = log_start(tail, Lsn(slot), &known(floor, attested));
        assert_eq!(start, wanted, "{slot} {floor:?} {attested:?}");
    }
}

#[test]
fn a_hole_is_declared_after_what_every_consumer_has_got() {
    let (tail, slot) = (origin(at(40, 3), 50), origin(at(79, SEQ_LAST), 80));
    let at_cursor = Some(origin(at(60, 1), 60));
    for (start, floor, wanted) in [
        (LogStart::GoOn, at(40, 3), None),
        (LogStart::GoOn, None, None),
        (LogStart::GoOn, at(60, 1), at_cursor),
        (LogStart::Anew(slot), at(60, 1), at_cursor),
        // Nobody lacks anything before the slot.
        (LogStart::Anew(slot), None, Some(slot)),
        (LogStart::LetGo(at_cursor), at(60, 1), at_cursor),
        (LogStart::Gap(None), at(40, 3), None),
    ] {
        let declared = at_hole(start, tail, floor);
        assert_eq!(declared, LogStart::Gap(wanted), "{start:?} {floor:?}");
    }
}

#[test]
fn who_went_back_behind_the_slot_is_refused_and_is_no_gap() {
    let tail = origin(at(40, 3), 50);
    let attested = Some(origin(at(60, 2), 90));
    let anew = |previous, resume| LogStart::Anew(origin(previous, resume));
    let gap = LogStart::Gap(Some(origin(at(45, 0), 50)));
    for (slot, reached, attested, wanted) in [
        (60, at(60, 2), None, anew(at(59, SEQ_LAST), 60)),
        (61, at(60, 2), None, gap),
        // What was void beyond the cursors.
        (90, at(60, 2), attested, anew(at(60, 2), 90)),
        (90, at(60, 1), attested, gap),
        (91, at(60, 2), attested, gap),
        (90, None, attested, gap),
    ] {
        let known = Known {
            reached,
            ..known(at(45, 0), attested)
        };
        let start = log_start(tail, Lsn(slot), &known);
        assert_eq!(start, wanted, "{slot} {reached:?}");
    }
}

#[test]
fn what_a_decision_has_let_go_is_declared_and_does_not_halt() {
    let tail = origin(at(40, 3), 50);
    let start = |slot, floor, let_go| {
        let known = Known {
            let_go: Some(Lsn(let_go)),
            ..known(floor, None)
        };
        log_start(tail, Lsn(slot), &known)
    };
    let floor = at(45, 0);
    let before = Some(origin(floor, 50));
    assert_eq!(start(70, floor, 70), LogStart::LetGo(before));
    assert_eq!(start(71, floor, 70), LogStart::Gap(before));
    assert_eq!(start(50, floor, 70), LogStart::GoOn);
    let consumed = LogStart::Anew(origin(at(69, SEQ_LAST), 70));
    assert_eq!(start(70, at(80, 0), 70), consumed);
}

#[test]
fn a_decision_lets_go_what_is_durable_and_no_more() {
    let mut confirmation = Confirmation::by_slot(Lsn(5), Lsn(0));
    let durable = origin(at(40, 3), 50);
    confirmation.let_go(Lsn(45));
    assert_eq!(confirmation.advance(durable, at(20, 2)), Lsn(45));
    confirmation.let_go(Lsn(90));
    assert_eq!(confirmation.advance(durable, at(20, 2)), Lsn(50));
    let mut confirmation = Confirmation::by_log(Lsn(5));
    confirmation.let_go(Lsn(90));
    assert_eq!(confirmation.advance(durable, None), Lsn(50));
}

#[test]
fn only_a_source_that_was_never_captured_begins_without_a_past() {
    let begins = LogStart::Anew(origin(None, 60));
    let anew = LogStart::Anew(origin(at(59, SEQ_LAST), 60));
    let (empty, tail) = (Origin::default(), origin(at(40, 3), 50));
    for (tail, floor, attested, wanted) in [
        (empty, None, None, begins),
        (empty, at(0, 0), None, begins),
        (empty, at(0, 0), Some(origin(None, 60)), begins),
        (empty, None, Some(Origin::CAPTURED), anew),
        (tail, None, None, anew),
        (
            empty,
            at(40, 3),
            None,
            LogStart::Gap(Some(origin(at(40, 3), 40))),
        ),
    ] {
        let start = log_start(tail, Lsn(60), &known(floor, attested));
        assert_eq!(start, wanted, "{tail:?} {floor:?} {attested:?}");
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A transaction with so many entries.
    Commit { entries: u32 },
    /// WAL in which nothing is for us.
    Void { bytes: u64 },
    /// The leader makes transactions and the progress after them durable.
    Decode { count: usize, is_to_end: bool },
    /// A consumer takes entries.
    Consume { consumer: usize, count: usize },
    /// The leader attests and confirms; the attestation may be all that gets through.
    Confirm { is_cut_off: bool },
    /// The other node, or the same one, becomes the leader.
    TakeOver { node: usize },
    /// A consumer goes back over so many entries of the leader's log.
    Seek { consumer: usize, back: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1_u32..4).prop_map(|entries| Event::Commit { entries }),
        (1_u64..4).prop_map(|part| Event::Void {
            bytes: part * ATTEST_BYTES / 2
        }),
        (0_usize..4, any::<bool>())
            .prop_map(|(count, is_to_end)| Event::Decode { count, is_to_end }),
        (0_usize..2, 0_usize..8).prop_map(|(consumer, count)| Event::Consume { consumer, count }),
        any::<bool>().prop_map(|is_cut_off| Event::Confirm { is_cut_off }),
        (0_usize..2).prop_map(|node| Event::TakeOver { node }),
        (0_usize..2, 1_usize..6).prop_map(|(consumer, back)| Event::Seek { consumer, back }),
    ]
}

/// A node's log: the entries between where it begins and where it ends.
#[derive(Clone, Debug, Default)]
struct Log {
    begin: Option<Checkpoint>,
    entries: Vec<Checkpoint>,
    end: Origin,
}

/// A source, its slot, two nodes and two consumers.
struct Model {
    /// Transactions: entries, and the end of the commit record.
    wal: Vec<(Vec<Checkpoint>, Lsn)>,
    wal_end: u64,
    slot: Lsn,
    attested: Option<Origin>,
    cursors: [Checkpoint; 2],
    reached: Option<Checkpoint>,
    logs: [Log; 2],
    leader: usize,
    confirmation: Confirmation,
    now: Duration,
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            wal: Vec::new(),
            wal_end: 10,
            slot: Lsn(10),
            attested: None,
            cursors: [Checkpoint::new(Lsn(9), 0); 2],
            reached: None,
            logs: [Log::default(), Log::default()],
            leader: 0,
            confirmation: Confirmation::by_slot(Lsn(10), Lsn(0)),
            now: START,
        };
        for cursor in &mut model.cursors {
            *cursor = Checkpoint::new(Lsn(9), SEQ_LAST);
        }
        model.take_over(0);
        model
    }

    fn floor(&self) -> Option<Checkpoint> {
        self.cursors.iter().min().copied()
    }

    fn decode(&mut self, count: usize, is_to_end: bool) {
        let log = &mut self.logs[self.leader];
        let mut left = count;
        for (entries, end) in &self.wal {
            // The server sends what commits at or after the start; what the log has is dropped.
            if entries[0].lsn < log.end.resume_lsn {
                continue;
            }
            if left == 0 {
                return;
            }
            left -= 1;
            log.entries.extend(entries);
            log.end = Origin {
                previous: entries.last().copied(),
                resume_lsn: *end,
            };
        }
        if is_to_end {
            log.end.resume_lsn = Lsn(self.wal_end);
        }
    }

    /// What a consumer reads next on the leader, or that it is refused.
    fn consume(&mut self, consumer: usize, count: usize) {
        let (log, cursor) = (&self.logs[self.leader], self.cursors[consumer]);
        if Some(cursor) < log.begin {
            // Told, and so it asks for what is left.
            assert!(
                Some(cursor) < self.reached,
                "only who went back is refused: {cursor} {log:?}"
            );
            self.cursors[consumer] = log.begin.unwrap();
            return;
        }
        let missing = self.wal.iter().flat_map(|(entries, _)| entries);
        let missing: Vec<_> = missing.filter(|entry| **entry > cursor).collect();
        let read = log.entries.iter().filter(|entry| **entry > cursor);
        for (read, missing) in read.zip(missing).take(count) {
            assert_eq!(read, missing, "nothing is left out");
            self.cursors[consumer] = *read;
        }
    }

    fn confirm(&mut self, is_cut_off: bool) {
        self.now += ATTEST_INTERVAL;
        let (durable, floor) = (self.logs[self.leader].end, self.floor());
        if let Some(origin) = self.confirmation.attest(durable, floor, self.now) {
            self.attested = Some(origin);
            self.confirmation.attested(origin);
        }
        if is_cut_off {
            return;
        }
        let before = self.slot;
        self.slot = self.confirmation.advance(durable, floor);
        assert!(self.slot >= before, "it never goes back");
        assert!(self.slot <= durable.resume_lsn, "it is durable");
        for (entries, _) in &self.wal {
            let is_gone = entries[0].lsn < self.slot;
            assert!(
                !is_gone || entries.last().copied() <= floor.max(self.reached),
                "{entries:?} is gone and was not consumed: {floor:?}"
            );
        }
    }

    /// What the agreed state notes of a cursor that goes back.
    fn seek(&mut self, consumer: usize, back: usize) {
        let (log, cursor) = (&self.logs[self.leader], self.cursors[consumer]);
        let read = log.entries.iter().filter(|entry| **entry < cursor);
        let Some(to) = read.rev().nth(back - 1).copied() else {
            return;
        };
        self.reached = self.reached.max(self.floor());
        self.cursors[consumer] = to;
    }

    fn take_over(&mut self, node: usize) {
        self.leader = node;
        let log = &mut self.logs[node];
        let known = Known {
            floor: self.cursors.iter().min().copied(),
            attested: self.attested,
            reached: self.reached,
            let_go: None,
        };
        match log_start(log.end, self.slot, &known) {
            LogStart::GoOn => {}
            LogStart::Anew(origin) => {
                assert!(origin.previous >= log.end.previous);
                *log = Log {
                    begin: origin.previous,
                    entries: Vec::new(),
                    end: origin,
                };
            }
            LogStart::Gap(_) | LogStart::LetGo(_) => panic!("nobody has moved the slot"),
        }
        let attested = self.attested.unwrap_or_default().resume_lsn;
        self.confirmation = Confirmation::by_slot(self.slot, attested);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whoever leads, whatever is lost on the way: every consumer gets every entry, in order, and
    /// the slot never lets go of one that somebody lacks.
    #[test]
    fn taking_over_loses_nothing(events in prop::collection::vec(event(), 0..80)) {
        let mut model = Model::new();
        for event in events {
            match event {
                Event::Commit { entries } => {
                    let lsn = Lsn(model.wal_end);
                    model.wal_end += 10;
                    let entries = (0..entries).map(|seq| Checkpoint::new(lsn, seq)).collect();
                    model.wal.push((entries, Lsn(model.wal_end)));
                }
                Event::Void { bytes } => model.wal_end += bytes,
                Event::Decode { count, is_to_end } => model.decode(count, is_to_end),
                Event::Consume { consumer, count } => model.consume(consumer, count),
                Event::Confirm { is_cut_off } => model.confirm(is_cut_off),
                Event::TakeOver { node } => model.take_over(node),
                Event::Seek { consumer, back } => model.seek(consumer, back),
            }
        }
    }

    /// A slot that somebody else has moved over an entry that a consumer lacks is always a gap.
    #[test]
    fn a_slot_that_was_moved_is_never_passed_in_silence(
        events in prop::collection::vec(event(), 0..40),
        node in 0_usize..2,
        moved in 1_u64..100,
    ) {
        let mut model = Model::new();
        for event in events {
            match event {
                Event::Commit { entries } => {
                    let lsn = Lsn(model.wal_end);
                    model.wal_end += 10;
                    let entries = (0..entries).map(|seq| Checkpoint::new(lsn, seq)).collect();
                    model.wal.push((entries, Lsn(model.wal_end)));
                }
                Event::Void { bytes } => model.wal_end += bytes,
                Event::Decode { count, is_to_end } => model.decode(count, is_to_end),
                Event::Consume { consumer, count } => model.consume(consumer, count),
                Event::Confirm { is_cut_off } => model.confirm(is_cut_off),
                Event::TakeOver { node } => model.take_over(node),
                Event::Seek { consumer, back } => model.seek(consumer, back),
            }
        }
        let to = Lsn(model.slot.0.max(model.wal_end.saturating_sub(moved)));
        let (log, floor) = (&model.logs[node], model.floor());
        let mut gone = model.wal.iter().flat_map(|(entries, _)| entries);
        let is_lost = gone.any(|entry| {
            // Who went back knows that other nodes may not have it.
            let done = floor.max(model.reached);
            entry.lsn < to && Some(*entry) > done && Some(*entry) > log.end.previous
        });
        let known = Known {
            reached: model.reached,
            ..known(floor, model.attested)
        };
        let start = log_start(log.end, to, &known);
        prop_assert!(!is_lost || matches!(start, LogStart::Gap(_)), "{start:?}");
        let LogStart::Gap(anew) = at_hole(start, log.end, floor) else {
            panic!("a hole is never passed")
        };
        prop_assert!(anew.unwrap_or(log.end).previous >= floor, "{start:?} {anew:?}");
    }
}

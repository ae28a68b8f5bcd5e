//! The ledger against a model that keeps one plain state for each message.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::lsn::Lsn;

const MS: Duration = Duration::from_millis(1);

fn at(number: u32) -> Checkpoint {
    Checkpoint::new(Lsn(u64::from(number / 4) + 1), number % 4)
}

/// A part of the numbers `first..=last`, of which those in `delivered` have a payload.
fn part(first: u32, last: u32, delivered: &[u32]) -> Part {
    let slots = delivered.iter().enumerate().map(|(index, number)| Slot {
        checkpoint: at(*number),
        commit_time: PgTime(0),
        offset: u32::try_from(index).unwrap() * 10,
        length: 10,
    });
    let bytes: Vec<u8> = delivered
        .iter()
        .flat_map(|number| [u8::try_from(number % 251).unwrap(); 10])
        .collect();
    Part {
        first: at(first),
        last: at(last),
        commit_time: PgTime(i64::from(last)),
        body: Arc::new(ParcelBody {
            bytes: Bytes::from(bytes),
            slots: slots.collect(),
        }),
        has_restored: false,
    }
}

fn ledger(sessions: &[u32], is_ordered: bool) -> Ledger {
    let mut ledger = Ledger::restore(Position::default(), is_ordered);
    for session in sessions {
        join(&mut ledger, *session);
    }
    ledger
}

fn join(ledger: &mut Ledger, session: u32) {
    let terms = Terms {
        unacked_max: 1_000,
        ack_timeout: Some(100 * MS),
    };
    ledger.join(SessionId(session), terms);
}

fn ack(number: u32, kind: AckKind) -> Ack {
    Ack {
        checkpoint: at(number),
        kind,
    }
}

fn apply(ledger: &mut Ledger, session: u32, numbers: &[u32], kind: AckKind) -> Applied {
    let acks: Vec<_> = numbers.iter().map(|number| ack(*number, kind)).collect();
    ledger
        .apply(SessionId(session), &acks, Duration::ZERO)
        .unwrap()
}

fn again(ledger: &mut Ledger, session: u32, now: Duration) -> Vec<Checkpoint> {
    let room = Room {
        messages: 1_000,
        bytes: usize::MAX,
    };
    let taken = ledger.take_requeued(SessionId(session), room, now);
    taken.iter().map(|(_, slot)| slot.checkpoint).collect()
}

fn floor(ledger: &Ledger) -> Checkpoint {
    ledger.position(100).floor
}

#[test]
fn the_floor_follows_contiguous_acknowledgements_and_what_was_filtered() {
    let mut ledger = ledger(&[1], false);
    ledger.admit(SessionId(1), part(0, 9, &[1, 2, 3]), Duration::ZERO);
    assert_eq!(floor(&ledger), at(0));
    apply(&mut ledger, 1, &[2], AckKind::Done);
    assert_eq!(floor(&ledger), at(0));
    apply(&mut ledger, 1, &[1], AckKind::Done);
    assert_eq!(floor(&ledger), at(2));
    apply(&mut ledger, 1, &[3], AckKind::Done);
    assert_eq!(floor(&ledger), at(9));
    ledger.admit(SessionId(1), part(10, 20, &[]), Duration::ZERO);
    assert_eq!(floor(&ledger), at(20));
    assert_eq!(ledger.floor_time(), PgTime(20));
    assert_eq!(ledger.retained_bytes(), 0);
}

#[test]
fn acknowledging_twice_is_told_and_harmless_and_the_unknown_is_refused() {
    let mut ledger = ledger(&[1], false);
    ledger.admit(SessionId(1), part(0, 9, &[1, 2]), Duration::ZERO);
    assert_eq!(
        apply(&mut ledger, 1, &[1, 1], AckKind::Done).repeated_count,
        1
    );
    for unknown in [3, 10] {
        for kind in [AckKind::Done, AckKind::Requeue] {
            let acks = [ack(unknown, kind)];
            let refused = ledger.apply(SessionId(1), &acks, Duration::ZERO);
            assert_eq!(refused, Err(UnknownCheckpoint(at(unknown))));
        }
    }
    apply(&mut ledger, 1, &[2], AckKind::Done);
    assert_eq!(apply(&mut ledger, 1, &[2], AckKind::Done).repeated_count, 1);
    assert_eq!(
        apply(&mut ledger, 1, &[1], AckKind::Requeue),
        Applied::default()
    );
    assert_eq!(apply(&mut ledger, 1, &[9], AckKind::UpTo).acked_count, 0);
    let acks = [ack(10, AckKind::UpTo)];
    assert!(ledger.apply(SessionId(1), &acks, Duration::ZERO).is_err());
}

#[test]
fn a_requeued_message_waits_longer_each_time() {
    let mut ledger = ledger(&[1], false);
    ledger.admit(SessionId(1), part(0, 9, &[1, 2]), Duration::ZERO);
    let mut now = Duration::ZERO;
    for factor in [1, 2, 4, 8] {
        let acks = [ack(1, AckKind::Requeue)];
        ledger.apply(SessionId(1), &acks, now).unwrap();
        let due = ledger.next_due().unwrap();
        assert_eq!(due - now, REQUEUE_DELAY_MIN * factor);
        assert_eq!(again(&mut ledger, 1, due - MS), []);
        assert_eq!(again(&mut ledger, 1, due), [at(1)]);
        now = due;
    }
}

#[test]
fn what_a_session_leaves_or_lets_time_out_is_due_at_once() {
    let mut ledger = ledger(&[1, 2], false);
    ledger.admit(SessionId(1), part(0, 9, &[1, 2, 3]), Duration::ZERO);
    apply(&mut ledger, 1, &[2], AckKind::Done);
    assert_eq!(ledger.expire(SessionId(1), 99 * MS), 0);
    assert_eq!(ledger.expire(SessionId(1), 100 * MS), 2);
    assert_eq!(again(&mut ledger, 2, 100 * MS), [at(1), at(3)]);
    // A late answer of the first session counts.
    assert_eq!(apply(&mut ledger, 1, &[1], AckKind::Done).acked_count, 1);
    assert_eq!(ledger.release(SessionId(2), 200 * MS), 1);
    assert_eq!(ledger.release(SessionId(2), 200 * MS), 0);
    assert_eq!(again(&mut ledger, 1, 200 * MS), [at(3)]);
}

#[test]
fn in_order_only_the_oldest_session_is_active_and_nothing_overtakes() {
    let mut ledger = ledger(&[1, 2], true);
    assert!(ledger.is_active(SessionId(1)) && !ledger.is_active(SessionId(2)));
    ledger.admit(SessionId(1), part(0, 4, &[1, 2]), Duration::ZERO);
    ledger.admit(SessionId(1), part(5, 9, &[5, 6]), Duration::ZERO);
    apply(&mut ledger, 1, &[1], AckKind::Done);
    apply(&mut ledger, 1, &[2], AckKind::Requeue);
    assert!(ledger.is_rewinding());
    assert_eq!(again(&mut ledger, 1, Duration::ZERO), []);
    let due = ledger.next_due().unwrap();
    assert_eq!(again(&mut ledger, 1, due), [at(2), at(5), at(6)]);
    assert!(!ledger.is_rewinding());
    ledger.release(SessionId(1), due);
    assert!(ledger.is_active(SessionId(2)));
    assert_eq!(again(&mut ledger, 2, due), [at(2), at(5), at(6)]);
}

#[test]
fn a_stuck_message_does_not_keep_the_memory_of_its_neighbours() {
    let mut ledger = ledger(&[1], false);
    let payload_bytes = 1 << 20;
    let mut number = 0;
    for _ in 0..200 {
        let mut large = part(number, number + 3, &[number, number + 1]);
        let slot = |offset, length, number| Slot {
            checkpoint: at(number),
            commit_time: PgTime(0),
            offset,
            length,
        };
        large.body = Arc::new(ParcelBody {
            bytes: Bytes::from(vec![7; payload_bytes + 10]),
            slots: vec![
                slot(0, u32::try_from(payload_bytes).unwrap(), number),
                slot(u32::try_from(payload_bytes).unwrap(), 10, number + 1),
            ],
        });
        ledger.admit(SessionId(1), large, Duration::ZERO);
        apply(&mut ledger, 1, &[number], AckKind::Done);
        number += 4;
    }
    assert_eq!(ledger.open_count(), 200);
    assert!(
        ledger.retained_bytes() < 8 * payload_bytes,
        "{}",
        ledger.retained_bytes()
    );
    // What was left out counts as done, and is so after a restart.
    assert_eq!(
        apply(&mut ledger, 1, &[0, 4], AckKind::Done).repeated_count,
        2
    );
    let position = ledger.position(1_000);
    assert_eq!(position.acked_above.len(), 199, "one between two open ones");
    ledger.release(SessionId(1), Duration::ZERO);
    join(&mut ledger, 2);
    let room = Room {
        messages: 1_000,
        bytes: usize::MAX,
    };
    let taken = ledger.take_requeued(SessionId(2), room, Duration::ZERO);
    assert_eq!(taken.len(), 200);
    assert!(
        taken
            .iter()
            .all(|(body, slot)| body.payload(slot) == [7; 10])
    );
}

/// What may happen.
#[derive(Clone, Debug)]
enum Event {
    Admit {
        session: u32,
        delivered: Vec<bool>,
    },
    Answer {
        session: u32,
        pick: prop::sample::Index,
        kind: u8,
    },
    Again {
        session: u32,
    },
    Expire {
        session: u32,
    },
    Leave {
        session: u32,
    },
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let session = 1..4_u32;
    prop_oneof![
        4 => (session.clone(), prop::collection::vec(any::<bool>(), 1..6))
            .prop_map(|(session, delivered)| Event::Admit { session, delivered }),
        8 => (session.clone(), any::<prop::sample::Index>(), 0..3_u8)
            .prop_map(|(session, pick, kind)| Event::Answer { session, pick, kind }),
        3 => session.clone().prop_map(|session| Event::Again { session }),
        1 => session.clone().prop_map(|session| Event::Expire { session }),
        1 => session.prop_map(|session| Event::Leave { session }),
        1 => Just(Event::Restart),
    ]
}

/// Where the model sees a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Held(u32),
    Queued,
    Done,
}

#[derive(Default)]
struct Model {
    next: u32,
    messages: BTreeMap<u32, Where>,
    floor: Checkpoint,
    joined: BTreeMap<u32, SessionId>,
    numbers: u32,
}

impl Model {
    fn enter(&mut self, ledger: &mut Ledger, session: u32) -> SessionId {
        *self.joined.entry(session).or_insert_with(|| {
            self.numbers += 1;
            join(ledger, self.numbers);
            SessionId(self.numbers)
        })
    }

    fn held_by(&self, session: u32) -> Vec<u32> {
        let held = self.messages.iter();
        held.filter(|(_, place)| **place == Where::Held(session))
            .map(|(number, _)| *number)
            .collect()
    }

    fn queue(&mut self, numbers: Vec<u32>) {
        for number in numbers {
            self.messages.insert(number, Where::Queued);
        }
    }

    fn step(&mut self, ledger: &mut Ledger, event: &Event, now: Duration) {
        match event {
            Event::Admit { session, delivered } => {
                let id = self.enter(ledger, *session);
                let first = self.next;
                self.next += u32::try_from(delivered.len()).unwrap();
                let numbers: Vec<u32> = (first..self.next)
                    .zip(delivered)
                    .filter_map(|(number, is_delivered)| is_delivered.then_some(number))
                    .collect();
                ledger.admit(id, part(first, self.next - 1, &numbers), now);
                for number in numbers {
                    self.messages.insert(number, Where::Held(*session));
                }
            }
            Event::Answer {
                session,
                pick,
                kind,
            } => self.answer(ledger, *session, *pick, *kind, now),
            Event::Again { session } => {
                let id = self.enter(ledger, *session);
                let room = Room {
                    messages: 3,
                    bytes: usize::MAX,
                };
                for (body, slot) in ledger.take_requeued(id, room, now) {
                    let number = (slot.checkpoint.lsn.0 as u32 - 1) * 4 + slot.checkpoint.seq;
                    assert_eq!(self.messages[&number], Where::Queued, "only with a cause");
                    assert_eq!(body.payload(&slot), [(number % 251) as u8; 10]);
                    self.messages.insert(number, Where::Held(*session));
                }
            }
            Event::Expire { session } => {
                if let Some(id) = self.joined.get(session) {
                    ledger.expire(*id, now + 1_000 * MS);
                    self.queue(self.held_by(*session));
                }
            }
            Event::Leave { session } => {
                if let Some(id) = self.joined.remove(session) {
                    ledger.release(id, now);
                    self.queue(self.held_by(*session));
                }
            }
            Event::Restart => self.restart(ledger),
        }
    }

    fn answer(
        &mut self,
        ledger: &mut Ledger,
        session: u32,
        pick: prop::sample::Index,
        kind: u8,
        now: Duration,
    ) {
        if self.messages.is_empty() {
            return;
        }
        let id = self.enter(ledger, session);
        let number = *self
            .messages
            .keys()
            .nth(pick.index(self.messages.len()))
            .unwrap();
        let place = self.messages[&number];
        let kind = [AckKind::Done, AckKind::UpTo, AckKind::Requeue][usize::from(kind)];
        ledger.apply(id, &[ack(number, kind)], now).unwrap();
        match kind {
            AckKind::Done => {
                self.messages.insert(number, Where::Done);
            }
            AckKind::UpTo => {
                for held in self.held_by(session) {
                    if held <= number {
                        self.messages.insert(held, Where::Done);
                    }
                }
            }
            AckKind::Requeue if place == Where::Held(session) => self.queue(vec![number]),
            AckKind::Requeue | AckKind::UpToRow(_) => {}
        }
    }

    /// A new life reads again what is not done, and only that.
    fn restart(&mut self, ledger: &mut Ledger) {
        let position = ledger.position(1_000);
        let is_done = |checkpoint: Checkpoint| {
            let runs = &position.acked_above;
            checkpoint <= position.floor
                || runs
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&checkpoint))
        };
        for (number, place) in &self.messages {
            assert_eq!(
                is_done(at(*number)),
                *place == Where::Done,
                "message {number}"
            );
        }
        *ledger = Ledger::restore(position.clone(), false);
        assert_eq!(ledger.position(1_000), position, "nothing is forgotten");
        self.joined.clear();
        let id = self.enter(ledger, 1);
        let unread: Vec<u32> = (0..self.next).filter(|n| at(*n) > position.floor).collect();
        let (Some(first), Some(last)) = (unread.first(), unread.last()) else {
            return;
        };
        let open: Vec<u32> = self
            .messages
            .iter()
            .filter(|(_, place)| **place != Where::Done)
            .map(|(number, _)| *number)
            .collect();
        let mut rest = part(*first, *last, &open);
        rest.has_restored = true;
        ledger.admit(id, rest, Duration::ZERO);
        for number in open {
            self.messages.insert(number, Where::Held(1));
        }
    }

    fn check(&mut self, ledger: &Ledger) {
        let floor = ledger.position(1_000).floor;
        assert!(floor >= self.floor, "the floor never falls");
        self.floor = floor;
        let open: BTreeSet<u32> = self
            .messages
            .iter()
            .filter(|(_, place)| **place != Where::Done)
            .map(|(number, _)| *number)
            .collect();
        assert_eq!(ledger.open_count(), open.len(), "nothing is lost");
        assert!(open.iter().all(|number| at(*number) > floor));
        for (session, id) in &self.joined {
            assert_eq!(ledger.unacked(*id), self.held_by(*session).len());
        }
    }
}

proptest! {
    #[test]
    fn the_ledger_agrees_with_the_model(events in prop::collection::vec(event(), 1..120)) {
        let mut ledger = Ledger::restore(Position::default(), false);
        let mut model = Model { next: 1, ..Model::default() };
        let mut now = Duration::ZERO;
        for event in &events {
            // Far apart, so that every pause is over at the next event.
            now += REQUEUE_DELAY_MAX;
            model.step(&mut ledger, event, now);
            model.check(&ledger);
        }
        // Then everything is delivered, answered, and nothing is left.
        let last = model.enter(&mut ledger, 9);
        for id in model.joined.values().copied().filter(|id| *id != last) {
            ledger.release(id, now);
        }
        let room = Room { messages: usize::MAX, bytes: usize::MAX };
        let taken = ledger.take_requeued(last, room, now + REQUEUE_DELAY_MAX);
        for (_, slot) in taken {
            let acks = [Ack { checkpoint: slot.checkpoint, kind: AckKind::Done }];
            ledger.apply(last, &acks, now).unwrap();
        }
        prop_assert_eq!(ledger.open_count(), 0);
        prop_assert_eq!(ledger.retained_bytes(), 0);
        prop_assert_eq!(ledger.position(10), Position { floor: ledger.admitted(), acked_above: vec![] });
    }
}

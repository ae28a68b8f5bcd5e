//! Splice and ledger, driven as the gateway drives them, against a table, its log and consumers.
//!
//! Each session has a line of what was sent to it and is not looked at yet, as a socket has. Whoever
//! consumes applies what comes to one copy of the table, by key. In order it does so blindly. Shared
//! sessions race, so their consumer keeps, as one that cares must, the position of each key and
//! leaves out older changes; rows have none and are applied whatever is there.
//!
//! Planted mistakes that it has found, in 2,048 cases each: no hold beside other sessions, a range
//! that ends before what is out of it was answered, a restart that asks for less than the log's
//! end, a range in order that does not wait for the changes before it, rows that stay after a change
//! came again, a snapshot that is too old.

mod consumer;
mod mistakes;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    ledger::{Ack, AckKind, Ledger, ParcelBody, Part, Position, Room, Slot, Terms, before},
    lsn::PgTime,
};

/// Keys of the table. A row moves to another page with its value.
const KEYS: u8 = 4;
const PAGES: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(20);
/// WAL between two commits.
const STEP: u64 = 10;

const fn page_of(row: (u8, u32)) -> u32 {
    (row.0 as u32 + row.1) % PAGES
}

type Table = BTreeMap<u8, u32>;

#[derive(Clone, Copy, Debug)]
struct Event {
    at: Checkpoint,
    key: u8,
    value: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Sent {
    Change(Event),
    Row {
        number: RangeNumber,
        at: Lsn,
        place: u64,
        is_last: bool,
        row: (u8, u32),
    },
}

#[derive(Debug, Default)]
struct Line {
    sent: VecDeque<Sent>,
    /// Applied and not answered.
    applied: VecDeque<Sent>,
}

#[derive(Debug)]
struct Source {
    rows: VecDeque<(u8, u32)>,
    at: Lsn,
    place: u64,
    is_begun: bool,
}

#[derive(Clone, Debug)]
enum Act {
    Commit(Vec<(u8, bool)>),
    Pull {
        session: u32,
        room: usize,
    },
    Request,
    Open {
        late: u64,
        is_too_old: bool,
    },
    Fail,
    Apply {
        session: u32,
        count: usize,
    },
    Answer {
        session: u32,
        place: prop::sample::Index,
        kind: u8,
    },
    Leave(u32),
    LeaveAll,
    Pass(Duration),
}

fn act() -> impl Strategy<Value = Act> {
    let session = 1..4_u32;
    prop_oneof![
        4 => prop::collection::vec((0..KEYS, any::<bool>()), 1..4).prop_map(Act::Commit),
        8 => (session.clone(), 1..6_usize).prop_map(|(session, room)| Act::Pull { session, room }),
        3 => Just(Act::Request),
        3 => (0..40_u64, prop::bool::weighted(0.1))
            .prop_map(|(late, is_too_old)| Act::Open { late, is_too_old }),
        1 => Just(Act::Fail),
        8 => (session.clone(), 1..5_usize).prop_map(|(session, count)| Act::Apply { session, count }),
        6 => (session.clone(), any::<prop::sample::Index>(), 0..8_u8)
            .prop_map(|(session, place, kind)| Act::Answer { session, place, kind }),
        1 => session.prop_map(Act::Leave),
        2 => Just(Act::LeaveAll),
        1 => (1..30_u64).prop_map(|seconds| Act::Pass(Duration::from_secs(seconds))),
    ]
}

struct World {
    is_ordered: bool,
    /// The feed takes the limit for the last position that it may hand out.
    passes_limit: bool,
    now: Duration,
    end: u64,
    initial: Table,
    log: Vec<Event>,
    ledger: Ledger,
    /// The end of the log when it was restored: nothing behind it went out before.
    restored_at: Checkpoint,
    splice: Splice,
    numbers: u32,
    sessions: BTreeMap<u32, (SessionId, Line)>,
    /// Pages that are not finished and not being read.
    pages: VecDeque<u32>,
    tickets: BTreeMap<RangeNumber, (u32, Lsn)>,
    sources: BTreeMap<RangeNumber, Source>,
    finished: BTreeSet<u32>,
    finished_at: Lsn,
    /// The consumer's copy, and up to where each key is known.
    copy: Table,
    known: BTreeMap<u8, Checkpoint>,
}

impl World {
    fn new(is_ordered: bool) -> Self {
        Self {
            is_ordered,
            passes_limit: false,
            now: Duration::ZERO,
            end: STEP,
            initial: (0..KEYS).map(|key| (key, u32::from(key))).collect(),
            log: Vec::new(),
            ledger: Ledger::restore(Position::default(), is_ordered),
            restored_at: Checkpoint::default(),
            splice: Splice::default(),
            numbers: 0,
            sessions: BTreeMap::new(),
            pages: (0..PAGES).collect(),
            tickets: BTreeMap::new(),
            sources: BTreeMap::new(),
            finished: BTreeSet::new(),
            finished_at: Lsn::ZERO,
            copy: Table::new(),
            known: BTreeMap::new(),
        }
    }

    fn table_at(&self, at: Lsn) -> Table {
        let mut table = self.initial.clone();
        for event in self.log.iter().filter(|event| event.at.lsn < at) {
            match event.value {
                Some(value) => table.insert(event.key, value),
                None => table.remove(&event.key),
            };
        }
        table
    }

    fn session(&mut self, number: u32) -> SessionId {
        if let Some((id, _)) = self.sessions.get(&number) {
            return *id;
        }
        if self.sessions.is_empty() {
            let position = self.ledger.position(1_000);
            self.ledger = Ledger::restore(position, self.is_ordered);
            self.restored_at = self.log.last().map(|event| event.at).unwrap_or_default();
        }
        self.numbers += 1;
        let id = SessionId(self.numbers);
        let terms = Terms {
            unacked_max: 1_000,
            ack_timeout: Some(TIMEOUT),
        };
        self.ledger.join(id, terms);
        self.splice.join(id, self.is_ordered);
        self.sessions.insert(number, (id, Line::default()));
        id
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Commit(changes) => self.commit(changes),
            Act::Pull { session, room } => self.pull(*session, *room),
            Act::Request => self.request(),
            Act::Open { late, is_too_old } => self.open(*late, *is_too_old),
            Act::Fail => {
                if let Some(number) = self.sources.keys().next().copied() {
                    self.splice.failed(number, self.now);
                }
            }
            Act::Apply { session, count } => {
                for _ in 0..*count {
                    self.apply(*session);
                }
            }
            Act::Answer {
                session,
                place,
                kind,
            } => self.answer(*session, *kind, |length| place.index(length)),
            Act::Leave(session) => self.leave(*session),
            Act::LeaveAll => {
                let all: Vec<_> = self.sessions.keys().copied().collect();
                all.into_iter().for_each(|session| self.leave(session));
            }
            Act::Pass(time) => self.pass(*time),
        }
        self.settle();
    }

    fn leave(&mut self, session: u32) {
        if let Some((id, _)) = self.sessions.remove(&session) {
            self.ledger.release(id, self.now);
            self.splice.leave(id, self.now);
        }
    }

    fn commit(&mut self, changes: &[(u8, bool)]) {
        for (seq, (key, is_kept)) in (1..).zip(changes) {
            let at = Checkpoint::new(Lsn(self.end), seq);
            let value = is_kept.then_some(u32::try_from(self.end).unwrap() * 10 + seq);
            self.log.push(Event {
                at,
                key: *key,
                value,
            });
        }
        self.end += STEP;
    }

    fn request(&mut self) {
        if self.sessions.is_empty() || self.splice.counts().0 >= 2 {
            return;
        }
        if let Some(page) = self.pages.pop_front() {
            let (number, at_least) = self.splice.request(self.passed(), self.now);
            self.tickets.insert(number, (page, at_least));
        }
    }

    fn passed(&self) -> Checkpoint {
        self.ledger.admitted().max(self.restored_at)
    }

    fn open(&mut self, late: u64, is_too_old: bool) {
        let opened = &self.sources;
        let mut waiting = self.tickets.iter();
        let Some((number, (page, at_least))) =
            waiting.find(|(number, _)| !opened.contains_key(number))
        else {
            return;
        };
        let (number, page) = (*number, *page);
        let at = if is_too_old {
            Lsn(at_least.0 - 1)
        } else {
            Lsn(at_least.0.max(self.end.saturating_sub(late)))
        };
        // A snapshot cannot contain what is not committed yet.
        let at = Lsn(at.0.min(self.end));
        if at < *at_least && !is_too_old {
            return;
        }
        if self.splice.opened(number, at, self.now) {
            assert!(!is_too_old);
            let rows = self.table_at(at).into_iter();
            let rows = rows.filter(|row| page_of(*row) == page).collect();
            let source = Source {
                rows,
                at,
                place: 0,
                is_begun: false,
            };
            self.sources.insert(number, source);
        }
    }

    /// What a session's pull does in the gateway.
    fn pull(&mut self, session: u32, room: usize) {
        let id = self.session(session);
        if !self.ledger.is_active(id) {
            return;
        }
        let messages = Room {
            messages: room,
            bytes: usize::MAX,
        };
        let again = self.ledger.take_requeued(id, messages, self.now);
        if !again.is_empty() || self.ledger.is_rewinding() {
            let line = &mut self.sessions.get_mut(&session).unwrap().1;
            let mut again_events = Vec::new();
            for (_, slot) in again {
                let event = self.log.iter().find(|event| event.at == slot.checkpoint);
                line.sent.push_back(Sent::Change(*event.unwrap()));
                again_events.push(*event.unwrap());
            }
            if self.is_ordered {
                again_events
                    .iter()
                    .for_each(|event| self.check_order(event));
            }
            return;
        }
        let range = self.splice.delivering(id);
        if let Some(number) = range.or_else(|| self.splice.take(id, self.now)) {
            self.send_rows(session, id, number, room);
        } else if !self.splice.is_held() {
            self.read(session, id, room);
        }
    }

    fn send_rows(&mut self, session: u32, id: SessionId, number: RangeNumber, room: usize) {
        let source = self.sources.get_mut(&number).unwrap();
        let line = &mut self.sessions.get_mut(&session).unwrap().1;
        source.is_begun = true;
        let count = room.min(source.rows.len());
        let is_end = count == source.rows.len();
        for (index, row) in source.rows.drain(..count).enumerate() {
            source.place += 1;
            line.sent.push_back(Sent::Row {
                number,
                at: source.at,
                place: source.place,
                is_last: is_end && index + 1 == count,
                row,
            });
        }
        let rows = RowsSent {
            row_count: count as u64,
            bytes: 7,
        };
        assert!(self.splice.sent(number, id, rows, is_end, self.now));
    }

    fn read(&mut self, session: u32, id: SessionId, room: usize) {
        let limit = self.splice.limit().unwrap_or(Lsn(u64::MAX));
        let admitted = self.ledger.admitted();
        let unread = self.log.iter().filter(|event| event.at > admitted);
        let events: Vec<_> = unread
            .take_while(|event| event.at.lsn < limit || self.passes_limit && event.at.lsn == limit)
            .take(room)
            .copied()
            .collect();
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            let is_all = !self.log.iter().any(|event| event.at > admitted);
            // The end of the log is durable and nothing is before it.
            if !is_all || limit.0 <= self.end {
                self.splice.reached(limit, self.now);
            }
            return;
        };
        if self.is_ordered {
            events.iter().for_each(|event| self.check_order(event));
        }
        let position = self.ledger.position(1_000);
        let is_done = |at: Checkpoint| {
            let mut runs = position.acked_above.iter();
            runs.any(|(first, last)| (*first..=*last).contains(&at))
        };
        let open: Vec<_> = events.iter().filter(|event| !is_done(event.at)).collect();
        let slots = open.iter().map(|event| Slot {
            checkpoint: event.at,
            commit_time: PgTime(0),
            offset: 0,
            length: 1,
        });
        let body = ParcelBody {
            bytes: Bytes::from_static(b"x"),
            slots: slots.collect(),
        };
        let part = Part {
            first: first.at,
            last: last.at,
            commit_time: PgTime(0),
            has_restored: open.len() < events.len(),
            body: Arc::new(body),
        };
        let line = &mut self.sessions.get_mut(&session).unwrap().1;
        line.sent
            .extend(open.into_iter().map(|event| Sent::Change(*event)));
        self.ledger.admit(id, part, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let sessions = self.sessions.iter();
        let ids: Vec<_> = sessions.map(|(number, (id, _))| (*number, *id)).collect();
        for (session, id) in ids {
            self.splice.expire(id, TIMEOUT, self.now);
            if self.ledger.expire(id, self.now) > 0 && self.is_ordered {
                self.look_away(session, 0);
            }
        }
        self.splice.give_up_overdue(self.now);
    }

    fn settle(&mut self) {
        if let Some(first) = self.ledger.rewound_to() {
            self.splice.rewound(first.lsn, self.now);
        }
        self.splice.settle(|| self.ledger.first_open(), self.now);
        for (number, end) in self.splice.take_ended() {
            let (page, _) = self.tickets.remove(&number).expect("it ends once");
            let source = self.sources.remove(&number);
            if let RangeEnd::Finished(_) = end {
                let source = source.unwrap();
                assert!(source.rows.is_empty(), "all of it was sent");
                self.finished_at = self.finished_at.max(source.at);
                assert!(self.finished.insert(page), "nothing finished runs again");
                continue;
            }
            self.pages.push_back(page);
            if end == RangeEnd::Stalled && !self.is_ordered {
                // See the module of the splice: whoever is too late must not go on.
                for (_, line) in self.sessions.values_mut() {
                    let is_kept =
                        |sent: &Sent| !matches!(sent, Sent::Row { number: n, .. } if *n == number);
                    line.sent.retain(is_kept);
                }
            }
        }
    }

    /// Whoever is left reads and answers everything; then nothing may be missing.
    fn come_to_rest(&mut self) {
        self.session(1);
        self.act(&Act::Pass(TIMEOUT));
        for _ in 0..400 {
            self.now += Duration::from_millis(200);
            self.act(&Act::Request);
            self.act(&Act::Open {
                late: 3,
                is_too_old: false,
            });
            let sessions: Vec<_> = self.sessions.keys().copied().collect();
            for session in sessions {
                self.act(&Act::Pull { session, room: 50 });
                self.act(&Act::Apply { session, count: 60 });
                for _ in 0..60 {
                    self.answer(session, 1, |_| 0);
                    self.settle();
                }
            }
        }
        assert_eq!(self.finished.len(), PAGES as usize, "{:?}", self.splice);
        assert_eq!(self.ledger.open_count(), 0);
        assert_eq!(self.copy, self.table_at(Lsn(u64::MAX)));
        assert!(self.splice.is_empty() && self.sources.is_empty());
        assert_eq!(self.splice.limit(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_copy_of_a_shared_consumer_equals_the_table(acts in prop::collection::vec(act(), 0..160)) {
        let mut world = World::new(false);
        acts.iter().for_each(|act| world.act(act));
        world.come_to_rest();
    }

    #[test]
    fn the_copy_of_an_ordered_consumer_equals_the_table(acts in prop::collection::vec(act(), 0..160)) {
        let mut world = World::new(true);
        acts.iter().for_each(|act| world.act(act));
        world.come_to_rest();
    }
}

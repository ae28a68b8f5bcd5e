//! A run in the making, told by hand: the good one, and what the tests change in it.

use pgcapture_chaos_tests::{
    checkers::evidence::Evidence,
    history::{
        event::{Entry, Event, FaultOutcome, Item, Load, Place, Reader, RunHeader},
        row::{Operation, Row, Table, hash_text},
    },
    report::Verdict,
    workload::{
        journal::{Outcome, Transaction, Write},
        plan::pad,
    },
};

/// Id of the last marker.
pub(crate) const MARKER: i64 = 99;

/// A run in the making: what the log holds and what else happened, changed freely before judging.
#[derive(Clone)]
pub(crate) struct Story {
    pub(crate) header: RunHeader,
    pub(crate) load: Load,
    /// What the log's reader got.
    pub(crate) log: Vec<(u64, u32, Item)>,
    /// What happened at the consumer, in order.
    pub(crate) consumer: Vec<Event>,
    pub(crate) samples: Vec<(u64, u64)>,
    pub(crate) faults: u32,
    pub(crate) journal: Vec<Transaction>,
}

pub(crate) fn write(op: Operation, id: i64, n: i64) -> Write {
    Write { op, id, n }
}

fn transaction(tx: i64, outcome: Outcome, kept: Vec<Write>) -> Transaction {
    let undone = Vec::new();
    Transaction {
        writer: 1,
        tx,
        outcome,
        kept,
        undone,
    }
}

pub(crate) fn change(tx: i64, write: Write) -> Item {
    let is_delete = write.op == Operation::Delete;
    let row = Row {
        table: Table::Ledger,
        writer: Some(1),
        id: Some(write.id),
        n: (!is_delete).then_some(write.n),
        tx: (!is_delete).then_some(tx),
        pad: (!is_delete).then(|| hash_text(pad(1, write.id).as_bytes())),
        balance: None,
    };
    Item::Change { op: write.op, row }
}

fn account(op: Operation, id: i64, balance: i64) -> Item {
    let row = Row {
        table: Table::Accounts,
        id: Some(id),
        balance: Some(balance),
        ..Row::default()
    };
    Item::Change { op, row }
}

pub(crate) fn marker(id: i64) -> Item {
    let row = Row {
        table: Table::Marker,
        id: Some(id),
        ..Row::default()
    };
    let op = Operation::Insert;
    Item::Change { op, row }
}

/// Appends a whole transaction to a log.
pub(crate) fn commit(log: &mut Vec<(u64, u32, Item)>, lsn: u64, items: Vec<Item>) {
    log.push((lsn, 0, Item::Begin));
    let mut seq = 1;
    for item in items {
        log.push((lsn, seq, item));
        seq += 1;
    }
    let end_lsn = lsn + 8;
    log.push((lsn, seq, Item::Commit { end_lsn }));
}

pub(crate) fn at_consumer(session: u32, lsn: u64, seq: u32) -> Place {
    let reader = Reader::Consumer;
    Place {
        reader,
        session,
        lsn,
        seq,
    }
}

impl Story {
    /// Three committed transactions, one rolled back, a transfer, a crash in the middle.
    pub(crate) fn good() -> Self {
        use Operation::{Delete, Insert, Update};
        let first = vec![write(Insert, 1, 1), write(Insert, 2, 2)];
        let second = vec![write(Update, 1, 4), write(Delete, 2, 5)];
        let third = vec![write(Insert, 8, 8), write(Insert, 9, 9)];
        let mut log = Vec::new();
        commit(&mut log, 50, vec![marker(1)]);
        let accounts = (1..=2).map(|id| account(Insert, id, 100)).collect();
        commit(&mut log, 100, accounts);
        let items = |tx, writes: &[Write]| writes.iter().map(|w| change(tx, *w)).collect();
        commit(&mut log, 200, items(1, &first));
        commit(&mut log, 300, items(3, &second));
        let transfer = vec![account(Update, 1, 70), account(Update, 2, 130)];
        commit(&mut log, 400, transfer);
        commit(&mut log, 500, items(4, &third));
        commit(&mut log, 600, vec![marker(MARKER)]);
        let journal = vec![
            transaction(1, Outcome::Committed, first),
            transaction(2, Outcome::RolledBack, vec![write(Insert, 3, 3)]),
            Transaction {
                undone: vec![write(Insert, 6, 6)],
                ..transaction(3, Outcome::Committed, second)
            },
            transaction(4, Outcome::Unknown, third),
        ];
        let mut story = Self {
            header: RunHeader {
                faults_wanted: 1,
                accounts: 2,
                total_balance: 200,
                last_marker: MARKER,
                rows_per_second_min: 1,
                transactions_per_second_min: 1,
                ..RunHeader::default()
            },
            load: Load {
                busy_ms: 1_000,
                rows: 4,
                transactions: 2,
                largest_transaction_rows: 2,
            },
            log,
            consumer: Vec::new(),
            samples: vec![(200, 200), (310, 300)],
            faults: 1,
            journal,
        };
        story.consume(1, 0, 300);
        story.end(1);
        // The ack of 300 was under way when the node died: its rows come again.
        story.consume(2, 250, 1_000);
        story.end(2);
        story
    }

    /// The consumer gets all rows between two positions and acknowledges them.
    fn consume(&mut self, session: u32, from: u64, to: u64) {
        let reader = Reader::Consumer;
        self.consumer.push(Event::Opened { reader, session });
        for (lsn, seq, item) in self.log.clone() {
            if (from..=to).contains(&lsn) && matches!(item, Item::Change { .. }) {
                let place = at_consumer(session, lsn, seq);
                self.consumer.push(Event::Delivered { place, item });
                self.consumer.push(Event::Acked(place));
            }
        }
    }

    fn end(&mut self, session: u32) {
        self.consumer.push(Event::Ended {
            reader: Reader::Consumer,
            session,
            cause: "killed".to_owned(),
        });
    }

    pub(crate) fn position(&self, lsn: u64, seq: u32) -> usize {
        let found = self.log.iter().position(|at| (at.0, at.1) == (lsn, seq));
        found.unwrap()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let mut events = vec![Event::Run(self.header.clone()), Event::Load(self.load)];
        for _ in 0..self.faults {
            events.push(Event::Fault {
                name: "kill-node".to_owned(),
                outcome: FaultOutcome::Installed,
                made_progress: true,
            });
        }
        for (confirmed, durable) in self.samples.iter().copied() {
            events.push(Event::Sampled { confirmed, durable });
        }
        events.extend(self.consumer.iter().cloned());
        for (lsn, seq, item) in self.log.iter().cloned() {
            let (reader, session) = (Reader::Log, 1);
            let place = Place {
                reader,
                session,
                lsn,
                seq,
            };
            events.push(Event::Delivered { place, item });
        }
        events
    }

    /// Judges with a millisecond between two lines.
    pub(crate) fn judged(&self) -> Verdict {
        let to_entry = |(index, event)| Entry {
            at_us: index as u64 * 1_000,
            event,
        };
        let entries = self.events().into_iter().enumerate().map(to_entry);
        Verdict::of(&Evidence::new(entries.collect(), self.journal.clone()))
    }

    /// Asserts that a kind of violation is among those found, and returns the verdict.
    #[track_caller]
    pub(crate) fn must_fail_by(&self, kind: &str) -> Verdict {
        let verdict = self.judged();
        let kinds: Vec<&str> = verdict.violations.iter().map(|v| v.kind.as_str()).collect();
        assert_eq!(verdict.verdict, "fail");
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
        verdict
    }
}

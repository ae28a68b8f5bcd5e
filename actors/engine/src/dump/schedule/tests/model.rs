//! Any order of events: everything is finished exactly once or failed, and no limit is broken.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::dump::PageSet;

/// What may happen next.
#[derive(Clone, Debug)]
enum Event {
    Pull(usize),
    Read(usize),
    Finish(usize),
    FinishUnrecorded(usize),
    GiveUp(usize, u8),
    Wait(u64),
    RunErrand(bool),
    Act(usize, DumpAction),
    Health(usize, bool),
    Nodes(u8),
    ControllerDies,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0_usize..2).prop_map(Event::Pull),
        4 => any::<usize>().prop_map(Event::Read),
        6 => any::<usize>().prop_map(Event::Finish),
        1 => any::<usize>().prop_map(Event::FinishUnrecorded),
        4 => (any::<usize>(), 0_u8..14).prop_map(|(index, kind)| Event::GiveUp(index, kind)),
        3 => (0_u64..700).prop_map(Event::Wait),
        3 => any::<bool>().prop_map(Event::RunErrand),
        1 => (0_usize..3, prop_oneof![
            Just(DumpAction::Pause),
            Just(DumpAction::Resume),
            Just(DumpAction::Retry),
        ]).prop_map(|(index, action)| Event::Act(index, action)),
        1 => (0_usize..2, any::<bool>()).prop_map(|(index, is_ready)| Event::Health(index, is_ready)),
        2 => (0_u8..4).prop_map(Event::Nodes),
        1 => Just(Event::ControllerDies),
    ]
}

/// Bytes a second that `r1` gives.
const RATE: u64 = 1_000_000;

const CONSUMERS: [&str; 2] = ["a", "b"];

/// The other nodes: what they reach, and how much they read at once.
const OTHERS: [(&str, u32, &[&str]); 2] = [("n2", 1, &["r1", "r2"]), ("n3", 2, &["r1"])];

/// The world, and what a watcher knows of it.
struct Watched {
    world: World,
    dumps: Vec<DumpId>,
    running: Vec<Assignment>,
    /// Ranges that a controller handed out before it died.
    lost: BTreeSet<u64>,
    /// Ranges that were read to their end.
    read: BTreeSet<u64>,
    /// Which of the others are there, one bit each.
    others: u8,
    /// Pages recorded by dump, table and generation.
    recorded: BTreeMap<(DumpId, u32, u32), PageSet>,
}

impl Watched {
    fn new(sizes: &[(u32, u32)]) -> Self {
        let mut world = World::new(&[2, 1]);
        let mut dumps = Vec::new();
        for (number, (first, second)) in (0_u32..).zip(sizes) {
            let tables = vec![plan(number * 2 + 1, *first), plan(number * 2 + 2, *second)];
            let consumer = CONSUMERS[dumps.len() % 2];
            dumps.push(create(&mut world.state, consumer, small(2), tables));
        }
        world.set_rate("r1", Some(RATE));
        world.agree();
        Self {
            world,
            dumps,
            running: Vec::new(),
            lost: BTreeSet::new(),
            read: BTreeSet::new(),
            others: 0,
            recorded: BTreeMap::new(),
        }
    }

    fn alive(&self) -> impl Iterator<Item = &Assignment> {
        let running = self.running.iter();
        running.filter(|range| !self.lost.contains(&range.ticket))
    }

    fn pull(&mut self, consumer: usize) -> bool {
        let Some(range) = self.world.pull(CONSUMERS[consumer]) else {
            return false;
        };
        let key = (range.dump, range.table, range.generation);
        let table = &self.world.state.dumps[&range.dump].tables[range.table as usize];
        assert_eq!(range.generation, table.generation);
        assert!(table.failure.is_none());
        match range.extent {
            Extent::Pages(pages) => {
                let taken = self.recorded.get(&key).cloned().unwrap_or_default();
                assert!(!taken.contains(pages), "{pages} was finished");
                let others = self
                    .alive()
                    .filter(|other| (other.dump, other.table, other.generation) == key);
                for other in others {
                    if let Extent::Pages(other) = other.extent {
                        let is_apart = other.last < pages.first || pages.last < other.first;
                        assert!(is_apart, "{pages} runs already in {other}");
                    }
                }
            }
            Extent::Sweep { .. } => assert!(table.is_read() && !table.sweep_done),
        }
        let other = OTHERS
            .iter()
            .zip(0..)
            .find(|(other, _)| other.0 == range.node);
        if let Some(((_, _, reached), bit)) = other {
            assert!(self.others & (1 << bit) != 0, "{} is gone", range.node);
            assert!(reached.contains(&range.replica.as_str()), "out of reach");
        }
        self.running.push(range);
        self.check_caps();
        true
    }

    fn check_caps(&self) {
        let reading = || {
            self.alive()
                .filter(|range| !self.read.contains(&range.ticket))
        };
        for (name, most) in [("r1", 2), ("r2", 1)] {
            let count = reading().filter(|range| range.replica == name).count();
            assert!(count <= most, "{name} reads {count}");
        }
        let limited = reading().filter(|range| range.replica == "r1");
        let given = limited.filter_map(|range| range.rate_bytes_per_second);
        assert!(given.sum::<u64>() <= RATE);
        for (name, most, _) in OTHERS {
            let count = reading().filter(|range| range.node == name).count();
            assert!(count <= most as usize, "{name} reads {count}");
        }
        for id in &self.dumps {
            let count = reading().filter(|range| range.dump == *id).count();
            assert!(count <= 2, "{id} reads {count}");
        }
    }

    fn read(&mut self, index: usize) {
        let count = self.running.len();
        let Some(range) = (count > 0).then(|| &self.running[index % count]) else {
            return;
        };
        let is_lost = self.lost.contains(&range.ticket);
        let is_first = self.read.insert(range.ticket);
        assert_eq!(self.world.schedule.read(range.ticket), !is_lost && is_first);
    }

    fn take(&mut self, index: usize) -> Option<Assignment> {
        let count = self.running.len();
        (count > 0).then(|| self.running.swap_remove(index % count))
    }

    fn finish(&mut self, index: usize, is_recorded: bool) {
        let Some(range) = self.take(index) else {
            return;
        };
        let now = self.world.now;
        let finished = self.world.schedule.finished(range.ticket, 1, 1_000, now);
        assert_eq!(finished.is_none(), self.lost.contains(&range.ticket));
        let Some(finished) = finished else {
            return;
        };
        if !is_recorded {
            self.world.schedule.not_recorded(range.ticket, "full", now);
            return;
        }
        record(&mut self.world.state, finished);
        if let Extent::Pages(pages) = range.extent {
            let key = (range.dump, range.table, range.generation);
            self.recorded.entry(key).or_default().insert(pages);
        }
        self.sync();
        self.world.schedule.recorded(range.ticket);
    }

    fn sync(&mut self) {
        self.world.schedule.sync(&self.world.state);
    }

    fn set_others(&mut self, others: u8) {
        self.others = others;
        let there = OTHERS
            .iter()
            .zip(0..)
            .filter(|(_, bit)| others & (1 << bit) != 0);
        let there = there.map(|((name, seats, replicas), _)| {
            let replicas = replicas.iter().map(|name| (*name).to_owned());
            let (seats, replicas) = (*seats, replicas.collect());
            ((*name).to_owned(), NodeReach { seats, replicas })
        });
        self.world.schedule.set_others(there.collect());
    }

    fn give_up(&mut self, index: usize, kind: u8) {
        let setback = match kind {
            0..=2 => Setback::Disconnected,
            3 | 4 => Setback::TooOld,
            5 | 6 => Setback::Consumer("no".to_owned()),
            7 | 8 => Setback::Unread(failure("PGC-E30")),
            9 | 10 => Setback::Rewritten("CLUSTER".to_owned()),
            12 | 13 => Setback::NodeLost("gone".to_owned()),
            _ => Setback::Final(failure("PGC-E28")),
        };
        if let Some(range) = self.take(index) {
            let now = self.world.now;
            let is_known = self.world.schedule.give_up(range.ticket, setback, now);
            assert_eq!(is_known, !self.lost.contains(&range.ticket));
        }
    }

    fn run_errand(&mut self, is_done: bool) -> bool {
        let now = self.world.now;
        let Some(errand) = self.world.schedule.next_errand(now) else {
            return false;
        };
        let (dump, table, generation) = errand.about();
        let at = PgTime(5);
        if is_done {
            let command = match errand.clone() {
                Errand::Replan { .. } => DumpCommand::ReplanTable {
                    dump,
                    table,
                    generation,
                    plan: Box::new(new_layout(table + 1, 24)),
                    at,
                },
                Errand::Fail { failure, .. } => DumpCommand::FailTable {
                    dump,
                    table,
                    generation,
                    failure,
                    at,
                },
            };
            apply(&mut self.world.state, Command::Dump(command));
            self.sync();
        }
        self.world.schedule.errand_done(&errand, is_done, now);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Pull(consumer) => drop(self.pull(consumer)),
            Event::Read(index) => self.read(index),
            Event::Finish(index) => self.finish(index, true),
            Event::FinishUnrecorded(index) => self.finish(index, false),
            Event::GiveUp(index, kind) => self.give_up(index, kind),
            Event::Wait(count) => self.world.now += seconds(count),
            Event::RunErrand(is_done) => drop(self.run_errand(is_done)),
            Event::Act(index, action) => {
                let (id, at) = (self.dumps[index % self.dumps.len()], PgTime(6));
                let command = DumpCommand::Act { id, action, at };
                // A refusal is an answer too.
                drop(self.world.state.apply(Command::Dump(command)));
                self.sync();
            }
            Event::Health(index, is_ready) => {
                let health = if is_ready {
                    READY
                } else {
                    ReplicaHealth::Unknown
                };
                self.world.schedule.set_health(["r1", "r2"][index], health);
            }
            Event::Nodes(others) => self.set_others(others),
            Event::ControllerDies => {
                self.others = 0;
                self.lost
                    .extend(self.running.iter().map(|range| range.ticket));
                self.world.schedule = Schedule::new(self.world.schedule.last_ticket());
                self.world.agree();
            }
        }
    }

    /// From here on nothing goes wrong: everything must come to its end, in so many steps.
    fn heal(&mut self) {
        for id in self.dumps.clone() {
            for action in [DumpAction::Retry, DumpAction::Resume] {
                let at = PgTime(8);
                let command = DumpCommand::Act { id, action, at };
                drop(self.world.state.apply(Command::Dump(command)));
            }
        }
        self.world.agree();
        for _ in 0..2_000 {
            let mut is_busy = self.pull(0) | self.pull(1) | self.run_errand(true);
            is_busy |= !self.running.is_empty();
            self.finish(0, true);
            if !is_busy {
                match self.world.schedule.next_due(self.world.now) {
                    Some(due) => self.world.now = due,
                    None => break,
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_every_page_is_finished_once_or_its_table_failed(
        sizes in proptest::collection::vec((0_u32..60, 0_u32..60), 1..4),
        events in proptest::collection::vec(event(), 0..200),
    ) {
        let mut watched = Watched::new(&sizes);
        for event in events {
            watched.happen(event);
        }
        watched.heal();
        for id in &watched.dumps {
            let dump = &watched.world.state.dumps[id];
            prop_assert!(dump.is_over(), "{:#?}", dump);
            for table in &dump.tables {
                prop_assert!(table.failure.is_some() || table.is_done());
            }
        }
        prop_assert_eq!(watched.world.schedule.next_errand(watched.world.now), None);
    }
}

//! Whatever happens to a range, the schedule does what its head says.

mod model;
mod pace;
mod places;
mod setbacks;
mod status;

use super::{fixtures::*, *};
use crate::{
    cluster::{
        Answer, Command, DumpAction, DumpCommand, DumpOptions, DumpState, PROTOCOL_SECOND, Refusal,
        TableFailure, WantedPages,
    },
    dump::PageRange,
    lsn::PgTime,
};

const READY: ReplicaHealth = ReplicaHealth::Ready {
    lag: Duration::ZERO,
};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// An agreed state, the schedule that follows it, and the time.
struct World {
    state: State,
    schedule: Schedule,
    now: Duration,
}

impl World {
    /// Limits what may be read from a replica a second.
    fn try_set_rate(&mut self, replica: &str, rate: Option<u64>) -> Result<Answer, Refusal> {
        let name = replica.to_owned();
        self.state.apply(Command::SetReplicaRate { name, rate })
    }

    fn set_rate(&mut self, replica: &str, rate: Option<u64>) {
        self.try_set_rate(replica, rate).unwrap();
    }

    /// Replicas `r1`, `r2` … of `shop`, each for so many ranges at once.
    fn new(ranges_max: &[u32]) -> Self {
        let mut state = cluster(&[]);
        state.added.protocol = PROTOCOL_SECOND;
        for (number, ranges_max) in (1..).zip(ranges_max) {
            let replica = replica(&format!("r{number}"), "shop", *ranges_max);
            apply(&mut state, Command::AddReplica(Box::new(replica)));
        }
        let mut world = Self {
            state,
            schedule: Schedule::new(0),
            now: seconds(100),
        };
        world.agree();
        world
    }

    /// Lets the schedule see the agreed state; all replicas are ready.
    fn agree(&mut self) {
        self.schedule.sync(&self.state);
        for name in self.state.replicas.keys() {
            self.schedule.set_health(name, READY);
        }
    }

    fn create(&mut self, consumer: &str, options: DumpOptions, pages_end: u32) -> DumpId {
        let oid = u32::try_from(self.state.last_dump.0).unwrap() + 1;
        let id = create(
            &mut self.state,
            consumer,
            options,
            vec![plan(oid, pages_end)],
        );
        self.agree();
        id
    }

    fn pull(&mut self, consumer: &str) -> Option<Assignment> {
        self.schedule.pull("shop", consumer, self.now)
    }

    /// Pulls and returns the pages; what comes must be pages.
    fn pull_pages(&mut self, consumer: &str) -> Option<(u32, u32)> {
        self.pull(consumer).map(|assignment| pages(&assignment))
    }

    fn finish(&mut self, ticket: u64) {
        let range = self
            .schedule
            .finished(ticket, 10, 1_000, self.now)
            .expect("a running ticket");
        record(&mut self.state, range);
        self.agree();
        self.schedule.recorded(ticket);
    }

    fn give_up(&mut self, ticket: u64, setback: Setback) {
        assert!(self.schedule.give_up(ticket, setback, self.now));
    }

    fn act(&mut self, id: DumpId, action: DumpAction) {
        act(&mut self.state, id, action);
        self.agree();
    }

    fn state_of(&self, id: DumpId) -> DumpState {
        self.state.dumps[&id].state
    }

    /// Pulls and finishes until nothing comes; returns the extents in order.
    fn drain(&mut self, consumer: &str) -> Vec<Extent> {
        let mut extents = Vec::new();
        while let Some(assignment) = self.pull(consumer) {
            extents.push(assignment.extent);
            self.finish(assignment.ticket);
        }
        extents
    }
}

fn pages(assignment: &Assignment) -> (u32, u32) {
    match assignment.extent {
        Extent::Pages(pages) => (pages.first, pages.last),
        Extent::Sweep { .. } => panic!("a sweep came"),
    }
}

#[test]
fn pages_come_first_and_the_sweep_once_all_are_recorded() {
    let mut world = World::new(&[4]);
    let id = world.create("a", small(4), 16);
    let (first, second) = (world.pull("a").unwrap(), world.pull("a").unwrap());
    assert_eq!((pages(&first), pages(&second)), ((0, 7), (8, u32::MAX)));
    assert_eq!(first.at_least, Lsn(5), "the plan's position");
    assert_eq!(world.pull("a"), None);
    world.finish(second.ticket);
    assert_eq!(world.pull("a"), None, "one is still running");

    let range = world
        .schedule
        .finished(first.ticket, 1, 1, world.now)
        .unwrap();
    assert_eq!(world.pull("a"), None, "it is not recorded yet");
    record(&mut world.state, range);
    world.agree();
    world.schedule.recorded(first.ticket);
    let sweep = world.pull("a").unwrap();
    assert_eq!(sweep.extent, Extent::Sweep { since_xid: 700 });
    assert_eq!(world.pull("a"), None);
    world.finish(sweep.ticket);
    assert_eq!(world.state_of(id), DumpState::Finished);
    assert_eq!(world.pull("a"), None);
}

#[test]
fn an_empty_table_is_one_range_without_end() {
    let mut world = World::new(&[1]);
    let id = world.create("a", small(1), 0);
    assert_eq!(world.drain("a"), [Extent::Pages(PageRange::ALL)]);
    assert_eq!(world.state_of(id), DumpState::Finished);
}

#[test]
fn only_the_asking_subscription_gets_ranges() {
    let mut world = World::new(&[4]);
    world.create("a", small(4), 100);
    assert_eq!(world.pull("b"), None);
    assert_eq!(world.schedule.pull("audit", "a", world.now), None);
    assert!(world.pull("a").is_some());
}

#[test]
fn neither_replica_nor_dump_has_more_ranges_than_it_may() {
    for (ranges_max, parallel, wanted) in [
        (vec![4], 2, 2),
        (vec![1], 2, 1),
        (vec![1, 2], 9, 3),
        (vec![], 2, 0),
    ] {
        let mut world = World::new(&ranges_max);
        world.create("a", small(parallel), 1_000);
        let count = std::iter::from_fn(|| world.pull("a")).count();
        assert_eq!(count, wanted, "{ranges_max:?} {parallel}");
    }
}

#[test]
fn a_range_that_was_read_makes_room_for_the_next_before_it_is_finished() {
    let mut world = World::new(&[1]);
    world.create("a", small(1), 1_000);
    let first = world.pull("a").unwrap();
    assert_eq!(world.pull("a"), None);
    assert!(world.schedule.read(first.ticket));
    assert!(!world.schedule.read(first.ticket), "once");
    let second = world.pull("a").unwrap();
    assert_ne!(pages(&second), pages(&first));
    assert_eq!(world.pull("a"), None);
    world.finish(first.ticket);
    assert_eq!(world.pull("a"), None, "its place was free before");
    world.give_up(second.ticket, Setback::Disconnected);
    let again = world.pull("a").unwrap();
    assert_eq!(pages(&again), pages(&second));
    assert!(!world.schedule.read(second.ticket), "another try");
}

#[test]
fn the_least_loaded_replica_reads_and_equal_ones_take_turns() {
    let mut world = World::new(&[2, 4]);
    world.create("a", small(9), 1_000);
    let replicas: Vec<_> = std::iter::from_fn(|| world.pull("a"))
        .map(|assignment| assignment.replica)
        .collect();
    assert_eq!(replicas, ["r1", "r2", "r2", "r1", "r2", "r2"]);

    let mut world = World::new(&[4, 4]);
    world.create("a", small(1), 1_000);
    let mut replicas = Vec::new();
    for _ in 0..4 {
        let assignment = world.pull("a").unwrap();
        world.finish(assignment.ticket);
        replicas.push(assignment.replica);
    }
    assert_eq!(replicas, ["r1", "r2", "r1", "r2"]);
}

#[test]
fn a_replica_that_is_not_ready_or_of_another_source_reads_nothing() {
    let unusable = ReplicaHealth::Unusable {
        code: "PGC-E21".to_owned(),
        what: "promoted".to_owned(),
    };
    let lag = seconds(40);
    let what = "locks".to_owned();
    for health in [
        ReplicaHealth::Unknown,
        ReplicaHealth::Behind { lag },
        ReplicaHealth::Busy { lag, what },
        unusable,
    ] {
        let mut world = World::new(&[1]);
        world.create("a", small(1), 10);
        world.schedule.set_health("r1", health.clone());
        assert_eq!(world.pull("a"), None, "{health:?}");
        world.schedule.set_health("r1", READY);
        assert!(world.pull("a").is_some());
    }
    let mut world = World::new(&[]);
    let stranger = Command::AddReplica(Box::new(replica("x", "audit", 1)));
    apply(&mut world.state, stranger);
    world.create("a", small(1), 10);
    assert_eq!(world.pull("a"), None);
}

#[test]
fn a_paused_or_cancelled_dump_hands_out_nothing_and_its_running_ranges_count() {
    for action in [DumpAction::Pause, DumpAction::Cancel] {
        let mut world = World::new(&[4]);
        let id = world.create("a", small(4), 100);
        let running = world.pull("a").unwrap();
        world.act(id, action);
        assert_eq!(world.pull("a"), None);
        world.finish(running.ticket);
        assert_eq!(world.state.dumps[&id].tables[0].range_count, 1);
        assert_eq!(world.pull("a"), None);
        if action == DumpAction::Pause {
            world.act(id, DumpAction::Resume);
            assert_eq!(world.pull_pages("a"), Some((8, 15)));
        }
    }
}

#[test]
fn a_schedule_built_anew_goes_on_where_the_state_is() {
    let mut world = World::new(&[4]);
    let id = world.create("a", small(4), 32);
    let tickets: Vec<_> = (0..3).map(|_| world.pull("a").unwrap().ticket).collect();
    world.finish(tickets[1]);
    world.schedule = Schedule::new(world.schedule.last_ticket());
    world.agree();
    let pulled: Vec<_> = std::iter::from_fn(|| world.pull_pages("a")).collect();
    assert_eq!(pulled, [(0, 7), (16, 23), (24, u32::MAX)]);
    let stranger = world.schedule.finished(tickets[0], 1, 1, world.now);
    assert_eq!(stranger, None, "a ticket of the earlier life");
    assert!(
        !world
            .schedule
            .give_up(tickets[2], Setback::TooOld, world.now)
    );
    assert_eq!(world.state_of(id), DumpState::Active);
}

#[test]
fn ranges_given_by_hand_are_handed_out_as_they_are() {
    let mut world = World::new(&[1]);
    let given = [(40, 49), (0, 0), (3, 900), (0, 0)].map(|(first, last)| PageRange { first, last });
    let mut table = plan(1, 50);
    table.wanted = WantedPages::Ranges(given.to_vec());
    let id = create(&mut world.state, "a", small(1), vec![table]);
    world.agree();
    let extents = world.drain("a");
    let wanted = [given[0], given[1], given[2]].map(Extent::Pages);
    assert_eq!(
        extents[..3],
        wanted,
        "what is finished already does not come again"
    );
    assert_eq!(extents[3], Extent::Sweep { since_xid: 700 });
    assert_eq!(world.state_of(id), DumpState::Finished);
}

#[test]
fn tables_come_one_after_another_and_all_of_them() {
    let mut world = World::new(&[2]);
    let tables = (1..=1_000).map(|oid| plan(oid, 4)).collect();
    let id = create(&mut world.state, "a", small(2), tables);
    world.agree();
    assert_eq!(world.drain("a").len(), 1_000);
    assert_eq!(world.state_of(id), DumpState::Finished);
}

#[test]
fn ten_thousand_ranges_are_handed_out_each_once() {
    let mut world = World::new(&[64]);
    let id = world.create("a", small(64), 80_000);
    let mut pages = crate::dump::PageSet::new();
    let mut running = VecDeque::new();
    let mut count = 0;
    loop {
        while let Some(assignment) = world.pull("a") {
            if let Extent::Pages(range) = assignment.extent {
                assert!(pages.insert(range), "{range} came twice");
                count += 1;
            }
            running.push_back(assignment.ticket);
        }
        // The middle first, so that what is finished has holes.
        let Some(ticket) = running.remove(running.len() / 2) else {
            break;
        };
        world.finish(ticket);
    }
    // What was delivered was less than what the pages had: ranges grew, by eight at most.
    assert!((1_250..=10_000).contains(&count), "{count}");
    assert!(pages.contains(PageRange::ALL));
    assert_eq!(world.state_of(id), DumpState::Finished);
}

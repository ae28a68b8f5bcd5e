//! What people are told.

use super::*;
use crate::dump::{SweepStatus, WaitsFor};

fn status(world: &World, id: DumpId) -> crate::dump::DumpStatus {
    world.schedule.status(&world.state.dumps[&id], world.now)
}

#[test]
fn progress_rate_and_remaining_time_are_told() {
    let mut world = World::new(&[2]);
    let id = world.create("a", small(2), 100);
    for _ in 0..4 {
        let range = world.pull("a").unwrap();
        let finished = world
            .schedule
            .finished(range.ticket, 800, 64 << 10, world.now);
        record(&mut world.state, finished.unwrap());
        world.agree();
        world.schedule.recorded(range.ticket);
        world.now += seconds(1);
    }
    world.pull("a").unwrap();
    let status = status(&world, id);
    assert_eq!(status.progress.pages_done, 32);
    assert_eq!(status.progress.pages_total, 100);
    assert_eq!(status.progress.row_count, 3_200);
    assert_eq!(status.progress.row_estimate, 10_000);
    assert_eq!(status.progress.bytes, 256 << 10);
    assert_eq!(status.rows_per_second, 640, "the second that began counts");
    assert_eq!(status.bytes_per_second, (256 << 10) / 5);
    let left = 68 * 8_192;
    let wanted = u64::div_ceil(left, (256 << 10) / 5);
    assert_eq!(status.remaining, Some(seconds(wanted)));
    assert_eq!(
        (status.running_count, status.tables[0].running_count),
        (1, 1)
    );
    assert_eq!(status.waits_for, None);
    assert_eq!(status.tables[0].sweep, SweepStatus::Waiting);
    world.now += seconds(10);
    let status = self::status(&world, id);
    assert_eq!((status.rows_per_second, status.remaining), (0, None));
}

#[test]
fn what_a_dump_waits_for_is_told() {
    let mut world = World::new(&[1]);
    let options = DumpOptions {
        cool_down: seconds(9),
        ..small(1)
    };
    let id = world.create("a", options, 16);
    assert_eq!(status(&world, id).waits_for, Some(WaitsFor::Consumer));

    let lag = seconds(40);
    world
        .schedule
        .set_health("r1", ReplicaHealth::Behind { lag });
    let text = "r1: is 40 s behind".to_owned();
    assert_eq!(status(&world, id).waits_for, Some(WaitsFor::Replica(text)));

    world.schedule.set_health("r1", READY);
    let range = world.pull("a").unwrap();
    assert_eq!(status(&world, id).waits_for, None, "one is running");
    world.finish(range.ticket);
    assert_eq!(
        status(&world, id).waits_for,
        Some(WaitsFor::Pace(seconds(9)))
    );

    world.now += seconds(9);
    let range = world.pull("a").unwrap();
    world.give_up(range.ticket, Setback::Consumer("no".to_owned()));
    assert_eq!(
        status(&world, id).waits_for,
        Some(WaitsFor::Retry(seconds(11)))
    );

    let name = "r1".to_owned();
    apply(&mut world.state, Command::RemoveReplica { name });
    world.agree();
    world.now += seconds(11);
    let text = "source \"shop\" has none".to_owned();
    assert_eq!(status(&world, id).waits_for, Some(WaitsFor::Replica(text)));
}

#[test]
fn ranges_that_wait_for_their_next_try_are_told_with_their_reason() {
    let mut world = World::new(&[4]);
    let id = world.create("a", small(4), 100);
    for reason in ["row 7 is bad", "row 9 is bad"] {
        let range = world.pull("a").unwrap();
        world.give_up(range.ticket, Setback::Consumer(reason.to_owned()));
    }
    let status = status(&world, id);
    assert_eq!((status.retry_count, status.given_up_count), (2, 2));
    assert_eq!(status.retries[0].reason, "row 7 is bad");
    assert_eq!(status.retries[0].try_count, 1);
    assert_eq!(status.retries[0].due_in, seconds(2));
    assert_eq!(status.retries[0].table.to_string(), "public.t1");
}

#[test]
fn a_dump_that_is_over_is_told_from_the_state_alone() {
    let mut world = World::new(&[1]);
    let id = world.create("a", small(1), 16);
    world.drain("a");
    let status = status(&world, id);
    assert_eq!(status.state, DumpState::Finished);
    assert_eq!(status.progress.pages_done, 16);
    assert_eq!(status.tables[0].sweep, SweepStatus::Done);
    assert_eq!((status.remaining, status.waits_for), (None, None));
    assert_eq!(status.ended_at, Some(PgTime(3)));
}

#[test]
fn replicas_are_told_with_their_load() {
    let mut world = World::new(&[2, 1]);
    world.create("a", small(3), 100);
    world.pull("a").unwrap();
    let told: Vec<_> = world
        .schedule
        .replica_statuses()
        .map(|replica| (replica.name, replica.running_count, replica.ranges_max))
        .collect();
    assert_eq!(told, [("r1".to_owned(), 1, 2), ("r2".to_owned(), 0, 1)]);
}

#[test]
fn a_failed_table_says_why() {
    let mut world = World::new(&[1]);
    let id = world.create("a", small(1), 16);
    let failure = TableFailure {
        code: "PGC-E28".to_owned(),
        text: "no right".to_owned(),
    };
    let command = DumpCommand::FailTable {
        dump: id,
        table: 0,
        generation: 0,
        failure: failure.clone(),
        at: PgTime(4),
    };
    apply(&mut world.state, Command::Dump(command));
    world.agree();
    assert_eq!(status(&world, id).tables[0].failure, Some(failure));
}

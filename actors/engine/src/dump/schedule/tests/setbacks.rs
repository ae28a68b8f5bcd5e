//! Ranges that are given back, errands that follow, failures and new plans.

use super::*;

fn unread() -> Setback {
    Setback::Unread(failure("PGC-E30"))
}

fn requeued() -> Setback {
    Setback::Consumer("no".to_owned())
}

/// One replica, one range: gives it up and returns the seconds until it comes again.
fn pause_after(world: &mut World, setback: &Setback) -> u64 {
    let assignment = world.pull("a").expect("it is due");
    world.give_up(assignment.ticket, setback.clone());
    let before = world.now;
    while world.schedule.pull("nobody", "a", world.now).is_none() {
        let status = world
            .schedule
            .status(&world.state.dumps[&assignment.dump], world.now);
        if status.retries[0].due_in.is_zero() {
            break;
        }
        world.now += status.retries[0].due_in;
    }
    (world.now - before).as_secs()
}

#[test]
fn a_range_that_is_sent_back_pauses_longer_and_longer_for_ever() {
    let mut world = World::new(&[1]);
    let id = world.create("a", small(1), 0);
    let pauses: Vec<_> = (0..12)
        .map(|_| pause_after(&mut world, &requeued()))
        .collect();
    assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512, 512]);
    for _ in 0..50 {
        assert_eq!(pause_after(&mut world, &requeued()), 512);
    }
    assert_eq!(world.state_of(id), DumpState::Active);
    assert_eq!(world.schedule.next_errand(world.now), None);
    assert_eq!(world.drain("a").len(), 1);
    assert_eq!(world.state_of(id), DumpState::Finished);
}

#[test]
fn the_pause_begins_anew_after_a_success() {
    let mut world = World::new(&[1]);
    world.create("a", small(1), 16);
    assert_eq!(pause_after(&mut world, &requeued()), 2);
    assert_eq!(pause_after(&mut world, &requeued()), 4);
    let assignment = world.pull("a").unwrap();
    world.finish(assignment.ticket);
    assert_eq!(pause_after(&mut world, &requeued()), 2);
}

#[test]
fn a_poisoned_range_holds_up_no_other() {
    let mut world = World::new(&[1]);
    let id = world.create("a", small(1), 64);
    let poisoned = world.pull("a").unwrap();
    world.give_up(poisoned.ticket, requeued());
    let mut others = world.drain("a");
    assert!(!others.contains(&poisoned.extent));
    world.now += seconds(2);
    others.extend(world.drain("a"));
    assert_eq!(world.state_of(id), DumpState::Finished);
}

#[test]
fn who_goes_away_costs_nothing_until_it_is_always_the_same_range() {
    for setback in [Setback::Disconnected, Setback::TooOld] {
        let mut world = World::new(&[1]);
        let options = DumpOptions {
            cool_down: seconds(1),
            ..small(1)
        };
        world.create("a", options, 0);
        let pauses: Vec<_> = (0..6).map(|_| pause_after(&mut world, &setback)).collect();
        assert_eq!(pauses, [0, 0, 0, 3, 5, 9], "the cool-down is added");
    }
}

#[test]
fn a_range_that_cannot_be_read_in_many_tries_fails_its_table_only() {
    let mut world = World::new(&[1]);
    let tables = vec![plan(1, 0), plan(2, 0)];
    let id = create(&mut world.state, "a", small(1), tables);
    world.agree();
    for _ in 1..RANGE_TRIES_MAX {
        assert_eq!(world.pull("a").unwrap().table, 0);
        let ticket = world.schedule.last_ticket();
        world.give_up(ticket, unread());
        assert_eq!(world.schedule.next_errand(world.now), None);
        world.now += seconds(600);
    }
    let last = world.pull("a").unwrap();
    world.give_up(last.ticket, unread());
    let errand = world.schedule.next_errand(world.now).unwrap();
    let Errand::Fail { failure, .. } = &errand else {
        panic!("{errand:?}");
    };
    assert_eq!(failure.code, "PGC-E10");
    assert!(
        failure.text.contains("10 tries; the last: PGC-E30"),
        "{}",
        failure.text
    );
    assert_eq!(world.schedule.next_errand(world.now), None, "once");

    fail(&mut world, errand);
    assert_eq!(world.drain("a").len(), 1, "the other table");
    assert_eq!(world.state_of(id), DumpState::Failed);
    world.act(id, DumpAction::Retry);
    assert_eq!(world.drain("a").len(), 1);
    assert_eq!(world.state_of(id), DumpState::Finished);
}

fn fail(world: &mut World, errand: Errand) {
    let Errand::Fail {
        dump,
        table,
        generation,
        failure,
    } = errand.clone()
    else {
        panic!("{errand:?}");
    };
    let command = DumpCommand::FailTable {
        dump,
        table,
        generation,
        failure,
        at: PgTime(4),
    };
    apply(&mut world.state, Command::Dump(command));
    world.agree();
    world.schedule.errand_done(&errand, true, world.now);
}

fn replan(world: &mut World, errand: &Errand, pages_end: u32) -> Answer {
    let (dump, table, generation) = errand.about();
    let command = DumpCommand::ReplanTable {
        dump,
        table,
        generation,
        plan: Box::new(new_layout(table + 1, pages_end)),
        at: PgTime(4),
    };
    let answer = apply(&mut world.state, Command::Dump(command));
    world.agree();
    world.schedule.errand_done(errand, true, world.now);
    answer
}

#[test]
fn a_retry_finds_the_ranges_that_still_ran_when_their_table_failed() {
    for has_more_tables in [false, true] {
        let mut world = World::new(&[3]);
        let mut tables = vec![plan(1, 24)];
        tables.extend(has_more_tables.then(|| plan(2, 0)));
        let id = create(&mut world.state, "a", small(2), tables);
        world.agree();
        let (bad, good) = (world.pull("a").unwrap(), world.pull("a").unwrap());
        world.give_up(bad.ticket, Setback::Final(failure("PGC-E28")));
        let errand = world.schedule.next_errand(world.now).unwrap();
        fail(&mut world, errand);
        let wanted = if has_more_tables {
            DumpState::Active
        } else {
            DumpState::Failed
        };
        assert_eq!(world.state_of(id), wanted);
        world.act(id, DumpAction::Retry);
        assert_eq!(
            world.pull_pages("a"),
            Some(pages(&bad)),
            "the bad one again"
        );
        assert_eq!(
            world.pull("a"),
            None,
            "two at once, the good one still runs"
        );
        world.finish(good.ticket);
        assert_eq!(world.pull_pages("a"), Some((16, u32::MAX)));
    }
}

#[test]
fn a_final_failure_fails_the_table_at_once() {
    let mut world = World::new(&[2]);
    let id = world.create("a", small(2), 100);
    let (first, second) = (world.pull("a").unwrap(), world.pull("a").unwrap());
    world.give_up(first.ticket, Setback::Final(failure("PGC-E28")));
    world.give_up(second.ticket, Setback::Final(failure("PGC-E28")));
    assert_eq!(
        world.pull("a"),
        None,
        "nothing while the failure is proposed"
    );
    let errand = world.schedule.next_errand(world.now).unwrap();
    assert_eq!(world.schedule.next_errand(world.now), None, "one for both");
    fail(&mut world, errand);
    assert_eq!(world.state_of(id), DumpState::Failed);
    assert_eq!(world.pull("a"), None);
}

#[test]
fn a_rewritten_table_is_planned_anew_and_old_ranges_do_not_count() {
    let mut world = World::new(&[3]);
    let id = world.create("a", small(3), 100);
    let (first, second, third) = (
        world.pull("a").unwrap(),
        world.pull("a").unwrap(),
        world.pull("a").unwrap(),
    );
    world.finish(first.ticket);
    world.give_up(second.ticket, Setback::Rewritten("VACUUM FULL".to_owned()));
    assert_eq!(world.pull("a"), None, "nothing while it is planned");
    let errand = world.schedule.next_errand(world.now).unwrap();
    assert_eq!(replan(&mut world, &errand, 8), Answer::Done);
    let again = world.pull("a").unwrap();
    assert_eq!((pages(&again), again.generation), ((0, u32::MAX), 1));
    world.finish(third.ticket);
    assert!(world.state.dumps[&id].tables[0].done.is_empty());
    world.finish(again.ticket);
    assert_eq!(world.state_of(id), DumpState::Finished);
}

#[test]
fn a_rewritten_table_with_pages_given_by_hand_fails_with_a_clear_word() {
    let mut world = World::new(&[1]);
    let mut table = plan(1, 100);
    table.wanted = WantedPages::Ranges(vec![PageRange { first: 0, last: 99 }]);
    let id = create(&mut world.state, "a", small(1), vec![table]);
    world.agree();
    let range = world.pull("a").unwrap();
    world.give_up(range.ticket, Setback::Rewritten("CLUSTER".to_owned()));
    let errand = world.schedule.next_errand(world.now).unwrap();
    fail(&mut world, errand);
    let failure = world.state.dumps[&id].tables[0].failure.clone().unwrap();
    assert_eq!(failure.code, "PGC-E17");
    assert_eq!(world.state_of(id), DumpState::Failed);
}

#[test]
fn an_errand_that_fails_is_tried_again_later() {
    let mut world = World::new(&[1]);
    world.create("a", small(1), 100);
    let range = world.pull("a").unwrap();
    world.give_up(range.ticket, Setback::Rewritten("CLUSTER".to_owned()));
    let errand = world.schedule.next_errand(world.now).unwrap();
    for pause in [2, 4, 8] {
        world.schedule.errand_done(&errand, false, world.now);
        assert_eq!(world.schedule.next_errand(world.now), None);
        assert_eq!(
            world.schedule.next_due(world.now),
            Some(world.now + seconds(pause))
        );
        world.now += seconds(pause);
        assert_eq!(world.schedule.next_errand(world.now), Some(errand.clone()));
    }
    replan(&mut world, &errand, 100);
    assert_eq!(world.schedule.next_errand(world.now), None);
}

#[test]
fn an_errand_about_a_dump_that_is_over_is_forgotten() {
    let mut world = World::new(&[1]);
    let id = world.create("a", small(1), 100);
    let range = world.pull("a").unwrap();
    world.give_up(range.ticket, Setback::Rewritten("CLUSTER".to_owned()));
    world.act(id, DumpAction::Cancel);
    assert_eq!(world.schedule.next_errand(world.now), None);
}

#[test]
fn what_could_not_be_recorded_is_handed_out_again() {
    let mut world = World::new(&[1]);
    let id = world.create("a", small(1), 0);
    let range = world.pull("a").unwrap();
    world
        .schedule
        .finished(range.ticket, 1, 1, world.now)
        .unwrap();
    world
        .schedule
        .not_recorded(range.ticket, "the disk is full", world.now);
    assert_eq!(world.pull("a"), None);
    world.now += seconds(2);
    let again = world.pull("a").unwrap();
    assert_eq!(again.extent, range.extent);
    world.finish(again.ticket);
    assert_eq!(world.state_of(id), DumpState::Finished);
}

#[test]
fn a_range_rather_goes_to_another_replica_than_the_one_that_failed_with_it() {
    let mut world = World::new(&[1, 1]);
    world.create("a", small(1), 0);
    let first = world.pull("a").unwrap();
    world.give_up(first.ticket, unread());
    world.now += seconds(2);
    let second = world.pull("a").unwrap();
    assert_ne!(first.replica, second.replica);
    world.give_up(second.ticket, unread());
    let lost = ReplicaHealth::Unknown;
    world.schedule.set_health(&first.replica, lost);
    world.now += seconds(4);
    assert_eq!(
        world.pull("a").unwrap().replica,
        second.replica,
        "better than none"
    );
}

#[test]
fn a_removed_source_or_dump_leaves_no_trace() {
    let mut world = World::new(&[1]);
    world.create("a", small(1), 100);
    let range = world.pull("a").unwrap();
    let name = "shop".to_owned();
    apply(&mut world.state, Command::RemoveSource { name });
    world.agree();
    world.give_up(range.ticket, unread());
    assert_eq!(world.pull("a"), None);
    assert_eq!(world.schedule.next_due(world.now), None);
    assert_eq!(world.schedule.replica_statuses().count(), 0);
}

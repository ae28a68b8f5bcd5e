//! Cool-down, rate, priorities, turns, and when to look again.

use super::*;

#[test]
fn a_cool_down_follows_each_range() {
    let mut world = World::new(&[4]);
    let options = DumpOptions {
        cool_down: seconds(3),
        ..small(1)
    };
    world.create("a", options, 100);
    let first = world.pull("a").unwrap();
    world.now += seconds(10);
    assert!(!world.schedule.read(first.ticket), "the pause comes first");
    assert_eq!(world.pull("a"), None);
    world.finish(first.ticket);
    assert_eq!(world.pull("a"), None);
    assert_eq!(
        world.schedule.next_due(world.now),
        Some(world.now + seconds(3))
    );
    world.now += seconds(3);
    assert!(world.pull("a").is_some());
}

#[test]
fn the_cool_down_of_a_subscription_holds_for_its_dumps_until_it_is_taken_away() {
    let mut world = World::new(&[4]);
    world.create("a", small(1), 100);
    world.create("b", small(1), 100);
    let set = |world: &mut World, cool_down| {
        let command = DumpCommand::SetCoolDown {
            stream: "shop".to_owned(),
            consumer: "a".to_owned(),
            cool_down,
        };
        apply(&mut world.state, Command::Dump(command));
        world.agree();
    };
    set(&mut world, seconds(60));
    for consumer in ["a", "b"] {
        let range = world.pull(consumer).unwrap();
        world.finish(range.ticket);
    }
    assert_eq!(world.pull("a"), None);
    assert!(world.pull("b").is_some());
    world.now += seconds(60);
    let range = world.pull("a").unwrap();
    set(&mut world, Duration::ZERO);
    world.finish(range.ticket);
    assert!(world.pull("a").is_some());
}

#[test]
fn ranges_that_are_done_fast_are_followed_by_larger_ones() {
    let mut world = World::new(&[4]);
    world.create(
        "a",
        DumpOptions {
            parallel: 1,
            ..DumpOptions::default()
        },
        1_000_000,
    );
    let mut lengths = Vec::new();
    for took in [100, 100, 100, 100, 2_000, 100] {
        let range = world.pull("a").unwrap();
        let (first, last) = pages(&range);
        lengths.push((last - first + 1) / 4_096);
        world.now += Duration::from_millis(took);
        let bytes = u64::from(last - first + 1) * 8_192;
        let finished = world.schedule.finished(range.ticket, 1, bytes, world.now);
        record(&mut world.state, finished.unwrap());
        world.agree();
        world.schedule.recorded(range.ticket);
    }
    assert_eq!(lengths, [1, 2, 4, 8, 8, 4]);
}

#[test]
fn a_rate_is_kept_on_average() {
    let mut world = World::new(&[4]);
    let options = DumpOptions {
        rate_bytes_per_second: Some(100_000),
        ..small(4)
    };
    world.create("a", options, 10_000);
    let (begin, mut delivered) = (world.now, 0);
    while world.now < begin + seconds(300) {
        while let Some(assignment) = world.pull("a") {
            // Twice what the plan guesses.
            let bytes = 2 * (64 << 10);
            let range = world
                .schedule
                .finished(assignment.ticket, 1, bytes, world.now);
            record(&mut world.state, range.unwrap());
            world.agree();
            world.schedule.recorded(assignment.ticket);
            delivered += bytes;
        }
        world.now = world.schedule.next_due(world.now).unwrap();
    }
    let rate = delivered / 300;
    assert!((95_000..=105_000).contains(&rate), "{rate}");
}

#[test]
fn a_slow_rate_makes_small_ranges() {
    let mut world = World::new(&[4]);
    let options = DumpOptions {
        rate_bytes_per_second: Some(200_000),
        ..DumpOptions::default()
    };
    world.create("a", options, 10_000);
    assert_eq!(
        world.pull_pages("a"),
        Some((0, 11)),
        "half a second's worth"
    );
}

#[test]
fn equal_dumps_take_turns_and_the_more_important_goes_first() {
    let mut world = World::new(&[9]);
    let important = |priority| DumpOptions {
        priority,
        ..small(9)
    };
    let dumps = [0, 0, 5].map(|priority| world.create("a", important(priority), 16));
    let order: Vec<_> = std::iter::from_fn(|| world.pull("a"))
        .map(|assignment| assignment.dump)
        .collect();
    let [first, second, best] = dumps;
    assert_eq!(order, [best, best, first, second, first, second]);
}

#[test]
fn dumps_of_different_consumers_take_turns_on_one_replica() {
    let mut world = World::new(&[1]);
    for consumer in ["a", "b", "c"] {
        world.create(consumer, small(1), 1_000);
    }
    let mut served = Vec::new();
    for _ in 0..9 {
        // The same consumer is always the quickest to ask.
        let range = ["a", "b", "c"]
            .into_iter()
            .find_map(|name| world.pull(name));
        for consumer in ["a", "b", "c"] {
            assert_eq!(world.pull(consumer), None);
        }
        let range = range.unwrap();
        served.push(range.dump.0);
        world.finish(range.ticket);
    }
    assert_eq!(served, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

#[test]
fn a_more_important_dump_gets_the_next_free_replica_and_who_left_reserves_none() {
    let mut world = World::new(&[1]);
    let important = DumpOptions {
        priority: 1,
        ..small(1)
    };
    world.create("a", small(1), 100);
    let best = world.create("b", important, 100);
    let running = world.pull("a").unwrap();
    assert_eq!(world.pull("b"), None, "no replica is free");
    world.finish(running.ticket);
    assert_eq!(world.pull("a"), None, "it is reserved");
    assert_eq!(world.pull("b").unwrap().dump, best);
    let running = world.schedule.last_ticket();

    assert_eq!(world.pull("a"), None);
    world.finish(running);
    assert!(world.pull("a").is_some(), "the important one did not ask");
}

#[test]
fn a_reservation_ends_by_itself() {
    let mut world = World::new(&[1]);
    let important = DumpOptions {
        priority: 1,
        ..small(1)
    };
    world.create("a", small(1), 100);
    world.create("b", important, 100);
    let running = world.pull("a").unwrap();
    assert_eq!(world.pull("b"), None);
    world.finish(running.ticket);
    assert_eq!(world.pull("a"), None);
    world.now = world.schedule.next_due(world.now).unwrap();
    assert!(world.pull("a").is_some(), "b went away");
}

#[test]
fn with_nothing_to_wait_for_there_is_no_next_moment() {
    let mut world = World::new(&[1]);
    assert_eq!(world.schedule.next_due(world.now), None);
    let id = world.create("a", small(1), 0);
    let range = world.pull("a").unwrap();
    assert_eq!(world.schedule.next_due(world.now), None);
    world.give_up(range.ticket, Setback::Consumer("no".to_owned()));
    assert_eq!(
        world.schedule.next_due(world.now),
        Some(world.now + seconds(2))
    );
    world.act(id, DumpAction::Pause);
    assert_eq!(world.schedule.next_due(world.now), None);
}

/// Two dumps, and what their ranges read second by second when each keeps to its pace.
#[test]
fn all_dumps_together_stay_under_the_rate_of_their_replica() {
    const RATE: u64 = 1_000_000;
    let mut world = World::new(&[3]);
    world.set_rate("r1", Some(RATE));
    world.create("a", small(2), 20_000);
    world.create("b", small(4), 20_000);
    let step = Duration::from_millis(10);
    let (mut running, mut taken) = (Vec::new(), Vec::new());
    for _ in 0..6_000 {
        while let Some(range) = world.pull("a").or_else(|| world.pull("b")) {
            // Twice what the plan guesses.
            running.push((range, 2 * (64 << 10)));
        }
        let shares = running
            .iter()
            .map(|(range, _)| range.rate_bytes_per_second.unwrap());
        assert!(shares.sum::<u64>() <= RATE, "{running:?}");
        world.now += step;
        let mut read = 0;
        let mut rest = Vec::new();
        for (range, left) in std::mem::take(&mut running) {
            let part = (range.rate_bytes_per_second.unwrap() / 100).min(left);
            read += part;
            if left > part {
                rest.push((range, left - part));
            } else {
                let finished = world
                    .schedule
                    .finished(range.ticket, 1, 2 * (64 << 10), world.now);
                record(&mut world.state, finished.unwrap());
                world.agree();
                world.schedule.recorded(range.ticket);
            }
        }
        running = rest;
        taken.push(read);
    }
    let second = |taken: &[u64]| taken.iter().sum::<u64>();
    let most = taken.windows(100).map(second).max().unwrap();
    assert!(most <= RATE, "{most} bytes in a second");
    let mean = taken.iter().sum::<u64>() / 60;
    assert!(mean >= RATE * 8 / 10, "{mean} bytes a second");
    let both = world.state.dumps.values();
    assert!(
        both.map(|dump| dump.tables[0].bytes)
            .all(|bytes| bytes > 15 * RATE)
    );
}

#[test]
fn a_replica_that_gives_little_has_small_ranges_and_others_do_not() {
    let mut world = World::new(&[4, 4]);
    world.set_rate("r1", Some(200_000));
    let options = DumpOptions {
        parallel: 2,
        ..DumpOptions::default()
    };
    world.create("a", options, 100_000);
    let ranges = [world.pull("a").unwrap(), world.pull("a").unwrap()];
    let told = ranges.map(|range| {
        let (first, last) = pages(&range);
        (range.replica, last - first + 1, range.rate_bytes_per_second)
    });
    let slow = ("r1".to_owned(), 12, Some(200_000));
    assert_eq!(told, [slow, ("r2".to_owned(), 4_096, None)]);
    world.set_rate("r1", None);
    world.agree();
    assert_eq!(world.schedule.share("r1", world.now), None);
    assert!(world.try_set_rate("r3", Some(1)).is_err());
}

#[test]
fn what_was_not_read_is_not_paid_for() {
    let mut world = World::new(&[1]);
    world.create("a", small(1), 20_000);
    world.set_rate("r1", Some(1_000));
    world.agree();
    // Some 64 seconds are charged; it ends after one.
    let range = world.pull("a").unwrap();
    world.now += seconds(1);
    world
        .schedule
        .give_up(range.ticket, Setback::Disconnected, world.now);
    let range = world.pull("a");
    let range = range.or_else(|| {
        world.now += seconds(2);
        world.pull("a")
    });
    assert!(range.is_some(), "{:?}", world.schedule.next_due(world.now));
    // Whoever does not count pays what was guessed.
    let finished = world
        .schedule
        .finished(range.unwrap().ticket, 0, 0, world.now);
    record(&mut world.state, finished.unwrap());
    world.agree();
    assert!(world.pull("a").is_none());
    // Another limit forgets it, and one that is taken away is waited for by nobody.
    world.set_rate("r1", Some(2_000));
    world.agree();
    let range = world.pull("a").unwrap();
    world.set_rate("r1", None);
    world.agree();
    let finished = world.schedule.finished(range.ticket, 1, 1 << 20, world.now);
    record(&mut world.state, finished.unwrap());
    world.agree();
    assert!(world.pull("a").is_some());
}

#[test]
fn a_dump_whose_consumer_is_away_has_no_part_of_the_rate() {
    let mut world = World::new(&[4]);
    world.set_rate("r1", Some(1_000_000));
    world.create("a", small(1), 20_000);
    world.create("b", small(3), 20_000);
    let range = world.pull("a").unwrap();
    assert_eq!(range.rate_bytes_per_second, Some(1_000_000));
}

#[test]
fn ranges_that_are_read_at_once_are_smaller() {
    for (parallel, expected) in [(1, 4_096), (2, 4_096), (4, 2_048), (8, 1_024), (64, 1_024)] {
        let mut world = World::new(&[64]);
        let options = DumpOptions {
            parallel,
            ..DumpOptions::default()
        };
        world.create("a", options, 1_000_000);
        let (first, last) = world.pull_pages("a").unwrap();
        assert_eq!(last - first + 1, expected, "{parallel} at once");
    }
}

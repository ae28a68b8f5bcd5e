//! Where ranges are read: every node that reaches the replica takes its part, and gives it back.

use super::*;

/// What a node says that reaches these replicas.
fn reach(seats: u32, replicas: &[&str]) -> NodeReach {
    NodeReach {
        seats,
        replicas: replicas.iter().map(|name| (*name).to_owned()).collect(),
    }
}

impl World {
    /// A world whose schedule is that of node `n1`.
    fn of_nodes(ranges_max: &[u32], seats: u32) -> Self {
        let mut world = Self::new(ranges_max);
        world.schedule = Schedule::on("n1", seats, 0);
        world.agree();
        world
    }

    fn others(&mut self, others: &[(&str, NodeReach)]) {
        let others = others.iter().cloned();
        let others = others.map(|(name, reach)| (name.to_owned(), reach));
        self.schedule.set_others(others.collect());
    }

    /// Pulls until nothing comes; the nodes that read.
    fn nodes(&mut self) -> Vec<String> {
        let pulled = std::iter::from_fn(|| self.pull("a"));
        pulled.map(|assignment| assignment.node).collect()
    }
}

#[test]
fn every_node_takes_its_part_and_equal_ones_take_turns() {
    let mut world = World::of_nodes(&[6], 8);
    world.others(&[("n2", reach(8, &["r1"])), ("n3", reach(8, &["r1"]))]);
    world.create("a", small(9), 1_000);
    assert_eq!(world.nodes(), ["n1", "n2", "n3", "n1", "n2", "n3"]);

    let mut world = World::of_nodes(&[1], 8);
    world.others(&[("n2", reach(8, &["r1"])), ("n3", reach(8, &["r1"]))]);
    world.create("a", small(1), 1_000);
    let mut nodes = Vec::new();
    for _ in 0..4 {
        let range = world.pull("a").unwrap();
        world.finish(range.ticket);
        nodes.push(range.node);
    }
    assert_eq!(nodes, ["n1", "n2", "n3", "n1"], "one after another too");
}

#[test]
fn who_has_more_room_reads_more_and_nobody_more_than_it_may() {
    let mut world = World::of_nodes(&[64], 2);
    world.others(&[("n2", reach(8, &["r1"])), ("n3", reach(0, &["r1"]))]);
    world.create("a", small(64), 1_000);
    let nodes = world.nodes();
    let count = |name: &str| nodes.iter().filter(|node| *node == name).count();
    assert_eq!((count("n1"), count("n2"), count("n3")), (2, 8, 0));
    let wanted = BTreeMap::from([("n1", 2), ("n2", 8)]);
    assert_eq!(world.schedule.reading_by_node(), wanted);
}

#[test]
fn a_replica_is_read_by_all_nodes_together_no_more_than_it_may() {
    let mut world = World::of_nodes(&[3], 8);
    world.others(&[("n2", reach(8, &["r1"])), ("n3", reach(8, &["r1"]))]);
    world.create("a", small(9), 1_000);
    world.create("a", small(9), 1_000);
    assert_eq!(world.nodes().len(), 3);
}

#[test]
fn a_node_reads_only_from_what_it_reaches() {
    let mut world = World::of_nodes(&[2, 2], 8);
    world.others(&[("n2", reach(8, &["r2"])), ("n3", reach(8, &["x"]))]);
    let unreachable = ReplicaHealth::Unusable {
        code: "PGC-E20".to_owned(),
        what: "no route".to_owned(),
    };
    world.create("a", small(9), 1_000);
    for name in ["r1", "r2"] {
        world.schedule.set_health(name, unreachable.clone());
    }
    let pulled: Vec<_> = std::iter::from_fn(|| world.pull("a"))
        .map(|assignment| (assignment.replica, assignment.node))
        .collect();
    let wanted = ("r2".to_owned(), "n2".to_owned());
    assert_eq!(pulled, [wanted.clone(), wanted]);
    let healths = world.schedule.replica_statuses();
    let words: Vec<_> = healths.map(|status| status.health.as_str()).collect();
    assert_eq!(words, ["unusable", "ready"], "as some node sees it");
}

#[test]
fn a_new_node_takes_the_next_range() {
    let mut world = World::of_nodes(&[4], 8);
    world.others(&[("n2", reach(8, &["r1"]))]);
    world.create("a", small(3), 1_000);
    let mut running: Vec<_> = (0..3).map(|_| world.pull("a").unwrap()).collect();
    world.others(&[("n2", reach(8, &["r1"])), ("n4", reach(8, &["r1"]))]);
    world.finish(running.remove(0).ticket);
    assert_eq!(world.pull("a").unwrap().node, "n4");
}

#[test]
fn a_lost_node_costs_its_ranges_at_once_and_no_other() {
    let mut world = World::of_nodes(&[4], 8);
    let two = [("n2", reach(8, &["r1"])), ("n3", reach(8, &["r1"]))];
    world.others(&two);
    world.create("a", small(4), 1_000);
    let running: Vec<_> = (0..4).map(|_| world.pull("a").unwrap()).collect();
    let lost = running.iter().find(|range| range.node == "n2").unwrap();
    world.finish(running[0].ticket);
    // Its session sees it first; the report comes later.
    world.give_up(lost.ticket, Setback::NodeLost("gone".to_owned()));
    let again = world.pull("a").unwrap();
    assert_eq!(again.extent, lost.extent);
    assert_ne!(again.node, "n2", "rather elsewhere");
    assert!(again.ticket > lost.ticket, "another try");
    world.others(&two[1..]);
    let late = world.schedule.finished(lost.ticket, 1, 1, world.now);
    assert_eq!(late, None, "a late answer of the old try");
    assert!(!world.schedule.read(lost.ticket));
    for range in [&running[2], &running[3], &again] {
        world.finish(range.ticket);
    }
    let finished = &world.state.dumps[&lost.dump].tables[0];
    assert_eq!((finished.range_count, finished.done.ranges().len()), (4, 1));
    let rest = world.drain("a");
    let is_new = |extent: &Extent| match extent {
        Extent::Pages(pages) => pages.first >= 32,
        Extent::Sweep { .. } => true,
    };
    assert!(
        rest.iter().all(is_new),
        "finished ranges run again: {rest:?}"
    );
}

#[test]
fn a_range_whose_nodes_are_always_lost_pauses() {
    let mut world = World::of_nodes(&[4], 8);
    world.create("a", small(1), 8);
    for _ in 0..=FREE_TRIES_MAX {
        let range = world.pull("a").unwrap();
        world.give_up(range.ticket, Setback::NodeLost("full".to_owned()));
    }
    assert_eq!(world.pull("a"), None, "it may be the range that ends nodes");
    world.now += seconds(3);
    assert!(world.pull("a").is_some());
}

#[test]
fn ranges_read_at_once_share_the_rate_wherever_they_are_read() {
    let mut world = World::of_nodes(&[4], 8);
    world.others(&[("n2", reach(8, &["r1"]))]);
    let options = DumpOptions {
        rate_bytes_per_second: Some(1 << 20),
        ..small(4)
    };
    world.create("a", options, 1_000);
    let first = world.pull("a").unwrap();
    world.now += seconds(1);
    let second = world.pull("a").unwrap();
    assert_ne!(first.node, second.node);
    let shares = [first, second].map(|range| range.rate_bytes_per_second);
    assert_eq!(shares, [Some(1 << 20), Some(1 << 19)]);
}

#[test]
fn what_another_controller_has_recorded_is_not_handed_out() {
    let mut world = World::of_nodes(&[4], 8);
    let id = world.create("a", small(4), 32);
    let mut old = Schedule::on("n2", 8, 0);
    old.sync(&world.state);
    old.set_health("r1", READY);
    let taken: Vec<_> = (0..2)
        .map(|_| old.pull("shop", "a", world.now).unwrap())
        .collect();
    for range in &taken {
        let range = old.finished(range.ticket, 1, 1, world.now).unwrap();
        record(&mut world.state, range);
    }
    world.agree();
    let (first, _) = world.pull_pages("a").unwrap();
    assert_eq!(first, 16);
    assert_eq!(world.state_of(id), DumpState::Active);
}

#[test]
fn people_are_told_who_reads_what() {
    let mut world = World::of_nodes(&[4], 8);
    world.others(&[("n2", reach(8, &["r1"]))]);
    let id = world.create("a", small(2), 1_000);
    let first = world.pull("a").unwrap();
    world.pull("a").unwrap();
    world.schedule.read(first.ticket);
    world.now += seconds(2);
    let status = world.schedule.status(&world.state.dumps[&id], world.now);
    let told = status.readings.iter().map(|reading| {
        assert_eq!(reading.since, seconds(2));
        (
            reading.node.as_str(),
            reading.extent.to_string(),
            reading.is_read,
        )
    });
    let wanted = [
        ("n1", "pages 0-7".to_owned(), true),
        ("n2", "pages 8-15".to_owned(), false),
    ];
    assert_eq!(told.collect::<Vec<_>>(), wanted);
}

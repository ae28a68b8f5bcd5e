//! Sources move when they must, stay when they can, and spread.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    cluster::{
        Answer, Node,
        liveness::{NodeReport, SILENCE_MAX},
        tests::source,
    },
    lsn::PgTime,
};

const NOW: Duration = Duration::from_secs(100);

/// A cluster of `nodes` that all have just reported.
fn cluster(nodes: usize, sources: usize) -> (State, Liveness) {
    let mut state = State::default();
    let mut liveness = Liveness::new(NOW);
    for id in 1..=nodes {
        let name = format!("n{id}");
        let node = Node {
            name: name.clone(),
            id: id as u64,
            address: format!("{name}:7700"),
            joined_at: PgTime(1),
        };
        state.apply(Command::AddNode(node)).unwrap();
        liveness.heard(&name, NodeReport::default(), NOW);
    }
    for number in 1..=sources {
        let source = source(&format!("s{number}"));
        state.apply(Command::AddSource(Box::new(source))).unwrap();
    }
    (state, liveness)
}

fn apply(state: &mut State, commands: Vec<Command>) -> usize {
    let count = commands.len();
    for command in commands {
        assert!(matches!(state.apply(command), Ok(Answer::Assigned(_))));
    }
    count
}

fn settle(state: &mut State, liveness: &Liveness, now: Duration) -> usize {
    let commands = due(state, liveness, now);
    apply(state, commands)
}

#[test]
fn new_sources_spread_and_then_nothing_is_due() {
    let (mut state, liveness) = cluster(3, 9);
    assert_eq!(settle(&mut state, &liveness, NOW), 9);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(load(&state)[node], 3);
    }
    assert_eq!(due(&state, &liveness, NOW), []);
}

#[test]
fn the_sources_of_a_dead_node_spread_and_do_not_return() {
    let (mut state, mut liveness) = cluster(3, 9);
    settle(&mut state, &liveness, NOW);
    liveness.gone("n2");
    assert_eq!(settle(&mut state, &liveness, NOW), 3);
    assert_eq!(load(&state).get("n2"), None);
    assert!(load(&state).values().all(|count| (4..=5).contains(count)));
    liveness.heard("n2", NodeReport::default(), NOW);
    assert_eq!(due(&state, &liveness, NOW), [], "no flapping");
    let moves = rebalance(&state, &liveness, NOW);
    assert_eq!(apply(&mut state, moves), 3);
    assert!(load(&state).values().all(|count| *count == 3));
    assert_eq!(rebalance(&state, &liveness, NOW), []);
}

#[test]
fn without_a_candidate_nothing_is_proposed() {
    let (mut state, mut liveness) = cluster(2, 1);
    settle(&mut state, &liveness, NOW);
    let report = NodeReport {
        unreachable: BTreeSet::from(["s1".to_owned()]),
        ..NodeReport::default()
    };
    let later = NOW + Duration::from_secs(60);
    for at in [NOW, later] {
        liveness.heard("n1", report.clone(), at);
        liveness.heard("n2", report.clone(), at);
    }
    assert_eq!(due(&state, &liveness, later), []);
}

#[test]
fn a_draining_node_gives_everything_away() {
    let (mut state, mut liveness) = cluster(3, 9);
    settle(&mut state, &liveness, NOW);
    let report = NodeReport {
        is_draining: true,
        ..NodeReport::default()
    };
    liveness.heard("n1", report, NOW);
    assert_eq!(settle(&mut state, &liveness, NOW), 3);
    assert_eq!(load(&state).get("n1"), None);
}

#[test]
fn a_new_leader_moves_nothing_before_nodes_could_report() {
    let (mut state, liveness) = cluster(3, 9);
    settle(&mut state, &liveness, NOW);
    let fresh = Liveness::new(NOW);
    assert_eq!(due(&state, &fresh, NOW + SILENCE_MAX / 2), []);
}

#[test]
fn a_source_of_a_removed_node_is_assigned_anew() {
    let (mut state, liveness) = cluster(2, 2);
    settle(&mut state, &liveness, NOW);
    let name = "n1".to_owned();
    state.apply(Command::RemoveNode { name }).unwrap();
    settle(&mut state, &liveness, NOW);
    assert!(state.owners.values().all(|owner| owner == "n2"));
}

proptest! {
    /// Whatever dies and returns: only sources of nodes that are gone move, and in the end every
    /// source has a living owner, if any node lives.
    #[test]
    fn only_what_must_moves(
        deaths in proptest::collection::vec((0_usize..5, any::<bool>()), 0..20),
    ) {
        let (mut state, mut liveness) = cluster(5, 20);
        settle(&mut state, &liveness, NOW);
        for (index, is_death) in deaths {
            let node = format!("n{}", index + 1);
            let before = state.owners.clone();
            if is_death {
                liveness.gone(&node);
            } else {
                liveness.heard(&node, NodeReport::default(), NOW);
            }
            settle(&mut state, &liveness, NOW);
            for (source, owner) in &before {
                let moved = &state.owners[source] != owner;
                prop_assert!(!moved || !liveness.is_alive(owner, NOW));
            }
            let is_any_alive = state.nodes.keys().any(|node| liveness.is_alive(node, NOW));
            if is_any_alive {
                let is_alive = |owner: &String| liveness.is_alive(owner, NOW);
                prop_assert!(state.owners.values().all(is_alive));
            }
        }
    }
}

//! Which node runs which source: compares what is wanted with what is, and says what to propose.
//!
//! Pure: the leader of the Raft group feeds it the agreed state and what it knows of the nodes, and
//! proposes what comes out. A leader that knows nothing yet decides from the agreed state alone.
//!
//! # Invariants
//!
//! - A source stays where it is while its owner lives and reaches it: a node that comes back takes
//!   nothing back by itself, and nothing moves to make things even.
//! - A source without a candidate stays without a move: no epoch is spent.
//! - The same knowledge gives the same answer.

use std::{collections::BTreeMap, time::Duration};

use super::{Command, Source, State, liveness::Liveness};

/// Returns the assignments that are due now.
#[must_use]
pub fn due(state: &State, liveness: &Liveness, now: Duration) -> Vec<Command> {
    let mut load = load(state);
    let mut commands = Vec::new();
    for source in state.sources.values() {
        let owner = state.owner(&source.name);
        let is_kept = owner.is_some_and(|owner| {
            state.nodes.contains_key(owner) && liveness.keeps(owner, &source.name, now)
        });
        if is_kept {
            continue;
        }
        let others = |node: &&String| Some(node.as_str()) != owner;
        let Some(node) = choose(state, liveness, source, &load, now, others) else {
            // An owner that lives but lost its way, with nobody better: it may find it again.
            continue;
        };
        *load.entry(node.clone()).or_default() += 1;
        commands.push(assign(source, node));
    }
    commands
}

/// Returns the assignments that make the load even: at most one source more on any node than on
/// another, with as few moves as that takes. Only on request.
#[must_use]
pub fn rebalance(state: &State, liveness: &Liveness, now: Duration) -> Vec<Command> {
    let mut load = load(state);
    let mut commands = Vec::new();
    for source in state.sources.values() {
        let Some(owner) = state.owner(&source.name) else {
            continue;
        };
        let Some(node) = choose(state, liveness, source, &load, now, |_| true) else {
            continue;
        };
        let of = |node: &str| load.get(node).copied().unwrap_or_default();
        if of(owner) > of(&node) + 1 {
            load.entry(owner.to_owned()).and_modify(|count| *count -= 1);
            *load.entry(node.clone()).or_default() += 1;
            commands.push(assign(source, node));
        }
    }
    commands
}

/// Returns how many sources each node owns.
fn load(state: &State) -> BTreeMap<String, usize> {
    let mut load: BTreeMap<String, usize> = BTreeMap::new();
    for owner in state.owners.values() {
        *load.entry(owner.clone()).or_default() += 1;
    }
    load
}

/// Chooses the candidate that owns least; among equals the one with the highest hash of both
/// names, so that the sources of a dead node spread over all others (rendezvous hashing).
fn choose(
    state: &State,
    liveness: &Liveness,
    source: &Source,
    load: &BTreeMap<String, usize>,
    now: Duration,
    is_allowed: impl Fn(&&String) -> bool,
) -> Option<String> {
    let nodes = state.nodes.keys().filter(is_allowed);
    let candidates = nodes.filter(|node| liveness.is_candidate(node, &source.name, now));
    candidates
        .min_by_key(|node| {
            let owned = load.get(*node).copied().unwrap_or_default();
            (owned, std::cmp::Reverse(hash(&source.name, node)))
        })
        .cloned()
}

fn assign(source: &Source, node: String) -> Command {
    Command::Assign {
        name: source.name.clone(),
        node,
        after: source.epoch,
    }
}

/// FNV-1a over both names: even enough for a choice, and the same on every machine and version.
fn hash(source: &str, node: &str) -> u64 {
    let bytes = source.bytes().chain([0]).chain(node.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;

//! Who shall take part in agreeing: one step from what is to what is wanted.
//!
//! The wanted members are the nodes of the agreed state; the present ones are Raft's own. Whoever
//! leads takes one step after the other, so that changes of members are queued by themselves and a new
//! leader goes on where the last one stood. Every new node learns first, and votes once it has caught
//! up, while fewer than [`VOTERS_MAX`] do.

use std::collections::{BTreeMap, BTreeSet};

/// At most this many nodes vote: five survive the loss of two, and more make every change slower.
pub const VOTERS_MAX: usize = 5;

/// What there is, as the leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// The leader's number.
    pub leader: u64,
    /// Address of every member.
    pub addresses: BTreeMap<u64, String>,
    /// Those that vote.
    pub voters: BTreeSet<u64>,
    /// Those that know all but the newest entries.
    pub caught_up: BTreeSet<u64>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Lets another one lead: the leader is to go.
    HandOver {
        /// Who shall lead.
        to: u64,
    },
    /// Takes away the vote of a member that is to go.
    TakeVote(u64),
    /// Lets go of a member without a vote.
    Remove(u64),
    /// Lets a node learn.
    Add(u64),
    /// Gives a vote.
    GiveVote(u64),
    /// Tells everybody where a member is reached now.
    Readdress(u64),
}

/// Returns the next step; `None` when all is as it should be, or nothing can be done now. `wanted` has
/// the address of every node.
#[must_use]
pub fn next_step(wanted: &BTreeMap<u64, String>, present: &Present) -> Option<Step> {
    let mut going = present
        .addresses
        .keys()
        .filter(|id| !wanted.contains_key(id));
    let stays = |id: &&u64| wanted.contains_key(id) && **id != present.leader;
    match going.find(|id| **id != present.leader) {
        Some(id) if present.voters.contains(id) => return Some(Step::TakeVote(*id)),
        Some(id) => return Some(Step::Remove(*id)),
        None => {}
    }
    if let Some(id) = wanted.keys().find(|id| !present.addresses.contains_key(id)) {
        return Some(Step::Add(*id));
    }
    let has_moved = |(id, address): &(&u64, &String)| wanted.get(id) != Some(address);
    let known = present
        .addresses
        .iter()
        .filter(|(id, _)| wanted.contains_key(id));
    if let Some((id, _)) = known.clone().find(has_moved) {
        return Some(Step::Readdress(*id));
    }
    let ready =
        |(id, _): &(&u64, &String)| !present.voters.contains(id) && present.caught_up.contains(id);
    if present.voters.len() < VOTERS_MAX
        && let Some((id, _)) = known.clone().find(ready)
    {
        return Some(Step::GiveVote(*id));
    }
    if wanted.contains_key(&present.leader) {
        return None;
    }
    let mut heirs = present.voters.iter().filter(stays);
    let heir = heirs.find(|id| present.caught_up.contains(id))?;
    Some(Step::HandOver { to: *heir })
}

/// Where a node says that it is reached, and the nodes that it was told of, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its own address; empty: it does not say.
    pub address: String,
    /// All addresses of the list.
    pub peers: Vec<String>,
}

/// How two nodes were told different things.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The peer calls itself something else than the list does.
    #[error("the peer listed as {listed} says that it is reached at {advertised}")]
    Address {
        /// As it is listed.
        listed: String,
        /// As it says.
        advertised: String,
    },
    /// Not the same nodes.
    #[error(
        "{peer} lists the peers {}, this node {}",
        joined(theirs),
        joined(ours)
    )]
    List {
        /// Who.
        peer: String,
        /// What it lists.
        theirs: Vec<String>,
        /// What this node lists.
        ours: Vec<String>,
    },
    /// The same nodes with another one first: two would begin a cluster.
    #[error("{peer} lists {theirs} first, this node {ours}")]
    First {
        /// Who.
        peer: String,
        /// Its first one.
        theirs: String,
        /// This node's first one.
        ours: String,
    },
}

impl Difference {
    /// Tells whether it matters only before there is a cluster.
    #[must_use]
    pub const fn is_about_beginning(&self) -> bool {
        matches!(self, Self::First { .. })
    }
}

/// Compares what this node was told with what the peer at `listed` was. A peer that says nothing about
/// itself is of an older version.
#[must_use]
pub fn differences(ours: &Told, listed: &str, theirs: &Told) -> Vec<Difference> {
    if theirs.address.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if theirs.address != listed {
        found.push(Difference::Address {
            listed: listed.to_owned(),
            advertised: theirs.address.clone(),
        });
    }
    let names = |told: &Told| told.peers.iter().cloned().collect::<BTreeSet<_>>();
    let peer = listed.to_owned();
    if names(ours) != names(theirs) {
        found.push(Difference::List {
            peer,
            theirs: theirs.peers.clone(),
            ours: ours.peers.clone(),
        });
    } else if ours.peers.first() != theirs.peers.first() {
        let first = |told: &Told| told.peers.first().cloned().unwrap_or_default();
        found.push(Difference::First {
            peer,
            theirs: first(theirs),
            ours: first(ours),
        });
    }
    found
}

fn joined(addresses: &[String]) -> String {
    if addresses.is_empty() {
        return "nobody".to_owned();
    }
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(address: &str, peers: &[&str]) -> Told {
        Told {
            address: address.to_owned(),
            peers: peers.iter().map(|peer| (*peer).to_owned()).collect(),
        }
    }

    #[test]
    fn equal_lists_differ_in_nothing() {
        let ours = told("a:1", &["a:1", "b:1"]);
        let theirs = told("b:1", &["a:1", "b:1"]);
        assert_eq!(differences(&ours, "b:1", &theirs), []);
        // An older version says nothing.
        assert_eq!(differences(&ours, "b:1", &Told::default()), []);
    }

    #[test]
    fn other_addresses_lists_and_orders_are_told_apart() {
        let ours = told("a:1", &["a:1", "b:1"]);
        let texts = |theirs: &Told| -> Vec<String> {
            let found = differences(&ours, "b:1", theirs);
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            texts(&told("127.0.0.1:1", &["a:1", "b:1"])),
            ["the peer listed as b:1 says that it is reached at 127.0.0.1:1"]
        );
        assert_eq!(
            texts(&told("b:1", &["a:1", "b:1", "c:1"])),
            ["b:1 lists the peers a:1, b:1, c:1, this node a:1, b:1"]
        );
        assert_eq!(
            texts(&told("b:1", &[])),
            ["b:1 lists the peers nobody, this node a:1, b:1"]
        );
        let order = told("b:1", &["b:1", "a:1"]);
        assert_eq!(texts(&order), ["b:1 lists b:1 first, this node a:1"]);
        let found = differences(&ours, "b:1", &order);
        assert!(found.iter().all(Difference::is_about_beginning));
    }

    fn address(id: u64) -> String {
        format!("n{id}:7700")
    }

    fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeMap<u64, String> {
        ids.into_iter().map(|id| (id, address(id))).collect()
    }

    fn present(members: u64, voters: u64) -> Present {
        Present {
            leader: 1,
            addresses: nodes(1..=members),
            voters: (1..=voters).collect(),
            caught_up: (1..=members).collect(),
        }
    }

    #[test]
    fn a_new_node_learns_and_votes_once_it_has_caught_up() {
        let mut now = present(1, 1);
        assert_eq!(next_step(&nodes(1..=2), &now), Some(Step::Add(2)));
        now.addresses = nodes(1..=2);
        assert_eq!(next_step(&nodes(1..=2), &now), None);
        now.caught_up.insert(2);
        assert_eq!(next_step(&nodes(1..=2), &now), Some(Step::GiveVote(2)));
        now.voters.insert(2);
        assert_eq!(next_step(&nodes(1..=2), &now), None);
    }

    #[test]
    fn the_sixth_learns_only_until_a_vote_is_free() {
        let now = present(6, 5);
        assert_eq!(next_step(&nodes(1..=6), &now), None);
        let without_three = nodes([1, 2, 4, 5, 6]);
        assert_eq!(next_step(&without_three, &now), Some(Step::TakeVote(3)));
        let mut now = present(6, 5);
        now.voters.remove(&3);
        assert_eq!(next_step(&without_three, &now), Some(Step::Remove(3)));
        now.addresses.remove(&3);
        assert_eq!(next_step(&without_three, &now), Some(Step::GiveVote(6)));
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_first() {
        let mut now = present(3, 3);
        let others = nodes([2, 3]);
        assert_eq!(next_step(&others, &now), Some(Step::HandOver { to: 2 }));
        now.caught_up = BTreeSet::from([1, 3]);
        assert_eq!(next_step(&others, &now), Some(Step::HandOver { to: 3 }));
        // The last one that votes stays: there would be nobody to agree.
        assert_eq!(next_step(&nodes([]), &present(1, 1)), None);
    }

    #[test]
    fn a_node_that_moved_is_told_to_everybody() {
        let mut wanted = nodes(1..=2);
        wanted.insert(2, "elsewhere:7700".to_owned());
        assert_eq!(next_step(&wanted, &present(2, 2)), Some(Step::Readdress(2)));
    }
}

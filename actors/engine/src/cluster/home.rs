//! The home of a subscription: the one node whose ledger all of its sessions share.
//!
//! The first node with a session claims it; it is given back after the last session, or with the node. Who
//! has proof that a home died claims it *instead of* that node, so that of two who do only one succeeds.
//! Claims come in groups, since thousands of consumers connect at the same moment. A node on its own
//! needs none.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Answer, State, SubscriptionId, changed};

/// The home of every subscription that has sessions. A clone shares them until one of both changes:
/// every entry of the common log works on a copy of the state, and there may be tens of thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Homes(Arc<BTreeMap<SubscriptionId, String>>);

impl Deref for Homes {
    type Target = BTreeMap<SubscriptionId, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Homes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl Serialize for Homes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Homes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(|homes| Self(Arc::new(homes)))
    }
}

/// A change of homes; never refused. Who claims looks into the state afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HomeCommand {
    /// Makes a node the home of subscriptions that have none.
    Claim {
        /// The node.
        node: String,
        /// The subscriptions.
        claims: Vec<HomeClaim>,
    },
    /// Gives back what the node is the home of.
    Release {
        /// The node.
        node: String,
        /// The subscriptions.
        ids: Vec<SubscriptionId>,
    },
}

/// A wish to be the home of a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeClaim {
    /// Which.
    pub id: SubscriptionId,
    /// The home that is known to be dead.
    pub instead_of: Option<String>,
}

/// Where a subscription is at home, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// Here, since there is no other node.
    Alone,
    /// Here.
    Here,
    /// Nowhere: claim it.
    Unclaimed,
    /// On another node.
    There {
        /// Its name.
        node: String,
        /// Its address.
        address: String,
    },
}

impl State {
    /// Returns where a subscription is at home for the node `me`.
    #[must_use]
    pub fn home(&self, id: &SubscriptionId, me: &str) -> Home {
        if self.nodes.keys().all(|node| node == me) {
            return Home::Alone;
        }
        let home = self.homes.get(id).and_then(|home| self.nodes.get(home));
        match home {
            None => Home::Unclaimed,
            Some(home) if home.name == me => Home::Here,
            Some(home) => Home::There {
                node: home.name.clone(),
                address: home.address.clone(),
            },
        }
    }

    /// Tells whether a node may save the cursor of a subscription: it is its home, or there is no other.
    pub(super) fn keeps_books(&self, node: &str, id: &SubscriptionId) -> bool {
        match self.nodes.len() {
            0 => true,
            1 => self.nodes.contains_key(node),
            _ => self.homes.get(id).is_some_and(|home| home == node),
        }
    }

    pub(super) fn apply_home(&mut self, command: HomeCommand) -> Answer {
        match command {
            HomeCommand::Claim { node, claims } => {
                if !self.nodes.contains_key(&node) {
                    return Answer::Unchanged;
                }
                let mut is_new = false;
                for HomeClaim { id, instead_of } in claims {
                    let home = self.homes.get(&id);
                    let is_free = home.is_none_or(|home| {
                        !self.nodes.contains_key(home) || instead_of.as_ref() == Some(home)
                    });
                    if is_free && home != Some(&node) {
                        is_new = true;
                        self.homes.insert(id, node.clone());
                    }
                }
                changed(is_new)
            }
            HomeCommand::Release { node, ids } => {
                let before = self.homes.len();
                for id in ids {
                    if self.homes.get(&id) == Some(&node) {
                        self.homes.remove(&id);
                    }
                }
                changed(self.homes.len() != before)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Command, Node},
        lsn::PgTime,
    };

    fn id(consumer: &str) -> SubscriptionId {
        SubscriptionId {
            stream: "shop".to_owned(),
            consumer: consumer.to_owned(),
        }
    }

    fn nodes(names: &[&str]) -> State {
        let mut state = State::default();
        for (id, name) in names.iter().enumerate() {
            let node = Node {
                name: (*name).to_owned(),
                id: id as u64 + 1,
                address: format!("{name}:7070"),
                joined_at: PgTime(0),
            };
            state.apply(Command::AddNode(node)).unwrap();
        }
        state
    }

    fn claim(state: &mut State, node: &str, instead_of: Option<&str>) -> Answer {
        let claims = ["x", "y"].map(|consumer| HomeClaim {
            id: id(consumer),
            instead_of: instead_of.map(str::to_owned),
        });
        let node = node.to_owned();
        let claims = claims.into();
        let command = Command::Home(HomeCommand::Claim { node, claims });
        state.apply(command).unwrap()
    }

    fn there(node: &str) -> Home {
        Home::There {
            node: node.to_owned(),
            address: format!("{node}:7070"),
        }
    }

    #[test]
    fn the_first_claim_counts() {
        let mut state = nodes(&["a", "b"]);
        assert_eq!(state.home(&id("x"), "a"), Home::Unclaimed);
        assert_eq!(claim(&mut state, "a", None), Answer::Done);
        assert_eq!(claim(&mut state, "b", None), Answer::Unchanged);
        assert_eq!(claim(&mut state, "a", None), Answer::Unchanged);
        assert_eq!(state.home(&id("x"), "a"), Home::Here);
        assert_eq!(state.home(&id("y"), "b"), there("a"));
        assert_eq!(nodes(&["a"]).home(&id("x"), "a"), Home::Alone);
    }

    #[test]
    fn copies_of_a_state_share_its_homes_until_they_change() {
        let mut state = nodes(&["a", "b"]);
        claim(&mut state, "a", None);
        let copy = state.clone();
        assert!(Arc::ptr_eq(&state.homes.0, &copy.homes.0));
        let paused = Command::SetPaused {
            name: "none".to_owned(),
            paused: true,
        };
        assert!(state.apply(paused).is_err());
        assert_eq!(claim(&mut state, "b", None), Answer::Unchanged);
        assert!(Arc::ptr_eq(&state.homes.0, &copy.homes.0));
        claim(&mut state, "b", Some("a"));
        assert_eq!(copy.home(&id("x"), "a"), Home::Here);
        assert_eq!(state.home(&id("x"), "a"), there("b"));
    }

    #[test]
    fn who_replaces_a_dead_home_does_so_once() {
        let mut state = nodes(&["a", "b", "c"]);
        claim(&mut state, "a", None);
        assert_eq!(claim(&mut state, "b", Some("a")), Answer::Done);
        assert_eq!(claim(&mut state, "c", Some("a")), Answer::Unchanged);
        assert_eq!(state.home(&id("x"), "c"), there("b"));
    }

    #[test]
    fn what_is_released_by_its_home_is_free() {
        let mut state = nodes(&["a", "b"]);
        claim(&mut state, "a", None);
        let release = |node: &str| {
            Command::Home(HomeCommand::Release {
                node: node.to_owned(),
                ids: vec![id("x")],
            })
        };
        assert_eq!(state.apply(release("b")), Ok(Answer::Unchanged));
        assert_eq!(state.apply(release("a")), Ok(Answer::Done));
        assert_eq!(state.home(&id("x"), "b"), Home::Unclaimed);
        assert_eq!(state.home(&id("y"), "b"), there("a"));
    }

    #[test]
    fn a_node_that_is_removed_is_nobodys_home() {
        let mut state = nodes(&["a", "b", "c"]);
        claim(&mut state, "a", None);
        let name = "a".to_owned();
        state.apply(Command::RemoveNode { name }).unwrap();
        assert!(state.homes.is_empty());
        assert_eq!(
            claim(&mut state, "a", None),
            Answer::Unchanged,
            "not a node"
        );
        assert_eq!(claim(&mut state, "c", None), Answer::Done);
    }
}

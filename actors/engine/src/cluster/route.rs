//! Where the log of a source lies, as one node sees it.
//!
//! The node that runs the agent has the log. A node on its own has every log, whoever is written down
//! as their owner: its name may have changed.

use super::State;
use crate::checkpoint::Epoch;

/// The way to a source's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// This node has it.
    Here {
        /// The epoch of the assignment.
        epoch: Epoch,
    },
    /// Another node has it.
    There {
        /// Its name.
        node: String,
        /// Its address.
        address: String,
        /// The epoch of the assignment.
        epoch: Epoch,
    },
    /// No node runs the source now.
    Nobody {
        /// The newest epoch.
        epoch: Epoch,
    },
    /// There is no such source.
    Unknown,
}

impl Route {
    /// Returns the newest epoch that is known of the source.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Here { epoch } | Self::There { epoch, .. } | Self::Nobody { epoch } => {
                Some(*epoch)
            }
            Self::Unknown => None,
        }
    }
}

impl State {
    /// Returns the way from the node `me` to a source's log.
    #[must_use]
    pub fn route(&self, source: &str, me: &str) -> Route {
        let Some(known) = self.sources.get(source) else {
            return Route::Unknown;
        };
        let epoch = known.epoch;
        let is_alone = self.nodes.keys().all(|node| node == me);
        let owner = self.owner(source);
        if is_alone || owner == Some(me) {
            return Route::Here { epoch };
        }
        match owner.and_then(|owner| self.nodes.get(owner)) {
            Some(node) => Route::There {
                node: node.name.clone(),
                address: node.address.clone(),
                epoch,
            },
            None => Route::Nobody { epoch },
        }
    }

    /// Tells whether a log that was written under `epoch` last is of a source that was removed, though
    /// another one may have its name now. Nobody may go on from it: it belongs to another server.
    ///
    /// A log of a name that this state never heard of is not: others may know more.
    #[must_use]
    pub fn is_former_log(&self, source: &str, epoch: Epoch) -> bool {
        let newest = if self.sources.contains_key(source) {
            // A log without any epoch is empty.
            self.since.get(source).filter(|_| epoch != Epoch(0))
        } else {
            self.epochs.get(source)
        };
        newest.is_some_and(|newest| epoch <= *newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Command, Node, tests::source},
        lsn::PgTime,
    };

    fn node(name: &str, id: u64) -> Command {
        Command::AddNode(Node {
            name: name.to_owned(),
            id,
            address: format!("{name}:7070"),
            joined_at: PgTime(0),
        })
    }

    #[test]
    fn the_log_is_where_the_agent_is() {
        let mut state = State::default();
        assert_eq!(state.route("shop", "a"), Route::Unknown);
        let add = Command::AddSource(Box::new(source("shop")));
        state.apply(add).unwrap();
        let (none, first) = (Epoch(0), Epoch(1));
        assert_eq!(state.route("shop", "a"), Route::Here { epoch: none });
        let assign = |node: &str, after| Command::Assign {
            name: "shop".to_owned(),
            node: node.to_owned(),
            after,
        };
        state.apply(assign("old-name", none)).unwrap();
        state.apply(node("a", 1)).unwrap();
        assert_eq!(
            state.route("shop", "a"),
            Route::Here { epoch: first },
            "it is alone"
        );
        state.apply(node("b", 2)).unwrap();
        assert_eq!(state.route("shop", "a"), Route::Nobody { epoch: first });
        state.apply(assign("b", first)).unwrap();
        let second = Epoch(2);
        assert_eq!(state.route("shop", "b"), Route::Here { epoch: second });
        let there = Route::There {
            node: "b".to_owned(),
            address: "b:7070".to_owned(),
            epoch: second,
        };
        assert_eq!(state.route("shop", "a"), there);
        assert_eq!(there.epoch(), Some(second));
    }

    #[test]
    fn a_log_of_an_earlier_source_of_the_name_is_told() {
        let mut state = State::default();
        let add = || Command::AddSource(Box::new(source("shop")));
        let assign = |after| Command::Assign {
            name: "shop".to_owned(),
            node: "a".to_owned(),
            after: Epoch(after),
        };
        let apply = |state: &mut State, commands: Vec<Command>| {
            for command in commands {
                state.apply(command).unwrap();
            }
        };
        let is_former = |state: &State, epochs: [u64; 4]| {
            epochs.map(|epoch| state.is_former_log("shop", Epoch(epoch)))
        };
        assert_eq!(
            is_former(&state, [0, 1, 2, 3]),
            [false; 4],
            "never heard of"
        );
        apply(&mut state, vec![add(), assign(0), assign(1)]);
        assert_eq!(is_former(&state, [0, 1, 2, 3]), [false; 4]);
        let name = "shop".to_owned();
        apply(&mut state, vec![Command::RemoveSource { name }]);
        let gone = [true, true, true, false];
        assert_eq!(is_former(&state, [0, 1, 2, 3]), gone);
        apply(&mut state, vec![add(), assign(2)]);
        assert_eq!(is_former(&state, [1, 2, 3, 4]), [true, true, false, false]);
        assert_eq!(
            is_former(&state, [0, 0, 3, 3]),
            [false; 4],
            "empty, or its own"
        );
        // The same definition again is the same source.
        apply(&mut state, vec![add()]);
        assert_eq!(is_former(&state, [1, 2, 3, 4]), [true, true, false, false]);
    }
}

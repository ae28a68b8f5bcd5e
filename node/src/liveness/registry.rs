//! What the leader knows of the nodes, for whoever administers the cluster.

use std::{collections::BTreeMap, sync::Arc};

use pgcapture_actors::consensus::Consensus;
use pgcapture_engine::cluster::{Command, placement};

use super::Book;
use crate::group::{Census, Life};

/// The leader's book beside the agreed state.
#[derive(Debug)]
pub struct Registry {
    /// What was heard.
    pub book: Book,
    /// Who belongs to the cluster.
    pub consensus: Arc<dyn Consensus>,
}

impl Census for Registry {
    fn lives(&self) -> Option<BTreeMap<String, Life>> {
        let state = Arc::clone(&self.consensus.state().borrow());
        self.book.read(|liveness, now| {
            let life = |node: &String| (node.clone(), liveness.life(node, now));
            state.nodes.keys().map(life).collect()
        })
    }

    fn balance(&self) -> Option<Vec<Command>> {
        let state = Arc::clone(&self.consensus.state().borrow());
        self.book
            .read(|liveness, now| placement::rebalance(&state, liveness, now))
    }
}

//! Signs of life between nodes: every node reports to the leader of the Raft group, the leader keeps
//! the book.
//!
//! What the leader has heard is soft state: it begins empty with every leadership and is never
//! agreed on. What follows from it is decided in the engine (`cluster::liveness`).

pub mod probe;

mod confirmations;

pub mod readers;

mod registry;

mod reporter;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pgcapture_engine::cluster::{
    State,
    liveness::{Liveness, NodeReport},
};
use tokio::{sync::watch, time::Instant};

pub use self::{
    confirmations::Confirmations,
    registry::Registry,
    reporter::{Reachable, Reporter, Standing},
};

/// What this node has heard of all nodes while it leads. Cheap to clone.
#[derive(Clone)]
pub struct Book {
    began: Instant,
    open: Arc<Mutex<Option<Liveness>>>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_open = self.lock().is_some();
        f.debug_struct("Book").field("is_open", &is_open).finish()
    }
}

impl Default for Book {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            open: Arc::default(),
            changes: watch::Sender::default(),
        }
    }
}

impl Book {
    /// Begins an empty book: this node leads from now on.
    pub fn open(&self) {
        *self.lock() = Some(Liveness::new(self.now()));
        self.has_changed();
    }

    /// Forgets everything: another node leads. The second call does nothing.
    pub fn close(&self) {
        if self.lock().take().is_some() {
            self.has_changed();
        }
    }

    /// Records a report; `false` when this node does not lead.
    pub fn heard(&self, node: &str, report: NodeReport) -> bool {
        let now = self.now();
        let mut open = self.lock();
        let Some(liveness) = open.as_mut() else {
            return false;
        };
        if liveness.heard(node, report, now) {
            drop(open);
            self.has_changed();
        }
        true
    }

    /// Records proof that a node's process is gone.
    pub fn gone(&self, node: &str) {
        if let Some(liveness) = self.lock().as_mut() {
            liveness.gone(node);
        }
        self.has_changed();
    }

    /// Reads the book, with the time now on its clock; `None` when this node does not lead.
    pub fn read<T>(&self, read: impl FnOnce(&Liveness, Duration) -> T) -> Option<T> {
        let now = self.now();
        self.lock().as_ref().map(|liveness| read(liveness, now))
    }

    /// Tells whether no other node could take what a node owns; not while this node does not lead.
    #[must_use]
    pub fn is_stranded(&self, state: &State, node: &str) -> bool {
        self.read(|liveness, now| liveness.is_stranded(state, node, now))
            .unwrap_or(false)
    }

    /// Watches a number that changes when something was heard that may matter.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns the moment of a time on the book's clock.
    #[must_use]
    pub fn moment(&self, at: Duration) -> Instant {
        self.began + at
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn has_changed(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    /// A panic under the lock leaves a book that can be read: go on.
    fn lock(&self) -> MutexGuard<'_, Option<Liveness>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! What all lives of the controller, the worker and their doors share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pgcapture_engine::{
    cluster::State,
    codes,
    dump::schedule::{NODE_SEATS_MAX, NodeReach, Setback},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{DumpError, GivenUp, RangeRemedy, RowReader};
use crate::{
    consensus::{Consensus, ProposeError},
    cursors::SubscriptionId,
};

/// What other nodes can read, by name.
pub type OtherNodes = Arc<BTreeMap<String, NodeReach>>;

/// What a node is for dumps.
#[derive(Clone, Debug)]
pub struct ReaderNode {
    /// Its name; empty when it is alone.
    pub name: String,
    /// Ranges that it reads at once, at most.
    pub seats: u32,
    /// What other nodes can read, as long as this one leads.
    pub others: watch::Receiver<OtherNodes>,
}

impl ReaderNode {
    /// Returns a node that has no others.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            name: String::new(),
            seats: NODE_SEATS_MAX,
            // Closed from the beginning: nobody need wait.
            others: watch::channel(OtherNodes::default()).1,
        }
    }
}

/// Shared by everything about dumps on a node.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) node: ReaderNode,
    pub(super) consensus: Arc<dyn Consensus>,
    pub(super) reader: Arc<dyn RowReader>,
    /// Changes whenever there may be something to pull.
    changes: watch::Sender<u64>,
    /// Subscriptions with an active dump: all others need not ask the controller.
    asking: watch::Sender<Arc<BTreeSet<SubscriptionId>>>,
    /// Replicas that this node may read from now.
    readable: watch::Sender<Arc<BTreeSet<String>>>,
    /// The newest ticket of all lives of the controller.
    last_ticket: AtomicU64,
    /// Tickets whose asker was gone before the answer came. Bounded by the ranges that may run.
    lost: Mutex<Vec<u64>>,
    began: Instant,
    stopping: CancellationToken,
}

impl Hub {
    pub(super) fn new(
        node: ReaderNode,
        consensus: Arc<dyn Consensus>,
        reader: Arc<dyn RowReader>,
    ) -> Self {
        Self {
            node,
            consensus,
            reader,
            changes: watch::Sender::new(0),
            asking: watch::Sender::default(),
            readable: watch::Sender::default(),
            last_ticket: AtomicU64::new(0),
            lost: Mutex::default(),
            began: Instant::now(),
            stopping: CancellationToken::new(),
        }
    }

    /// Returns the time since the node began with dumps; what the schedule counts by.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow())
    }

    pub(super) fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells everybody that there may be something to pull.
    pub(super) fn wake(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    pub(super) fn is_asking(&self, id: &SubscriptionId) -> bool {
        self.asking.borrow().contains(id)
    }

    pub(super) fn set_asking(&self, asking: BTreeSet<SubscriptionId>) {
        self.asking.send_if_modified(|known| {
            let is_new = **known != asking;
            if is_new {
                *known = Arc::new(asking);
            }
            is_new
        });
    }

    pub(super) fn readable(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.readable.subscribe()
    }

    /// Takes note of whether this node may read from a replica.
    pub(super) fn set_readable(&self, replica: &str, may_read: bool) {
        self.readable.send_if_modified(|known| {
            let is_new = known.contains(replica) != may_read;
            if is_new && may_read {
                Arc::make_mut(known).insert(replica.to_owned());
            } else if is_new {
                Arc::make_mut(known).remove(replica);
            }
            is_new
        });
    }

    /// Forgets replicas that are not known any more.
    pub(super) fn forget_replicas(&self, state: &State) {
        self.readable.send_if_modified(|known| {
            let is_known = |name: &String| state.replicas.contains_key(name);
            let is_new = !known.iter().all(is_known);
            if is_new {
                Arc::make_mut(known).retain(is_known);
            }
            is_new
        });
    }

    pub(super) fn last_ticket(&self) -> u64 {
        self.last_ticket.load(Ordering::Relaxed)
    }

    pub(super) fn set_last_ticket(&self, number: u64) {
        self.last_ticket.fetch_max(number, Ordering::Relaxed);
    }

    /// Takes back a ticket that never reached its asker.
    pub(super) fn lose(&self, number: u64) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.push(number);
        drop(lost);
        self.wake();
    }

    pub(super) fn take_lost(&self) -> Vec<u64> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lost)
    }
}

/// Makes the error of a door that nobody opens.
pub(super) fn away() -> DumpError {
    DumpError {
        explanation: &codes::dump::CONTROLLER_AWAY,
        what: "the dump controller of this node is being built anew, or the node stops".to_owned(),
        remedy: RangeRemedy::Retry,
    }
}

impl From<ProposeError> for DumpError {
    fn from(error: ProposeError) -> Self {
        use pgcapture_engine::cluster::Refusal;
        let what = error.to_string();
        let (explanation, remedy) = match &error {
            ProposeError::Store { .. } | ProposeError::Unavailable { .. } => {
                (&codes::dump::NOT_KEPT, RangeRemedy::Retry)
            }
            ProposeError::TooLarge { .. } | ProposeError::StateFull { .. } => {
                (error.explanation(), RangeRemedy::Fail)
            }
            ProposeError::Refused(refusal) => {
                let explanation = match refusal {
                    Refusal::Dump(refusal) => refusal.explanation(),
                    Refusal::Replica(refusal) => refusal.explanation(),
                    Refusal::UnknownSource { .. }
                    | Refusal::SourceExists { .. }
                    | Refusal::StreamTaken { .. }
                    | Refusal::SlotTaken { .. }
                    | Refusal::InvalidName(_)
                    | Refusal::EpochMoved { .. }
                    | Refusal::NodeExists { .. }
                    | Refusal::NodeNumber { .. }
                    | Refusal::TooManyNodes
                    | Refusal::TooManySources
                    | Refusal::Protocol { .. } => &codes::dump::BAD_REQUEST,
                };
                (explanation, RangeRemedy::Fail)
            }
        };
        Self {
            explanation,
            what,
            remedy,
        }
    }
}

impl GivenUp {
    /// Returns the stable lower-case word.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Requeued(_) => "requeued",
            Self::Stalled => "stalled",
            Self::TooOld => "too_old",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<GivenUp> for Setback {
    fn from(reason: GivenUp) -> Self {
        match reason {
            GivenUp::Disconnected => Self::Disconnected,
            GivenUp::TooOld => Self::TooOld,
            GivenUp::Requeued(reason) => Self::Consumer(format!("sent back: {reason}")),
            GivenUp::Stalled => {
                Self::Consumer("the consumer took or acknowledged nothing for too long".to_owned())
            }
            GivenUp::Failed(error) => match error.remedy {
                RangeRemedy::Retry => Self::Unread(error.into()),
                RangeRemedy::Elsewhere => Self::NodeLost(error.to_string()),
                RangeRemedy::Replan => Self::Rewritten(error.what),
                RangeRemedy::Fail => Self::Final(error.into()),
            },
        }
    }
}

impl From<DumpError> for pgcapture_engine::cluster::TableFailure {
    fn from(error: DumpError) -> Self {
        Self {
            code: error.explanation.code.to_owned(),
            text: error.what,
        }
    }
}

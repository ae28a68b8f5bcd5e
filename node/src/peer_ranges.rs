//! Ranges of dumps for the sessions of this node, from the controller of whichever node leads.
//!
//! A task stays a member of the leader: directly when that is this node, over the peer API otherwise. A
//! ticket belongs to the membership that took it; when that ends its rows end without an *end*, its
//! finish is refused and the next controller hands the range out again. Tickets get numbers of this node,
//! since two controllers may give the same. The rows come straight from the node that the ticket names,
//! whoever leads.

mod link;

mod rows;

pub mod wire;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use pgcapture_actors::{
    cursors::SubscriptionId,
    dump::{
        Delivered, DumpError, GivenUp, OpenedRange, RangeReader, RangeSource, RangeTicket,
        ReadOrder,
    },
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{cluster::State, lsn::Lsn};
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use self::link::{Link, follow};
use crate::peers::Peers;

/// What ranges of the cluster depend on.
#[derive(Debug)]
pub struct Leadership {
    /// Name of this node.
    pub node: String,
    /// Its own address.
    pub address: String,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The leader's address; `None` while there is none.
    pub leader: watch::Receiver<Option<String>>,
    /// This node's controller, for when it leads.
    pub local: Arc<dyn RangeSource>,
    /// What reads on this node, whoever leads.
    pub reader: Arc<dyn RangeReader>,
    /// The way to the others.
    pub peers: Peers,
    /// The agreed state: only subscriptions with a dump that is not over ask. Without it all do.
    pub state: Option<watch::Receiver<Arc<State>>>,
}

/// Ranges from the leader.
#[derive(Debug)]
pub struct PeerRanges {
    inner: Arc<Inner>,
    _tasks: Vec<Task<()>>,
}

#[derive(Debug)]
struct Inner {
    leadership: Leadership,
    changes: watch::Sender<u64>,
    /// The membership; `None` while there is no leader.
    link: watch::Sender<Option<Link>>,
    taken: Mutex<HashMap<u64, Taken>>,
    number: AtomicU64,
    /// Calls that must come to their end whoever waits for them.
    calls: TaskTracker,
}

/// A ticket as its controller knows it.
#[derive(Clone, Debug)]
struct Taken {
    link: Link,
    ticket: RangeTicket,
}

impl PeerRanges {
    /// Begins to follow the leader.
    #[must_use]
    pub fn start(leadership: Leadership) -> Self {
        let node = leadership.node.clone();
        let inner = Arc::new(Inner {
            leadership,
            changes: watch::Sender::default(),
            link: watch::Sender::default(),
            taken: Mutex::default(),
            number: AtomicU64::new(0),
            calls: TaskTracker::new(),
        });
        let following = follow(Arc::clone(&inner));
        let mut tasks = vec![spawn(TaskKind::PeerRanges, &node, following)];
        if let Some(state) = inner.leadership.state.clone() {
            let hearing = hear_of_dumps(Arc::clone(&inner), state);
            tasks.push(spawn(TaskKind::PeerRanges, "dumps", hearing));
        }
        Self {
            inner,
            _tasks: tasks,
        }
    }
}

/// Wakes those who pull when this node hears of a dump: the leader knows of it first, and may have told
/// of its ranges before anybody here could ask.
async fn hear_of_dumps(inner: Arc<Inner>, mut state: watch::Receiver<Arc<State>>) {
    let mut known = BTreeSet::new();
    loop {
        let open: BTreeSet<_> = {
            let state = state.borrow_and_update();
            let dumps = state.dumps.values().filter(|dump| !dump.is_over());
            dumps.map(|dump| dump.id).collect()
        };
        if open != known {
            known = open;
            inner.tell();
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

impl Inner {
    fn tell(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    fn set_link(&self, link: Option<Link>) {
        if let Some(before) = self.link.send_replace(link) {
            before.gone.cancel();
        }
        self.tell();
    }

    /// A panic under the lock leaves the map as it was: go on.
    fn taken(&self) -> MutexGuard<'_, HashMap<u64, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, ticket: &RangeTicket) -> Result<Taken, DumpError> {
        let found = self.taken().get(&ticket.number).cloned();
        found.ok_or_else(|| wire::away("the range was ended already"))
    }

    fn is_asking(&self, id: &SubscriptionId) -> bool {
        self.leadership.state.as_ref().is_none_or(|state| {
            let state = state.borrow();
            let mut dumps = state.dumps.values();
            dumps.any(|dump| {
                !dump.is_over() && dump.stream == id.stream && dump.consumer == id.consumer
            })
        })
    }

    /// Takes a range and gives it a number of this node.
    async fn pull(&self, id: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        let Some(link) = self.link.borrow().clone() else {
            return Ok(None);
        };
        let Some(ticket) = link.pull(id).await? else {
            return Ok(None);
        };
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let shown = RangeTicket {
            number,
            ..ticket.clone()
        };
        self.taken().insert(number, Taken { link, ticket });
        Ok(Some(shown))
    }

    /// Says that a range is finished. Whatever the answer, the ticket is done with: who refuses it hands the
    /// range out again, and who does not answer loses this member with all that it holds.
    async fn finish(&self, ticket: &RangeTicket, delivered: Delivered) -> Result<(), DumpError> {
        let Taken {
            link,
            ticket: taken,
        } = self.find(ticket)?;
        let finished = link.finish(taken, delivered).await;
        self.taken().remove(&ticket.number);
        finished
    }

    async fn give_up(&self, ticket: &RangeTicket, reason: GivenUp) {
        let taken = self.taken().remove(&ticket.number);
        if let Some(Taken { link, ticket }) = taken {
            link.give_up(ticket, reason).await;
        }
    }
}

#[async_trait]
impl RangeSource for PeerRanges {
    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The call comes to its end though nobody waits any more: a ticket that nobody takes is given back.
    async fn pull(&self, id: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        if !self.inner.is_asking(id) {
            return Ok(None);
        }
        let (answer, pulled) = oneshot::channel();
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        self.inner.calls.spawn(async move {
            let pulled = inner.pull(&id).await;
            if let Err(Ok(Some(ticket))) = answer.send(pulled) {
                inner.give_up(&ticket, GivenUp::Disconnected).await;
            }
        });
        let gone = |_| Err(wire::away("the node stops"));
        pulled.await.unwrap_or_else(gone)
    }

    async fn open(&self, ticket: &RangeTicket, at_least: Lsn) -> Result<OpenedRange, DumpError> {
        let Taken { link, ticket } = self.inner.find(ticket)?;
        let leadership = &self.inner.leadership;
        let is_here = ticket.node.is_empty() || ticket.node == leadership.node;
        let (told, taken) = (link.clone(), ticket.clone());
        let order = ReadOrder {
            ticket,
            at_least,
            stop: link.gone,
            on_read: Box::pin(async move { told.was_read(&taken).await }),
        };
        let gone = order.stop.clone();
        let opening = async {
            if is_here {
                return leadership.reader.read(order).await;
            }
            let Leadership { peers, cluster, .. } = leadership;
            rows::open(peers, cluster, order, &self.inner.calls).await
        };
        let opened = gone.run_until_cancelled(opening).await;
        opened.unwrap_or_else(|| Err(wire::away("another node leads")))
    }

    /// The call comes to its end though nobody waits any more, as for [`Self::pull`].
    async fn finish(&self, ticket: RangeTicket, delivered: Delivered) -> Result<(), DumpError> {
        let inner = Arc::clone(&self.inner);
        let finishing = async move { inner.finish(&ticket, delivered).await };
        let finished = self.inner.calls.spawn(finishing).await;
        finished.unwrap_or_else(|_| Err(wire::away("the node stops")))
    }

    /// The same.
    async fn give_up(&self, ticket: RangeTicket, reason: GivenUp) {
        let inner = Arc::clone(&self.inner);
        let giving = async move { inner.give_up(&ticket, reason).await };
        if self.inner.calls.spawn(giving).await.is_err() {
            tracing::debug!("a range was given back while the node stopped");
        }
    }
}

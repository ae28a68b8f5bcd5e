//! The actor `DumpWorker`: runs ranges on this node, and looks after the replicas it reads from.
//!
//! For each range it starts a `Dumper`; for each replica it keeps a task that asks how it is and tells
//! the controller. Which range is read from where is not its decision: it only holds a bound of its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, MailboxError, Message};
use futures_util::future::BoxFuture;
use pgcapture_engine::{
    cluster::{DumpState, Replica, State},
    codes,
    dump::{pace::RowPace, schedule::NODE_SEATS_MAX},
};
use tokio::{
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    DumpError, OpenedRange, RangeOrder, RangeRemedy, ReadTarget,
    controller::{self, ReplicaSeen},
    dumper::{Dumper, Reading},
    hub::{Hub, away},
};
use crate::supervise::{Alive, Task, TaskKind, spawn, supervise};

/// Orders that may wait.
const WORKER_MAILBOX: usize = 256;

/// Pause before a worker that panicked is built anew.
const REBUILD_PAUSE: Duration = Duration::from_millis(100);

/// How often a replica is asked how it is, while dumps read from it.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Looks between two questions while no dump reads from it: often enough for people who look.
const IDLE_LOOKS: u32 = 10;

/// A replica that does not say how it is for so long is not asked for rows.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is checked which replicas there are.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// Starts the worker of a node.
pub(super) fn start(hub: &Arc<Hub>, controller: &controller::Door) -> Door {
    let (shared, controller) = (Arc::clone(hub), controller.clone());
    let dumper_count = Arc::new(AtomicU32::new(0));
    let build = move |alive| DumpWorker {
        hub: Arc::clone(&shared),
        controller: controller.clone(),
        dumper_count: Arc::clone(&dumper_count),
        watches: BTreeMap::new(),
        _alive: alive,
    };
    let stopping = hub.stopping();
    Door {
        addr: supervise("dump_worker", build, REBUILD_PAUSE, stopping),
    }
}

/// The way to the worker, whichever life of it.
#[derive(Clone, Debug)]
pub(super) struct Door {
    addr: watch::Receiver<Option<Addr<DumpWorker>>>,
}

impl Door {
    /// Starts the reading of a range and waits until it is open. Dropping the call, or the answer, ends
    /// the reading.
    pub(super) async fn open(
        &self,
        target: ReadTarget,
        order: RangeOrder,
        pace: RowPace,
        (stop, on_read): (CancellationToken, BoxFuture<'static, ()>),
    ) -> Result<OpenedRange, DumpError> {
        let mut addr = self.addr.clone();
        let found = addr.wait_for(Option::is_some).await;
        let found = found.map_err(|_| away())?.clone();
        let worker = found.ok_or_else(away)?;
        let (answer, opened) = oneshot::channel();
        let order = OpenRange {
            target,
            order,
            pace,
            answer,
            stop,
            on_read,
        };
        worker.send(order).await.map_err(|error| match error {
            MailboxError::Closed | MailboxError::Timeout => away(),
        })??;
        opened.await.unwrap_or_else(|_| Err(died()))
    }
}

/// Makes the error of a reader that ended without a word.
pub(super) fn died() -> DumpError {
    DumpError {
        explanation: &codes::dump::READER_DIED,
        what: "the reader of the range ended without a word".to_owned(),
        remedy: RangeRemedy::Retry,
    }
}

/// Runs ranges.
pub(super) struct DumpWorker {
    hub: Arc<Hub>,
    controller: controller::Door,
    /// Dumpers of all lives of the worker.
    dumper_count: Arc<AtomicU32>,
    /// One task a replica, with the definition it was started for.
    watches: BTreeMap<String, (Replica, Task<()>)>,
    _alive: Alive,
}

impl Actor for DumpWorker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(WORKER_MAILBOX);
        self.watch_replicas();
        ctx.run_interval(SYNC_INTERVAL, |worker, ctx| {
            if worker.hub.stopping().is_cancelled() {
                ctx.stop();
            } else {
                worker.watch_replicas();
            }
        });
    }
}

/// Order: read a range. Answered once it is accepted; the range itself comes through `answer`.
#[derive(Message)]
#[rtype(result = "Result<(), DumpError>")]
struct OpenRange {
    target: ReadTarget,
    order: RangeOrder,
    pace: RowPace,
    answer: oneshot::Sender<Result<OpenedRange, DumpError>>,
    stop: CancellationToken,
    on_read: BoxFuture<'static, ()>,
}

impl Handler<OpenRange> for DumpWorker {
    type Result = Result<(), DumpError>;

    fn handle(&mut self, order: OpenRange, _: &mut Self::Context) -> Self::Result {
        let seat = Seat::take(&self.dumper_count).ok_or_else(|| DumpError {
            explanation: &codes::dump::CONTROLLER_AWAY,
            what: format!("this node reads {NODE_SEATS_MAX} ranges already, as many as it may"),
            remedy: RangeRemedy::Elsewhere,
        })?;
        let reading = Reading {
            reader: Arc::clone(&self.hub.reader),
            target: order.target,
            order: order.order,
            pace: order.pace,
            answer: order.answer,
            on_read: order.on_read,
            stop: order.stop,
            stopping: self.hub.stopping(),
        };
        Dumper::new(reading, seat).start();
        Ok(())
    }
}

/// The place of one dumper; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat(Arc<AtomicU32>);

impl Seat {
    fn take(count: &Arc<AtomicU32>) -> Option<Self> {
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < NODE_SEATS_MAX).then_some(count + 1)
        });
        taken.ok().map(|_| Self(Arc::clone(count)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DumpWorker {
    /// Starts and ends the tasks that ask replicas, as the agreed state wants.
    fn watch_replicas(&mut self) {
        let state = self.hub.state();
        self.watches.retain(|name, (definition, task)| {
            state.replicas.get(name) == Some(definition) && !task.is_finished()
        });
        for (name, replica) in &state.replicas {
            if self.watches.contains_key(name) {
                continue;
            }
            let asking = ask(
                Arc::clone(&self.hub),
                self.controller.clone(),
                replica.clone(),
            );
            let task = spawn(TaskKind::ReplicaWatch, name, asking);
            self.watches.insert(name.clone(), (replica.clone(), task));
        }
    }
}

/// Asks a replica how it is, for ever.
async fn ask(hub: Arc<Hub>, controller: controller::Door, replica: Replica) {
    let stopping = hub.stopping();
    loop {
        let state = hub.state();
        let Some(source) = state.sources.get(&replica.source) else {
            return;
        };
        let target = ReadTarget {
            replica: replica.clone(),
            source: source.clone(),
        };
        let asked = timeout(HEALTH_TIMEOUT, hub.reader.health(&target)).await;
        let event = ReplicaSeen {
            replica: replica.name.clone(),
            lag_max: replica.lag_max,
            seen: asked.unwrap_or_else(|_| Err(silent())),
        };
        // A controller that is being built anew hears of it the next time.
        drop(controller.send(event).await);
        for _ in 0..IDLE_LOOKS {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(HEALTH_INTERVAL) => {}
            }
            if is_read(&hub.state(), &replica.source) {
                break;
            }
        }
    }
}

fn is_read(state: &State, source: &str) -> bool {
    let mut dumps = state.dumps.values();
    dumps.any(|dump| dump.source == source && dump.state == DumpState::Active)
}

fn silent() -> DumpError {
    DumpError {
        explanation: &codes::existing_rows::REPLICA_UNREACHABLE,
        what: format!(
            "the replica did not say how it is within {} s",
            HEALTH_TIMEOUT.as_secs()
        ),
        remedy: RangeRemedy::Retry,
    }
}

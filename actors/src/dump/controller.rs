//! The actor `DumpController`: owns the schedule of this node and tells the agreed state what ended.
//!
//! Built from the agreed state alone, also after a panic. It hands out tickets, takes them back, and
//! records ends in groups: while one proposal is on its way the next ends gather. It runs errands of
//! the schedule (plan a table anew, fail it) beside its mailbox. It never reads a row.

mod chronicle;
mod errands;
mod news;
mod queries;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, MailboxError,
    Message, MessageResult, ResponseFuture, SpawnHandle, WrapFuture,
};
use pgcapture_engine::{
    cluster::{Answer, Command, DumpCommand, DumpState, FinishedRange, State},
    codes,
    dump::{
        DumpId, DumpStatus, ReplicaFacts,
        schedule::{Assignment, Schedule},
    },
};
use tokio::sync::{oneshot, watch};

pub(super) use self::queries::{ReplicaSeen, ReplicaStatuses, Status, Statuses, Watch};
use self::{chronicle::Chronicle, news::tell_changes};
use super::{
    Delivered, DumpError, GivenUp, OtherNodes, RangeRemedy, RangeTicket,
    hub::{Hub, away},
};
use crate::{
    clock,
    consensus::ProposeError,
    cursors::SubscriptionId,
    supervise::{Alive, Task, TaskKind, spawn, supervise},
};

/// Orders that may wait: every session of a node may ask at the same moment; more wait their turn.
const CONTROLLER_MAILBOX: usize = 256;

/// Pause before a controller that panicked is built anew.
const REBUILD_PAUSE: Duration = Duration::from_millis(100);

/// Ends of ranges in one proposal; beyond it they wait for the next.
const RECORDS_MAX: usize = 1_000;

/// Progress is told to watchers, and metrics are set, this often: smooth for a human eye.
const TICK: Duration = Duration::from_millis(250);

/// Starts the controller of a node.
pub(super) fn start(hub: &Arc<Hub>) -> Door {
    let shared = Arc::clone(hub);
    let build = move |alive| DumpController::new(Arc::clone(&shared), alive);
    let stopping = hub.stopping();
    Door {
        addr: supervise("dump_controller", build, REBUILD_PAUSE, stopping),
    }
}

/// The way to the controller, whichever life of it.
#[derive(Clone, Debug)]
pub(super) struct Door {
    addr: watch::Receiver<Option<Addr<DumpController>>>,
}

impl Door {
    /// Sends an order, waiting while the controller is being built.
    pub(super) async fn send<M>(&self, order: M) -> Result<M::Result, DumpError>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        DumpController: Handler<M>,
    {
        let mut addr = self.addr.clone();
        let found = addr.wait_for(Option::is_some).await;
        let found = found.map_err(|_| away())?.clone();
        let controller = found.ok_or_else(away)?;
        controller.send(order).await.map_err(|error| match error {
            MailboxError::Closed | MailboxError::Timeout => away(),
        })
    }
}

/// Decides who reads what.
pub(super) struct DumpController {
    hub: Arc<Hub>,
    state: watch::Receiver<Arc<State>>,
    others: watch::Receiver<OtherNodes>,
    schedule: Schedule,
    /// Ends that wait for their proposal. Bounded by the ranges that may run.
    ended: Vec<Ended>,
    is_recording: bool,
    /// Whoever waits for the last end to be recorded; no tickets are handed out then.
    draining: Option<Vec<oneshot::Sender<()>>>,
    /// What replicas said last.
    facts: BTreeMap<String, ReplicaFacts>,
    watchers: BTreeMap<DumpId, watch::Sender<Arc<DumpStatus>>>,
    alarm: Option<(Duration, SpawnHandle)>,
    chronicle: Chronicle,
    state_watch: Option<Task<()>>,
    _alive: Alive,
}

/// A range that ended well, and who waits for its record.
struct Ended {
    ticket: u64,
    range: FinishedRange,
    answer: oneshot::Sender<Result<(), DumpError>>,
}

impl DumpController {
    fn new(hub: Arc<Hub>, alive: Alive) -> Self {
        let mut state = hub.consensus.state();
        state.mark_changed();
        let mut others = hub.node.others.clone();
        others.mark_changed();
        Self {
            schedule: Schedule::on(&hub.node.name, hub.node.seats, hub.last_ticket()),
            state,
            others,
            hub,
            ended: Vec::new(),
            is_recording: false,
            draining: None,
            facts: BTreeMap::new(),
            watchers: BTreeMap::new(),
            alarm: None,
            chronicle: Chronicle::default(),
            state_watch: None,
            _alive: alive,
        }
    }

    /// Takes over what changed meanwhile; before anything is decided.
    fn look(&mut self) {
        let now = self.hub.now();
        if self.state.has_changed().unwrap_or(false) {
            let state = Arc::clone(&self.state.borrow_and_update());
            self.schedule.sync(&state);
            self.chronicle.state_changed(&state);
            let active = state.dumps.values();
            let active = active.filter(|dump| dump.state == DumpState::Active);
            let asking = active.map(|dump| SubscriptionId {
                stream: dump.stream.clone(),
                consumer: dump.consumer.clone(),
            });
            self.hub.set_asking(asking.collect());
            self.facts
                .retain(|name, _| state.replicas.contains_key(name));
            self.hub.forget_replicas(&state);
        }
        let others = self.others.borrow_and_update();
        if others.has_changed() {
            self.schedule.set_others((**others).clone());
        }
        drop(others);
        for ticket in self.hub.take_lost() {
            let setback = GivenUp::Disconnected.into();
            self.schedule.give_up(ticket, setback, now);
        }
    }

    /// Does what follows from a change: errands, the alarm for what is due later, and a wake-up of
    /// everybody who may pull.
    fn follow_up(&mut self, ctx: &mut Context<Self>) {
        self.run_errands(ctx);
        self.set_alarm(ctx);
        self.hub.wake();
    }

    fn set_alarm(&mut self, ctx: &mut Context<Self>) {
        let now = self.hub.now();
        let due = self.schedule.next_due(now);
        if self.alarm.as_ref().map(|(due, _)| *due) == due {
            return;
        }
        if let Some((_, alarm)) = self.alarm.take() {
            ctx.cancel_future(alarm);
        }
        self.alarm = due.map(|due| {
            // A little late rather than a little early: the moment must have come.
            let wait = (due - now) + Duration::from_millis(1);
            let alarm = ctx.run_later(wait, |controller, ctx| {
                controller.alarm = None;
                controller.look();
                controller.follow_up(ctx);
            });
            (due, alarm)
        });
    }

    /// Proposes what ended, unless a proposal is on its way.
    fn record(&mut self, ctx: &mut Context<Self>) {
        if self.is_recording || self.ended.is_empty() {
            return;
        }
        self.is_recording = true;
        let count = self.ended.len().min(RECORDS_MAX);
        let batch: Vec<_> = self.ended.drain(..count).collect();
        let ranges = batch.iter().map(|ended| ended.range).collect();
        let at = clock::now();
        let command = Command::Dump(DumpCommand::FinishRanges { ranges, at });
        let consensus = Arc::clone(&self.hub.consensus);
        let proposing = async move { consensus.propose(command).await };
        ctx.spawn(
            proposing
                .into_actor(self)
                .map(|outcome, controller, ctx| controller.recorded(batch, outcome, ctx)),
        );
    }

    fn recorded(
        &mut self,
        batch: Vec<Ended>,
        outcome: Result<Answer, ProposeError>,
        ctx: &mut Context<Self>,
    ) {
        self.is_recording = false;
        self.look();
        let now = self.hub.now();
        let failure = outcome.err().map(|error| error.to_string());
        if let Some(what) = &failure {
            tracing::warn!(
                error = %what,
                code = codes::dump::NOT_KEPT.code,
                range_count = batch.len(),
                "ends of dump ranges could not be recorded; they are read again"
            );
        }
        for ended in batch {
            let answer = match &failure {
                None => {
                    self.schedule.recorded(ended.ticket);
                    Ok(())
                }
                Some(what) => {
                    self.schedule.not_recorded(ended.ticket, what, now);
                    Err(DumpError {
                        explanation: &codes::dump::NOT_KEPT,
                        what: what.clone(),
                        remedy: RangeRemedy::Retry,
                    })
                }
            };
            if ended.answer.send(answer).is_err() {
                tracing::trace!(ticket = ended.ticket, "who reported an end has gone");
            }
        }
        self.record(ctx);
        self.follow_up(ctx);
        self.answer_drain();
    }

    fn answer_drain(&mut self) {
        if !self.is_recording
            && self.ended.is_empty()
            && let Some(waiting) = &mut self.draining
        {
            for waiter in waiting.drain(..) {
                if waiter.send(()).is_err() {
                    tracing::trace!("who drains has gone");
                }
            }
        }
    }

    fn ticket(&self, assignment: Assignment) -> RangeTicket {
        let state = self.state.borrow();
        let node = state.nodes.get(&assignment.node);
        RangeTicket {
            number: assignment.ticket,
            dump: assignment.dump,
            source: assignment.source,
            heap: assignment.heap,
            extent: assignment.extent,
            replica: assignment.replica,
            address: node.map_or_else(String::new, |node| node.address.clone()),
            node: assignment.node,
            at_least: assignment.at_least,
            rate_bytes_per_second: assignment.rate_bytes_per_second,
            parallel: assignment.parallel,
        }
    }
}

impl Actor for DumpController {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(CONTROLLER_MAILBOX);
        self.look();
        self.follow_up(ctx);
        let (state, controller) = (self.hub.consensus.state(), ctx.address());
        let others = self.hub.node.others.clone();
        let watching = tell_changes(state, others, controller, self.hub.stopping());
        self.state_watch = Some(spawn(TaskKind::DumpController, "state", watching));
        ctx.run_interval(TICK, |controller, ctx| {
            if controller.hub.stopping().is_cancelled() {
                ctx.stop();
            } else {
                controller.tick();
            }
        });
    }
}

/// Order: hand out the next range of a subscription.
#[derive(Message)]
#[rtype(result = "Option<Pulled>")]
pub(super) struct Pull(pub(super) SubscriptionId);

/// A ticket on its way: goes back by itself when its asker is gone before it arrives.
pub(super) struct Pulled {
    ticket: Option<RangeTicket>,
    hub: Arc<Hub>,
}

impl Pulled {
    pub(super) fn take(mut self) -> Option<RangeTicket> {
        self.ticket.take()
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            self.hub.lose(ticket.number);
        }
    }
}

impl Handler<Pull> for DumpController {
    type Result = MessageResult<Pull>;

    fn handle(&mut self, Pull(id): Pull, ctx: &mut Self::Context) -> Self::Result {
        self.look();
        if self.draining.is_some() {
            return MessageResult(None);
        }
        let now = self.hub.now();
        let assignment = self.schedule.pull(&id.stream, &id.consumer, now);
        self.set_alarm(ctx);
        MessageResult(assignment.map(|assignment| {
            self.hub.set_last_ticket(assignment.ticket);
            self.chronicle.handed_out(&assignment);
            Pulled {
                ticket: Some(self.ticket(assignment)),
                hub: Arc::clone(&self.hub),
            }
        }))
    }
}

/// Tells the controller that the server is done with a range: it may have the next one read while the
/// rows are still on their way.
pub(super) async fn was_read(controller: &Door, ticket: u64) {
    if let Err(error) = controller.send(Read(ticket)).await {
        tracing::debug!(ticket, %error, "a range was read for a controller that is gone");
    }
}

/// Event: a range was read to its end; its rows are on their way.
#[derive(Message)]
#[rtype(result = "()")]
struct Read(u64);

impl Handler<Read> for DumpController {
    type Result = ();

    fn handle(&mut self, Read(ticket): Read, ctx: &mut Self::Context) {
        self.look();
        if self.schedule.read(ticket) {
            self.follow_up(ctx);
        }
    }
}

/// Order: record the end of a range. Accepted once handled, whoever still waits for the answer.
#[derive(Message)]
#[rtype(result = "Result<(), DumpError>")]
pub(super) struct Finish {
    pub(super) number: u64,
    pub(super) delivered: Delivered,
}

impl Handler<Finish> for DumpController {
    type Result = ResponseFuture<Result<(), DumpError>>;

    fn handle(&mut self, order: Finish, ctx: &mut Self::Context) -> Self::Result {
        self.look();
        let now = self.hub.now();
        let Delivered { row_count, bytes } = order.delivered;
        let age = self.schedule.age(order.number, now);
        let finished = self.schedule.finished(order.number, row_count, bytes, now);
        let Some(range) = finished else {
            return Box::pin(async { Err(stale()) });
        };
        self.chronicle.finished(&range, age.unwrap_or_default());
        let (answer, recorded) = oneshot::channel();
        self.ended.push(Ended {
            ticket: order.number,
            range,
            answer,
        });
        self.record(ctx);
        self.follow_up(ctx);
        Box::pin(async move { recorded.await.unwrap_or_else(|_| Err(away())) })
    }
}

/// Makes the error of a ticket that is not running.
fn stale() -> DumpError {
    DumpError {
        what: "the range was handed out by an earlier life of the controller; it is read again"
            .to_owned(),
        ..away()
    }
}

/// Order: take a range back.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct GiveUp {
    pub(super) ticket: RangeTicket,
    pub(super) reason: GivenUp,
}

impl Handler<GiveUp> for DumpController {
    type Result = ();

    fn handle(&mut self, order: GiveUp, ctx: &mut Self::Context) {
        self.look();
        self.chronicle.given_up(&order.ticket, &order.reason);
        let now = self.hub.now();
        let setback = order.reason.into();
        if self.schedule.give_up(order.ticket.number, setback, now) {
            self.follow_up(ctx);
        }
    }
}

/// Order: hand out nothing more; answered once what ended is recorded.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Drain;

impl Handler<Drain> for DumpController {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let (drained_tx, drained) = oneshot::channel();
        self.draining.get_or_insert_default().push(drained_tx);
        self.answer_drain();
        Box::pin(async move {
            // A controller that died has nothing left to record.
            drop(drained.await);
        })
    }
}

/// Order: die, for tests.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Panic;

#[cfg(test)]
impl Handler<Panic> for DumpController {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("on purpose");
    }
}

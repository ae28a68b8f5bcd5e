//! The door to dumps: for the gateway a [`RangeSource`], for people orders and queries.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use pgcapture_engine::{
    cluster::{
        Answer, Command, DumpAction, DumpCommand, DumpOptions, DumpRule, NewDump, PlannedTable,
        Source, State,
    },
    codes,
    dump::{DumpId, DumpStatus, ReplicaStatus, pace::RowPace},
    lsn::Lsn,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Delivered, DumpError, DumpRequest, GivenUp, OpenedRange, RangeOrder, RangeReader, RangeRemedy,
    RangeSource, RangeTicket, ReadOrder, ReadTarget, ReaderNode, RowReader, ScheduledRange,
    TablesFound,
    controller::{self, Drain, Finish, GiveUp, Pull, ReplicaStatuses, Status, Statuses, Watch},
    hub::Hub,
    plan, targets, worker,
};
use crate::{clock, consensus::Consensus, cursors::SubscriptionId};

/// The door to the dumps of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DumpControllerHandle {
    hub: Arc<Hub>,
    controller: controller::Door,
    worker: worker::Door,
}

impl DumpControllerHandle {
    /// Starts controller and worker of a node that is alone; they run until [`Self::drain`] has
    /// returned.
    ///
    /// # Panics
    ///
    /// Outside an actix `System` or a `LocalSet` on a tokio runtime.
    #[must_use]
    pub fn start(consensus: Arc<dyn Consensus>, reader: Arc<dyn RowReader>) -> Self {
        Self::start_on(ReaderNode::alone(), consensus, reader)
    }

    /// The same on a node of a cluster.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    #[must_use]
    pub fn start_on(
        node: ReaderNode,
        consensus: Arc<dyn Consensus>,
        reader: Arc<dyn RowReader>,
    ) -> Self {
        let hub = Arc::new(Hub::new(node, consensus, reader));
        let controller = controller::start(&hub);
        let worker = worker::start(&hub, &controller);
        Self {
            hub,
            controller,
            worker,
        }
    }

    /// Plans and creates a dump. Refused while the subscription has a dump that is not over with one of
    /// the tables. When the call is dropped, the dump may exist.
    ///
    /// # Errors
    ///
    /// [`DumpError`] with the code of the first thing that is wrong; nothing was created then.
    pub async fn create(&self, request: DumpRequest) -> Result<DumpId, DumpError> {
        let patterns = request.tables.iter().map(|table| table.pattern.clone());
        let names: Vec<_> = patterns.collect();
        let (source, found) = self.look(&request.subscription, &names).await?;
        let tables = plan::tables(&request.tables, found)?;
        let dump = new_dump(request.uri, request.subscription, source, tables);
        let options = request.options;
        self.propose_new(NewDump { options, ..dump }, DumpRule::NoSharedTable)
            .await
    }

    /// Creates a dump of page ranges as existing schedulers give them: each is handed out exactly so.
    /// Refused while the subscription has any dump that is not over.
    ///
    /// # Errors
    ///
    /// As for [`Self::create`].
    pub async fn schedule(
        &self,
        uri: &str,
        subscription: &SubscriptionId,
        ranges: &[ScheduledRange],
    ) -> Result<DumpId, DumpError> {
        let (source, found) = self.look(subscription, &plan::names(ranges)).await?;
        let tables = plan::scheduled(ranges, found)?;
        let dump = new_dump(uri.to_owned(), subscription.clone(), source, tables);
        self.propose_new(dump, DumpRule::Idle).await
    }

    /// Cancels every dump of a subscription that is not over; running ranges end. Returns how many.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when that cannot be recorded.
    pub async fn stop(&self, subscription: &SubscriptionId) -> Result<usize, DumpError> {
        let state = self.hub.state();
        let is_of = |dump: &&Arc<pgcapture_engine::cluster::Dump>| {
            !dump.is_over()
                && dump.stream == subscription.stream
                && dump.consumer == subscription.consumer
        };
        let mut count = 0;
        for dump in state.dumps.values().filter(is_of) {
            match self.act(dump.id, DumpAction::Cancel).await {
                Ok(()) => count += 1,
                // It was over before the order came.
                Err(error) if error.explanation.code == codes::dump::WRONG_STATE.code => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Pauses, resumes, cancels or retries a dump. Idempotent.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when there is no such dump, or it is in no state for that.
    pub async fn act(&self, id: DumpId, action: DumpAction) -> Result<(), DumpError> {
        let at = clock::now();
        self.propose(DumpCommand::Act { id, action, at }).await?;
        Ok(())
    }

    /// Forgets a dump that is over.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when there is no such dump, or it is not over.
    pub async fn remove(&self, id: DumpId) -> Result<(), DumpError> {
        self.propose(DumpCommand::Remove { id }).await?;
        Ok(())
    }

    /// Sets the pause after each range of a subscription's dumps; zero takes it away. It stays over
    /// restarts.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when it is too long or cannot be recorded.
    pub async fn set_cool_down(
        &self,
        subscription: &SubscriptionId,
        cool_down: Duration,
    ) -> Result<(), DumpError> {
        self.propose(DumpCommand::SetCoolDown {
            stream: subscription.stream.clone(),
            consumer: subscription.consumer.clone(),
            cool_down,
        })
        .await?;
        Ok(())
    }

    /// Tells how a dump is.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when there is no such dump.
    pub async fn status(&self, id: DumpId) -> Result<DumpStatus, DumpError> {
        self.controller.send(Status(id)).await?
    }

    /// Tells how every dump is, by number.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when the controller is away.
    pub async fn list(&self) -> Result<Vec<DumpStatus>, DumpError> {
        self.controller.send(Statuses).await
    }

    /// Tells how a dump is, now and whenever it changes, a few times a second at most. The last value
    /// is that of a dump that is over; then the channel closes. It closes early when the dump was
    /// removed or the controller died: ask again.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when there is no such dump.
    pub async fn watch(&self, id: DumpId) -> Result<watch::Receiver<Arc<DumpStatus>>, DumpError> {
        self.controller.send(Watch(id)).await?
    }

    /// Tells how every replica is, by name.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when the controller is away.
    pub async fn replicas(&self) -> Result<Vec<ReplicaStatus>, DumpError> {
        self.controller.send(ReplicaStatuses).await
    }

    /// Watches the replicas that this node reaches and may read from now.
    #[must_use]
    pub fn readable(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.hub.readable()
    }

    /// Hands out no ranges any more, waits until every end that was reported is recorded, and stops.
    /// End the sessions first. The second call returns at once.
    pub async fn drain(&self) {
        if self.controller.send(Drain).await.is_err() {
            tracing::debug!("the dump controller had stopped already");
        }
        self.hub.stopping().cancel();
    }

    /// Finds the source of a subscription and what names lead to on one of its replicas.
    async fn look(
        &self,
        subscription: &SubscriptionId,
        names: &[String],
    ) -> Result<(Source, TablesFound), DumpError> {
        let state = self.hub.state();
        let source = source_of(&state, subscription)?;
        let targets = targets::of_source(&state, &source.name, None)?;
        let found = targets::look(&self.hub, &targets, names).await?;
        Ok((source.clone(), found))
    }

    async fn propose_new(&self, dump: NewDump, rule: DumpRule) -> Result<DumpId, DumpError> {
        let dump = Box::new(dump);
        match self.propose(DumpCommand::Create { dump, rule }).await? {
            Answer::DumpCreated(id) => Ok(id),
            Answer::Done | Answer::Unchanged | Answer::Assigned(_) => Err(DumpError {
                explanation: &codes::dump::NOT_KEPT,
                what: "the agreed state gave the new dump no number".to_owned(),
                remedy: RangeRemedy::Retry,
            }),
        }
    }

    async fn propose(&self, command: DumpCommand) -> Result<Answer, DumpError> {
        let proposed = self.hub.consensus.propose(Command::Dump(command));
        Ok(proposed.await?)
    }
}

#[cfg(test)]
impl DumpControllerHandle {
    /// Ends everything without a word, as a killed process does.
    pub(super) fn kill(&self) {
        self.hub.stopping().cancel();
    }

    /// Lets the controller panic, and waits until it is gone.
    pub(super) async fn panic_controller(&self) {
        let panicked = self.controller.send(controller::Panic).await;
        assert!(panicked.is_err(), "it is gone");
    }
}

fn source_of<'a>(state: &'a State, id: &SubscriptionId) -> Result<&'a Source, DumpError> {
    state.source_of_stream(&id.stream).ok_or_else(|| DumpError {
        explanation: &codes::dump::UNKNOWN_URI,
        what: format!(
            "unknown stream \"{}\"; known streams: {}",
            id.stream,
            state.known_streams()
        ),
        remedy: RangeRemedy::Fail,
    })
}

fn new_dump(
    uri: String,
    subscription: SubscriptionId,
    source: Source,
    tables: Vec<PlannedTable>,
) -> NewDump {
    NewDump {
        uri,
        stream: subscription.stream,
        consumer: subscription.consumer,
        source: source.name,
        options: DumpOptions::default(),
        created_at: clock::now(),
        tables,
    }
}

#[async_trait]
impl RangeSource for DumpControllerHandle {
    fn changes(&self) -> watch::Receiver<u64> {
        self.hub.changes()
    }

    async fn pull(&self, id: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        // Most subscriptions have no dump: they cost the controller nothing.
        if !self.hub.is_asking(id) {
            return Ok(None);
        }
        let pulled = self.controller.send(Pull(id.clone())).await?;
        Ok(pulled.and_then(controller::Pulled::take))
    }

    async fn was_read(&self, ticket: &RangeTicket) {
        controller::was_read(&self.controller, ticket.number).await;
    }

    async fn open(&self, ticket: &RangeTicket, at_least: Lsn) -> Result<OpenedRange, DumpError> {
        let (controller, number) = (self.controller.clone(), ticket.number);
        let order = ReadOrder {
            ticket: ticket.clone(),
            at_least,
            stop: CancellationToken::new(),
            on_read: Box::pin(async move { controller::was_read(&controller, number).await }),
        };
        self.read(order).await
    }

    async fn finish(&self, ticket: RangeTicket, delivered: Delivered) -> Result<(), DumpError> {
        let number = ticket.number;
        self.controller.send(Finish { number, delivered }).await?
    }

    async fn give_up(&self, ticket: RangeTicket, reason: GivenUp) {
        let number = ticket.number;
        if let Err(error) = self.controller.send(GiveUp { ticket, reason }).await {
            // The next controller begins without tickets: the range is handed out again anyway.
            tracing::debug!(number, %error, "a dump range was given back to nobody");
        }
    }
}

#[async_trait]
impl RangeReader for DumpControllerHandle {
    async fn read(&self, order: ReadOrder) -> Result<OpenedRange, DumpError> {
        let ReadOrder {
            ticket,
            at_least,
            stop,
            on_read,
        } = order;
        let state = self.hub.state();
        // What was agreed on lately may not be known on every node yet.
        let unknown = |what: String| DumpError {
            explanation: &codes::dump::UNKNOWN_REPLICA,
            what,
            remedy: RangeRemedy::Elsewhere,
        };
        let replica = state.replica(&ticket.replica);
        let replica = replica.map_err(|refusal| unknown(refusal.to_string()))?;
        let source = state.source(&ticket.source);
        let source = source.map_err(|refusal| unknown(refusal.to_string()))?;
        if replica.source != source.name {
            let what = format!("{} is no replica of {}", replica.name, source.name);
            return Err(unknown(what));
        }
        let target = ReadTarget {
            replica: replica.clone(),
            source: source.clone(),
        };
        let order = RangeOrder {
            dump: ticket.dump,
            heap: ticket.heap,
            extent: ticket.extent,
            at_least: at_least.max(ticket.at_least),
            is_paced: ticket.rate_bytes_per_second.is_some(),
        };
        let pace = RowPace::new(ticket.rate_bytes_per_second);
        self.worker.open(target, order, pace, (stop, on_read)).await
    }
}

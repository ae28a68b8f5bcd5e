//! Serves one Capture stream: listens to the consumer and delivers to it, side by side.
//!
//! Owns the two ends of the stream and the membership in the subscription; all three go when the
//! task ends, however it ends. Listening never waits for delivering: a consumer that does not read can
//! still acknowledge, and one that only acknowledges is not slowed by what it reads.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::Stream;
use pgcapture_engine::{
    capture_options::CaptureOptions,
    filter::Filter,
    ledger::{Ack, Terms},
};
use pgcapture_proto::pgcapture::CaptureInit;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{
    delivery::Delivery,
    error::{CaptureError, EndReason, RequestError},
    hub::Hub,
    membership::{Membership, Puller},
    meters, peek,
    writer::{Chunk, FrameWriter},
};
use crate::log::{ChangeLog, LogError, LogHealth};

/// Chunks between a session and its transport. One is sent while the next is made; a consumer that
/// reads nothing has at most these.
const CHUNKS_WAITING_MAX: usize = 2;

/// Acknowledgements applied under one lock at most, so that a flood of them delays no delivery.
const ACKS_TOGETHER_MAX: usize = 4_096;

/// Room for acknowledgements that an idle session keeps.
const IDLE_ACKS: usize = 16;

/// Overdue messages are looked for this many times within the time-out.
const EXPIRY_CHECKS: u32 = 4;

/// Requests of one consumer, in order.
#[async_trait]
pub trait RequestSource: Send {
    /// Waits for requests. Acknowledgements that have arrived are appended to `acks`; they
    /// come before what the answer names. Cancellation-safe.
    ///
    /// # Errors
    ///
    /// [`RequestError`]; the session ends with it.
    async fn next(&mut self, acks: &mut Vec<Ack>) -> Result<Requested, RequestError>;
}

/// What a consumer requested.
#[derive(Clone, Debug, PartialEq)]
pub enum Requested {
    /// Open the stream.
    Init(CaptureInit),
    /// Only acknowledgements.
    Acks,
    /// Deliver the rows of this range of a dump again, later.
    RefuseRow {
        /// The range: `seq` of the row.
        range: u32,
        /// Why.
        reason: String,
    },
    /// Deliver this many more messages.
    Credit(u32),
    /// Nothing more will come.
    End,
}

/// What a session delivers. Ends with `None` when the consumer ended it, with an error otherwise.
/// Dropping it ends the session.
#[derive(Debug)]
pub struct Deliveries {
    outbound: mpsc::Receiver<Chunk>,
    /// Why it ended; beside the queue, so that a consumer that does not read cannot hold it up.
    end: oneshot::Receiver<Result<(), CaptureError>>,
    is_ended: bool,
}

impl Stream for Deliveries {
    type Item = Result<Chunk, CaptureError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if let Some(chunk) = std::task::ready!(self.outbound.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let item = match self.end.try_recv() {
            Ok(end) => end.err().map(Err),
            // The task went away without a word: it panicked.
            Err(_) => Some(Err(CaptureError::Failed)),
        };
        self.is_ended = true;
        Poll::Ready(item)
    }
}

/// A session before it is started.
pub(super) struct Session {
    requests: Box<dyn RequestSource>,
    outbound: mpsc::Sender<Chunk>,
    end: oneshot::Sender<Result<(), CaptureError>>,
}

/// Makes a session and the end that its transport keeps.
pub(super) fn pair(requests: Box<dyn RequestSource>) -> (Session, Deliveries) {
    let (outbound_tx, outbound) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (end_tx, end) = oneshot::channel();
    let session = Session {
        requests,
        outbound: outbound_tx,
        end: end_tx,
    };
    let deliveries = Deliveries {
        outbound,
        end,
        is_ended: false,
    };
    (session, deliveries)
}

/// Serves the consumer to the end and tells it why it ended: the body of the session's task.
pub(super) async fn serve(
    session: Session,
    key: u64,
    hub: Arc<Hub>,
    order: watch::Receiver<Option<EndReason>>,
) {
    let Session {
        mut requests,
        outbound,
        end: end_tx,
    } = session;
    let mut end = tokio::select! {
        end = run(requests.as_mut(), &outbound, &hub, key, order) => end,
        () = outbound.closed() => return,
    };
    // Whoever is told the end may rely on what was acknowledged before it.
    if let Some(subscription) = hub.named(key) {
        let saved = hub.save_cursors().await.map_err(CaptureError::from);
        end = end.and_then(|()| saved.and_then(|()| subscription.check_kept()));
    }
    if let Err(error) = &end
        && !error.is_disconnect()
    {
        let code = error.explanation().code;
        tracing::info!(code, %error, "ended a session");
    }
    if end_tx.send(end).is_err() {
        tracing::debug!("the consumer went away before it was told why");
    }
}

async fn ordered(order: &mut watch::Receiver<Option<EndReason>>) -> EndReason {
    match order.wait_for(Option::is_some).await.map(|reason| *reason) {
        Ok(Some(reason)) => reason,
        // The actor is gone without an order; its task is about to be dropped.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

async fn run(
    requests: &mut dyn RequestSource,
    outbound: &mpsc::Sender<Chunk>,
    hub: &Arc<Hub>,
    key: u64,
    mut order: watch::Receiver<Option<EndReason>>,
) -> Result<(), CaptureError> {
    // Nothing was delivered: an order ends it at once, whatever it waits for.
    let opened = tokio::select! {
        opened = Box::pin(open(requests, key, hub)) => opened,
        reason = ordered(&mut order) => Err(CaptureError::Ended(reason)),
    };
    meters::opened(
        opened
            .as_ref()
            .map_or_else(|error| error.explanation().code, |_| "ok"),
    );
    let (options, opened) = opened?;
    let flow = Flow::new(options.credits);
    match opened {
        Opened::Peek(log) => {
            let delivered = peek::deliver(&log, &options, &flow, outbound);
            let mut listener = Listener::new(requests, &flow, None);
            tokio::select! {
                end = Box::pin(delivered) => end,
                end = listener.listen() => end,
                reason = ordered(&mut order) => Err(CaptureError::Ended(reason)),
            }
        }
        Opened::Member(membership) => {
            let serving = Serving {
                membership: &membership,
                flow: &flow,
                options: &options,
            };
            serving.run(requests, outbound, order).await
        }
    }
}

enum Opened {
    Peek(Arc<dyn ChangeLog>),
    Member(Membership),
}

/// Reads init and joins the subscription.
async fn open(
    requests: &mut dyn RequestSource,
    key: u64,
    hub: &Arc<Hub>,
) -> Result<(CaptureOptions, Opened), CaptureError> {
    let deadline = hub.limits.init_deadline;
    let mut acks = Vec::with_capacity(1);
    let first = tokio::time::timeout(deadline, requests.next(&mut acks))
        .await
        .map_err(|_| CaptureError::InitTooLate(deadline))??;
    let Requested::Init(init) = first else {
        return Err(CaptureError::NoInit);
    };
    if !acks.is_empty() {
        return Err(CaptureError::NoInit);
    }
    let (options, unknown) = CaptureOptions::parse(&init.parameters.unwrap_or_default())?;
    if !unknown.is_empty() {
        tracing::info!(uri = %init.uri, parameters = ?unknown, "ignored unknown parameters");
    }
    let resolved = hub.resolve(&init.uri).await?;
    if options.peek {
        return Ok((options, Opened::Peek(resolved.log)));
    }
    let subscription = hub.subscription(resolved);
    hub.name_session(key, &subscription);
    let limit = hub.limits.unacked_max;
    let terms = Terms {
        unacked_max: options.max_unacked.unwrap_or(limit).min(limit) as usize,
        ack_timeout: options.ack_timeout.or(hub.limits.ack_timeout),
    };
    let membership = subscription.join(hub, &options, terms).await?;
    Ok((options, Opened::Member(membership)))
}

/// What listening tells delivering.
#[derive(Debug)]
pub(super) struct Flow {
    credit: Option<AtomicU64>,
    /// Room or credit may have come.
    pub(super) wake: Notify,
}

impl Flow {
    fn new(credit: Option<u64>) -> Self {
        Self {
            credit: credit.map(AtomicU64::new),
            wake: Notify::new(),
        }
    }

    /// How many messages the consumer allows now.
    pub(super) fn credit(&self) -> usize {
        self.credit.as_ref().map_or(usize::MAX, |credit| {
            usize::try_from(credit.load(Ordering::Acquire)).unwrap_or(usize::MAX)
        })
    }

    fn grant(&self, messages: u32) {
        if let Some(credit) = &self.credit {
            credit.fetch_add(u64::from(messages), Ordering::AcqRel);
        }
        self.wake.notify_one();
    }

    pub(super) fn spend(&self, messages: usize) {
        if let Some(credit) = &self.credit {
            credit.fetch_sub(messages as u64, Ordering::AcqRel);
        }
    }
}

struct Serving<'a> {
    membership: &'a Membership,
    flow: &'a Flow,
    options: &'a CaptureOptions,
}

impl Serving<'_> {
    async fn run(
        &self,
        requests: &mut dyn RequestSource,
        outbound: &mpsc::Sender<Chunk>,
        mut order: watch::Receiver<Option<EndReason>>,
    ) -> Result<(), CaptureError> {
        let mut listener = Listener::new(requests, self.flow, Some(self.membership));
        let log = self.membership.subscription.log();
        let reason = tokio::select! {
            end = self.deliver(outbound) => return end,
            end = listener.listen() => return end,
            () = self.expire() => return Err(CaptureError::Failed),
            error = log_failed(&log) => return Err(error.into()),
            reason = ordered(&mut order) => reason,
        };
        if reason == EndReason::Draining {
            self.membership.withdraw_ranges();
            let grace = self.membership.hub.limits.drain_grace;
            // Acknowledgements under way count; without them it is delivered again.
            let finished = tokio::time::timeout(grace, listener.listen_until_answered()).await;
            if let Ok(end) = finished {
                end?;
            }
            self.membership.hub.save_cursors().await?;
        }
        Err(CaptureError::Ended(reason))
    }

    async fn deliver(&self, outbound: &mpsc::Sender<Chunk>) -> Result<(), CaptureError> {
        let mut puller = Puller {
            filter: Filter::new(self.options.clone()),
            delivery: None,
        };
        let mut writer = FrameWriter::new(self.options);
        let meters = &self.membership.subscription.meters;
        loop {
            // First the place, then the rows: nothing is taken that cannot be sent.
            let permit = tokio::select! {
                biased;
                permit = outbound.reserve() => permit,
                // Its reader must not wait for a consumer that does not read.
                () = ended(puller.delivery.as_ref()) => {
                    puller.delivery = None;
                    continue;
                }
            };
            let Ok(permit) = permit else {
                return Ok(());
            };
            let credit = || self.flow.credit();
            let pulled = self
                .membership
                .pull(&mut puller, credit, &self.flow.wake)
                .await?;
            let chunk = writer.write(&pulled);
            self.flow.spend(chunk.message_count);
            meters.delivered(chunk.message_count, chunk.bytes.len(), pulled.commit_time);
            permit.send(chunk);
        }
    }

    async fn expire(&self) {
        let limits = &self.membership.hub.limits;
        let Some(timeout) = self.options.ack_timeout.or(limits.ack_timeout) else {
            return std::future::pending().await;
        };
        let pause = (timeout / EXPIRY_CHECKS).max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(pause).await;
            self.membership.expire(timeout);
            self.flow.wake.notify_one();
        }
    }
}

/// Waits until the range that is being delivered has ended otherwise.
async fn ended(delivery: Option<&Delivery>) {
    match delivery {
        Some(delivery) => delivery.ended().await,
        None => std::future::pending().await,
    }
}

/// Waits until the log is of no more use: the consumer comes again and finds the one opened anew.
async fn log_failed(log: &Arc<dyn ChangeLog>) -> LogError {
    let mut health = log.health();
    let failed = health.wait_for(|health| matches!(health, LogHealth::Failed { .. }));
    let reason = match failed.await.as_deref() {
        Ok(LogHealth::Failed { reason }) => reason.clone(),
        Ok(LogHealth::Writable | LogHealth::Blocked { .. }) | Err(_) => "it was closed".to_owned(),
    };
    LogError::Closed { reason }
}

struct Listener<'a> {
    requests: &'a mut dyn RequestSource,
    flow: &'a Flow,
    /// `None` when there is nothing to acknowledge.
    membership: Option<&'a Membership>,
    acks: Vec<Ack>,
}

impl<'a> Listener<'a> {
    fn new(
        requests: &'a mut dyn RequestSource,
        flow: &'a Flow,
        membership: Option<&'a Membership>,
    ) -> Self {
        Self {
            requests,
            flow,
            membership,
            acks: Vec::new(),
        }
    }

    /// Listens until the consumer ends the stream or makes a mistake.
    async fn listen(&mut self) -> Result<(), CaptureError> {
        while self.step().await? {}
        Ok(())
    }

    /// Listens until nothing is left unanswered.
    async fn listen_until_answered(&mut self) -> Result<(), CaptureError> {
        let is_answered = |membership: Option<&Membership>| {
            membership.is_none_or(|membership| membership.unacked() == 0)
        };
        while !is_answered(self.membership) && self.step().await? {}
        Ok(())
    }

    /// Takes in what came; tells whether more may come.
    async fn step(&mut self) -> Result<bool, CaptureError> {
        // A session that has become idle keeps little room for acknowledgements.
        if self.acks.len() < IDLE_ACKS {
            self.acks.shrink_to(IDLE_ACKS);
        }
        self.acks.clear();
        let requested = self.requests.next(&mut self.acks).await?;
        if let Some(membership) = self.membership {
            for acks in self.acks.chunks(ACKS_TOGETHER_MAX) {
                membership.apply(acks)?;
            }
        }
        match requested {
            Requested::Init(_) => return Err(CaptureError::SecondInit),
            Requested::End if self.membership.is_some() => return Ok(false),
            // A peek goes on though its consumer has nothing more to say.
            Requested::End => std::future::pending::<()>().await,
            Requested::Credit(messages) => self.flow.grant(messages),
            Requested::Acks => self.flow.wake.notify_one(),
            Requested::RefuseRow { range, reason } => {
                if let Some(membership) = self.membership {
                    membership.refuse_row(range, &reason)?;
                }
                self.flow.wake.notify_one();
            }
        }
        Ok(true)
    }
}

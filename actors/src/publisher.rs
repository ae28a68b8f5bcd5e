//! Publisher: the actor that owns the log's writer of one source.
//!
//! It takes batches in order, hands them to the log and answers once the log has accepted them;
//! what is durable the log tells by itself. It never decodes, never retries and never resends: an
//! error ends the pipeline, which is built again from the log's tail. Called by the decoder only,
//! through [`PublisherHandle`].

use actix::{
    Actor, ActorFutureExt as _, Addr, ArbiterHandle, AtomicResponse, Context, Handler,
    MailboxError, Message, WrapFuture as _,
};
use pgcapture_engine::{batch::Batch, confirm::Origin};

use crate::{
    agent::Lease,
    log::{LogError, LogWriter, Tail},
    supervise::Alive,
};

/// Batches that may wait in the mailbox: with 256 KiB each, one MiB on top of the log's own queue.
/// The decoder awaits every answer, so more than one is seen only across a restart.
const MAILBOX_CAPACITY: usize = 4;

/// The actor.
pub(crate) struct Publisher {
    /// Taken while an append is under way; the mailbox is blocked then.
    writer: Option<Box<dyn LogWriter>>,
    /// Without it nothing more is appended, whatever still waits in the mailbox.
    lease: Lease,
    _alive: Alive,
}

/// Order: append this batch.
#[derive(Message)]
#[rtype(result = "Result<(), LogError>")]
struct DecodedBatch(Batch);

/// Order: answer when everything accepted is durable.
#[derive(Message)]
#[rtype(result = "Result<Tail, LogError>")]
struct Flush;

/// Order: start the log anew here.
#[derive(Message)]
#[rtype(result = "Result<Tail, LogError>")]
struct StartAnew(Origin);

/// Why a batch was not published. Its outcome is unknown: read the log's tail.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The log refused.
    #[error("the log did not take a batch")]
    Log(#[from] LogError),
    /// The publisher has ended, by a panic or because the pipeline ends.
    #[error("the publisher is gone")]
    Gone,
}

impl From<MailboxError> for PublishError {
    fn from(_: MailboxError) -> Self {
        Self::Gone
    }
}

/// The door to a publisher.
#[derive(Clone, Debug)]
pub(crate) struct PublisherHandle {
    addr: Addr<Publisher>,
}

impl PublisherHandle {
    /// Hands a batch to the log and returns when the log has accepted it. Dropping the call may
    /// or may not publish the batch.
    pub(crate) async fn publish(&self, batch: Batch) -> Result<(), PublishError> {
        Ok(self.addr.send(DecodedBatch(batch)).await??)
    }

    /// Waits until everything published is durable and returns the log's end.
    pub(crate) async fn flush(&self) -> Result<Tail, PublishError> {
        Ok(self.addr.send(Flush).await??)
    }

    /// Starts the log anew; see [`LogWriter::reset`].
    pub(crate) async fn start_anew(&self, origin: Origin) -> Result<Tail, PublishError> {
        Ok(self.addr.send(StartAnew(origin)).await??)
    }
}

impl Publisher {
    /// Starts a publisher on an arbiter.
    pub(crate) fn start(
        arbiter: &ArbiterHandle,
        writer: Box<dyn LogWriter>,
        lease: Lease,
        alive: Alive,
    ) -> PublisherHandle {
        let addr = Self::start_in_arbiter(arbiter, move |_| Self {
            writer: Some(writer),
            lease,
            _alive: alive,
        });
        PublisherHandle { addr }
    }
}

impl Actor for Publisher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<DecodedBatch> for Publisher {
    // Atomic: the next batch must not overtake this one.
    type Result = AtomicResponse<Self, Result<(), LogError>>;

    fn handle(&mut self, DecodedBatch(batch): DecodedBatch, _: &mut Self::Context) -> Self::Result {
        let lease = self.lease.clone();
        self.with_writer(async move |writer| {
            if !lease.is_held() {
                let reason = "the node cannot prove its right to write it".to_owned();
                return Err(LogError::Closed { reason });
            }
            writer.append(batch).await
        })
    }
}

impl Handler<StartAnew> for Publisher {
    type Result = AtomicResponse<Self, Result<Tail, LogError>>;

    fn handle(&mut self, StartAnew(origin): StartAnew, _: &mut Self::Context) -> Self::Result {
        self.with_writer(async move |writer| writer.reset(origin).await)
    }
}

impl Handler<Flush> for Publisher {
    type Result = AtomicResponse<Self, Result<Tail, LogError>>;

    fn handle(&mut self, _: Flush, _: &mut Self::Context) -> Self::Result {
        self.with_writer(async |writer| writer.flush().await)
    }
}

impl Publisher {
    /// Lends the writer to a future while the mailbox waits. It does not come back from a future
    /// that panicked: the publisher is of no use then, and says so.
    fn with_writer<T: 'static>(
        &mut self,
        work: impl AsyncFnOnce(&mut dyn LogWriter) -> Result<T, LogError> + 'static,
    ) -> AtomicResponse<Self, Result<T, LogError>> {
        let mut writer = self.writer.take();
        let work = async move {
            let result = match &mut writer {
                Some(writer) => work(writer.as_mut()).await,
                None => Err(LogError::Closed {
                    reason: "its writer is gone".to_owned(),
                }),
            };
            (writer, result)
        };
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            |(writer, result), actor, _| {
                actor.writer = writer;
                result
            },
        )))
    }
}

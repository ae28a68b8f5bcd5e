//! Decoder: the actor that owns the reading of one slot.
//!
//! Its owned task ([`slot_reader`]) reads pgoutput messages, follows the slot by walsender or
//! catches up by COPY, decodes with the engine's value and publishes batches. The actor itself is
//! mailbox, role and lifetime: it is told what may be confirmed to PostgreSQL, which comes from what
//! became durable and nothing else, and is asked to drain. It never touches the log.

pub(crate) mod asked;
mod catch_up;
mod follow;
pub(crate) mod meter;
pub(crate) mod slot_reader;

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, Addr, ArbiterHandle, AsyncContext as _, Context,
    Handler, Message, WrapFuture as _,
};
use pgcapture_engine::lsn::Lsn;
use tokio::sync::{oneshot, watch};
use tracing::debug;

use crate::{agent::error::AgentError, supervise::Task};

/// Positions are told at most 50 times a second and an order comes once: a handful is plenty.
const MAILBOX_CAPACITY: usize = 4;

/// The actor.
pub(crate) struct Decoder {
    /// Taken when the actor starts: the wait for its end.
    reader: Option<Task<Result<(), AgentError>>>,
    /// What may be confirmed; the reader's streams report it to PostgreSQL.
    confirmable: watch::Sender<Lsn>,
    /// Takes the reader's result; dropped without one when the actor panicked.
    ended: Option<oneshot::Sender<Result<(), AgentError>>>,
}

/// Event: everything up to here may be confirmed.
#[derive(Message)]
#[rtype(result = "()")]
struct Confirmable(Lsn);

/// Order: end now, and the reader with you.
#[derive(Message)]
#[rtype(result = "()")]
struct Stop;

/// The door to a decoder.
#[derive(Clone, Debug)]
pub(crate) struct DecoderHandle {
    addr: Addr<Decoder>,
}

impl DecoderHandle {
    /// Tells what may be confirmed to PostgreSQL.
    pub(crate) async fn confirmable(&self, lsn: Lsn) -> Result<(), AgentError> {
        self.addr
            .send(Confirmable(lsn))
            .await
            .map_err(|_| AgentError::ActorGone("decoder"))
    }

    /// Ends the actor and its reader where they are, if they still live.
    pub(crate) async fn stop(&self) {
        if self.addr.send(Stop).await.is_err() {
            debug!("the decoder had ended before it was stopped");
        }
    }
}

impl Decoder {
    /// Starts a decoder on an arbiter around its running reader. The receiver gets the reader's
    /// result, or an error when the actor itself panicked.
    pub(crate) fn start(
        arbiter: &ArbiterHandle,
        reader: Task<Result<(), AgentError>>,
        confirmable: watch::Sender<Lsn>,
    ) -> (DecoderHandle, oneshot::Receiver<Result<(), AgentError>>) {
        let (ended_tx, ended) = oneshot::channel();
        let addr = Self::start_in_arbiter(arbiter, move |_| Self {
            reader: Some(reader),
            confirmable,
            ended: Some(ended_tx),
        });
        (DecoderHandle { addr }, ended)
    }
}

impl Actor for Decoder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        let wait = async move { reader.join().await };
        ctx.spawn(wait.into_actor(self).map(|result, actor, ctx| {
            let result =
                result.unwrap_or_else(|end| Err(AgentError::TaskEnded("slot reader", end)));
            if let Some(ended) = actor.ended.take() {
                // The pipeline that waits may have been dropped; then nobody is left to tell.
                drop(ended.send(result));
            }
            ctx.stop();
        }));
    }
}

impl Handler<Confirmable> for Decoder {
    type Result = ();

    fn handle(&mut self, Confirmable(lsn): Confirmable, _: &mut Self::Context) {
        self.confirmable.send_if_modified(|confirmable| {
            let is_newer = *confirmable < lsn;
            *confirmable = lsn.max(*confirmable);
            is_newer
        });
    }
}

impl Handler<Stop> for Decoder {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

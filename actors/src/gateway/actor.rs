//! The actors `Gateway` and `GatewaySession`: mailbox, role and lifetime of what the sessions do.
//!
//! `Gateway` takes the orders for the whole node and is built anew after a panic; what it needs for
//! that lives in the hub. A `GatewaySession` owns the task that serves one consumer: it ends with
//! the task, the task ends with it, and a panic in one session is nobody else's.

use std::{sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, MailboxError,
    Message, ResponseFuture, WrapFuture,
};
use tokio::sync::watch;

use super::{
    error::{CaptureError, EndReason},
    hub::{Hub, Seat},
    session::{self, Session},
};
use crate::supervise::{Alive, Task, TaskKind, spawn, supervise};

/// Orders to the gateway that may wait: as many consumers may open streams at the same moment.
const GATEWAY_MAILBOX: usize = 256;

/// Orders to a session: only its end.
const SESSION_MAILBOX: usize = 2;

/// Pause before a gateway that panicked is built anew.
const REBUILD_PAUSE: Duration = Duration::from_millis(100);

/// Starts the gateway of a node.
pub(super) fn start(hub: &Arc<Hub>) -> Door {
    let shared = Arc::clone(hub);
    let build = move |alive| Gateway {
        saver: None,
        hub: Arc::clone(&shared),
        _alive: alive,
    };
    Door {
        addr: supervise("gateway", build, REBUILD_PAUSE, hub.stopped()),
    }
}

/// The way to the gateway, whichever life of it.
#[derive(Clone, Debug)]
pub(super) struct Door {
    addr: watch::Receiver<Option<Addr<Gateway>>>,
}

impl Door {
    /// Sends an order, waiting while the gateway is being built.
    pub(super) async fn send<M>(&self, order: M) -> Result<M::Result, CaptureError>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        Gateway: Handler<M>,
    {
        let mut addr = self.addr.clone();
        let stopped = CaptureError::Ended(EndReason::Draining);
        let Ok(found) = addr
            .wait_for(Option::is_some)
            .await
            .map(|addr| addr.clone())
        else {
            return Err(stopped);
        };
        let Some(gateway) = found else {
            return Err(stopped);
        };
        gateway.send(order).await.map_err(|error| match error {
            MailboxError::Closed | MailboxError::Timeout => CaptureError::Failed,
        })
    }
}

/// Takes the orders of a node.
pub(super) struct Gateway {
    hub: Arc<Hub>,
    saver: Option<Task<()>>,
    _alive: Alive,
}

impl Actor for Gateway {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(GATEWAY_MAILBOX);
        let saving = Arc::clone(&self.hub).keep_saving();
        self.saver = Some(spawn(TaskKind::CursorSaver, "cursors", saving));
    }
}

/// Order: serve this consumer.
#[derive(Message)]
#[rtype(result = "Result<(), CaptureError>")]
pub(super) struct StartSession(pub(super) Session);

impl Handler<StartSession> for Gateway {
    type Result = Result<(), CaptureError>;

    fn handle(
        &mut self,
        StartSession(session): StartSession,
        _: &mut Self::Context,
    ) -> Self::Result {
        let key = self.hub.admit_session()?;
        let hub = Arc::clone(&self.hub);
        GatewaySession::create(|ctx| {
            let seat = hub.seat(key, ctx.address());
            GatewaySession::new(session, seat, key, hub)
        });
        Ok(())
    }
}

/// Order: end the sessions of a subscription, or all. Answered once all were told.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct EndSessions {
    pub(super) id: Option<crate::cursors::SubscriptionId>,
    pub(super) reason: EndReason,
}

impl Handler<EndSessions> for Gateway {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, order: EndSessions, _: &mut Self::Context) -> Self::Result {
        let sessions = self.hub.session_addrs(order.id.as_ref());
        Box::pin(async move {
            for session in sessions {
                if session.send(EndSession(order.reason)).await.is_err() {
                    tracing::debug!("a session ended by itself before its order came");
                }
            }
        })
    }
}

/// Serves one consumer.
pub(super) struct GatewaySession {
    /// Taken when the actor starts.
    setup: Option<(Session, Seat)>,
    key: u64,
    hub: Arc<Hub>,
    order: watch::Sender<Option<EndReason>>,
}

impl GatewaySession {
    fn new(session: Session, seat: Seat, key: u64, hub: Arc<Hub>) -> Self {
        Self {
            setup: Some((session, seat)),
            key,
            hub,
            order: watch::Sender::new(None),
        }
    }
}

impl Actor for GatewaySession {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(SESSION_MAILBOX);
        let Some((session, seat)) = self.setup.take() else {
            return ctx.stop();
        };
        let serving = session::serve(
            session,
            self.key,
            Arc::clone(&self.hub),
            self.order.subscribe(),
        );
        let mut task = spawn(TaskKind::Session, "capture", serving);
        // The future owns the task and the seat: whichever way the actor ends, both go.
        let ended = async move {
            let _seat = seat;
            task.join().await
        };
        ctx.spawn(ended.into_actor(self).map(|end, _, ctx| {
            if let Err(error) = end {
                tracing::error!(%error, "a session failed; the others go on");
                metrics::counter!("pgcapture_actor_restarts_total", "actor" => "gateway_session")
                    .increment(1);
            }
            ctx.stop();
        }));
    }
}

/// Order: end the stream for this reason.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct EndSession(pub(super) EndReason);

impl Handler<EndSession> for GatewaySession {
    type Result = ();

    fn handle(&mut self, EndSession(reason): EndSession, _: &mut Self::Context) {
        self.order.send_replace(Some(reason));
    }
}

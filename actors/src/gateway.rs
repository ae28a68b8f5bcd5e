//! Serves consumers: sessions, their subscriptions, the acknowledgements.
//!
//! [`GatewayHandle`] is the door. Behind it one `Gateway` actor a node takes orders (join, end,
//! drain) and starts one `GatewaySession` actor for each Capture stream. A session *pulls* batches
//! from its subscription while its consumer has room: a consumer that is slow or stuck has nothing
//! queued, holds up nobody and costs no memory. Nothing here knows gRPC: requests come in through
//! [`RequestSource`], framed messages go out through [`Deliveries`].
//!
//! # Invariants
//!
//! - Rows of dumps join the stream at their exact position: after every change before it, before
//!   every change from it on (`ranges`).
//! - An acknowledgement counts once its cursor is durable; cursors are saved together, every
//!   [`CURSOR_SAVE_INTERVAL`] and when a session ends.
//! - A position that retention has removed is an error, never a silent later start.

mod actor;
mod delivery;
mod error;
mod feed;
mod hub;
mod intake;
mod limits;
mod membership;
mod meters;
mod peek;
mod ranges;
mod session;
mod start;
mod status;
mod subscription;
mod writer;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use pgcapture_engine::capture_options::StartAt;

use self::{
    actor::{Door, EndSessions, StartSession},
    hub::Hub,
};
pub use self::{
    error::{CaptureError, EndReason, GatewayError, RequestError},
    limits::GatewayLimits,
    session::{Deliveries, RequestSource, Requested},
    status::SubscriptionStatus,
    writer::Chunk,
};
pub use crate::cursors::CURSOR_SAVE_INTERVAL;
use crate::{
    cursors::{CursorStore, SubscriptionId},
    dump::RangeSource,
    log::ChangeLog,
};

/// The door to the gateway of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GatewayHandle {
    hub: Arc<Hub>,
    door: Door,
}

impl GatewayHandle {
    /// Starts the gateway; it runs until [`Self::drain`] has returned.
    ///
    /// # Panics
    ///
    /// Outside an actix `System` on a tokio runtime.
    #[must_use]
    pub fn start(
        resolver: Arc<dyn SourceResolver>,
        cursors: Arc<dyn CursorStore>,
        ranges: Arc<dyn RangeSource>,
        limits: GatewayLimits,
    ) -> Self {
        let hub = Arc::new(Hub::new(resolver, cursors, ranges, limits));
        let door = actor::start(&hub);
        Self { hub, door }
    }

    /// Opens a session; what it delivers, and why it ended, comes out of the answer. Dropping the
    /// answer ends the session.
    ///
    /// # Errors
    ///
    /// [`CaptureError`] when the node takes no more sessions. Everything that is wrong with the
    /// requests themselves comes out of the answer.
    pub async fn capture(
        &self,
        requests: Box<dyn RequestSource>,
    ) -> Result<Deliveries, CaptureError> {
        let (session, deliveries) = session::pair(requests);
        self.door.send(StartSession(session)).await??;
        Ok(deliveries)
    }

    /// Returns every subscription, connected or not, in the order of their names.
    ///
    /// # Errors
    ///
    /// [`GatewayError::Cursors`] when the store cannot be read.
    pub async fn subscriptions(&self) -> Result<Vec<SubscriptionStatus>, GatewayError> {
        status::all(&self.hub).await
    }

    /// Moves a subscription: it goes on at `start`, durable on return. Connected sessions are ended
    /// with ABORTED first, so that no acknowledgement of the old position mixes with the new one;
    /// consumers that reconnect continue at the new position. Creates the subscription if there
    /// is none.
    ///
    /// # Errors
    ///
    /// [`GatewayError`] when the stream is unknown, the position is not in the log, or another node keeps
    /// the subscription: nothing has moved then. With [`GatewayError::Cursors`] it may have moved; the
    /// same order again is safe.
    pub async fn seek(&self, id: &SubscriptionId, start: StartAt) -> Result<(), GatewayError> {
        let resolved = self.hub.resolve_id(id).await?;
        let position = start::find_position(&resolved.log, start).await?;
        self.end_sessions(Some(id), EndReason::Moved).await?;
        self.hub.seek(id, position).await
    }

    /// Forgets a subscription and its cursor. Connected sessions are ended with ABORTED; a consumer
    /// that reconnects begins a new one. The second call does nothing.
    ///
    /// # Errors
    ///
    /// [`GatewayError::Cursors`] when the store cannot be written.
    pub async fn remove(&self, id: &SubscriptionId) -> Result<(), GatewayError> {
        self.end_sessions(Some(id), EndReason::Removed).await?;
        self.hub.forget(id).await
    }

    /// Waits until a subscription has no session, saves its cursor and lets it go: another node may load
    /// it then. A session that comes meanwhile must be kept away by the caller.
    ///
    /// # Errors
    ///
    /// [`GatewayError::Cursors`] when the cursor cannot be saved; the subscription stays here.
    pub async fn release(&self, id: &SubscriptionId) -> Result<(), GatewayError> {
        self.hub.wait_until_left(Some(id)).await;
        self.hub.save_cursors().await?;
        self.hub.let_go(id);
        Ok(())
    }

    /// Gives up a subscription that another node has taken over: its cursor is not saved any more,
    /// and its sessions end with UNAVAILABLE.
    ///
    /// # Errors
    ///
    /// [`GatewayError::Stopped`] when the gateway has stopped.
    pub async fn give_up(&self, id: &SubscriptionId) -> Result<(), GatewayError> {
        self.hub.disown(id);
        self.end_sessions(Some(id), EndReason::Elsewhere).await?;
        self.hub.let_go(id);
        Ok(())
    }

    /// To be called once this node has become the home of subscriptions, which another one may have been
    /// meanwhile: books that are in memory are given up unless they go on from what is saved, and
    /// sessions that use them end with UNAVAILABLE.
    pub async fn renew(&self, ids: &[SubscriptionId]) {
        self.hub.renew(ids).await;
    }

    /// Takes no more sessions, lets the connected ones finish what they acknowledged, ends them with
    /// UNAVAILABLE and saves every cursor. The second call waits for the same end.
    ///
    /// # Errors
    ///
    /// [`GatewayError::Cursors`] when the last cursors cannot be saved: what they stood for is
    /// delivered again.
    pub async fn drain(&self) -> Result<(), GatewayError> {
        self.hub.refuse_sessions();
        self.end_sessions(None, EndReason::Draining).await?;
        self.hub.wait_for_intakes().await;
        self.hub.save_cursors().await?;
        self.hub.stop();
        Ok(())
    }

    /// Ends sessions and waits until they have left.
    async fn end_sessions(
        &self,
        id: Option<&SubscriptionId>,
        reason: EndReason,
    ) -> Result<(), GatewayError> {
        let order = EndSessions {
            id: id.cloned(),
            reason,
        };
        self.door
            .send(order)
            .await
            .map_err(|_| GatewayError::Stopped)?;
        self.hub.wait_until_left(id).await;
        Ok(())
    }
}

/// Finds what a consumer's uri stands for. Library users may bring their own.
#[async_trait]
pub trait SourceResolver: Debug + Send + Sync {
    /// Resolves a uri.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] with the reason; an unknown uri names those that exist.
    async fn resolve(&self, uri: &str) -> Result<Resolved, ResolveError>;
}

/// What a uri stands for.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The subscription that all sessions of the uri share.
    pub subscription: SubscriptionId,
    /// The log it reads.
    pub log: Arc<dyn ChangeLog>,
}

/// A uri could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no such stream.
    #[error("unknown uri \"{uri}\"; known streams: {known}")]
    Unknown {
        /// What was asked for.
        uri: String,
        /// The streams that exist, joined by commas, or "none yet".
        known: String,
    },
    /// The stream exists but its log cannot be read here now.
    #[error("stream \"{stream}\" cannot be read now: {reason}")]
    Unavailable {
        /// The stream.
        stream: String,
        /// Why.
        reason: String,
    },
}

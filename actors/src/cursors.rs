//! Durable cursors of subscriptions: the seam between the gateway and what keeps its state.
//!
//! One node keeps them in its own store; a cluster keeps them in the replicated state. An
//! acknowledgement counts once [`CursorStore::save`] has returned.

use std::fmt::Debug;

use async_trait::async_trait;
use pgcapture_engine::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

/// How far a subscription has acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Everything up to here is acknowledged or filtered out.
    pub floor: Checkpoint,
    /// Runs acknowledged above the floor: first and last, both included, in order; at most
    /// [`ACKED_RUNS_MAX`].
    pub acked_above: Vec<(Checkpoint, Checkpoint)>,
}

/// Runs of a cursor beyond this many are forgotten on save and are delivered again after a
/// restart; a cursor then stays below 32 KiB.
pub const ACKED_RUNS_MAX: usize = 1_000;

/// Name of a subscription: the stream it reads and its own name on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SubscriptionId {
    /// The stream.
    pub stream: String,
    /// The consumer's name; equal to the stream for uris that name only a stream.
    pub consumer: String,
}

/// Keeps cursors durably.
#[async_trait]
pub trait CursorStore: Debug + Send + Sync {
    /// Returns a subscription's cursor, `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    async fn load(&self, id: &SubscriptionId) -> Result<Option<Cursor>, CursorError>;

    /// Makes all cursors durable at once, or none.
    ///
    /// # Errors
    ///
    /// When the store cannot be written; nothing counts then.
    async fn save(&self, cursors: Vec<(SubscriptionId, Cursor)>) -> Result<(), CursorError>;

    /// Forgets a subscription. The second call does nothing.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    async fn remove(&self, id: &SubscriptionId) -> Result<(), CursorError>;

    /// Returns all subscriptions with their cursors.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, CursorError>;
}

/// The store failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot keep cursors: {reason}")]
pub struct CursorError {
    /// What the store said.
    pub reason: String,
}

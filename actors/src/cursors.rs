//! Durable cursors of subscriptions: the seam between the gateway and what keeps its state.
//!
//! One node keeps them in its own store; a cluster keeps them in the replicated state. An
//! acknowledgement counts once [`CursorStore::save`] has returned.

use std::fmt::Debug;

use async_trait::async_trait;
pub use pgcapture_engine::cluster::{ACKED_RUNS_MAX, Cursor, SubscriptionId};

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

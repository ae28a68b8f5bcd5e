//! Durable cursors of subscriptions: the seam between the gateway and what keeps its state.
//!
//! They are part of what nodes agree on, so that a session goes on anywhere. An
//! acknowledgement counts once [`CursorStore::save`] has returned.

use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;
pub use pgcapture_engine::cluster::{ACKED_RUNS_MAX, Cursor, SubscriptionId};
use pgcapture_engine::codes::{self, Explanation};

/// Cursors that moved are made durable together at this pace: ten small writes a second, and after
/// a crash at most this much is delivered again.
pub const CURSOR_SAVE_INTERVAL: Duration = Duration::from_millis(100);

/// Keeps cursors durably.
#[async_trait]
pub trait CursorStore: Debug + Send + Sync {
    /// Returns a subscription's cursor, `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    async fn load(&self, id: &SubscriptionId) -> Result<Option<Cursor>, CursorError>;

    /// Makes cursors durable, and returns the subscriptions whose cursor was refused: another node
    /// keeps them, or has moved them further, or their stream is gone. What was acknowledged of those
    /// does not count.
    ///
    /// # Errors
    ///
    /// When the store cannot be written; none counts then, though some may be durable.
    async fn save(
        &self,
        cursors: Vec<(SubscriptionId, Cursor)>,
    ) -> Result<Vec<SubscriptionId>, CursorError>;

    /// Moves a cursor, back as well, durably; tells whether it was not refused.
    ///
    /// # Errors
    ///
    /// When the store cannot be written; it may have moved all the same.
    async fn seek(&self, id: &SubscriptionId, cursor: Cursor) -> Result<bool, CursorError> {
        let refused = self.save(vec![(id.clone(), cursor)]).await?;
        Ok(refused.is_empty())
    }

    /// Forgets a subscription. The second call does nothing.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    async fn remove(&self, id: &SubscriptionId) -> Result<(), CursorError>;

    /// Returns how long to wait between two saves that nobody waits for: every save costs all nodes
    /// a write.
    fn pace(&self) -> Duration {
        CURSOR_SAVE_INTERVAL
    }

    /// Returns all subscriptions with their cursors.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, CursorError>;
}

/// Keeps nothing, for a gateway whose consumers never come back: tests, and measurements of it alone.
#[derive(Debug)]
pub struct NoCursors;

#[async_trait]
impl CursorStore for NoCursors {
    async fn load(&self, _: &SubscriptionId) -> Result<Option<Cursor>, CursorError> {
        Ok(None)
    }

    async fn save(
        &self,
        _: Vec<(SubscriptionId, Cursor)>,
    ) -> Result<Vec<SubscriptionId>, CursorError> {
        Ok(Vec::new())
    }

    async fn remove(&self, _: &SubscriptionId) -> Result<(), CursorError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, CursorError> {
        Ok(Vec::new())
    }
}

/// The store failed, or nobody agreed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot keep cursors: {reason}")]
pub struct CursorError {
    /// What it means.
    pub explanation: &'static Explanation,
    /// What was said.
    pub reason: String,
}

impl CursorError {
    /// The disk did not take it.
    #[must_use]
    pub const fn of_store(reason: String) -> Self {
        Self {
            explanation: &codes::gateway::CURSOR_NOT_KEPT,
            reason,
        }
    }
}

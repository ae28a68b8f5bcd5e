//! Serves consumers: sessions, their subscriptions, the acknowledgements.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::{cursors::SubscriptionId, log::ChangeLog};

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

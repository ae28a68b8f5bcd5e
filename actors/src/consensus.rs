//! The agreed state of the cluster: all that actors know about how nodes agree.
//!
//! One node keeps it in its own store; a cluster puts Raft behind the same trait. Whoever wants a
//! change proposes it; whoever depends on the state watches it.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use pgcapture_engine::cluster::{Answer, Command, Refusal, State};
use tokio::sync::watch;

/// The way to the agreed state. Cheap to clone behind an `Arc`.
#[async_trait]
pub trait Consensus: Debug + Send + Sync {
    /// Proposes a change and returns once it is agreed on and durable. The state that
    /// [`Self::state`] shows then contains it. When the call is dropped or times out, the change
    /// may have happened; commands are idempotent, propose again.
    ///
    /// # Errors
    ///
    /// [`ProposeError`].
    async fn propose(&self, command: Command) -> Result<Answer, ProposeError>;

    /// Watches the agreed state as this node knows it.
    fn state(&self) -> watch::Receiver<Arc<State>>;
}

/// A proposal did not get through.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The state refuses the command.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store could not keep it; nothing changed.
    #[error("the state cannot be kept: {reason}")]
    Store {
        /// What the store said, with a code.
        reason: String,
    },
}

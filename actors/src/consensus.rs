//! The agreed state of the cluster: all that actors know about how nodes agree.
//!
//! Raft stands behind this trait, for one node as for many. Whoever wants a change proposes it, on
//! any node; whoever depends on the state watches it. Being the leader is knowledge that may be old:
//! it says who shall look after the cluster, and is never a right to write anything.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use pgcapture_engine::{
    cluster::{Answer, Command, Refusal, State},
    codes::{self, Explanation},
};
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

    /// Watches who leads, as this node knows it.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// Proves that this node still leads: returns once a majority has said so after the call.
    ///
    /// # Errors
    ///
    /// [`ProposeError::Unavailable`] when it does not lead, or no majority answered in time.
    async fn confirm_leadership(&self) -> Result<(), ProposeError>;
}

/// Who leads the cluster, as one node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Grows with every election.
    pub term: u64,
    /// The leader's name; `None` while there is none that this node knows of.
    pub leader: Option<String>,
    /// Whether it is this node.
    pub is_me: bool,
}

impl Leadership {
    /// Returns what a node that is alone knows.
    #[must_use]
    pub fn alone(name: &str) -> Self {
        Self {
            term: 1,
            leader: Some(name.to_owned()),
            is_me: true,
        }
    }
}

/// A proposal did not get through.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The state refuses the command.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No majority of the nodes agreed within the deadline. The change may still happen.
    #[error("{}: no majority of the nodes agreed in time{}", codes::cluster::NO_QUORUM.code, display(reason))]
    Unavailable {
        /// What was seen last; may be empty.
        reason: String,
    },
    /// It is too large for an entry of the common log; nothing changed.
    #[error("{}: the change has {bytes} bytes, and the limit is {bytes_max}", codes::cluster::TOO_LARGE.code)]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What it may have.
        bytes_max: usize,
    },
    /// Everything that was agreed on is near what a node can keep, and this would add to it; nothing
    /// changed.
    #[error("{}: what was agreed on has {bytes} bytes, and nothing is added from {bytes_max} on", codes::cluster::STATE_FULL.code)]
    StateFull {
        /// Its encoded length.
        bytes: usize,
        /// What it may have.
        bytes_max: usize,
    },
    /// The store could not keep it; nothing changed.
    #[error("the state cannot be kept: {reason}")]
    Store {
        /// What the store said, with a code.
        reason: String,
    },
}

impl ProposeError {
    /// Returns what it means.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Refused(_) => &codes::node::CONFLICT,
            Self::Unavailable { .. } => &codes::cluster::NO_QUORUM,
            Self::TooLarge { .. } => &codes::cluster::TOO_LARGE,
            Self::StateFull { .. } => &codes::cluster::STATE_FULL,
            Self::Store { .. } => &codes::node::STORE_FAILED,
        }
    }

    /// Returns what happened without the code, for whoever shows that by itself.
    #[must_use]
    pub fn text(&self) -> String {
        let text = match self {
            Self::Store { reason } => reason.clone(),
            Self::Refused(_)
            | Self::Unavailable { .. }
            | Self::TooLarge { .. }
            | Self::StateFull { .. } => self.to_string(),
        };
        let coded = text.strip_prefix(self.explanation().code);
        let bare = coded.and_then(|text| text.strip_prefix(": "));
        bare.map(str::to_owned).unwrap_or(text)
    }
}

fn display(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

//! Why a group cannot be started or changed.

use std::io;

use pgcapture_engine::codes::{self, Explanation};

use crate::store::StoreError;

/// The group cannot be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something with a code.
    #[error("{}: {text}", explanation.code)]
    Coded {
        /// What it means.
        explanation: &'static Explanation,
        /// What happened.
        text: String,
    },
}

impl RaftError {
    /// Returns what the error means and what to do.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Store(error) => error.explanation(),
            Self::Coded { explanation, .. } => explanation,
        }
    }

    pub(super) fn broken(what: impl std::fmt::Display) -> Self {
        Self::Coded {
            explanation: &codes::node::STORE_FAILED,
            text: what.to_string(),
        }
    }
}

impl From<io::Error> for RaftError {
    fn from(error: io::Error) -> Self {
        Self::broken(error)
    }
}

//! Everything that can end a pipeline, and the one answer to it: retry, rebuild, ask, halt.

use std::error::Error as _;

use pgcapture_engine::{
    checkpoint::Epoch,
    codes::{Explanation, log, source},
    decoder::DecodeError,
    lsn::Lsn,
};

use crate::{
    agent::{HostError, Trouble},
    log::{LogError, LogHealth},
    postgres::{PgError, Remedy},
    publisher::PublishError,
    supervise::TaskEnd,
};

/// Why a pipeline ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// PostgreSQL, or the way to it.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log is of no more use until it is opened again.
    #[error("{reason}")]
    LogFailed {
        /// What the log says.
        reason: String,
    },
    /// The node around the agent.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The stream could not be decoded.
    #[error("cannot decode the stream of slot \"{slot}\"")]
    Decode {
        /// The slot.
        slot: String,
        /// What was wrong.
        #[source]
        source: DecodeError,
    },
    /// Changes cannot be had any more; the hole is declared in the log.
    #[error("{detail}; the log ends at {from}")]
    Gap {
        /// Its meaning.
        explanation: &'static Explanation,
        /// End of what the log holds.
        from: Lsn,
        /// What happened.
        detail: String,
    },
    /// A newer agent of this cluster has the slot.
    #[error("slot \"{slot}\" is read under epoch {held}; this agent has epoch {own}")]
    Fenced {
        /// The slot.
        slot: String,
        /// The epoch of its holder.
        held: Epoch,
        /// The epoch of this agent.
        own: Epoch,
    },
    /// The node cannot prove its right any more.
    #[error("the node cannot prove its right to epoch {0}")]
    LeaseLost(Epoch),
    /// The server shuts down while the log takes nothing.
    #[error("the server shuts down")]
    ServerShutsDown,
    /// Asked to stop while the log takes nothing.
    #[error("stopped while the log took nothing")]
    DrainedWhileBlocked,
    /// An actor of the pipeline has ended by a panic.
    #[error("the {0} is gone")]
    ActorGone(&'static str),
    /// A task of the pipeline has ended by a panic.
    #[error("the {0} task {1}")]
    TaskEnded(&'static str, TaskEnd),
}

impl From<PublishError> for AgentError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Log(error) => Self::Log(error),
            PublishError::Gone => Self::ActorGone("publisher"),
        }
    }
}

impl AgentError {
    /// Returns what the error means.
    #[must_use]
    pub fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Postgres(error) => error.explanation(),
            Self::Host(error) => error.explanation,
            Self::LogFailed { .. } => &log::WRITE_FAILED,
            Self::Log(error) => error.explanation().unwrap_or(&source::PIPELINE_REBUILT),
            Self::Decode { source, .. } => source.explanation(),
            Self::Gap { explanation, .. } => explanation,
            Self::ServerShutsDown => &source::SERVER_UNAVAILABLE,
            Self::Fenced { .. } => &source::FENCED,
            Self::LeaseLost(_) => &source::LEASE_LOST,
            Self::DrainedWhileBlocked | Self::ActorGone(_) | Self::TaskEnded(..) => {
                &source::PIPELINE_REBUILT
            }
        }
    }

    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.explanation().code
    }

    /// Returns what lies behind the error: a log that has failed ends whatever uses it.
    pub(super) fn or_failed_log(self, health: &LogHealth) -> Self {
        match health {
            LogHealth::Failed { reason } => {
                // Whoever shows the error puts the code before it.
                let code = log::WRITE_FAILED.code;
                let told = reason
                    .strip_prefix(code)
                    .and_then(|rest| rest.strip_prefix(": "));
                let reason = told.unwrap_or(reason).to_owned();
                Self::LogFailed { reason }
            }
            LogHealth::Writable | LogHealth::Blocked { .. } => self,
        }
    }

    /// Returns what the owner of the pipeline should do.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Postgres(error) => error.remedy(),
            Self::Log(error) => match error {
                LogError::Fenced { .. }
                | LogError::Corrupt { .. }
                | LogError::NewerVersion { .. } => Remedy::Halt,
                LogError::InUse { .. } | LogError::Io { .. } => Remedy::AskOperator,
                LogError::Removed { .. }
                | LogError::OutOfOrder { .. }
                | LogError::Away { .. }
                | LogError::Closed { .. } => Remedy::Rebuild,
            },
            Self::Decode { source, .. } if source.is_definite() => Remedy::Halt,
            Self::Gap { .. } | Self::Fenced { .. } => Remedy::Halt,
            Self::Host(_) | Self::LogFailed { .. } => Remedy::AskOperator,
            Self::ServerShutsDown => Remedy::Retry,
            Self::Decode { .. }
            | Self::LeaseLost(_)
            | Self::DrainedWhileBlocked
            | Self::ActorGone(_)
            | Self::TaskEnded(..) => Remedy::Rebuild,
        }
    }

    /// Returns the error as an operator reads it: the whole chain of causes, and what to do.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        let explanation = self.explanation();
        Trouble {
            code: explanation.code,
            text,
            next: explanation.next.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_whole_chain_is_told_once() {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        let error = AgentError::from(PgError::Connect {
            target: "db:5432".to_owned(),
            source: refused,
        });
        assert_eq!(error.trouble().text, "cannot connect to db:5432: refused");
        assert_eq!(error.remedy(), Remedy::Retry);
    }

    #[test]
    fn a_failed_log_is_told_without_its_code_which_comes_beside_it() {
        let failed = |reason: &str| {
            let health = LogHealth::Failed {
                reason: reason.to_owned(),
            };
            AgentError::ServerShutsDown.or_failed_log(&health).trouble()
        };
        let trouble = failed("PGC-L02: the log cannot be written: cannot sync x");
        assert_eq!(trouble.code, "PGC-L02");
        assert_eq!(trouble.text, "the log cannot be written: cannot sync x");
        assert_eq!(failed("its thread ended").text, "its thread ended");
    }

    #[test]
    fn a_gap_is_never_retried() {
        let explanation = &source::SLOT_MISSING;
        let gap = AgentError::Gap {
            explanation,
            from: Lsn(1),
            detail: String::new(),
        };
        assert_eq!(gap.remedy(), Remedy::Halt);
    }
}

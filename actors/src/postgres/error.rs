//! What can go wrong with a PostgreSQL, and what it means for the pipeline.
//!
//! Every error has a stable code, a next step and a [`Remedy`]. What the server says is classified
//! by SQLSTATE and by the name of the server's function (both are the same in every language the
//! server may speak); its text is only passed on.

use std::{io, time::Duration};

use pgcapture_engine::codes::{Explanation, source};

/// What the owner of a pipeline should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It passes by itself: try again after a pause.
    Retry,
    /// The connection or stream is gone, nothing else is known to be wrong: build the pipeline
    /// again from the tail of the log.
    Rebuild,
    /// It lasts until someone acts: tell, and try again seldom.
    AskOperator,
    /// Changes are lost or would be: stop, and never go on without a decision.
    Halt,
}

/// What the server answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{} (SQLSTATE {sqlstate})", dash(detail), dash(hint))]
pub struct ServerError {
    /// Five characters.
    pub sqlstate: String,
    /// `ERROR`, `FATAL`, `PANIC`; never translated.
    pub severity: String,
    /// What happened, in the server's language.
    pub message: String,
    /// More about it; may be empty.
    pub detail: String,
    /// The server's advice; may be empty.
    pub hint: String,
    /// The server's function that raised it; never translated.
    pub routine: String,
}

fn dash(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!("; {text}"),
    }
}

/// Why PostgreSQL could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// No host could be reached.
    #[error("cannot connect to {target}")]
    Connect {
        /// Which hosts.
        target: String,
        /// What the system said of the last one.
        #[source]
        source: io::Error,
    },
    /// A host took the connection but said nothing in time.
    #[error("{target} did not answer within {} s", waited.as_secs())]
    ConnectTimeout {
        /// Which host.
        target: String,
        /// The limit.
        waited: Duration,
    },
    /// Every host is read-only and the URL asks for `target_session_attrs=read-write`.
    #[error("{target} is read-only")]
    ReadOnly {
        /// Which host.
        target: String,
    },
    /// TLS is asked for and cannot be had.
    #[error("no TLS with {target}: {what}")]
    Tls {
        /// Which host.
        target: String,
        /// What failed.
        what: String,
    },
    /// The server wants a password and none is configured.
    #[error("{target} asks for a password and none is configured")]
    NoPassword {
        /// Which host.
        target: String,
    },
    /// A way to authenticate that is not known here, or a server that cannot prove itself.
    #[error("authentication failed: {0}")]
    Authentication(String),
    /// The server reported an error.
    #[error("PostgreSQL: {0}")]
    Server(Box<ServerError>),
    /// The connection broke.
    #[error("the connection to PostgreSQL broke")]
    Io(#[source] io::Error),
    /// The server closed the connection without a word.
    #[error("PostgreSQL closed the connection")]
    Closed,
    /// Nothing arrived though an answer was asked for.
    #[error("nothing was heard from PostgreSQL for {} s", waited.as_secs())]
    Silent {
        /// The limit.
        waited: Duration,
    },
    /// Bytes that the protocol does not allow.
    #[error("PostgreSQL sent what the protocol does not allow: {0}")]
    Protocol(String),
    /// One message is larger than the configured limit.
    #[error("PostgreSQL sent a message of {bytes} bytes; the limit is {limit}")]
    MessageTooLarge {
        /// Size of the message.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A check before or while reading found what cannot work.
    #[error("{what}")]
    Check {
        /// Its meaning.
        explanation: &'static Explanation,
        /// What was found, with names.
        what: String,
    },
}

impl PgError {
    /// Makes the error of a check that failed.
    #[must_use]
    pub fn check(explanation: &'static Explanation, what: impl Into<String>) -> Self {
        Self::Check {
            explanation,
            what: what.into(),
        }
    }

    /// Returns what the error means.
    #[must_use]
    pub fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => &source::UNREACHABLE,
            Self::ReadOnly { .. } => &source::READ_ONLY,
            Self::Tls { .. } => &source::TLS_FAILED,
            Self::NoPassword { .. } | Self::Authentication(_) => &source::LOGIN_REFUSED,
            Self::Server(error) => error.explanation(),
            Self::Io(_) | Self::Closed | Self::Silent { .. } => &source::CONNECTION_LOST,
            Self::Protocol(_) => &source::PROTOCOL_BROKEN,
            Self::MessageTooLarge { .. } => &source::MESSAGE_TOO_LARGE,
            Self::Check { explanation, .. } => explanation,
        }
    }

    /// Returns the stable code, such as `PGC-S05`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.explanation().code
    }

    /// Returns the next step to take.
    #[must_use]
    pub fn next(&self) -> &'static str {
        self.explanation().next
    }

    /// Returns what the owner of a pipeline should do.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        remedy_of(self.explanation())
    }

    /// Returns what the server said, if it was the server.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::ReadOnly { .. }
            | Self::Tls { .. }
            | Self::NoPassword { .. }
            | Self::Authentication(_)
            | Self::Io(_)
            | Self::Closed
            | Self::Silent { .. }
            | Self::Protocol(_)
            | Self::MessageTooLarge { .. }
            | Self::Check { .. } => None,
        }
    }

    /// Tells whether the server answered with this SQLSTATE.
    #[must_use]
    pub fn has_sqlstate(&self, sqlstate: &str) -> bool {
        self.server_error()
            .is_some_and(|error| error.sqlstate == sqlstate)
    }
}

impl ServerError {
    fn explanation(&self) -> &'static Explanation {
        let class = self.sqlstate.get(..2).unwrap_or_default();
        let says = |text: &str| self.message.contains(text) || self.detail.contains(text);
        let routine = self.routine.as_str();
        match (self.sqlstate.as_str(), class) {
            (_, "28") => &source::LOGIN_REFUSED,
            ("3D000", _) => &source::DATABASE_MISSING,
            ("42501", _)
                if routine.contains("WalS") || says("replication") || says("WAL sender") =>
            {
                &source::NO_REPLICATION_RIGHT
            }
            ("42501", _) => &source::PRIVILEGE_MISSING,
            ("55000", _) if routine.contains("Requirements") || says("wal_level") => {
                &source::WAL_LEVEL
            }
            ("55000", _) if says("not created in this database") => &source::SLOT_OTHER_DATABASE,
            ("55000", _) if routine.contains("Slot") || says("slot") => &source::SLOT_INVALIDATED,
            ("58P01", _) if says("WAL segment") => &source::SLOT_INVALIDATED,
            ("53400", _) => &source::NO_FREE_SLOT,
            ("53300", _) if says("max_wal_senders") => &source::NO_FREE_WALSENDER,
            ("55006", _) => &source::SLOT_IN_USE,
            ("42704", _) if routine.contains("ublication") || says("publication") => {
                &source::PUBLICATION_MISSING
            }
            ("42704", _) if routine.contains("Slot") || says("slot") => &source::SLOT_MISSING,
            ("42710", _) if routine.contains("Slot") || says("slot") => &source::SLOT_EXISTS,
            (_, "57" | "08" | "53" | "58") => &source::SERVER_UNAVAILABLE,
            ("40001" | "40P01", _) => &source::SERVER_UNAVAILABLE,
            _ => &source::REFUSED,
        }
    }
}

fn remedy_of(explanation: &'static Explanation) -> Remedy {
    if source::RETRY.contains(&explanation.code) {
        Remedy::Retry
    } else if source::REBUILD.contains(&explanation.code) {
        Remedy::Rebuild
    } else if source::HALT.contains(&explanation.code) {
        Remedy::Halt
    } else {
        Remedy::AskOperator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, routine: &str, message: &str) -> PgError {
        PgError::Server(Box::new(ServerError {
            sqlstate: sqlstate.to_owned(),
            routine: routine.to_owned(),
            message: message.to_owned(),
            ..ServerError::default()
        }))
    }

    #[test]
    fn a_translated_message_keeps_its_code() {
        for (sqlstate, routine, message, code) in [
            (
                "55000",
                "CheckLogicalDecodingRequirements",
                "…",
                &source::WAL_LEVEL,
            ),
            (
                "42704",
                "ReplicationSlotAcquire",
                "…",
                &source::SLOT_MISSING,
            ),
            (
                "42704",
                "get_publication_oid",
                "…",
                &source::PUBLICATION_MISSING,
            ),
            ("55006", "ReplicationSlotAcquire", "…", &source::SLOT_IN_USE),
            ("28P01", "auth_failed", "…", &source::LOGIN_REFUSED),
            (
                "57P01",
                "ProcessInterrupts",
                "…",
                &source::SERVER_UNAVAILABLE,
            ),
            ("42601", "scanner_yyerror", "…", &source::REFUSED),
        ] {
            assert_eq!(server(sqlstate, routine, message).explanation(), code);
        }
    }

    #[test]
    fn a_lost_position_halts_and_a_lost_connection_does_not() {
        assert_eq!(PgError::Closed.remedy(), Remedy::Rebuild);
        assert_eq!(server("57P03", "", "").remedy(), Remedy::Retry);
        assert_eq!(
            server("42704", "ReplicationSlotAcquire", "").remedy(),
            Remedy::Halt
        );
        assert_eq!(server("28P01", "", "").remedy(), Remedy::AskOperator);
    }
}

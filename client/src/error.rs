//! What can go wrong between a consumer and a gateway.
//!
//! Definite answers of the gateway are returned; everything else is retried inside the
//! stream and never seen here, unless a limit was set. Values of rows and tokens never appear.

use std::{io, path::PathBuf, time::Duration};

use tonic::Code;

use crate::decode::DecodeError;

/// A hole in the stream that the gateway declares: changes in it may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Where it begins.
    pub from: crate::Lsn,
    /// Where it ends; `None` while that is not known.
    pub to: Option<crate::Lsn>,
    /// A stable word, such as `slot_lost`.
    pub reason: String,
    /// An explanation for people.
    pub detail: String,
}

/// An error of the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option makes no sense; nothing was sent.
    #[error("bad option: {0}")]
    Config(String),
    /// A file that was named in the options cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No connection to a node.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// The node.
        endpoint: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// A node and this client do not take each other's certificates.
    #[error(
        "{endpoint} and this client do not trust each other: {reason}; next: trust the authority that \
         made the node's certificate (ca_file), and show one of the authority that its [tls] client_ca \
         names (identity_files); `pgcapture cert issue NAME --client` makes one"
    )]
    Untrusted {
        /// The node.
        endpoint: String,
        /// Which side says what of the other's certificate.
        reason: String,
    },
    /// The gateway ended the stream with a status.
    #[error("the gateway answered {code:?}: {message}")]
    Status {
        /// The gRPC code.
        code: Code,
        /// What the gateway says.
        message: String,
    },
    /// The gateway sent what cannot be understood; trying again would not help.
    #[error("the gateway sent a message that cannot be read: {0}")]
    Protocol(&'static str),
    /// A row does not fit its type. Streams hand this to the callback instead.
    #[error("a change does not fit its type")]
    Decode(#[from] DecodeError),
    /// The gateway declared a gap and nothing said to go on.
    #[error("changes from {} on may be missing: {}", .0.from, .0.reason)]
    Gap(Gap),
    /// A handler panicked; its change was not acknowledged.
    #[error("a handler panicked")]
    HandlerPanicked,
    /// The stream was stopped or dropped.
    #[error("the stream is closed")]
    Closed,
    /// Something took too long.
    #[error("{what} took longer than {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
}

impl Error {
    /// Whether doing the same again may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // Files of certificates are read again for every stream.
            Self::Connect { .. } | Self::Untrusted { .. } | Self::Timeout { .. } => true,
            Self::Status { code, .. } => !is_definite(*code),
            Self::Config(_)
            | Self::File { .. }
            | Self::Protocol(_)
            | Self::Decode(_)
            | Self::Gap(_)
            | Self::HandlerPanicked
            | Self::Closed => false,
        }
    }

    /// The gRPC code, when the gateway answered with one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        if let Self::Status { code, .. } = self {
            Some(*code)
        } else {
            None
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Status {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

/// Answers that stay the same however often the question is asked.
fn is_definite(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_definite_answers_end_a_stream() {
        let status = |code| Error::Status {
            code,
            message: String::new(),
        };
        assert!(status(Code::Unavailable).is_retryable());
        assert!(status(Code::ResourceExhausted).is_retryable());
        assert!(!status(Code::NotFound).is_retryable());
        assert!(!status(Code::OutOfRange).is_retryable());
        assert_eq!(status(Code::NotFound).code(), Some(Code::NotFound));
        assert!(!Error::Closed.is_retryable());
    }
}

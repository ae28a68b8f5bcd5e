//! Why a session ends and why an order fails, with the stable codes of the family G.

use std::time::Duration;

use pgcapture_engine::{
    capture_options::OptionError,
    codes::{Explanation, gateway as codes},
    ledger::UnknownCheckpoint,
};

use super::ResolveError;
use crate::{cursors::CursorError, log::LogError};

/// Why a Capture stream ended.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The uri stands for nothing, or for something that cannot be read.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The first message was not init.
    #[error("the first message of a Capture stream must be init, with the uri of a stream")]
    NoInit,
    /// No message came in time.
    #[error("no init came within {0:?}")]
    InitTooLate(Duration),
    /// Init came twice.
    #[error("init came a second time; open another stream for another uri")]
    SecondInit,
    /// A parameter cannot be used.
    #[error(transparent)]
    Parameter(#[from] OptionError),
    /// An acknowledgement names what was never delivered.
    #[error(transparent)]
    UnknownCheckpoint(#[from] UnknownCheckpoint),
    /// What came is no request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The log cannot deliver the position.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The subscription is used in the other mode.
    #[error("the subscription is in use with Mode {used}; all its sessions must agree")]
    ModeDiffers {
        /// The mode of the connected sessions.
        used: &'static str,
    },
    /// The cursor cannot be read or saved.
    #[error(transparent)]
    Cursors(#[from] CursorError),
    /// A limit of the node is reached.
    #[error("the node has {count} {what}, as many as it may")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// The gateway ended the session.
    #[error("{}", .0.text())]
    Ended(EndReason),
    /// A defect ended the session; the others go on.
    #[error("the session failed inside the gateway")]
    Failed,
}

impl CaptureError {
    /// Returns what the error's code means.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Resolve(ResolveError::Unknown { .. }) => &codes::UNKNOWN_URI,
            Self::Resolve(ResolveError::Unavailable { .. }) => &codes::STREAM_UNAVAILABLE,
            Self::NoInit | Self::InitTooLate(_) => &codes::NO_INIT,
            Self::SecondInit => &codes::SECOND_INIT,
            Self::Parameter(_) => &codes::BAD_PARAMETER,
            Self::UnknownCheckpoint(_) => &codes::UNKNOWN_CHECKPOINT,
            Self::Request(RequestError::TooLarge { .. }) => &codes::REQUEST_TOO_LARGE,
            Self::Request(RequestError::Malformed { .. } | RequestError::Disconnected { .. }) => {
                &codes::MALFORMED_REQUEST
            }
            Self::Log(LogError::Removed { .. }) => &codes::POSITION_REMOVED,
            Self::Log(LogError::Corrupt { .. }) => &codes::STREAM_DAMAGED,
            Self::Log(
                LogError::Fenced { .. }
                | LogError::OutOfOrder { .. }
                | LogError::NewerVersion { .. }
                | LogError::InUse { .. }
                | LogError::Io { .. }
                | LogError::Away { .. }
                | LogError::Closed { .. },
            ) => &codes::STREAM_UNAVAILABLE,
            Self::ModeDiffers { .. } => &codes::MODE_DIFFERS,
            Self::Cursors(error) => error.explanation,
            Self::TooMany { .. } => &codes::TOO_MANY,
            Self::Ended(EndReason::Draining) => &codes::DRAINING,
            Self::Ended(EndReason::Moved | EndReason::Removed) => &codes::SUBSCRIPTION_MOVED,
            Self::Ended(EndReason::Elsewhere) => &codes::HOME_ELSEWHERE,
            Self::Failed => &codes::SESSION_FAILED,
        }
    }

    /// Tells whether the consumer went away by itself: nobody reads the status then.
    #[must_use]
    pub const fn is_disconnect(&self) -> bool {
        matches!(self, Self::Request(RequestError::Disconnected { .. }))
    }
}

/// Why the gateway ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The node stops.
    Draining,
    /// An operator moved the subscription.
    Moved,
    /// An operator removed the subscription.
    Removed,
    /// Another node keeps the subscription now.
    Elsewhere,
}

impl EndReason {
    const fn text(self) -> &'static str {
        match self {
            Self::Draining => "node is draining",
            Self::Moved => "the subscription was moved to another position",
            Self::Removed => "the subscription was removed",
            Self::Elsewhere => "another node keeps the subscription now",
        }
    }
}

/// A request could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is larger than allowed.
    #[error("a request of {length} bytes is larger than the limit of {most}")]
    TooLarge {
        /// Its length.
        length: usize,
        /// The limit.
        most: usize,
    },
    /// It is not a `CaptureRequest`.
    #[error("malformed request: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// The connection ended.
    #[error("the consumer disconnected: {reason}")]
    Disconnected {
        /// What the transport said.
        reason: String,
    },
}

/// Why an order to the gateway failed.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The stream is unknown or cannot be read.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The position is not in the log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The cursor cannot be read or saved.
    #[error(transparent)]
    Cursors(#[from] CursorError),
    /// The subscription is being used again already.
    #[error("a consumer reconnected meanwhile; try again")]
    Busy,
    /// The gateway has stopped.
    #[error("the gateway has stopped")]
    Stopped,
}

impl GatewayError {
    /// Returns what the error's code means.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Resolve(ResolveError::Unknown { .. }) => &codes::UNKNOWN_URI,
            Self::Log(LogError::Removed { .. }) => &codes::POSITION_REMOVED,
            Self::Resolve(ResolveError::Unavailable { .. }) | Self::Log(_) => {
                &codes::STREAM_UNAVAILABLE
            }
            Self::Cursors(error) => error.explanation,
            Self::Busy => &codes::SUBSCRIPTION_MOVED,
            Self::Stopped => &codes::DRAINING,
        }
    }
}

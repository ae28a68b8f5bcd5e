//! Why a command about a dump was refused.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{DumpAction, DumpState};
use crate::{
    codes::{self, Explanation},
    dump::{DumpId, PageRange, TableName},
};

/// Why a command about a dump was refused; the state did not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DumpRefusal {
    /// There is no such dump.
    #[error("unknown dump {id}; it never was, or is long over and forgotten")]
    Unknown {
        /// What was asked for.
        id: DumpId,
    },
    /// Another dump is in the way.
    #[error("dump {id} of \"{uri}\" is not over{}", table.as_ref().map_or_else(String::new, |table| format!(" and has table {table}")))]
    Active {
        /// Whose dump.
        uri: String,
        /// Which.
        id: DumpId,
        /// The table that both have, if that is why.
        table: Option<TableName>,
    },
    /// The dump is not in a state for that.
    #[error("cannot {} dump {id}: it is {}", action.as_str(), state.as_str())]
    WrongState {
        /// Which.
        id: DumpId,
        /// What was asked for.
        action: DumpAction,
        /// Where it stands.
        state: DumpState,
    },
    /// The dump cannot be forgotten yet.
    #[error("dump {id} is {}; cancel it first", state.as_str())]
    NotOver {
        /// Which.
        id: DumpId,
        /// Where it stands.
        state: DumpState,
    },
    /// Nothing to dump.
    #[error("a dump needs at least one table")]
    NoTable,
    /// Ends of a range are swapped.
    #[error("pages {}-{} of {table} run backwards", pages.first, pages.last)]
    Backwards {
        /// Of which table.
        table: TableName,
        /// The range.
        pages: PageRange,
    },
    /// A number is out of its limits.
    #[error("{option} is {found}; it must be {limits}")]
    Option {
        /// Which option.
        option: Cow<'static, str>,
        /// What was asked for.
        found: String,
        /// What may be asked for.
        limits: String,
    },
    /// A limit is reached.
    #[error("{what}: {count}, and the limit is {limit}")]
    TooMany {
        /// Of what.
        what: Cow<'static, str>,
        /// How many there would be.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
}

impl DumpRefusal {
    /// Returns what it means and what to do.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Unknown { .. } => &codes::dump::UNKNOWN,
            Self::Active { .. } => &codes::dump::ALREADY_ACTIVE,
            Self::WrongState { .. } | Self::NotOver { .. } => &codes::dump::WRONG_STATE,
            Self::Backwards { .. } => &codes::dump::PAGES_BACKWARDS,
            Self::NoTable | Self::Option { .. } | Self::TooMany { .. } => &codes::dump::BAD_REQUEST,
        }
    }
}

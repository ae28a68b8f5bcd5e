//! The definition of one replica, as it lies in the replicated state: where dumps are read from.
//!
//! All replicas of a source here share its page numbers: physical standbys do, and the source itself.
//! Holds where the password is, never the password; the url in it has none.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Answer, InvalidName, PROTOCOL_SECOND, Refusal, State, changed, check_name, join,
    source::SecretRef,
};
use crate::{
    codes::{self, Explanation},
    lsn::PgTime,
};

/// At most this many replicas; each is asked for its health every second.
pub const REPLICAS_MAX: usize = 1_000;

/// Ranges read from a replica at once when nothing else is said: enough for two dumps that say nothing, or
/// for one that asks for more at once; little enough that a small standby serves its own users.
pub const DEFAULT_RANGES_MAX: u32 = 4;

/// At most this many ranges are read from a replica at once; each is a connection.
pub const RANGES_MAX_LIMIT: u32 = 64;

/// Dumps pause while a replica is further behind than this, when nothing else is said.
pub const DEFAULT_LAG_MAX: Duration = Duration::from_secs(30);

/// A PostgreSQL that dumps of a source are read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// The source whose rows it has.
    pub source: String,
    /// Where PostgreSQL is, without a password.
    pub url: String,
    /// Where the password is; `None` when none is needed.
    pub password: Option<SecretRef>,
    /// What it is.
    pub kind: ReplicaKind,
    /// Identity of the source's server when it was added; a server of another one is not read.
    pub system_identifier: u64,
    /// Ranges read from it at once, at most.
    pub ranges_max: u32,
    /// Dumps pause while it is further behind than this.
    pub lag_max: Duration,
    /// When it was added.
    pub created_at: PgTime,
}

impl Replica {
    /// Tells whether both mean the same, whenever they were added.
    #[must_use]
    pub fn is_same_definition(&self, other: &Self) -> bool {
        let created_at = self.created_at;
        let other = Self {
            created_at,
            ..other.clone()
        };
        *self == other
    }
}

/// What a replica is; says how the position of a snapshot is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReplicaKind {
    /// A physical standby of the source.
    Standby,
    /// The source itself, for small set-ups.
    Source,
}

impl ReplicaKind {
    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Source => "source",
        }
    }
}

/// Why a command about a replica was refused; the state did not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReplicaRefusal {
    /// There is no such replica.
    #[error("unknown replica \"{name}\"; known replicas: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What exists, joined by commas, or "none yet".
        known: String,
    },
    /// A different replica has that name.
    #[error("replica \"{name}\" exists already with another definition")]
    Exists {
        /// The name.
        name: String,
    },
    /// A number is out of its limits.
    #[error("a replica reads 1 to {RANGES_MAX_LIMIT} ranges at once, not {ranges_max}")]
    RangesMax {
        /// What was asked for.
        ranges_max: u32,
    },
    /// The name breaks the rules.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// The cluster is full.
    #[error("there are {REPLICAS_MAX} replicas already, which is the limit")]
    TooMany,
}

impl ReplicaRefusal {
    /// Returns what it means and what to do.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Unknown { .. } => &codes::dump::UNKNOWN_REPLICA,
            Self::Exists { .. } | Self::RangesMax { .. } | Self::InvalidName(_) | Self::TooMany => {
                &codes::dump::BAD_REPLICA
            }
        }
    }
}

impl State {
    /// Finds a replica.
    ///
    /// # Errors
    ///
    /// [`ReplicaRefusal::Unknown`], which names those that exist.
    pub fn replica(&self, name: &str) -> Result<&Replica, Refusal> {
        self.replicas
            .get(name)
            .ok_or_else(|| self.unknown_replica(name).into())
    }

    /// Returns the replicas of a source, by name.
    pub fn replicas_of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Replica> {
        self.replicas
            .values()
            .filter(move |replica| replica.source == source)
    }

    /// Returns how many bytes of rows may be read from a replica a second, by all dumps together.
    #[must_use]
    pub fn replica_rate(&self, name: &str) -> Option<u64> {
        self.added.replica_rates.get(name).copied()
    }

    pub(super) fn set_replica_rate(
        &mut self,
        name: &str,
        rate: Option<u64>,
    ) -> Result<Answer, Refusal> {
        self.replica(name)?;
        self.check_agreed(PROTOCOL_SECOND)?;
        let rates = &mut self.added.replica_rates;
        let before = match rate {
            Some(rate) => rates.insert(name.to_owned(), rate.max(1)),
            None => rates.remove(name),
        };
        Ok(changed(before != self.replica_rate(name)))
    }

    pub(super) fn add_replica(&mut self, replica: Replica) -> Result<Answer, Refusal> {
        check_name("replica", &replica.name).map_err(ReplicaRefusal::from)?;
        self.source(&replica.source)?;
        if !(1..=RANGES_MAX_LIMIT).contains(&replica.ranges_max) {
            let ranges_max = replica.ranges_max;
            return Err(ReplicaRefusal::RangesMax { ranges_max }.into());
        }
        if let Some(existing) = self.replicas.get(&replica.name) {
            return if existing.is_same_definition(&replica) {
                Ok(Answer::Unchanged)
            } else {
                Err(ReplicaRefusal::Exists { name: replica.name }.into())
            };
        }
        if self.replicas.len() >= REPLICAS_MAX {
            return Err(ReplicaRefusal::TooMany.into());
        }
        self.replicas.insert(replica.name.clone(), replica);
        Ok(Answer::Done)
    }

    pub(super) fn remove_replica(&mut self, name: &str) -> Result<Answer, Refusal> {
        let unknown = self.unknown_replica(name);
        self.replicas.remove(name).ok_or(unknown)?;
        self.added.replica_rates.remove(name);
        Ok(Answer::Done)
    }

    fn unknown_replica(&self, name: &str) -> ReplicaRefusal {
        ReplicaRefusal::Unknown {
            name: name.to_owned(),
            known: join(self.replicas.keys().map(String::as_str)),
        }
    }
}

#[cfg(test)]
mod tests;

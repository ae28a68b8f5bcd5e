//! Faults: each says its name, whether it can take place now, and how it is brought about and healed.
//!
//! The health of the world is verified before and after each injection by the caller
//! ([`crate::scenario`]); a fault that found nothing to break is *skipped*, never counted.

pub mod node;
pub mod postgres;

use anyhow::Result;
use rand::{Rng, rngs::StdRng};

use crate::{
    harness::{node::Node, postgres::Postgres},
    history::event::FaultOutcome,
};

/// The processes that faults act on.
#[derive(Debug)]
pub struct World {
    /// The source.
    pub postgres: Postgres,
    /// The node.
    pub node: Node,
}

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the node while it works.
    KillNode,
    /// SIGKILL to the node while it works, and again while it starts.
    KillNodeStarting,
    /// SIGTERM to the node, then a start.
    RestartNode,
    /// SIGSTOP to the node for a while.
    FreezeNode,
    /// SIGKILL to the walsender: PostgreSQL restarts all of its backends.
    KillWalsender,
    /// SIGKILL to the postmaster, then a start.
    KillPostmaster,
    /// Immediate shutdown, then a start.
    CrashPostgres,
    /// Fast shutdown, then a start.
    RestartPostgres,
}

impl Fault {
    /// Returns its name in the history; those of the node's deaths begin with `kill-node`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillNode => "kill-node",
            Self::KillNodeStarting => "kill-node-starting",
            Self::RestartNode => "restart-node",
            Self::FreezeNode => "freeze-node",
            Self::KillWalsender => "kill-walsender",
            Self::KillPostmaster => "kill-postmaster",
            Self::CrashPostgres => "crash-postgres",
            Self::RestartPostgres => "restart-postgres",
        }
    }

    /// Brings it about and heals it: when this returns, every process runs again.
    ///
    /// Returns what else was seen that must not happen, as (property, what).
    ///
    /// # Errors
    ///
    /// When the world itself broke: PostgreSQL does not come back, a process cannot be started.
    pub async fn strike(self, world: &mut World, rng: &mut StdRng) -> Result<Strike> {
        match self {
            Self::KillNode => node::kill(world).await,
            Self::KillNodeStarting => node::kill_starting(world, rng).await,
            Self::RestartNode => node::restart(world).await,
            Self::FreezeNode => node::freeze(world, rng).await,
            Self::KillWalsender => postgres::kill_walsender(world).await,
            Self::KillPostmaster => postgres::kill_postmaster(world).await,
            Self::CrashPostgres => postgres::crash(world).await,
            Self::RestartPostgres => postgres::restart(world).await,
        }
    }
}

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Whether it took place.
    pub outcome: FaultOutcome,
    /// Something that must not happen was seen: the property, and what.
    pub trouble: Option<(String, String)>,
}

impl Strike {
    /// It took place.
    pub const INSTALLED: Self = Self {
        outcome: FaultOutcome::Installed,
        trouble: None,
    };

    /// There was nothing to break.
    pub const SKIPPED: Self = Self {
        outcome: FaultOutcome::Skipped,
        trouble: None,
    };

    /// It took place and showed something that must not happen.
    #[must_use]
    pub fn with_trouble(property: &str, what: String) -> Self {
        Self {
            outcome: FaultOutcome::Installed,
            trouble: Some((property.to_owned(), what)),
        }
    }
}

/// What a scenario breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Menu {
    /// The node is killed, every fifth time once more while it starts.
    KillNode,
    /// PostgreSQL is killed, crashed and restarted.
    Postgres,
    /// Everything.
    Mixed,
}

impl Menu {
    /// Returns its name in the verdict.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillNode => "kill-node",
            Self::Postgres => "postgres",
            Self::Mixed => "mixed",
        }
    }

    /// Chooses the next fault.
    pub fn choose(self, rng: &mut StdRng) -> Fault {
        const OF_POSTGRES: [Fault; 4] = [
            Fault::KillWalsender,
            Fault::KillPostmaster,
            Fault::CrashPostgres,
            Fault::RestartPostgres,
        ];
        const OF_NODE: [Fault; 4] = [
            Fault::KillNode,
            Fault::KillNodeStarting,
            Fault::RestartNode,
            Fault::FreezeNode,
        ];
        let index = rng.random_range(0..4);
        let of = |faults: [Fault; 4]| faults.get(index).copied().unwrap_or(Fault::KillNode);
        match self {
            Self::KillNode if rng.random_bool(0.2) => Fault::KillNodeStarting,
            Self::KillNode => Fault::KillNode,
            Self::Postgres => of(OF_POSTGRES),
            Self::Mixed if rng.random_bool(0.5) => of(OF_POSTGRES),
            Self::Mixed => of(OF_NODE),
        }
    }
}

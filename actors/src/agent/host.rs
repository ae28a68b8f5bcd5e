//! What an agent asks of the node around it.
//!
//! Two facts lie outside of the log and of PostgreSQL: how to connect, secrets included, and the
//! agreed state that operators look at. An agent never keeps either from one life of its pipeline
//! to the next.

use std::fmt::Debug;

use async_trait::async_trait;
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{Gap, LetGo},
    codes::{self, Explanation},
    confirm::Origin,
};

use super::Looks;
use crate::postgres::Config;

/// The node around an agent.
#[async_trait]
pub trait AgentHost: Debug + Send + Sync {
    /// Returns where the source is, with its password as it is now. Asked for every life of a
    /// pipeline: a password that was changed is found without an order.
    ///
    /// # Errors
    ///
    /// [`HostError`]; the agent asks again after a while.
    async fn connection(&self) -> Result<Config, HostError>;

    /// Returns the looks at servers that the agents of this node share; by itself an agent shares
    /// them with nobody.
    fn looks(&self) -> Looks {
        Looks::default()
    }

    /// Records a gap that is an entry of the log; durable on return. The same gap again changes
    /// nothing, or adds its end. Told before anything is read after the gap, and again after a
    /// crash in between.
    ///
    /// # Errors
    ///
    /// [`HostError`]; the agent reads nothing more before it was recorded.
    async fn record_gap(&self, gap: Gap) -> Result<(), HostError>;

    /// Returns what was attested last; asked for where the slot is the durable truth. It must be as
    /// new as the epoch of the agent: what an older agent attested before is in it.
    ///
    /// # Errors
    ///
    /// [`HostError`]; the agent asks again after a while.
    async fn attested(&self) -> Result<Option<Origin>, HostError> {
        Ok(None)
    }

    /// Attests that all subscriptions have consumed everything before `origin`, durably and agreed
    /// on when it returns; only then is it confirmed to PostgreSQL. An older epoch than the source's
    /// must be refused, and so should an origin whose last entry a cursor has not reached: a
    /// subscription may have come that the agent has not heard of. A host that keeps nothing refuses always: then the slot cannot be the truth.
    ///
    /// # Errors
    ///
    /// [`HostError`]; the slot stays where it is.
    async fn attest(&self, epoch: Epoch, origin: Origin) -> Result<(), HostError> {
        Err(HostError {
            explanation: &codes::source::NOT_ATTESTED,
            text: format!(
                "nobody keeps what epoch {epoch} attests ({})",
                origin.resume_lsn
            ),
        })
    }

    /// Returns what lies behind the slot by intent; asked for where the slot is the durable truth, and
    /// as new as [`Self::attested`].
    ///
    /// # Errors
    ///
    /// [`HostError`]; the agent asks again after a while.
    async fn behind(&self) -> Result<Behind, HostError> {
        Ok(Behind::default())
    }

    /// Returns the OID of the publication that the source was captured with last, as new as the epoch of
    /// the agent; `None` when that is not known, and then the one that is found is taken.
    ///
    /// # Errors
    ///
    /// [`HostError`]; the agent asks again after a while.
    async fn publication(&self) -> Result<Option<u32>, HostError> {
        Ok(None)
    }

    /// Agrees on the publication that the source is captured with, durably when it returns true. An older
    /// epoch than the source's must be refused. False: it cannot be kept, or not yet, and the agent
    /// asks again now and then.
    ///
    /// # Errors
    ///
    /// [`HostError`]; nothing new is read before it was kept.
    async fn keep_publication(&self, _: Epoch, _: u32) -> Result<bool, HostError> {
        Ok(false)
    }

    /// Agrees that the slot is let go up to a place whatever consumers lack, durably when it returns;
    /// only then is it confirmed to PostgreSQL. An older epoch than the source's must be refused. A
    /// host that keeps nothing refuses always.
    ///
    /// # Errors
    ///
    /// [`HostError`]; the slot stays where it is.
    async fn let_go(&self, epoch: Epoch, let_go: LetGo) -> Result<(), HostError> {
        let to = let_go.to;
        Err(HostError {
            explanation: &codes::source::NOT_ATTESTED,
            text: format!("nobody keeps what epoch {epoch} lets go ({to})"),
        })
    }
}

/// What lies behind a slot by intent, and what waits for a decision, as nodes agree on it; see [`pgcapture_engine::confirm::Known`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// How far all consumers had come before one of them went back or began.
    pub reached: Option<Checkpoint>,
    /// What a decision has let go.
    pub let_go: Option<LetGo>,
    /// A gap that an owner has declared and that nobody has decided on.
    pub open_gap: Option<Gap>,
}

/// The host could not do what an agent asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct HostError {
    /// What it means.
    pub explanation: &'static Explanation,
    /// What happened. Never a secret.
    pub text: String,
}

/// An agent without a node around it: the way does not change, and gaps are in the log alone.
#[async_trait]
impl AgentHost for Config {
    async fn connection(&self) -> Result<Config, HostError> {
        Ok(self.clone())
    }

    async fn record_gap(&self, _: Gap) -> Result<(), HostError> {
        Ok(())
    }
}

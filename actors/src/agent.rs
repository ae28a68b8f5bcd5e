//! The agent of one source: a decoder and a publisher, always started and stopped together.
//!
//! [`start`] owns the pipeline: it opens the log under its epoch, reads the log's tail, takes the
//! slot, starts replication there and drops what the log has already. Whatever fails, the pipeline
//! is torn down as a whole and built again from the tail of the log; nothing is ever resent from
//! memory.

mod confirmer;
pub(crate) mod error;
mod free_slot;
mod gap;
mod host;
mod looks;
mod lost;
mod pipeline;
mod slot_watch;
mod spec;
mod take_over;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::Arbiter;
use pgcapture_engine::{
    backoff::Backoff,
    codes,
    fence::AgentName,
    lsn::{Lsn, PgTime},
    wal_guard::WalOutlook,
};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub(crate) use self::free_slot::free_slot;
use self::pipeline::PipelineParts;
pub use self::{
    error::AgentError,
    host::{AgentHost, Behind, HostError},
    looks::{Looks, ServerLooks},
    spec::{AgentLimits, AgentSpec, Durability, Lease},
};
use crate::{
    log::ChangeLog,
    postgres::Remedy,
    supervise::{Task, TaskKind, spawn},
};

/// First pause after a pipeline has failed: a server that restarts is back within this.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Longest pause after passing troubles.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Pause while an operator must act: the repair is noticed soon, the server is not bothered.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// A life that lasted this long starts the back-off anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

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
    pub commit_time: PgTime,
    /// WAL that PostgreSQL keeps for the slot, as last asked; 0 when unknown.
    pub wal_retained_bytes: u64,
    /// How that stands to what it may keep; zeros without a limit.
    pub wal_outlook: WalOutlook,
    /// Temporary space that a catch-up may take on the source now, at most; 0 when following.
    pub source_temp_bytes_max: u64,
    /// Rows decoded since the agent started.
    pub row_count: u64,
    /// Transactions decoded since the agent started.
    pub transaction_count: u64,
    /// Times the pipeline was built again.
    pub rebuild_count: u64,
    /// How long the steps of the last take-over took.
    pub take_over: TakeOverTimes,
    /// The last trouble, kept until the next success.
    pub trouble: Option<Trouble>,
}

/// How long the steps of a take-over took, counted from its begin, in this order. Connecting and
/// fencing run side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakeOverTimes {
    /// Until the log is fenced, its tail is read and PostgreSQL has let us in.
    pub prepared: Duration,
    /// Until slot, publication and types were looked at.
    pub looked: Duration,
    /// Until whoever had the slot was gone.
    pub freed: Duration,
    /// Until the log was ready to go on, anew where it must be, and a walsender was there.
    pub ready: Duration,
    /// Until the server has begun to stream; zero when the backlog is read by COPY.
    pub streaming: Duration,
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
    /// The log takes nothing; the source waits with it.
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

/// The door to a running agent. Cheap to clone; the agent ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    status: watch::Receiver<AgentStatus>,
    drain: CancellationToken,
    decision: Arc<GapDecision>,
    _task: Arc<Task<()>>,
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

/// An operator's word that one gap may be passed.
#[derive(Debug, Default)]
struct GapDecision {
    is_accepted: AtomicBool,
    made: Notify,
}

impl AgentHandle {
    /// Lets an agent that has halted at a gap go on after it, this once: the next gap halts it
    /// again. Returns whether it has halted at a gap; the second call changes nothing.
    #[must_use]
    pub fn accept_gap(&self) -> bool {
        let status = self.status.borrow();
        let code = status.trouble.as_ref().map_or("", |trouble| trouble.code);
        let is_at_gap = status.state == AgentState::Halted && codes::source::GAP.contains(&code);
        if is_at_gap {
            self.decision.is_accepted.store(true, Ordering::SeqCst);
            self.decision.made.notify_one();
        }
        is_at_gap
    }
}

/// Starts the agent of a source; it runs until drained. Its actors live on the arbiter of the
/// calling thread, its tasks on the current runtime.
///
/// # Panics
///
/// Outside an actix `System`.
#[must_use]
pub fn start(spec: AgentSpec, host: Arc<dyn AgentHost>, log: Arc<dyn ChangeLog>) -> AgentHandle {
    let (status_tx, status) = watch::channel(AgentStatus::default());
    let drain = CancellationToken::new();
    let decision = Arc::new(GapDecision::default());
    let source = spec.source.clone();
    let name = AgentName::new(&spec.node, spec.epoch, spec.cluster);
    let parts = PipelineParts {
        spec: Arc::new(spec),
        host,
        name: Arc::new(name),
        log,
        arbiter: Arbiter::current(),
        status: Arc::new(status_tx),
        drain: drain.clone(),
        decision: Arc::clone(&decision),
    };
    let task = spawn(TaskKind::Agent, &source, run(parts));
    AgentHandle {
        status,
        drain,
        decision,
        _task: Arc::new(task),
    }
}

/// Builds the pipeline again and again until drained.
async fn run(parts: PipelineParts) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    while !parts.drain.is_cancelled() {
        tokio::select! {
            () = parts.drain.cancelled() => break,
            () = parts.spec.lease.held() => {}
        }
        let started = tokio::time::Instant::now();
        let error = match pipeline::run(&parts).await {
            Err(error) if !parts.drain.is_cancelled() => {
                error.or_failed_log(&parts.log.health().borrow())
            }
            Ok(()) | Err(_) => break,
        };
        if started.elapsed() > HEALTHY_AFTER {
            backoff.reset();
        }
        let pause = settle(&parts, &error, &mut backoff);
        tokio::select! {
            () = parts.drain.cancelled() => {}
            () = parts.decision.made.notified() => {}
            () = pause_for(pause) => {}
        }
    }
    parts
        .status
        .send_modify(|status| status.state = AgentState::Stopped);
    info!(source = %parts.spec.source, "the agent has stopped");
}

/// Tells what happened and returns how long to wait; `None` waits for an operator for ever.
fn settle(parts: &PipelineParts, error: &AgentError, backoff: &mut Backoff) -> Option<Duration> {
    let source = parts.spec.source.as_str();
    let (code, mut trouble) = (error.code(), error.trouble());
    trouble.next = trouble.next.replace(codes::source::NAME, source);
    let text = trouble.text.clone();
    let (state, pause) = match error.remedy() {
        Remedy::Retry | Remedy::Rebuild => {
            let pause = backoff.next_delay(rand::random());
            warn!(
                source,
                code,
                error = text,
                ?pause,
                "the pipeline failed; building it again"
            );
            (AgentState::Retrying, Some(pause))
        }
        Remedy::AskOperator if parts.status.borrow().trouble.as_ref() == Some(&trouble) => {
            debug!(source, code, "still waiting for an operator");
            (AgentState::Retrying, Some(ASK_INTERVAL))
        }
        Remedy::AskOperator => {
            error!(
                source,
                code,
                error = text,
                next = trouble.next,
                "the source cannot be captured"
            );
            (AgentState::Retrying, Some(ASK_INTERVAL))
        }
        // What may be passed is passed at the next start, with the slot made anew.
        Remedy::Halt if parts.spec.accepts_gap && matches!(error, AgentError::Gap { .. }) => {
            let pause = backoff.next_delay(rand::random());
            error!(
                source,
                code,
                error = text,
                "changes are lost; going on after the gap"
            );
            (AgentState::Retrying, Some(pause))
        }
        Remedy::Halt => {
            // What was accepted was another gap, or none.
            parts.decision.is_accepted.store(false, Ordering::SeqCst);
            error!(
                source,
                code,
                error = text,
                next = trouble.next,
                "the source has halted"
            );
            (AgentState::Halted, None)
        }
    };
    let source_label = source.to_owned();
    metrics::counter!("pgcapture_slot_reconnects_total", "source" => source_label, "reason" => code)
        .increment(1);
    parts.status.send_modify(|status| {
        status.state = state;
        status.rebuild_count += 1;
        status.trouble = Some(trouble);
    });
    pause
}

async fn pause_for(pause: Option<Duration>) {
    match pause {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}

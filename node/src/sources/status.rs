//! What a source is doing, for the API, metrics and readiness.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgcapture_actors::{
    agent::{AgentState, AgentStatus, Trouble},
    consensus::ProposeError,
    log::LogError,
};
use pgcapture_engine::{
    cluster::Source,
    codes::{self, Explanation},
    lsn::PgTime,
};

use super::Sources;

/// The states of a source, for the gauge that is 1 for one of them.
const STATES: [AgentState; 7] = [
    AgentState::Starting,
    AgentState::Following,
    AgentState::CatchingUp,
    AgentState::Blocked,
    AgentState::Retrying,
    AgentState::Halted,
    AgentState::Stopped,
];

impl Sources {
    /// Returns what the source's agent does, and in which word: `paused` has no agent.
    #[must_use]
    pub fn status(&self, source: &Source) -> (&'static str, AgentStatus) {
        let agent = self.running.borrow().get(&source.name).cloned();
        let mut status = match &agent {
            Some(running) => running.handle.status().borrow().clone(),
            None => AgentStatus::default(),
        };
        if status.trouble.is_none() {
            status.trouble = self.troubles().get(&source.name).cloned();
        }
        let word = match agent {
            _ if source.paused => "paused",
            None if status.trouble.is_some() => AgentState::Retrying.as_str(),
            _ => status.state.as_str(),
        };
        (word, status)
    }

    /// Returns one line for each source that needs attention.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let state = std::sync::Arc::clone(&self.consensus.state().borrow());
        let complaint = |source: &Source| {
            let (word, status) = self.status(source);
            let trouble = status.trouble?;
            let Trouble { code, text, next } = trouble;
            Some(format!(
                "source {} {word}: {code} {text}; next: {next}",
                source.name
            ))
        };
        state.sources.values().filter_map(complaint).collect()
    }

    /// Sets the gauges of every slot.
    pub fn report_metrics(&self) {
        let state = std::sync::Arc::clone(&self.consensus.state().borrow());
        for source in state.sources.values() {
            let (_, status) = self.status(source);
            let labels = [
                ("source", source.name.clone()),
                ("slot", source.slot.clone()),
            ];
            let gauge = |name: &'static str, value: f64| metrics::gauge!(name, &labels).set(value);
            gauge("pgcapture_slot_epoch", source.epoch.0 as f64);
            gauge("pgcapture_slot_lag_bytes", lag_bytes(&status) as f64);
            gauge("pgcapture_slot_lag_seconds", lag(&status).as_secs_f64());
            gauge(
                "pgcapture_slot_received_lsn_bytes",
                status.received_lsn.0 as f64,
            );
            gauge(
                "pgcapture_slot_confirmed_lsn_bytes",
                status.confirmed_lsn.0 as f64,
            );
            gauge(
                "pgcapture_slot_wal_retained_bytes",
                status.wal_retained_bytes as f64,
            );
            for known in STATES {
                let is_now = f64::from(u8::from(known == status.state));
                let state = ("state", known.as_str().to_owned());
                let [source, slot] = labels.clone();
                metrics::gauge!("pgcapture_slot_state", &[source, slot, state]).set(is_now);
            }
        }
    }
}

/// WAL that the server has written and the log does not hold.
pub(crate) fn lag_bytes(status: &AgentStatus) -> u64 {
    let safe = status.durable_lsn.max(status.confirmed_lsn);
    status.server_end_lsn.bytes_since(safe)
}

/// Age of the newest durable transaction while there is a lag; zero otherwise.
pub(crate) fn lag(status: &AgentStatus) -> Duration {
    if lag_bytes(status) == 0 || status.commit_time == PgTime(0) {
        return Duration::ZERO;
    }
    let age = unix_now_micros().saturating_sub(status.commit_time.unix_micros());
    Duration::from_micros(u64::try_from(age).unwrap_or(0))
}

/// Returns microseconds since 1970.
pub(crate) fn unix_now_micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = now.unwrap_or_default().as_micros();
    i64::try_from(micros).unwrap_or(i64::MAX)
}

pub(super) fn trouble(explanation: &'static Explanation, text: String) -> Trouble {
    Trouble {
        code: explanation.code,
        text,
        next: explanation.next.to_owned(),
    }
}

pub(super) fn log_trouble(error: &LogError) -> Trouble {
    trouble(log_explanation(error), chain(error))
}

/// Returns the code of a log that cannot be opened or removed.
fn log_explanation(error: &LogError) -> &'static Explanation {
    match error {
        LogError::InUse { .. } => &codes::node::DATA_DIR_IN_USE,
        LogError::NewerVersion { .. } => &codes::node::NEWER_STORE,
        LogError::Io { .. } | LogError::Away { .. } | LogError::Closed { .. } => {
            &codes::node::STORE_FAILED
        }
        LogError::Corrupt { .. }
        | LogError::Fenced { .. }
        | LogError::Removed { .. }
        | LogError::OutOfOrder { .. } => &codes::node::LOG_DAMAGED,
    }
}

pub(super) fn propose_trouble(error: &ProposeError) -> Trouble {
    trouble(error.explanation(), error.text())
}

/// Joins the causes of an error; `Display` of an error does not repeat its source.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

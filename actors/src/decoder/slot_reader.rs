//! What reads one slot: the state that both ways of reading share.
//!
//! Owns the engine's decoder and the door to the publisher. Switches between following and
//! catching up at transaction boundaries as the engine decides. Never confirms anything by itself:
//! it forwards what `confirmable` holds.

use std::{pin::pin, sync::Arc, time::Duration};

use pgcapture_engine::{
    batch::Batch,
    confirm,
    decoder::Decoder as PgoutputDecoder,
    fence::AgentName,
    lsn::Lsn,
    progress::Progress,
    slot_mode::{SlotMode, SlotModeSwitch},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{AgentSpec, AgentState, AgentStatus, Durability, error::AgentError},
    decoder::{asked::Asked, meter::DecodeMeter},
    log::Tail,
    postgres::{Config, Connection, PgError, Replication},
    publisher::PublisherHandle,
};

/// How often a blocked reader asks whether the server wants to shut down: a shutdown is delayed by
/// this and one connection attempt, well below two seconds.
const BLOCKED_PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How a way of reading ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The engine wants the other way; we stand at a transaction boundary.
    SwitchMode,
    /// We were asked to stop.
    Drained,
}

/// Reads one slot until it fails or is drained.
pub(crate) struct SlotReader {
    pub(crate) spec: Arc<AgentSpec>,
    pub(crate) config: Config,
    pub(crate) decoder: PgoutputDecoder,
    pub(crate) progress: Progress,
    pub(crate) mode: SlotModeSwitch,
    pub(crate) publisher: PublisherHandle,
    /// The durable end of the log.
    pub(crate) tail: watch::Receiver<Tail>,
    /// What may be confirmed to PostgreSQL.
    pub(crate) confirmable: watch::Receiver<Lsn>,
    pub(crate) status: Arc<watch::Sender<AgentStatus>>,
    pub(crate) drain: CancellationToken,
    pub(crate) started: Instant,
    /// End of the server's WAL as last heard.
    pub(crate) server_end: Lsn,
    pub(crate) meter: DecodeMeter,
    /// What readers of the log wait for.
    pub(crate) asked: Asked,
    /// Who we are to PostgreSQL.
    pub(crate) name: Arc<AgentName>,
    /// Open already, for the first stream.
    pub(crate) walsender: Option<Connection>,
    /// When the take-over began.
    pub(crate) began: Instant,
    /// Whether the server may be waiting for a position that we cannot confirm.
    pub(crate) probe: Probe,
}

/// Questions whether the server wants to shut down; see [`SlotReader::leave_a_server_that_ends`].
#[derive(Debug, Default)]
pub(crate) struct Probe {
    pub(super) is_due: bool,
    pub(super) last: Option<Instant>,
}

impl SlotReader {
    /// Reads until drained.
    ///
    /// # Errors
    ///
    /// Whatever ends the pipeline; what was decoded but is not in the log is read again.
    pub(crate) async fn run(mut self) -> Result<(), AgentError> {
        loop {
            let ended = match self.mode.mode() {
                SlotMode::Follow => self.follow().await?,
                SlotMode::CatchUp => self.catch_up().await?,
            };
            if ended == Ended::Drained {
                return Ok(());
            }
        }
    }

    /// Publishes what the decoder holds, if anything.
    pub(super) async fn publish_decoded(&mut self) -> Result<(), AgentError> {
        match self.decoder.take() {
            Some(batch) => self.publish(batch).await,
            None => Ok(()),
        }
    }

    /// Publishes a batch and waits until the log has accepted it.
    ///
    /// While the log takes nothing the walsender stays attached, so that nothing has to be sent
    /// twice; its status updates go on by themselves. But a server that shuts down waits for its
    /// walsenders: so ask, and let go as soon as it does.
    pub(super) async fn publish(&mut self, batch: Batch) -> Result<(), AgentError> {
        self.progress.emitted(&batch, self.started.elapsed());
        self.meter.batch(&batch, self.decoder.counters());
        let publisher = self.publisher.clone();
        let mut publish = pin!(publisher.publish(batch));
        let resumed_state = self.status.borrow().state;
        let mut is_blocked = false;
        loop {
            tokio::select! {
                biased;
                published = &mut publish => {
                    if is_blocked {
                        self.set_state(resumed_state);
                    }
                    return Ok(published?);
                }
                // What a drain publishes last is taken within the probe's pause, or not at all.
                () = self.drain.cancelled(), if is_blocked => {
                    return Err(AgentError::DrainedWhileBlocked);
                }
                () = sleep(BLOCKED_PROBE_INTERVAL) => {
                    is_blocked = true;
                    self.set_state(AgentState::Blocked);
                    if is_shutting_down(&self.config).await {
                        return Err(AgentError::ServerShutsDown);
                    }
                }
            }
        }
    }

    pub(super) fn set_state(&self, state: AgentState) {
        self.status.send_if_modified(|status| {
            let is_new = status.state != state;
            status.state = state;
            is_new
        });
    }

    /// Waits until everything published is durable and returns the position that may be confirmed:
    /// all of it, or what the consumers let go where the slot is the truth.
    pub(super) async fn wait_until_durable(&mut self) -> Result<Lsn, AgentError> {
        loop {
            self.hear_tail();
            if !self.progress.is_in_flight() {
                let durable = self.tail.borrow().origin();
                return Ok(match &self.spec.durability {
                    Durability::Log => self.progress.confirmable(),
                    Durability::Slot { floor } => {
                        let proved = confirm::proved_by_cursors(durable, *floor.borrow());
                        proved.max(*self.confirmable.borrow())
                    }
                });
            }
            self.tail
                .changed()
                .await
                .map_err(|_| AgentError::ActorGone("log"))?;
        }
    }

    /// Lets a server go that shuts down and waits for a position that consumers hold back: it would
    /// wait for the whole of its `wal_sender_timeout`. It asks for answers then, so ask whether it
    /// still takes sessions.
    pub(super) async fn leave_a_server_that_ends(&mut self) -> Result<(), AgentError> {
        let is_early = |last: Instant| last.elapsed() < BLOCKED_PROBE_INTERVAL;
        if !self.probe.is_due || self.probe.last.is_some_and(is_early) {
            return Ok(());
        }
        self.probe.is_due = false;
        self.probe.last = Some(Instant::now());
        if is_shutting_down(&self.config).await {
            return Err(AgentError::ServerShutsDown);
        }
        Ok(())
    }

    /// Takes note of what the log has made durable.
    pub(super) fn hear_tail(&mut self) {
        let tail = *self.tail.borrow_and_update();
        self.progress.durable(tail.last, tail.resume_lsn);
    }

    /// Asks the engine how to go on, at the present backlog.
    pub(super) fn decide_mode(&mut self) -> SlotMode {
        let backlog = self.server_end.bytes_since(self.decoder.resume_lsn());
        let is_at_boundary = !self.decoder.is_in_transaction();
        self.mode
            .decide(backlog, is_at_boundary, self.started.elapsed())
    }

    /// Shows where we stand; `server_end` may be zero when it is not known anew.
    pub(super) fn report(&mut self, server_end: Lsn) {
        self.server_end = self.server_end.max(server_end);
        let counters = self.decoder.counters();
        let received = self
            .decoder
            .last_checkpoint()
            .map_or(Lsn::ZERO, |last| last.lsn);
        let received = received.max(self.decoder.resume_lsn());
        let (rows, transactions) = (counters.row_count(), counters.transaction_count);
        let server_end = self.server_end;
        self.status.send_modify(|status| {
            status.received_lsn = received;
            status.server_end_lsn = server_end;
            status.row_count = rows;
            status.transaction_count = transactions;
        });
    }

    /// Decodes one pgoutput message.
    pub(super) fn decode(&mut self, message: &[u8]) -> Result<(), AgentError> {
        let decoded = self.decoder.decode(message);
        decoded.map_err(|source| AgentError::Decode {
            slot: self.spec.slot.clone(),
            source,
        })
    }
}

/// Tells whether the server wants to end: it refuses new sessions then, or is gone already.
async fn is_shutting_down(config: &Config) -> bool {
    match Connection::connect(config, Replication::Off).await {
        Ok(_) => false,
        Err(error) => error.has_sqlstate("57P03") || matches!(error, PgError::Connect { .. }),
    }
}

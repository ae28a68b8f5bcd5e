//! Follows a slot by walsender.
//!
//! Decodes every complete frame that a read brought, publishes full batches as they fill and the
//! rest at the end of the read, so that one row does not wait for a thousand. While data flows fast
//! the rest is held for a moment instead: on a unix socket a read may bring a single message, and
//! a batch of one costs two changes of thread. Status updates are the stream's own task; the
//! positions that it reports come from `confirmable`. Never reads while a batch waits for the log:
//! that is the back-pressure.

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walsender;

use std::{pin::pin, time::Duration};

use pgcapture_engine::{
    codes::source as codes, lsn::Lsn, progress::Keepalive, slot_mode::SlotMode,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    agent::{AgentState, error::AgentError, free_slot},
    decoder::slot_reader::{Ended, SlotReader},
    postgres::{
        Connection, Received, Replication, ReplicationEvent, ReplicationOptions, ReplicationStream,
        StatusHandle,
    },
    supervise::{TaskKind, spawn},
};

/// How long a batch that is not full waits for more while data flows fast: some hundred messages,
/// and a part of what the reader's naps cost on TCP.
const HOLD_MAX: Duration = Duration::from_millis(2);

/// Attempts to start a stream of a slot that somebody takes again and again: an agent that was
/// replaced comes back once, after a tenth of a second, and finds us.
const START_ATTEMPTS_MAX: u32 = 10;

impl SlotReader {
    /// Follows until drained or until the backlog is better read by COPY.
    pub(super) async fn follow(&mut self) -> Result<Ended, AgentError> {
        let mut stream = self.start_stream().await?;
        let confirmer = confirm(self.confirmable.clone(), stream.status());
        // Held until we leave: dropping it ends it.
        let _confirmer = spawn(TaskKind::StatusUpdates, &self.spec.source, confirmer);
        let status = stream.status();
        self.set_state(AgentState::Following);
        let hold = sleep_until(self.started);
        let mut hold = pin!(hold);
        let mut is_holding = false;
        loop {
            let is_fast = stream.is_fast();
            // Only the wait may be dropped: a batch that was taken from the decoder and then
            // forgotten would be a hole in the log.
            let step = tokio::select! {
                biased;
                () = self.drain.cancelled() => Step::Drained,
                asked = self.asked.due() => Step::Asked(asked),
                () = &mut hold, if is_holding => Step::HeldLong,
                received = stream.receive() => Step::Received(received?),
            };
            match step {
                Step::Drained => {
                    self.let_go(stream).await?;
                    return Ok(Ended::Drained);
                }
                Step::HeldLong => {
                    is_holding = false;
                    self.publish_decoded().await?;
                }
                Step::Asked(position) => {
                    is_holding = false;
                    self.publish_decoded().await?;
                    self.tell_progress(position, &status).await?;
                }
                Step::Received(received) => {
                    self.take_in(received).await?;
                    if !is_fast {
                        is_holding = false;
                        self.publish_decoded().await?;
                    } else if !is_holding {
                        is_holding = true;
                        hold.as_mut().reset(Instant::now() + HOLD_MAX);
                    }
                    self.leave_a_server_that_ends().await?;
                }
            }
            if self.decide_mode() == SlotMode::CatchUp {
                self.let_go(stream).await?;
                return Ok(Ended::SwitchMode);
            }
        }
    }

    /// Begins to stream. An older agent that comes back in between is ended again: whoever has the
    /// slot is judged each time.
    async fn start_stream(&mut self) -> Result<ReplicationStream, AgentError> {
        self.decoder.restart_stream();
        let spec = &self.spec;
        let options = ReplicationOptions {
            start: self.decoder.resume_lsn(),
            binary: spec.is_binary,
            message_bytes_max: spec.limits.message_bytes_max(),
            ..ReplicationOptions::new(spec.slot.as_str(), spec.publication.as_str())
        };
        let mut attempts = 0;
        loop {
            let connection = match self.walsender.take() {
                Some(connection) => connection,
                None => Connection::connect(&self.config, Replication::Database).await?,
            };
            match connection.start_replication(&options).await {
                Err(error)
                    if error.code() == codes::SLOT_IN_USE.code && attempts < START_ATTEMPTS_MAX =>
                {
                    attempts += 1;
                    let mut control = Connection::connect(&self.config, Replication::Off).await?;
                    free_slot(&mut control, &self.name, &spec.slot).await?;
                }
                started => {
                    let stream = started?;
                    let took = self.began.elapsed();
                    self.status.send_modify(|status| {
                        if status.take_over.streaming.is_zero() {
                            status.take_over.streaming = took;
                        }
                    });
                    return Ok(stream);
                }
            }
        }
    }

    /// Lets readers of the log know that nothing is missing up to a position, or asks the server.
    async fn tell_progress(&mut self, asked: Lsn, status: &StatusHandle) -> Result<(), AgentError> {
        if !self.progress.want(asked) {
            self.asked.answered();
            return Ok(());
        }
        self.hear_tail();
        match self.progress.poll(self.started.elapsed()) {
            Some(progress) => self.publish(progress).await,
            None => {
                status.ask();
                Ok(())
            }
        }
    }

    /// Deals with everything that one read of the socket brought; leaves a batch that is not full
    /// in the decoder.
    async fn take_in(&mut self, received: Received<'_>) -> Result<(), AgentError> {
        let mut server_end = Lsn::ZERO;
        for event in received {
            match event {
                ReplicationEvent::Data {
                    server_end: end,
                    payload,
                    ..
                } => {
                    server_end = server_end.max(end);
                    self.decode(payload)?;
                    if self.decoder.is_full() {
                        self.publish_decoded().await?;
                    }
                }
                ReplicationEvent::KeepAlive {
                    server_end: end,
                    reply_requested,
                } => {
                    server_end = server_end.max(end);
                    self.publish_decoded().await?;
                    self.hear_tail();
                    let keepalive = Keepalive {
                        server_end: end,
                        is_reply_requested: reply_requested,
                    };
                    self.probe.is_due |= reply_requested && *self.confirmable.borrow() < end;
                    let is_quiet = self.decoder.is_quiet();
                    let now = self.started.elapsed();
                    // At once: one read may bring several keepalives.
                    if let Some(progress) = self.progress.keepalive(keepalive, is_quiet, now) {
                        self.publish(progress).await?;
                    }
                }
            }
        }
        self.report(server_end);
        Ok(())
    }

    /// Ends a stream in order: what was decoded becomes durable, is confirmed, and the server is
    /// told that we leave. In the middle of a transaction it would send all of it first: then the
    /// connection is just closed, nothing is left to confirm.
    async fn let_go(&mut self, stream: ReplicationStream) -> Result<(), AgentError> {
        self.publish_decoded().await?;
        let durable = self.wait_until_durable().await?;
        if self.decoder.is_in_transaction() {
            return Ok(());
        }
        stream.status().confirm(durable);
        drop(stream.stop().await?);
        Ok(())
    }
}

/// What following waits for.
enum Step<'a> {
    Received(Received<'a>),
    HeldLong,
    Asked(Lsn),
    Drained,
}

/// Forwards what may be confirmed; ends with the reader.
async fn confirm(mut confirmable: watch::Receiver<Lsn>, status: StatusHandle) {
    loop {
        let lsn = *confirmable.borrow_and_update();
        status.confirm(lsn);
        if confirmable.changed().await.is_err() {
            return;
        }
    }
}

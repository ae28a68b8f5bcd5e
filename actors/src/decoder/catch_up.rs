//! Catches up with a backlog by COPY from the slot's SQL functions.
//!
//! Reads chunk after chunk from temporary copies of the slot, through the same decoder and with
//! the same checkpoints as a walsender would bring; the server collects a chunk while we read the
//! one before. The real slot stays the durable truth: beside the chunks it is advanced to what the
//! log holds durably, never further. Where a copy is not to be had the slot is followed instead;
//! the backlog is then only slower.

use pgcapture_engine::{lsn::Lsn, slot_mode::SlotMode};
use tracing::{info, warn};

use crate::{
    agent::{AgentState, error::AgentError, free_slot},
    decoder::slot_reader::{Ended, SlotReader},
    postgres::{
        Connection, NextChunk, Replication, SlotCopies, SlotCopy, SlotCopyError, SlotCopyOptions,
        advance_slot, catalog,
    },
};

/// Distance (bytes of WAL) that the real slot stays behind the log before it is moved. Moving it
/// makes the server read this WAL once more, from a restart position that may lie tens of MiB
/// before it, so it pays to do it rarely. The source keeps so much WAL longer than it must.
const ADVANCE_EVERY: u64 = 512 << 20;

impl SlotReader {
    /// Catches up until drained or until the rest is better followed.
    pub(super) async fn catch_up(&mut self) -> Result<Ended, AgentError> {
        let mut control = Connection::connect(&self.config, Replication::Off).await?;
        control.end_with_us().await?;
        let spec = &self.spec;
        let options = SlotCopyOptions {
            binary: spec.is_binary,
            message_bytes_max: spec.limits.message_bytes_max(),
            ..SlotCopyOptions::new(spec.slot.as_str(), spec.publication.as_str())
        };
        let mut opened = SlotCopies::open(&self.config, options.clone()).await;
        if matches!(opened, Err(SlotCopyError::Locked { .. })) {
            // An older agent that came back is ended; anybody else is named and left alone.
            free_slot(&mut control, &self.name, &spec.slot).await?;
            opened = SlotCopies::open(&self.config, options).await;
        }
        let mut copies = match opened {
            Ok(copies) => copies,
            Err(SlotCopyError::Pg(error)) => return Err(error.into()),
            Err(reason @ (SlotCopyError::Unavailable { .. } | SlotCopyError::Locked { .. })) => {
                warn!(source = %spec.source, %reason, "following the backlog instead");
                self.mode.catch_up_failed(self.started.elapsed());
                return Ok(Ended::SwitchMode);
            }
        };
        self.set_state(AgentState::CatchingUp);
        info!(source = %self.spec.source, from = %self.decoder.resume_lsn(), "reading the backlog by COPY");
        let ended = self.copy_chunks(&mut copies, &mut control).await;
        self.status
            .send_modify(|status| status.source_temp_bytes_max = 0);
        if matches!(ended, Ok(Ended::Drained)) {
            // Whoever drains may drop the slot next, or start another agent.
            let moving = [control.backend_pid()];
            if let Err(error) = copies.end(&self.config, &moving).await {
                warn!(source = %self.spec.source, %error, "the sessions of a catch-up end by themselves");
            }
        }
        ended
    }

    async fn copy_chunks(
        &mut self,
        copies: &mut SlotCopies,
        control: &mut Connection,
    ) -> Result<Ended, AgentError> {
        let mut advanced = copies.position();
        loop {
            let server_end = catalog::server_info(control).await?.flush_lsn;
            self.report(server_end);
            if !copies.is_requested() {
                if self.decide_mode() == SlotMode::Follow {
                    self.settle(control).await?;
                    return Ok(Ended::SwitchMode);
                }
                let Some(upto) = self.mode.next_chunk(copies.position(), server_end) else {
                    return Ok(Ended::SwitchMode);
                };
                copies.request(upto).await?;
            }
            let space = SlotCopy::temp_bytes_max(self.mode.chunk_distance());
            let space = space.saturating_mul(copies.chunk_count_max());
            self.status
                .send_modify(|status| status.source_temp_bytes_max = space);
            let confirmable = *self.confirmable.borrow();
            let due = confirmable.bytes_since(advanced) >= ADVANCE_EVERY;
            advanced = if due { confirmable } else { advanced };
            let (slot, drain) = (self.spec.slot.clone(), self.drain.clone());
            let advance = async {
                if due {
                    advance_slot(control, &slot, confirmable).await?;
                }
                Ok::<_, AgentError>(())
            };
            let read = async { tokio::try_join!(self.copy_chunk(copies), advance) };
            // A drained chunk is dropped, and so is a move of the slot: either may take long.
            tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(Ended::Drained),
                read = read => drop(read?),
            }
            copies.turn()?;
        }
    }

    /// Reads one chunk. It ends at the end of a transaction: the server's functions return whole
    /// ones only.
    async fn copy_chunk(&mut self, copies: &mut SlotCopies) -> Result<(), AgentError> {
        self.decoder.restart_stream();
        let transactions_before = self.decoder.counters().transaction_count;
        let (mut chunk, next) = copies.begin().await?;
        let mut next = Some(next);
        while let Some(rows) = chunk.receive().await? {
            if let Some(next) = next.take() {
                self.request_next(next).await?;
            }
            for row in rows {
                self.decode(row.payload)?;
                if self.decoder.is_full() {
                    self.publish_decoded().await?;
                }
            }
            self.report(Lsn::ZERO);
        }
        let reached = chunk.reached().unwrap_or_default();
        self.publish_decoded().await?;
        self.progress.passed(reached);
        self.hear_tail();
        if let Some(progress) = self.progress.poll(self.started.elapsed()) {
            self.publish(progress).await?;
        }
        let transaction_count = self.decoder.counters().transaction_count - transactions_before;
        self.mode.chunk_finished(transaction_count > 0);
        Ok(())
    }

    /// Has the server collect the next chunk while we read this one, if it is worth a chunk.
    async fn request_next(&self, mut next: NextChunk<'_>) -> Result<(), AgentError> {
        let Some(position) = next.place().await? else {
            return Ok(());
        };
        if let Some(upto) = self.mode.chunk_ahead(position, self.server_end) {
            next.request(upto).await?;
        }
        Ok(())
    }

    /// Makes everything durable and moves the real slot there, so that following starts at once.
    async fn settle(&mut self, control: &mut Connection) -> Result<(), AgentError> {
        let durable = self.wait_until_durable().await?;
        advance_slot(control, &self.spec.slot, durable).await?;
        Ok(())
    }
}

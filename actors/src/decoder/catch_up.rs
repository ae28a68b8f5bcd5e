//! Catches up with a backlog by COPY from the slot's SQL functions.
//!
//! Reads chunk after chunk from a temporary copy of the slot, through the same decoder and with
//! the same checkpoints as a walsender would bring. The real slot stays the durable truth: between
//! chunks it is advanced to what the log holds durably, never further. Where a copy is not to be
//! had the slot is followed instead; the backlog is then only slower.

use pgcapture_engine::{lsn::Lsn, slot_mode::SlotMode};
use tracing::{info, warn};

use crate::{
    agent::{AgentState, error::AgentError},
    decoder::slot_reader::{Ended, SlotReader},
    postgres::{
        Connection, Replication, SlotCopy, SlotCopyError, SlotCopyOptions, advance_slot, catalog,
    },
};

impl SlotReader {
    /// Catches up until drained or until the rest is better followed.
    pub(super) async fn catch_up(&mut self) -> Result<Ended, AgentError> {
        let mut control = Connection::connect(&self.config, Replication::Off).await?;
        let spec = &self.spec;
        let options = SlotCopyOptions {
            binary: spec.is_binary,
            message_bytes_max: spec.limits.message_bytes_max(),
            ..SlotCopyOptions::new(spec.slot.as_str(), spec.publication.as_str())
        };
        let mut copy = match SlotCopy::open(&self.config, options).await {
            Ok(copy) => copy,
            Err(SlotCopyError::Pg(error)) => return Err(error.into()),
            Err(reason @ (SlotCopyError::Unavailable { .. } | SlotCopyError::Locked { .. })) => {
                warn!(source = %spec.source, %reason, "following the backlog instead");
                self.mode.catch_up_failed(self.started.elapsed());
                return Ok(Ended::SwitchMode);
            }
        };
        self.set_state(AgentState::CatchingUp);
        info!(source = %self.spec.source, from = %self.decoder.resume_lsn(), "reading the backlog by COPY");
        let ended = self.copy_chunks(&mut copy, &mut control).await;
        self.status
            .send_modify(|status| status.source_temp_bytes_max = 0);
        ended
    }

    async fn copy_chunks(
        &mut self,
        copy: &mut SlotCopy,
        control: &mut Connection,
    ) -> Result<Ended, AgentError> {
        let mut position = copy.position();
        loop {
            let server_end = catalog::server_info(control).await?.flush_lsn;
            self.report(server_end);
            if self.decide_mode() == SlotMode::Follow {
                self.settle(control).await?;
                return Ok(Ended::SwitchMode);
            }
            let Some(upto) = self.mode.next_chunk(position, server_end) else {
                return Ok(Ended::SwitchMode);
            };
            let space = SlotCopy::temp_bytes_max(self.mode.chunk_distance());
            self.status
                .send_modify(|status| status.source_temp_bytes_max = space);
            self.decoder.restart_stream();
            let transactions_before = self.decoder.counters().transaction_count;
            let drain = self.drain.clone();
            position = tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(Ended::Drained),
                position = self.copy_chunk(copy, upto) => position?,
            };
            let transaction_count = self.decoder.counters().transaction_count - transactions_before;
            self.mode.chunk_finished(transaction_count > 0);
            let confirmable = *self.confirmable.borrow();
            advance_slot(control, &self.spec.slot, confirmable).await?;
        }
    }

    /// Reads one chunk and returns the position that it reached. A chunk ends at the end of a
    /// transaction: the server's functions return whole ones only.
    async fn copy_chunk(&mut self, copy: &mut SlotCopy, upto: Lsn) -> Result<Lsn, AgentError> {
        let mut chunk = copy.chunk(upto).await?;
        while let Some(rows) = chunk.receive().await? {
            for row in rows {
                self.decode(row.payload)?;
                if self.decoder.is_full() {
                    self.publish_decoded().await?;
                }
            }
            self.report(Lsn::ZERO);
        }
        let reached = chunk.reached().unwrap_or(upto);
        self.publish_decoded().await?;
        self.progress.passed(reached);
        self.hear_tail();
        if let Some(progress) = self.progress.poll(self.started.elapsed()) {
            self.publish(progress).await?;
        }
        Ok(reached)
    }

    /// Makes everything durable and moves the real slot there, so that following starts at once.
    async fn settle(&mut self, control: &mut Connection) -> Result<(), AgentError> {
        let durable = self.wait_until_durable().await?;
        advance_slot(control, &self.spec.slot, durable).await?;
        Ok(())
    }
}

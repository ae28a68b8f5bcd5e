//! Turns rows into the frames that a consumer asked for: one by one, or many in a message.
//!
//! Owns one buffer that chunks are split from; the rows themselves are copied once, untouched.

use bytes::{Bytes, BytesMut};
use pgcapture_engine::{
    capture_frame::{Data, Outgoing, RowRun, push_batch, push_message, push_rows},
    capture_options::CaptureOptions,
    checkpoint::Checkpoint,
    ledger::{ParcelBody, Slot},
    lsn::{Lsn, PgTime},
};

use super::{
    delivery::DumpRows,
    membership::{Pulled, Rows},
};

/// Bytes that a row of a dump has before its fields, mostly: room for them is made at once.
const DUMP_LEAD_BYTES: usize = 16;

/// Messages for the transport: whole gRPC frames of `CaptureMessage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The frames.
    pub bytes: Bytes,
    /// How many messages they deliver.
    pub message_count: usize,
}

/// Writes rows as the consumer wants them.
pub(super) struct FrameWriter {
    buffer: BytesMut,
    batch_size: usize,
    with_commit_time: bool,
}

impl FrameWriter {
    pub(super) fn new(options: &CaptureOptions) -> Self {
        Self {
            buffer: BytesMut::new(),
            batch_size: options.batch_size as usize,
            with_commit_time: options.with_commit_time,
        }
    }

    pub(super) fn write(&mut self, pulled: &Pulled) -> Chunk {
        match &pulled.rows {
            Rows::Part(body) => {
                self.buffer.reserve(body.bytes.len());
                self.write_rows(body.slots.iter().map(|slot| (&**body, slot)))
            }
            Rows::Again(rows) => self.write_rows(rows.iter().map(|(body, slot)| (&**body, slot))),
            Rows::Dump(rows) => self.write_dump(rows),
        }
    }

    /// Rows of a dump: position 0, the range's number, and the last one marked.
    fn write_dump(&mut self, rows: &DumpRows) -> Chunk {
        let count = rows.len();
        self.buffer.reserve(rows.bytes() + count * DUMP_LEAD_BYTES);
        let payloads: Vec<_> = rows.payloads().collect();
        if self.batch_size == 0 {
            self.write_each(rows, &payloads);
        } else {
            let mut place_before = rows.place_before;
            let mut batches = payloads.chunks(self.batch_size).peekable();
            while let Some(batch) = batches.next() {
                let run = RowRun {
                    range: rows.number.0,
                    place_before,
                    is_last: rows.is_last && batches.peek().is_none(),
                };
                push_rows(&mut self.buffer, run, batch);
                let length = u32::try_from(batch.len()).unwrap_or(u32::MAX);
                place_before = place_before.saturating_add(length);
            }
        }
        Chunk {
            bytes: self.buffer.split().freeze(),
            message_count: count,
        }
    }

    /// Rows of a dump as messages of their own, which have no places.
    fn write_each(&mut self, rows: &DumpRows, payloads: &[&[u8]]) {
        let checkpoint = Checkpoint::new(Lsn::ZERO, rows.number.0);
        for (payload, nth) in payloads.iter().zip(1..) {
            let is_last = rows.is_last && nth == payloads.len();
            let message = Outgoing {
                checkpoint,
                payload,
                commit_time: None,
                data: if is_last { Data::LastRow } else { Data::None },
            };
            push_message(&mut self.buffer, &message);
        }
    }

    fn write_rows<'b>(
        &mut self,
        rows: impl ExactSizeIterator<Item = (&'b ParcelBody, &'b Slot)>,
    ) -> Chunk {
        let with_commit_time = self.with_commit_time;
        let message_count = rows.len();
        let messages = rows.map(|(body, slot)| Outgoing {
            checkpoint: slot.checkpoint,
            payload: body.payload(slot),
            commit_time: (with_commit_time && slot.commit_time != PgTime(0))
                .then_some(slot.commit_time),
            data: Data::None,
        });
        Self::push(&mut self.buffer, messages, self.batch_size);
        Chunk {
            bytes: self.buffer.split().freeze(),
            message_count,
        }
    }

    fn push<'b>(
        buffer: &mut BytesMut,
        messages: impl Iterator<Item = Outgoing<'b>>,
        batch_size: usize,
    ) {
        if batch_size == 0 {
            for message in messages {
                push_message(buffer, &message);
            }
        } else {
            let messages: Vec<_> = messages.collect();
            for batch in messages.chunks(batch_size) {
                push_batch(buffer, batch);
            }
        }
    }
}

//! Joins small batches into larger ones for readers.
//!
//! A transaction of one row is one block in the log; handing each on alone would cost a message
//! between threads a row. Small ones are copied together up to the limits of a batch, large ones
//! pass as they are.

use std::collections::VecDeque;

use bytes::BytesMut;
use pgcapture_engine::batch::{BATCH_BYTES_TARGET, BATCH_ENTRIES_MAX, Batch};

/// From here on a batch is passed on as it is: copying it would cost more than a message.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// Collects batches in order; see the module.
#[derive(Debug, Default)]
pub(super) struct Merger {
    ready: VecDeque<Batch>,
    /// What is being joined; its bytes stand in `buffer` unless it is a single batch.
    open: Option<Batch>,
    buffer: BytesMut,
}

impl Merger {
    /// Adds the next batch in log order.
    pub(super) fn push(&mut self, batch: Batch) {
        let Some(open) = &mut self.open else {
            self.open = Some(batch);
            return;
        };
        let open_bytes = open.entries.len().max(self.buffer.len());
        let joins = open.entry_count + batch.entry_count <= BATCH_ENTRIES_MAX
            && open_bytes + batch.entries.len() <= BATCH_BYTES_TARGET
            && batch.entries.len() < COPY_BYTES_MAX
            && (open.entries.len() < COPY_BYTES_MAX || !self.buffer.is_empty());
        if !joins {
            self.close();
            self.open = Some(batch);
            return;
        }
        if self.buffer.is_empty() {
            self.buffer
                .reserve(BATCH_BYTES_TARGET.min(4 * (open_bytes + batch.entries.len())));
            self.buffer.extend_from_slice(&open.entries);
        }
        self.buffer.extend_from_slice(&batch.entries);
        open.span = match (open.span, batch.span) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (one, None) | (None, one) => one,
        };
        open.entry_count += batch.entry_count;
        open.change_count += batch.change_count;
        open.resume_lsn = batch.resume_lsn;
        open.commit_time = batch.commit_time;
    }

    /// Returns everything that was added.
    pub(super) fn finish(mut self) -> VecDeque<Batch> {
        self.close();
        self.ready
    }

    fn close(&mut self) {
        if let Some(mut batch) = self.open.take() {
            if !self.buffer.is_empty() {
                batch.entries = self.buffer.split().freeze();
            }
            self.ready.push_back(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_engine::{
        batch::{BatchBuilder, EntryKind},
        checkpoint::Checkpoint,
        lsn::{Lsn, PgTime},
    };

    use super::*;

    fn batch(lsn: u64, bytes: usize) -> Batch {
        let mut builder = BatchBuilder::default();
        let mut payload = vec![0; bytes];
        payload[0] = EntryKind::Change.tag();
        builder.push(Checkpoint::new(Lsn(lsn), 1), EntryKind::Change, &payload);
        builder.finish(Lsn(lsn + 1), PgTime(lsn.try_into().unwrap()))
    }

    fn merged(sizes: &[usize]) -> Vec<u32> {
        let mut merger = Merger::default();
        for (lsn, size) in sizes.iter().enumerate() {
            merger.push(batch(lsn as u64 + 1, *size));
        }
        let batches = merger.finish();
        let mut walked = Vec::new();
        for batch in &batches {
            walked.extend(batch.iter().map(|entry| entry.unwrap().checkpoint.lsn.0));
            let (_, last) = batch.span.unwrap();
            assert_eq!(batch.resume_lsn.0, last.lsn.0 + 1);
        }
        assert_eq!(walked, (1..=sizes.len() as u64).collect::<Vec<_>>());
        batches.iter().map(|batch| batch.entry_count).collect()
    }

    #[test]
    fn small_batches_are_joined_up_to_the_limits() {
        assert_eq!(merged(&[10; 3]), [3]);
        assert_eq!(merged(&[10; 2_000]), [1_024, 976]);
        assert_eq!(merged(&[60_000; 9]), [4, 4, 1]);
    }

    #[test]
    fn a_large_batch_is_not_copied_but_keeps_its_place() {
        assert_eq!(merged(&[10, 300_000, 10, 10]), [1, 1, 2]);
        assert_eq!(merged(&[]), [0; 0]);
    }
}

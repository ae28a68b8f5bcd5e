//! Cuts the log into parts for sessions: what the filter lets through, as much as fits.
//!
//! Owns the reader of one subscription, or of one peek. Rows are not copied: a part shares the
//! memory of the batch, unless the filter took so little of it that keeping the batch would be waste.
//! It stops before a limit when there is one, and knows when nothing before the limit can come any more:
//! the next entry lies behind it, or the log's durable end does and all of it was read.

use std::sync::Arc;

use bytes::Bytes;
use pgcapture_engine::{
    batch::{Batch, ENTRY_HEADER_BYTES, Entries, Entry, EntryKind, MalformedBatch},
    capture_frame::begin_commit_time,
    checkpoint::Checkpoint,
    filter::Filter,
    ledger::{ParcelBody, Part, Room, Slot},
    lsn::{Lsn, PgTime},
};

use crate::log::{ChangeLog, LogError, LogReader};

/// No limit.
pub(super) const NO_LIMIT: Lsn = Lsn(u64::MAX);

/// A part keeps the memory of its batch when at least one of this many bytes is delivered.
const KEEP_ONE_IN: usize = 2;

/// What the feed has next.
#[derive(Debug)]
pub(super) enum Fed {
    /// A part of the log.
    Part(Part),
    /// Everything before the limit was handed out.
    Reached,
}

/// A reader and what is left of its last batch.
pub(super) struct Feed {
    log: Arc<dyn ChangeLog>,
    reader: Box<dyn LogReader>,
    rest: Batch,
    /// Entries that an earlier life of the subscription had acknowledged; runs in order.
    done: Vec<(Checkpoint, Checkpoint)>,
    /// The transaction that is being read, and when it committed.
    transaction: (Lsn, PgTime),
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feed in {}", self.transaction.0)
    }
}

impl Feed {
    pub(super) fn new(
        log: Arc<dyn ChangeLog>,
        reader: Box<dyn LogReader>,
        done: &[(Checkpoint, Checkpoint)],
    ) -> Self {
        Self {
            log,
            reader,
            rest: Batch::default(),
            done: done.to_vec(),
            transaction: (Lsn::ZERO, PgTime(0)),
        }
    }

    /// Returns the next part of the log before `limit`, waiting at the tail. The part may have
    /// nothing to deliver.
    ///
    /// Cancellation-safe: a dropped call loses nothing.
    pub(super) async fn next(
        &mut self,
        filter: &mut Filter,
        room: Room,
        limit: Lsn,
    ) -> Result<Fed, LogError> {
        while self.rest.entries.is_empty() {
            if limit == NO_LIMIT {
                self.rest = self.reader.next().await?;
            } else if !self.fill_before(limit).await? {
                return Ok(Fed::Reached);
            }
        }
        self.cut(filter, room, limit)
            .map_err(|error| damaged(&error))
    }

    /// Reads the next batch; tells whether there is one, or the durable end lies at the limit.
    async fn fill_before(&mut self, limit: Lsn) -> Result<bool, LogError> {
        let mut tail = self.log.tail();
        loop {
            // First the end, then the look: what is not there then comes after the end.
            let durable = *tail.borrow_and_update();
            if let Some(batch) = self.reader.try_next().await? {
                self.rest = batch;
                return Ok(true);
            }
            if durable.resume_lsn >= limit {
                return Ok(false);
            }
            self.log.ask_progress(limit);
            if tail.changed().await.is_err() {
                // The log is closed; the reader knows why.
                self.rest = self.reader.next().await?;
                return Ok(true);
            }
        }
    }

    fn cut(&mut self, filter: &mut Filter, room: Room, limit: Lsn) -> Result<Fed, MalformedBatch> {
        let entries = self.rest.entries.clone();
        let mut slots = Vec::with_capacity(room.messages.min(self.rest.entry_count as usize));
        let (mut taken, mut kept) = (0, 0);
        let mut span: Option<(Checkpoint, Checkpoint)> = None;
        let mut has_restored = false;
        for entry in Entries::new(&entries) {
            if slots.len() >= room.messages || kept >= room.bytes {
                break;
            }
            let entry = entry?;
            if entry.checkpoint.lsn >= limit {
                break;
            }
            let commit_time = self.commit_time(&entry);
            let offset = taken + ENTRY_HEADER_BYTES;
            taken = offset + entry.payload.len();
            let checkpoint = entry.checkpoint;
            span = Some((span.map_or(checkpoint, |(first, _)| first), checkpoint));
            if self.is_done(checkpoint) {
                has_restored = true;
            } else if filter.wants(&entry)? {
                kept += entry.payload.len();
                slots.push(Slot {
                    checkpoint,
                    commit_time,
                    offset: u32::try_from(offset).map_err(|_| MalformedBatch)?,
                    length: u32::try_from(entry.payload.len()).map_err(|_| MalformedBatch)?,
                });
            }
        }
        drop(entries);
        let bytes = self.rest.entries.split_to(taken);
        let Some((first, last)) = span else {
            return Ok(Fed::Reached);
        };
        Ok(Fed::Part(Part {
            first,
            last,
            commit_time: self.rest.commit_time,
            body: Arc::new(body(bytes, slots, kept)),
            has_restored,
        }))
    }

    /// Tells whether an earlier life had the entry acknowledged.
    fn is_done(&mut self, checkpoint: Checkpoint) -> bool {
        while let Some((first, last)) = self.done.first() {
            if checkpoint > *last {
                self.done.remove(0);
            } else {
                return checkpoint >= *first;
            }
        }
        false
    }

    /// Finds the commit time of the entry's transaction: from its Begin, or, when reading started
    /// behind that, from its Commit or from the batch.
    fn commit_time(&mut self, entry: &Entry<'_>) -> PgTime {
        if let Some(time) = begin_commit_time(entry) {
            self.transaction = (entry.checkpoint.lsn, time);
        } else if self.transaction.0 != entry.checkpoint.lsn {
            self.transaction = (entry.checkpoint.lsn, self.look_ahead(entry.checkpoint.lsn));
        }
        self.transaction.1
    }

    fn look_ahead(&self, lsn: Lsn) -> PgTime {
        use pgcapture_proto::pgcapture::Commit;
        use prost::Message as _;

        let commit = self
            .rest
            .iter()
            .map_while(Result::ok)
            .find(|entry| entry.kind == EntryKind::Commit && entry.checkpoint.lsn == lsn);
        commit
            .and_then(|entry| Commit::decode(entry.inner().ok()?).ok())
            .map_or(self.rest.commit_time, |commit| {
                PgTime(commit.commit_time.cast_signed())
            })
    }
}

/// Keeps the batch's memory, or copies the little that is delivered of it.
fn body(bytes: Bytes, slots: Vec<Slot>, kept: usize) -> ParcelBody {
    let whole = ParcelBody { bytes, slots };
    if kept * KEEP_ONE_IN >= whole.bytes.len() {
        whole
    } else {
        whole.compact(|_| true)
    }
}

fn damaged(error: &MalformedBatch) -> LogError {
    LogError::Closed {
        reason: error.to_string(),
    }
}

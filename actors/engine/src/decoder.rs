//! The decoder of one source: pgoutput messages in, batches of the log's entries out.
//!
//! Owns the open transaction, the relations of the connection, the batch that is being filled and
//! the position of the last entry. Never reads a socket and never waits: the caller feeds one
//! message after the other and takes a batch when [`Decoder::is_full`] says so, or when nothing
//! more is there to read. Memory is one batch and one row, however long a transaction is.
//!
//! # Invariants
//!
//! - Checkpoints of entries grow strictly, also across connections; what is at or before the tail
//!   of the log is dropped and counted, so that reading the same WAL again adds no duplicate.
//! - `seq` counts every wire change of a transaction, written or dropped.
//! - `resume_lsn` never goes back.
//!
//! A transaction without any change (PostgreSQL 14 sends those) leaves no entry: its Begin waits
//! for the first change. Nobody could use the entries, an idle database would fill the log with
//! them, and later servers leave such transactions out as well; `resume_lsn` moves on all the same.

mod counters;
mod error;
mod rare;

use pgcapture_proto::pgcapture as wire;
use prost::Message as _;

pub use counters::DecoderCounters;
pub use error::DecodeError;

use crate::{
    batch::{BATCH_ENTRIES_MAX, Batch, BatchBuilder, EntryKind},
    checkpoint::Checkpoint,
    encode::{ChangeLength, RowChange, RowScratch, put_change},
    lsn::{Lsn, PgTime},
    pgoutput::{Begin, Commit, Message, OldTuple, Tuple},
    relations::{Operation, Relation, Relations},
};

/// Entries that one message can add: a Begin that waited, and the change.
const ENTRIES_PER_MESSAGE_MAX: u32 = 2;

/// Limits of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderOptions {
    /// A row or logical message whose entry is larger (bytes) is an error.
    pub row_bytes_max: usize,
}

/// Turns pgoutput messages into batches.
#[derive(Debug)]
pub struct Decoder {
    options: DecoderOptions,
    relations: Relations,
    builder: BatchBuilder,
    scratch: RowScratch,
    transaction: Option<OpenTransaction>,
    /// Commit LSN of the last transaction of this connection.
    previous_commit: Option<Lsn>,
    /// Last entry that is in the log or was written.
    last: Option<Checkpoint>,
    resume_lsn: Lsn,
    commit_time: PgTime,
    counters: DecoderCounters,
}

/// The transaction between Begin and Commit.
#[derive(Clone, Copy, Debug)]
struct OpenTransaction {
    begin: Begin,
    /// `seq` of the last wire change; 0 before the first.
    seq: u32,
}

impl Decoder {
    /// Makes a decoder that continues a log.
    ///
    /// `tail` is the last entry of the log: everything at or before it is dropped. `resume_lsn` is
    /// where replication starts; zero for a new log.
    #[must_use]
    pub fn new(options: DecoderOptions, tail: Option<Checkpoint>, resume_lsn: Lsn) -> Self {
        Self {
            options,
            relations: Relations::default(),
            builder: BatchBuilder::default(),
            scratch: RowScratch::default(),
            transaction: None,
            previous_commit: None,
            last: tail,
            resume_lsn,
            commit_time: PgTime::default(),
            counters: DecoderCounters::default(),
        }
    }

    /// Prepares for a stream of messages that starts anew at [`Self::resume_lsn`]: another
    /// connection, another call of a slot function. The server describes relations again and sends
    /// an interrupted transaction from its Begin; what was written before is dropped then. Entries
    /// not yet taken stay.
    pub fn restart_stream(&mut self) {
        self.relations.clear();
        self.transaction = None;
        self.previous_commit = None;
    }

    /// Decodes one pgoutput message.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]. What was written before the message can still be taken; the decoder itself
    /// must then be thrown away, or restarted with [`Self::restart_stream`].
    #[inline]
    pub fn decode(&mut self, message: &[u8]) -> Result<(), DecodeError> {
        self.counters.byte_count += message.len() as u64;
        let parsed = Message::parse(message).map_err(|source| DecodeError::Malformed {
            lsn: self.lsn(),
            source,
        })?;
        match parsed {
            Message::Insert(insert) => self.row(
                insert.relation_id,
                Operation::Insert,
                Some(insert.new),
                None,
            ),
            Message::Update(update) => self.row(
                update.relation_id,
                Operation::Update,
                Some(update.new),
                update.old,
            ),
            Message::Delete(delete) => self.row(
                delete.relation_id,
                Operation::Delete,
                None,
                Some(delete.old),
            ),
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => self.commit(commit),
            Message::Relation(relation) => {
                self.relations
                    .insert(Relation::new(&relation))
                    .map_err(|source| DecodeError::TooManyRelations {
                        lsn: self.lsn(),
                        source,
                    })
            }
            Message::Truncate(truncate) => self.truncate(truncate),
            Message::Logical(logical) if logical.is_transactional => {
                self.transactional_message(logical)
            }
            Message::Logical(logical) => self.standalone_message(logical),
            // The wire contract has no place for either.
            Message::Origin(_) | Message::Type(_) => Ok(()),
        }
    }

    /// Tells whether the batch should be taken before the next message.
    #[must_use]
    #[inline]
    pub fn is_full(&self) -> bool {
        self.builder.is_full()
            || self.builder.entry_count() + ENTRIES_PER_MESSAGE_MAX > BATCH_ENTRIES_MAX
    }

    /// Takes what was written since the last call; `None` when that is nothing.
    pub fn take(&mut self) -> Option<Batch> {
        if self.builder.is_empty() {
            return None;
        }
        Some(self.builder.finish(self.resume_lsn, self.commit_time))
    }

    /// Tells whether a Begin came and its Commit did not yet.
    #[must_use]
    pub const fn is_in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Tells whether everything received was taken and no transaction is open: only then does a
    /// keepalive speak for what the log should hold.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.transaction.is_none() && self.builder.is_empty()
    }

    /// Returns the last entry that is in the log or was written.
    #[must_use]
    pub const fn last_checkpoint(&self) -> Option<Checkpoint> {
        self.last
    }

    /// Returns from where the server would have to send again everything not yet written.
    #[must_use]
    pub const fn resume_lsn(&self) -> Lsn {
        self.resume_lsn
    }

    /// Returns the commit time of the newest transaction seen; zero before the first.
    #[must_use]
    pub const fn commit_time(&self) -> PgTime {
        self.commit_time
    }

    /// Returns what was done so far.
    #[must_use]
    pub const fn counters(&self) -> &DecoderCounters {
        &self.counters
    }

    /// The position that errors name: the open transaction, else where the stream stands.
    fn lsn(&self) -> Lsn {
        self.transaction
            .map_or(self.resume_lsn, |open| open.begin.final_lsn)
    }

    fn begin(&mut self, begin: Begin) -> Result<(), DecodeError> {
        if let Some(open) = self.transaction {
            return Err(DecodeError::BeginInsideTransaction {
                lsn: begin.final_lsn,
                open: open.begin.final_lsn,
            });
        }
        if let Some(previous) = self.previous_commit
            && begin.final_lsn <= previous
        {
            return Err(DecodeError::CommitOrder {
                lsn: begin.final_lsn,
                previous,
            });
        }
        self.transaction = Some(OpenTransaction { begin, seq: 0 });
        self.resume_lsn = self.resume_lsn.max(begin.final_lsn);
        self.commit_time = begin.commit_time;
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<(), DecodeError> {
        let Some(open) = self.transaction.take() else {
            return Err(DecodeError::OutsideTransaction {
                lsn: commit.commit_lsn,
                what: "a Commit",
            });
        };
        let lsn = open.begin.final_lsn;
        if commit.commit_lsn != lsn {
            return Err(DecodeError::CommitMismatch {
                lsn,
                found: commit.commit_lsn,
            });
        }
        if open.seq == 0 {
            self.counters.empty_transaction_count += 1;
        } else {
            let checkpoint = Checkpoint::new(lsn, next_seq(lsn, open.seq)?);
            let message = wire::message::Type::Commit(wire::Commit {
                commit_lsn: lsn.0,
                end_lsn: commit.end_lsn.0,
                commit_time: wire_time(commit.commit_time),
            });
            if self.push(checkpoint, EntryKind::Commit, message) {
                self.counters.transaction_count += 1;
            }
        }
        self.previous_commit = Some(lsn);
        self.resume_lsn = self.resume_lsn.max(commit.end_lsn);
        Ok(())
    }

    #[inline]
    fn row(
        &mut self,
        relation_id: u32,
        operation: Operation,
        new: Option<Tuple<'_>>,
        old: Option<OldTuple<'_>>,
    ) -> Result<(), DecodeError> {
        let checkpoint = self.next_change("a row")?;
        if self.drops(checkpoint) {
            return Ok(());
        }
        let lsn = checkpoint.lsn;
        let Some(relation) = self.relations.get(relation_id) else {
            return Err(DecodeError::UnknownRelation {
                lsn,
                id: relation_id,
            });
        };
        let row = RowChange {
            relation,
            operation,
            new,
            old,
        };
        let small = row.write_small(&mut self.scratch);
        let small = small.map_err(|source| DecodeError::row(lsn, relation, source))?;
        let length = match small {
            Some(change) => ChangeLength::of(change),
            None => row
                .length()
                .map_err(|source| DecodeError::row(lsn, relation, source))?,
        };
        let bytes = length.message();
        if bytes > self.options.row_bytes_max {
            let limit = self.options.row_bytes_max;
            return Err(DecodeError::row_too_large(lsn, relation, bytes, limit));
        }
        let buffer = self
            .builder
            .start_entry(checkpoint, EntryKind::Change, bytes);
        match small {
            Some(change) => put_change(change, buffer),
            None => row.write(length, buffer),
        }
        self.last = Some(checkpoint);
        match operation {
            Operation::Insert => self.counters.insert_count += 1,
            Operation::Update => self.counters.update_count += 1,
            Operation::Delete => self.counters.delete_count += 1,
        }
        Ok(())
    }

    /// Counts one wire change of the open transaction and returns its checkpoint. The first one
    /// writes the Begin.
    #[inline]
    fn next_change(&mut self, what: &'static str) -> Result<Checkpoint, DecodeError> {
        let Some(open) = &mut self.transaction else {
            return Err(DecodeError::OutsideTransaction {
                lsn: self.resume_lsn,
                what,
            });
        };
        let lsn = open.begin.final_lsn;
        let is_first = open.seq == 0;
        open.seq = next_seq(lsn, open.seq)?;
        let checkpoint = Checkpoint::new(lsn, open.seq);
        if is_first {
            let begin = open.begin;
            self.write_begin(begin);
        }
        Ok(checkpoint)
    }

    fn write_begin(&mut self, begin: Begin) {
        let message = wire::message::Type::Begin(wire::Begin {
            final_lsn: begin.final_lsn.0,
            commit_time: wire_time(begin.commit_time),
            remote_xid: begin.xid,
        });
        self.push(
            Checkpoint::new(begin.final_lsn, 0),
            EntryKind::Begin,
            message,
        );
    }

    /// Tells whether the log has the entry already, and counts it then.
    #[inline]
    fn drops(&mut self, checkpoint: Checkpoint) -> bool {
        let is_old = self.last.is_some_and(|last| checkpoint <= last);
        self.counters.dropped_count += u64::from(is_old);
        is_old
    }

    /// Writes an entry unless the log has it already; tells whether it did.
    fn push(
        &mut self,
        checkpoint: Checkpoint,
        kind: EntryKind,
        message: wire::message::Type,
    ) -> bool {
        if self.drops(checkpoint) {
            return false;
        }
        self.write(checkpoint, kind, message);
        true
    }

    fn write(&mut self, checkpoint: Checkpoint, kind: EntryKind, message: wire::message::Type) {
        let message = wire::Message {
            r#type: Some(message),
        };
        let buffer = self
            .builder
            .start_entry(checkpoint, kind, message.encoded_len());
        message
            .encode(buffer)
            .expect("a growing buffer takes every message");
        self.last = Some(checkpoint);
    }
}

fn next_seq(lsn: Lsn, seq: u32) -> Result<u32, DecodeError> {
    seq.checked_add(1)
        .ok_or(DecodeError::TooManyChanges { lsn })
}

/// The wire has the bits of PostgreSQL's signed number in an unsigned field.
const fn wire_time(time: PgTime) -> u64 {
    time.0.cast_unsigned()
}

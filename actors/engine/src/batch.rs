//! The unit of the data path: up to 1,024 log entries in one piece of memory.
//!
//! The bytes that the decoder writes are the bytes that lie in the log and that sessions forward:
//! a change is encoded once. An entry is a header of 16 bytes and its encoded
//! `pgcapture.Message`; the first byte of that message, a protobuf tag, tells the kind, so that
//! nobody parses a row to filter or to count.
//!
//! ```text
//! payload length: u32 LE | seq: u32 LE | commit LSN: u64 LE | payload
//! ```
//!
//! # Invariants
//!
//! - Checkpoints inside a batch grow strictly.
//! - A batch with no entries carries progress only: nothing happened up to `resume_lsn`.

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    checkpoint::Checkpoint,
    lsn::{Lsn, PgTime},
};

/// Bytes of the header before each payload.
pub const ENTRY_HEADER_BYTES: usize = 16;

/// A batch is closed at this many entries: a message costs some 40 µs between threads, 1,024
/// entries make that cost disappear while a mailbox stays small.
pub const BATCH_ENTRIES_MAX: u32 = 1_024;

/// A batch is closed once it holds this many bytes. A single larger row makes a larger batch.
pub const BATCH_BYTES_TARGET: usize = 256 * 1024;

/// Bytes allocated at once: a batch and the row that closes it. Small batches share one piece.
const BUFFER_BYTES: usize = BATCH_BYTES_TARGET + 16 * 1024;

/// What an entry is, told by the protobuf tag of the `Message` oneof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// `Message.begin`.
    Begin,
    /// `Message.commit`.
    Commit,
    /// `Message.change`.
    Change,
    /// `Message.keep_alive`; never stored.
    KeepAlive,
    /// `Message.truncate`.
    Truncate,
    /// `Message.logical`.
    Logical,
    /// `Message.gap`.
    Gap,
}

impl EntryKind {
    /// Returns the tag byte that starts a message of this kind.
    #[must_use]
    pub const fn tag(self) -> u8 {
        match self {
            Self::Begin => 0x0A,
            Self::Commit => 0x12,
            Self::Change => 0x1A,
            Self::KeepAlive => 0x22,
            Self::Truncate => 0x2A,
            Self::Logical => 0x32,
            Self::Gap => 0x3A,
        }
    }

    /// Returns the kind that `tag` starts, if any.
    #[must_use]
    pub const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            0x0A => Self::Begin,
            0x12 => Self::Commit,
            0x1A => Self::Change,
            0x22 => Self::KeepAlive,
            0x2A => Self::Truncate,
            0x32 => Self::Logical,
            0x3A => Self::Gap,
            _ => return None,
        })
    }
}

/// One entry, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Position of the entry.
    pub checkpoint: Checkpoint,
    /// What it is.
    pub kind: EntryKind,
    /// The whole encoded `pgcapture.Message`.
    pub payload: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Returns the encoded inner message (`Change`, `Begin` …): the payload without the tag and
    /// the length of the oneof field.
    ///
    /// # Errors
    ///
    /// [`MalformedBatch`] when the length does not fit the payload.
    pub fn inner(&self) -> Result<&'a [u8], MalformedBatch> {
        let mut rest = self.payload.get(1..).unwrap_or_default();
        let length = prost::encoding::decode_varint(&mut rest).map_err(|_| MalformedBatch)?;
        (rest.len() as u64 == length)
            .then_some(rest)
            .ok_or(MalformedBatch)
    }
}

/// The bytes of a batch do not follow the format above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the entries of a batch are malformed")]
pub struct MalformedBatch;

/// A batch of log entries in checkpoint order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// All entries, each header then payload.
    pub entries: Bytes,
    /// First and last checkpoint; `None` when there are no entries.
    pub span: Option<(Checkpoint, Checkpoint)>,
    /// Number of entries.
    pub entry_count: u32,
    /// Number of entries that are changes.
    pub change_count: u32,
    /// `START_REPLICATION` from here sends again everything after the last entry: the end LSN of
    /// the last commit, or, inside a transaction, that transaction's commit LSN.
    pub resume_lsn: Lsn,
    /// Commit time of the newest transaction in the batch (or before it); zero when unknown.
    pub commit_time: PgTime,
}

impl Batch {
    /// Makes a batch that says only: nothing was left out up to `resume_lsn`.
    #[must_use]
    pub fn progress(resume_lsn: Lsn, commit_time: PgTime) -> Self {
        Self {
            resume_lsn,
            commit_time,
            ..Self::default()
        }
    }

    /// Walks the entries. The walk ends with an error at the first malformed one.
    #[must_use]
    pub fn iter(&self) -> Entries<'_> {
        Entries {
            rest: &self.entries,
        }
    }

    /// Leaves out every entry at or before `checkpoint`, without copying.
    ///
    /// Returns an entry-less batch when nothing is left; `resume_lsn` and `commit_time` stay.
    ///
    /// # Errors
    ///
    /// [`MalformedBatch`] when the entries cannot be walked.
    pub fn after(mut self, checkpoint: Checkpoint) -> Result<Self, MalformedBatch> {
        let Some((first, last)) = self.span else {
            return Ok(self);
        };
        if first > checkpoint {
            return Ok(self);
        }
        if last <= checkpoint {
            return Ok(Self::progress(self.resume_lsn, self.commit_time));
        }
        let (mut dropped_bytes, mut dropped_entries, mut dropped_changes) = (0, 0, 0);
        for entry in Entries::new(&self.entries) {
            let entry = entry?;
            if entry.checkpoint > checkpoint {
                self.span = Some((entry.checkpoint, last));
                break;
            }
            dropped_bytes += ENTRY_HEADER_BYTES + entry.payload.len();
            dropped_entries += 1;
            dropped_changes += u32::from(entry.kind == EntryKind::Change);
        }
        self.entries.advance(dropped_bytes);
        self.entry_count -= dropped_entries;
        self.change_count -= dropped_changes;
        Ok(self)
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = Result<Entry<'a>, MalformedBatch>;
    type IntoIter = Entries<'a>;

    fn into_iter(self) -> Entries<'a> {
        self.iter()
    }
}

/// Iterator over the entries of a batch.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Walks entries that lie in `bytes`, as they lie in a batch and in the log.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn split_first(&mut self) -> Option<Entry<'a>> {
        let (header, rest) = self.rest.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, lsn @ ..] = *header;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok()?;
        let (payload, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(Entry {
            checkpoint: Checkpoint::new(
                Lsn(u64::from_le_bytes(lsn)),
                u32::from_le_bytes([s0, s1, s2, s3]),
            ),
            kind: EntryKind::from_tag(*payload.first()?)?,
            payload,
        })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, MalformedBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.split_first();
        if entry.is_none() {
            self.rest = &[];
        }
        Some(entry.ok_or(MalformedBatch))
    }
}

/// Collects entries into batches. Owned by the decoder, which writes payloads in place.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    buffer: BytesMut,
    span: Option<(Checkpoint, Checkpoint)>,
    entry_count: u32,
    change_count: u32,
}

impl BatchBuilder {
    /// Starts an entry and returns the buffer, to which the caller must append exactly
    /// `payload_length` bytes: the encoded `pgcapture.Message` of that kind.
    ///
    /// `checkpoint` must be greater than the one before.
    ///
    /// # Panics
    ///
    /// When `payload_length` exceeds `u32::MAX`; PostgreSQL's rows end at 1 GiB.
    pub fn start_entry(
        &mut self,
        checkpoint: Checkpoint,
        kind: EntryKind,
        payload_length: usize,
    ) -> &mut BytesMut {
        debug_assert!(
            self.span.is_none_or(|(_, last)| last < checkpoint),
            "checkpoints must grow"
        );
        let length = u32::try_from(payload_length).expect("a payload is shorter than 4 GiB");
        let first = self.span.map_or(checkpoint, |(first, _)| first);
        self.span = Some((first, checkpoint));
        self.entry_count += 1;
        self.change_count += u32::from(kind == EntryKind::Change);
        let needed = ENTRY_HEADER_BYTES + payload_length;
        if self.buffer.capacity() - self.buffer.len() < needed {
            // Room for a whole batch at once: growing step by step would copy it several times.
            self.buffer.reserve(needed.max(BUFFER_BYTES));
        }
        let [l0, l1, l2, l3] = length.to_le_bytes();
        let [s0, s1, s2, s3] = checkpoint.seq.to_le_bytes();
        let [p0, p1, p2, p3, p4, p5, p6, p7] = checkpoint.lsn.0.to_le_bytes();
        // One piece: a header is written for every entry.
        self.buffer.extend_from_slice(&[
            l0, l1, l2, l3, s0, s1, s2, s3, p0, p1, p2, p3, p4, p5, p6, p7,
        ]);
        &mut self.buffer
    }

    /// Appends a complete entry.
    pub fn push(&mut self, checkpoint: Checkpoint, kind: EntryKind, payload: &[u8]) {
        self.start_entry(checkpoint, kind, payload.len())
            .extend_from_slice(payload);
    }

    /// Tells whether the batch should be handed on before more is appended.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entry_count >= BATCH_ENTRIES_MAX || self.buffer.len() >= BATCH_BYTES_TARGET
    }

    /// Tells whether nothing was appended since the last [`Self::finish`].
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entry_count == 0
    }

    /// Returns how many entries were appended since the last [`Self::finish`].
    #[must_use]
    pub const fn entry_count(&self) -> u32 {
        self.entry_count
    }

    /// Returns what was collected and starts anew.
    pub fn finish(&mut self, resume_lsn: Lsn, commit_time: PgTime) -> Batch {
        Batch {
            entries: self.buffer.split().freeze(),
            span: self.span.take(),
            entry_count: std::mem::take(&mut self.entry_count),
            change_count: std::mem::take(&mut self.change_count),
            resume_lsn,
            commit_time,
        }
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::pgcapture::{Change, Message, message};
    use prost::Message as _;

    use super::*;

    fn change(table: &str) -> Vec<u8> {
        let change = Change {
            table: table.to_owned(),
            ..Change::default()
        };
        Message {
            r#type: Some(message::Type::Change(change)),
        }
        .encode_to_vec()
    }

    fn batch_of(count: u32) -> Batch {
        let mut builder = BatchBuilder::default();
        for seq in 1..=count {
            let payload = change(&format!("t{seq}"));
            builder.push(Checkpoint::new(Lsn(7), seq), EntryKind::Change, &payload);
        }
        builder.finish(Lsn(7), PgTime(3))
    }

    #[test]
    fn entries_come_back_as_they_were_pushed() {
        let batch = batch_of(3);
        let entries: Vec<_> = batch.iter().map(Result::unwrap).collect();
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].checkpoint, Checkpoint::new(Lsn(7), 2));
        assert_eq!(entries[1].kind, EntryKind::Change);
        assert_eq!(
            Change::decode(entries[1].inner().unwrap()).unwrap().table,
            "t2"
        );
    }

    #[test]
    fn after_leaves_out_what_is_not_newer() {
        let trimmed = batch_of(5).after(Checkpoint::new(Lsn(7), 3)).unwrap();
        let kept: Vec<_> = trimmed
            .iter()
            .map(|entry| entry.unwrap().checkpoint.seq)
            .collect();
        assert_eq!(kept, [4, 5]);
        assert_eq!((trimmed.entry_count, trimmed.change_count), (2, 2));
        assert_eq!(
            batch_of(5).after(Checkpoint::new(Lsn(6), 9)).unwrap(),
            batch_of(5)
        );
        let nothing = batch_of(5).after(Checkpoint::new(Lsn(7), 5)).unwrap();
        assert_eq!(nothing, Batch::progress(Lsn(7), PgTime(3)));
    }

    #[test]
    fn a_cut_entry_is_an_error_and_ends_the_walk() {
        let mut batch = batch_of(2);
        batch.entries.truncate(batch.entries.len() - 1);
        let walked: Vec<_> = batch.iter().collect();
        assert_eq!(walked.len(), 2);
        assert_eq!(walked[1], Err(MalformedBatch));
    }
}

//! From the bytes of a binary COPY to the log's bytes: existing rows as encoded
//! `pgcapture.Message`s, written once.
//!
//! A row becomes a change with `op` UPDATE, the label's schema and table, and `new` alone: a field
//! for every column, NULL as a field without a value. The bytes are those that [`crate::encode`]
//! writes for the same values, and prost. Columns whose type has no binary form come as text in the
//! same COPY, which the column's [`ValueForm`] tells. Chunks may be cut anywhere: a row that lies in
//! one chunk is encoded from where it lies, one that does not is put together first.
//!
//! # Invariants
//!
//! - A batch has at most [`BATCH_ENTRIES_MAX`] rows and [`BATCH_BYTES_TARGET`] bytes; a single row
//!   that is larger is a batch of its own.
//! - Memory is one batch and one row.
//! - [`RowEncoder::is_done`] is true only after the trailer, which the server sends after the last
//!   row of a COPY that succeeded.

mod prepared;

mod scratch;

use bytes::{Bytes, BytesMut};

use self::{
    prepared::{Prepared, field_bytes},
    scratch::{Scratch, padded},
};
use crate::{
    batch::{BATCH_BYTES_TARGET, BATCH_ENTRIES_MAX, EntryKind},
    dump::TableName,
    encode::put_length,
    relations::{Operation, change_head},
};

/// Start of a binary COPY.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Bytes of signature, flags and length of the header's extension.
const FILE_HEADER_BYTES: usize = 11 + 4 + 4;
/// Flags that a reader must understand or refuse.
const CRITICAL_FLAGS: u32 = 0xFFFF_0000;
/// Number of columns that ends a COPY.
const TRAILER: i16 = -1;
/// Length of a value that is NULL.
const NULL: i32 = -1;
/// Bytes allocated at once: one batch.
const BUFFER_BYTES: usize = BATCH_BYTES_TARGET;

/// How the values of a column come, and go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueForm {
    /// The type's binary form.
    Binary,
    /// The type's text form in UTF-8, sent as a value of type text.
    Text,
}

/// One column of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowColumn {
    /// Name.
    pub name: String,
    /// Type OID.
    pub type_oid: u32,
    /// Form of its values.
    pub form: ValueForm,
}

/// Rows in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedRows {
    /// Encoded `pgcapture.Message`s, one after another.
    pub bytes: Bytes,
    /// Offset and length of each in `bytes`.
    pub rows: Vec<(u32, u32)>,
}

/// Why the bytes of a COPY cannot be read. Never carries a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyRowError {
    /// They do not begin as a binary COPY does.
    #[error("the bytes do not begin as a binary COPY does")]
    Header,
    /// A row has another number of columns than asked for.
    #[error("a row has {found} columns instead of {expected}")]
    ColumnCount {
        /// Columns asked for.
        expected: usize,
        /// Columns of the row.
        found: i16,
    },
    /// A value has a length that cannot be.
    #[error("a value of column \"{column}\" has the length {length}")]
    Length {
        /// Name of the column.
        column: String,
        /// What was found.
        length: i32,
    },
    /// A text value is not UTF-8.
    #[error("a text of column \"{column}\" is not UTF-8")]
    NotUtf8 {
        /// Name of the column.
        column: String,
    },
    /// A row is larger than the limit.
    #[error("a row of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Bytes of the row, or what is known of them.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Bytes after the trailer.
    #[error("{bytes} bytes follow the end of a COPY")]
    AfterTrailer {
        /// How many.
        bytes: usize,
    },
    /// The COPY ended without its trailer.
    #[error("the COPY ended in the middle of its rows")]
    Cut,
}

/// Turns the bytes of one COPY into batches of rows.
#[derive(Debug)]
pub struct RowEncoder {
    /// Operation, schema and table; whole blocks.
    head: Box<[u8]>,
    head_bytes: usize,
    columns: Box<[Prepared]>,
    row_bytes_max: usize,
    stage: Stage,
    /// The beginning of a header or row whose end has not come yet.
    carry: Vec<u8>,
    scratch: Scratch,
    buffer: BytesMut,
    rows: Vec<(u32, u32)>,
    /// The next row does not fit into the batch.
    is_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    Rows,
    Done,
}

/// What the bytes at hand make.
enum Piece {
    /// A row: its bytes in the COPY, and those of its change without tag and length.
    Row { size: usize, change: usize },
    /// The trailer.
    Trailer,
    /// At least this many more bytes are needed.
    More(usize),
}

impl RowEncoder {
    /// Prepares for the rows of one COPY, delivered under `label`. A row whose message is larger
    /// than `row_bytes_max` is an error.
    #[must_use]
    pub fn new(label: &TableName, columns: &[RowColumn], row_bytes_max: usize) -> Self {
        let head = change_head(Operation::Update, &label.schema, &label.table);
        Self {
            head_bytes: head.len(),
            head: padded(&head),
            columns: columns.iter().map(Prepared::new).collect(),
            row_bytes_max,
            stage: Stage::Header,
            carry: Vec::new(),
            scratch: Scratch::new(),
            buffer: BytesMut::new(),
            rows: Vec::new(),
            is_closed: false,
        }
    }

    /// Takes bytes from the front of `chunk` until it is used up or the batch is full, and returns
    /// how many. When [`Self::is_full`], take the batch and feed the rest.
    ///
    /// # Errors
    ///
    /// [`CopyRowError`]; the rows before are right, and nothing more may be fed.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<usize, CopyRowError> {
        let mut rest = chunk;
        while !rest.is_empty() && !self.is_full() {
            if self.stage == Stage::Rows && self.carry.is_empty() {
                rest = self.rows_in_place(rest)?;
            } else {
                rest = self.piece_by_piece(rest)?;
            }
        }
        Ok(chunk.len() - rest.len())
    }

    /// Tells whether the batch must be taken before more is fed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_closed
            || self.rows.len() >= BATCH_ENTRIES_MAX as usize
            || self.buffer.len() >= BATCH_BYTES_TARGET
    }

    /// Returns the rows encoded since the last call; `None` when there are none.
    pub fn take(&mut self) -> Option<EncodedRows> {
        self.is_closed = false;
        if self.rows.is_empty() {
            return None;
        }
        Some(EncodedRows {
            bytes: self.buffer.split().freeze(),
            rows: std::mem::take(&mut self.rows),
        })
    }

    /// Tells whether the trailer has come: the COPY is whole.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Checks that the COPY was whole.
    ///
    /// # Errors
    ///
    /// [`CopyRowError::Cut`] when the trailer has not come.
    pub fn finish(&self) -> Result<(), CopyRowError> {
        if self.is_done() {
            Ok(())
        } else {
            Err(CopyRowError::Cut)
        }
    }

    /// Encodes the whole rows at the front of `rest`, keeps the beginning of one that is cut, and
    /// returns what follows.
    fn rows_in_place<'a>(&mut self, mut rest: &'a [u8]) -> Result<&'a [u8], CopyRowError> {
        while !rest.is_empty() && !self.is_full() {
            match self.piece(rest)? {
                Piece::Row { size, change } => {
                    let Some((row, after)) = rest.split_at_checked(size) else {
                        break;
                    };
                    if !self.put(row, change)? {
                        break;
                    }
                    rest = after;
                }
                Piece::Trailer => {
                    self.stage = Stage::Done;
                    return Ok(rest.get(2..).unwrap_or_default());
                }
                Piece::More(_) => {
                    self.carry.extend_from_slice(rest);
                    return Ok(&[]);
                }
            }
        }
        Ok(rest)
    }

    /// Adds to the carry what its header or row still needs, and encodes it when it is whole.
    fn piece_by_piece<'a>(&mut self, rest: &'a [u8]) -> Result<&'a [u8], CopyRowError> {
        if self.is_done() {
            let bytes = rest.len();
            return Err(CopyRowError::AfterTrailer { bytes });
        }
        let needed = self.settle()?;
        self.check_size(self.carry.len().saturating_add(needed))?;
        let (front, after) = rest.split_at_checked(needed).unwrap_or((rest, &[]));
        self.carry.extend_from_slice(front);
        if after.is_empty() {
            // A whole row must not wait for bytes that may never come.
            self.settle()?;
        }
        Ok(after)
    }

    /// Encodes the carry if it is whole, and returns how many more bytes it needs at least; 0 when
    /// it was used up, or waits for the next batch.
    fn settle(&mut self) -> Result<usize, CopyRowError> {
        let carry = std::mem::take(&mut self.carry);
        let needed = match self.stage {
            Stage::Header => self.header(&carry)?,
            Stage::Rows => match self.piece(&carry)? {
                Piece::Row { change, .. } if self.put(&carry, change)? => return Ok(0),
                Piece::Row { .. } => 0,
                Piece::Trailer => {
                    self.stage = Stage::Done;
                    return Ok(0);
                }
                Piece::More(needed) => needed,
            },
            Stage::Done => 0,
        };
        if self.stage != Stage::Rows || needed > 0 || self.is_closed {
            self.carry = carry;
        }
        Ok(needed)
    }

    /// Returns how many bytes the header still needs; 0 when it is whole, and the rows begin.
    fn header(&mut self, bytes: &[u8]) -> Result<usize, CopyRowError> {
        if !SIGNATURE.starts_with(bytes) && !bytes.starts_with(SIGNATURE) {
            return Err(CopyRowError::Header);
        }
        let Some(fixed) = bytes.get(SIGNATURE.len()..FILE_HEADER_BYTES) else {
            return Ok(FILE_HEADER_BYTES - bytes.len());
        };
        let number = |at: usize| {
            let four = fixed.get(at..).and_then(<[u8]>::first_chunk::<4>);
            u32::from_be_bytes(four.copied().unwrap_or_default())
        };
        if number(0) & CRITICAL_FLAGS != 0 {
            return Err(CopyRowError::Header);
        }
        let whole = FILE_HEADER_BYTES.saturating_add(number(4) as usize);
        if bytes.len() == whole {
            self.stage = Stage::Rows;
        }
        Ok(whole - bytes.len())
    }

    /// Looks at the row at the front of `bytes`: the first of two walks, which checks everything.
    #[inline]
    fn piece(&self, bytes: &[u8]) -> Result<Piece, CopyRowError> {
        let Some((count, mut rest)) = bytes.split_first_chunk::<2>() else {
            return Ok(Piece::More(2 - bytes.len()));
        };
        let count = i16::from_be_bytes(*count);
        if usize::try_from(count) != Ok(self.columns.len()) {
            return self.no_row(count);
        }
        let mut change = self.head_bytes;
        for column in &self.columns {
            let Some((length, after)) = rest.split_first_chunk::<4>() else {
                return Ok(Piece::More(4 - rest.len()));
            };
            let length = i32::from_be_bytes(*length);
            let Ok(size) = usize::try_from(length) else {
                if length != NULL {
                    return Err(column.bad_length(length));
                }
                change += column.null_bytes();
                rest = after;
                continue;
            };
            let Some((value, after)) = after.split_at_checked(size) else {
                self.check_size(bytes.len() - after.len() + size)?;
                return Ok(Piece::More(size - after.len()));
            };
            if column.form == ValueForm::Text && std::str::from_utf8(value).is_err() {
                return Err(column.not_utf8());
            }
            change += field_bytes(column, size);
            rest = after;
        }
        let size = bytes.len() - rest.len();
        Ok(Piece::Row { size, change })
    }

    #[cold]
    fn no_row(&self, count: i16) -> Result<Piece, CopyRowError> {
        if count == TRAILER {
            return Ok(Piece::Trailer);
        }
        let expected = self.columns.len();
        let found = count;
        Err(CopyRowError::ColumnCount { expected, found })
    }

    fn check_size(&self, bytes: usize) -> Result<(), CopyRowError> {
        let limit = self.row_bytes_max;
        if bytes > limit {
            return Err(CopyRowError::TooLarge { bytes, limit });
        }
        Ok(())
    }

    /// Writes a row that [`Self::piece`] has checked: the second walk. False when it does not fit
    /// into the batch, which is closed then.
    #[inline]
    fn put(&mut self, row: &[u8], change: usize) -> Result<bool, CopyRowError> {
        let message = 1 + prost::encoding::encoded_len_varint(change as u64) + change;
        self.check_size(message)?;
        let start = self.buffer.len();
        if start + message > BATCH_BYTES_TARGET && start > 0 {
            self.is_closed = true;
            return Ok(false);
        }
        if self.buffer.capacity() - start < message {
            self.buffer.reserve(message.max(BUFFER_BYTES));
        }
        if self.rows.is_empty() {
            self.rows.reserve_exact(BATCH_ENTRIES_MAX as usize);
        }
        if Scratch::fits(message) {
            self.put_in_scratch(row, change);
        } else {
            self.put_large(row, change);
        }
        debug_assert_eq!(self.buffer.len(), start + message, "the walks must agree");
        // Batches end far below 4 GiB; a single row at the limit of PostgreSQL, 1 GiB.
        let place = (u32::try_from(start), u32::try_from(message));
        if let (Ok(start), Ok(message)) = place {
            self.rows.push((start, message));
        }
        Ok(true)
    }

    #[inline]
    fn put_in_scratch(&mut self, row: &[u8], change: usize) {
        let scratch = &mut self.scratch;
        scratch.begin();
        scratch.put_length(EntryKind::Change.tag(), change);
        scratch.put(&self.head, self.head_bytes);
        let mut rest = row.get(2..).unwrap_or_default();
        for column in &self.columns {
            let Some((length, after)) = rest.split_first_chunk::<4>() else {
                break;
            };
            let size = usize::try_from(i32::from_be_bytes(*length)).ok();
            column.put(size, after, scratch);
            rest = after.get(size.unwrap_or(0)..).unwrap_or_default();
        }
        self.buffer.extend_from_slice(scratch.row());
    }

    fn put_large(&mut self, row: &[u8], change: usize) {
        put_length(EntryKind::Change.tag(), change, &mut self.buffer);
        let head = self.head.get(..self.head_bytes);
        self.buffer.extend_from_slice(head.unwrap_or_default());
        let mut rest = row.get(2..).unwrap_or_default();
        for column in &self.columns {
            let Some((length, after)) = rest.split_first_chunk::<4>() else {
                break;
            };
            let value = usize::try_from(i32::from_be_bytes(*length)).ok();
            let value = value.and_then(|size| after.split_at_checked(size));
            rest = value.map_or(after, |(_, after)| after);
            column.put_large(value.map(|(value, _)| value), &mut self.buffer);
        }
    }
}

#[cfg(test)]
mod tests;

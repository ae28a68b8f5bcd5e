//! From a borrowed pgoutput row to the log's bytes: an encoded `pgcapture.Message`, written once.
//!
//! Rows of usual size are written in one walk ([`RowChange::write_small`]). For larger ones a first
//! walk over the columns sums up the exact length, a second one writes. What does not depend on the
//! row was prepared with the relation. The bytes are those that prost writes for the same values.
//! Keeps no state; the caller decides where the bytes go.
//!
//! What a change carries (the wire contract): `new` leaves unchanged TOAST columns out, except that
//! they are filled from the old row under REPLICA IDENTITY FULL, and keeps NULL as a field without
//! a value; `old` is the key or the old row and leaves NULL out.

mod small;

use bytes::BytesMut;
use prost::encoding::{encode_varint, encoded_len_varint};

pub use small::RowScratch;

use crate::{
    batch::EntryKind,
    pgoutput::{ColumnValue, OldTuple, Tuple},
    relations::{Column, Operation, Relation},
};

/// Tags of the length-delimited fields that rows are made of.
pub(crate) const CHANGE_NEW: u8 = 4 << 3 | 2;
const CHANGE_OLD: u8 = 5 << 3 | 2;
pub(crate) const FIELD_BINARY: u8 = 3 << 3 | 2;
pub(crate) const FIELD_TEXT: u8 = 4 << 3 | 2;

/// A change of one row, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct RowChange<'a> {
    /// The relation as last described.
    pub relation: &'a Relation,
    /// What happened.
    pub operation: Operation,
    /// The new row of an INSERT or UPDATE.
    pub new: Option<Tuple<'a>>,
    /// What is known of the old row.
    pub old: Option<OldTuple<'a>>,
}

/// The exact length of an encoded change, known before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeLength {
    change: usize,
}

impl ChangeLength {
    /// The length of an encoded `pgcapture.Change` in a message.
    #[must_use]
    #[inline]
    pub const fn of(change: &[u8]) -> Self {
        Self {
            change: change.len(),
        }
    }

    /// Returns the bytes of the whole `pgcapture.Message`.
    #[must_use]
    #[inline]
    pub const fn message(self) -> usize {
        1 + encoded_len_varint(self.change as u64) + self.change
    }
}

/// A row that does not fit its relation or the wire contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The row has another number of columns than the relation.
    #[error("the row has {found} columns, the relation {expected}")]
    ColumnCount {
        /// Columns of the relation.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A text value is not UTF-8.
    #[error("the text of column \"{column}\" is not UTF-8")]
    NotUtf8 {
        /// Name of the column.
        column: String,
    },
}

impl<'a> RowChange<'a> {
    /// Checks the row and returns the length that [`Self::write`] will write.
    ///
    /// # Errors
    ///
    /// [`RowError`] when the row does not fit its relation, or a text is not UTF-8.
    #[inline]
    pub fn length(&self) -> Result<ChangeLength, RowError> {
        let mut change = self.relation.change_head(self.operation).len();
        if let Some(new) = self.new {
            self.check_count(new)?;
            for (column, value) in self.new_fields(new) {
                change += field_length(column, value)?;
            }
        }
        if let Some(old) = self.old {
            self.check_count(old.tuple())?;
            for (column, value) in self.old_fields(old) {
                change += field_length(column, value)?;
            }
        }
        Ok(ChangeLength { change })
    }

    /// Appends the encoded `pgcapture.Message`; `length` is what [`Self::length`] returned.
    #[inline]
    pub fn write(&self, length: ChangeLength, buffer: &mut BytesMut) {
        put_length(EntryKind::Change.tag(), length.change, buffer);
        buffer.extend_from_slice(self.relation.change_head(self.operation));
        if let Some(new) = self.new {
            for (column, value) in self.new_fields(new) {
                put_field(CHANGE_NEW, column, value, buffer);
            }
        }
        if let Some(old) = self.old {
            for (column, value) in self.old_fields(old) {
                put_field(CHANGE_OLD, column, value, buffer);
            }
        }
    }

    fn check_count(&self, tuple: Tuple<'_>) -> Result<(), RowError> {
        let expected = self.relation.columns.len();
        let found = usize::from(tuple.column_count());
        if expected == found {
            return Ok(());
        }
        Err(RowError::ColumnCount { expected, found })
    }

    /// The fields of `new`: unchanged columns are filled from the old row, if that is whole.
    #[inline]
    fn new_fields(&self, new: Tuple<'a>) -> impl Iterator<Item = (&'a Column, ColumnValue<'a>)> {
        let mut full = match self.old {
            Some(OldTuple::Full(old)) => Some(old.columns()),
            Some(OldTuple::Key(_)) | None => None,
        };
        let fields = self.relation.columns.iter().zip(new.columns());
        fields.filter_map(move |(column, value)| {
            let old = full.as_mut().and_then(Iterator::next);
            match value {
                ColumnValue::Unchanged => match old {
                    Some(ColumnValue::Unchanged) | None => None,
                    Some(old) => Some((column, old)),
                },
                ColumnValue::Null | ColumnValue::Text(_) | ColumnValue::Binary(_) => {
                    Some((column, value))
                }
            }
        })
    }

    #[inline]
    fn old_fields(&self, old: OldTuple<'a>) -> impl Iterator<Item = (&'a Column, ColumnValue<'a>)> {
        let fields = self.relation.columns.iter().zip(old.tuple().columns());
        fields.filter(|(_, value)| matches!(value, ColumnValue::Text(_) | ColumnValue::Binary(_)))
    }
}

/// Appends the encoded `pgcapture.Message` of an encoded `pgcapture.Change`.
#[inline]
pub fn put_change(change: &[u8], buffer: &mut BytesMut) {
    put_length(EntryKind::Change.tag(), change.len(), buffer);
    buffer.extend_from_slice(change);
}

/// Bytes of a field with its own tag and length.
#[inline]
fn field_length(column: &Column, value: ColumnValue<'_>) -> Result<usize, RowError> {
    small::check_text(column, value)?;
    let length = inner_length(column, value);
    Ok(1 + encoded_len_varint(length as u64) + length)
}

/// Bytes of a field without its own tag and length.
#[inline]
fn inner_length(column: &Column, value: ColumnValue<'_>) -> usize {
    match value {
        ColumnValue::Null | ColumnValue::Unchanged => column.prefix.len(),
        ColumnValue::Text(bytes) | ColumnValue::Binary(bytes) => {
            column.prefix.len() + 1 + encoded_len_varint(bytes.len() as u64) + bytes.len()
        }
    }
}

#[inline]
fn put_field(tag: u8, column: &Column, value: ColumnValue<'_>, buffer: &mut BytesMut) {
    put_length(tag, inner_length(column, value), buffer);
    buffer.extend_from_slice(&column.prefix);
    let (tag, bytes) = match value {
        ColumnValue::Null | ColumnValue::Unchanged => return,
        ColumnValue::Text(bytes) => (FIELD_TEXT, bytes),
        ColumnValue::Binary(bytes) => (FIELD_BINARY, bytes),
    };
    put_length(tag, bytes.len(), buffer);
    buffer.extend_from_slice(bytes);
}

/// Appends a tag and a length; most lengths fit one byte.
#[inline]
pub(crate) fn put_length(tag: u8, length: usize, buffer: &mut BytesMut) {
    match u8::try_from(length) {
        Ok(short @ ..0x80) => buffer.extend_from_slice(&[tag, short]),
        Ok(_) | Err(_) => {
            buffer.extend_from_slice(&[tag]);
            encode_varint(length as u64, buffer);
        }
    }
}

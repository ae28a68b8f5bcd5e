//! The constant bytes of a column's fields, with places for the two lengths.

use bytes::BytesMut;
use prost::encoding::encoded_len_varint;

use super::{
    CopyRowError, RowColumn, ValueForm,
    scratch::{Scratch, padded},
};
use crate::{
    encode::{CHANGE_NEW, FIELD_BINARY, FIELD_TEXT, put_length},
    relations::field_prefix,
};

/// Lengths below this take one byte.
const ONE_BYTE_LENGTH: usize = 0x80;

/// A column and its constant bytes.
#[derive(Debug)]
pub(super) struct Prepared {
    name: String,
    pub(super) form: ValueForm,
    /// Tag, length, name and type: a whole field that is NULL.
    null: Box<[u8]>,
    null_bytes: usize,
    /// Tag, length, name, type, tag and length of a value: both lengths are set for each short
    /// value, so that one copy writes all of it. Whole blocks.
    short: Box<[u8]>,
    short_bytes: usize,
    /// Where name and type lie in `short`.
    prefix_bytes: usize,
}

/// Bytes of a field with a value, its own tag and length included.
#[inline]
pub(super) const fn field_bytes(column: &Prepared, value_bytes: usize) -> usize {
    if column.prefix_bytes + 2 + value_bytes < ONE_BYTE_LENGTH {
        return 2 + column.prefix_bytes + 2 + value_bytes;
    }
    let inner = column.inner_bytes(value_bytes);
    1 + encoded_len_varint(inner as u64) + inner
}

impl Prepared {
    pub(super) fn new(column: &RowColumn) -> Self {
        let prefix = field_prefix(&column.name, column.type_oid);
        let tag = match column.form {
            ValueForm::Binary => FIELD_BINARY,
            ValueForm::Text => FIELD_TEXT,
        };
        let mut null = BytesMut::new();
        put_length(CHANGE_NEW, prefix.len(), &mut null);
        null.extend_from_slice(&prefix);
        let short = [&[CHANGE_NEW, 0][..], &prefix, &[tag, 0]].concat();
        Self {
            name: column.name.clone(),
            form: column.form,
            null_bytes: null.len(),
            null: padded(&null),
            short_bytes: short.len(),
            short: padded(&short),
            prefix_bytes: prefix.len(),
        }
    }

    pub(super) const fn null_bytes(&self) -> usize {
        self.null_bytes
    }

    /// Bytes of a field without its own tag and length.
    const fn inner_bytes(&self, value_bytes: usize) -> usize {
        self.prefix_bytes + 1 + encoded_len_varint(value_bytes as u64) + value_bytes
    }

    /// Appends a field to a row of usual size; `None` is NULL. The value is the first `size` bytes of
    /// `rest`.
    #[inline]
    pub(super) fn put(&self, size: Option<usize>, rest: &[u8], row: &mut Scratch) {
        let Some(size) = size else {
            return row.put(&self.null, self.null_bytes);
        };
        let inner = self.prefix_bytes + 2 + size;
        let lengths = (u8::try_from(inner), u8::try_from(size));
        if let (Ok(inner @ ..0x80), Ok(size_byte)) = lengths {
            let start = row.length();
            row.put(&self.short, self.short_bytes);
            row.set(start + 1, inner);
            row.set(start + self.short_bytes - 1, size_byte);
        } else {
            row.put_length(CHANGE_NEW, self.inner_bytes(size));
            let constant = self.short.get(2..).unwrap_or_default();
            row.put(constant, self.short_bytes - 4);
            row.put_length(self.value_tag(), size);
        }
        row.put(rest, size);
    }

    /// Appends a field to a large row.
    pub(super) fn put_large(&self, value: Option<&[u8]>, buffer: &mut BytesMut) {
        let Some(value) = value else {
            let null = self.null.get(..self.null_bytes);
            return buffer.extend_from_slice(null.unwrap_or_default());
        };
        put_length(CHANGE_NEW, self.inner_bytes(value.len()), buffer);
        let constant = self.short.get(2..self.short_bytes - 2);
        buffer.extend_from_slice(constant.unwrap_or_default());
        put_length(self.value_tag(), value.len(), buffer);
        buffer.extend_from_slice(value);
    }

    const fn value_tag(&self) -> u8 {
        match self.form {
            ValueForm::Binary => FIELD_BINARY,
            ValueForm::Text => FIELD_TEXT,
        }
    }

    #[cold]
    pub(super) fn bad_length(&self, length: i32) -> CopyRowError {
        let column = self.name.clone();
        CopyRowError::Length { column, length }
    }

    #[cold]
    pub(super) fn not_utf8(&self) -> CopyRowError {
        let column = self.name.clone();
        CopyRowError::NotUtf8 { column }
    }
}

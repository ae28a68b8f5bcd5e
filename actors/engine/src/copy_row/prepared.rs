//! The constant bytes of a column's fields, with places for the two lengths.

use bytes::BytesMut;
use prost::encoding::encoded_len_varint;

use super::{CopyRowError, RowColumn, ValueForm};
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
    /// Tag, length, name, type, tag and length of a value: both lengths are set for each short
    /// value, so that one copy writes all of it.
    short: Box<[u8]>,
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
            null: null.to_vec().into_boxed_slice(),
            short: short.into_boxed_slice(),
            prefix_bytes: prefix.len(),
        }
    }

    pub(super) const fn null_bytes(&self) -> usize {
        self.null.len()
    }

    /// Bytes of a field without its own tag and length.
    const fn inner_bytes(&self, value_bytes: usize) -> usize {
        self.prefix_bytes + 1 + encoded_len_varint(value_bytes as u64) + value_bytes
    }

    /// Appends a field; `None` is NULL.
    #[inline]
    pub(super) fn put(&mut self, value: Option<&[u8]>, buffer: &mut BytesMut) {
        let Some(value) = value else {
            return buffer.extend_from_slice(&self.null);
        };
        let inner = self.prefix_bytes + 2 + value.len();
        if inner >= ONE_BYTE_LENGTH {
            return self.put_long(value, buffer);
        }
        let lengths = (u8::try_from(inner), u8::try_from(value.len()));
        if let ([_, first, .., last], (Ok(inner), Ok(length))) = (&mut *self.short, lengths) {
            (*first, *last) = (inner, length);
        }
        buffer.extend_from_slice(&self.short);
        buffer.extend_from_slice(value);
    }

    fn put_long(&self, value: &[u8], buffer: &mut BytesMut) {
        put_length(CHANGE_NEW, self.inner_bytes(value.len()), buffer);
        let constant = self.short.get(2..self.short.len() - 2);
        buffer.extend_from_slice(constant.unwrap_or_default());
        let tag = match self.form {
            ValueForm::Binary => FIELD_BINARY,
            ValueForm::Text => FIELD_TEXT,
        };
        put_length(tag, value.len(), buffer);
        buffer.extend_from_slice(value);
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

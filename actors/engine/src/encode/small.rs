//! Rows of usual size are written in one walk, into a small buffer that is copied to the batch.
//!
//! The length of a change stands before it, as a varint. Adding it up first costs a second walk over
//! all columns; here the row is written first, and its length is known then. Most fields have a short
//! name and a short value: their constant bytes are copied as one piece of fixed size, and the two
//! lengths are set in it. What does not fit is left to the two walks of the parent module.

use prost::encoding::encode_varint;

use super::{CHANGE_NEW, CHANGE_OLD, FIELD_BINARY, FIELD_TEXT, RowChange, RowError};
use crate::{
    pgoutput::ColumnValue,
    relations::{Column, PIECE_BYTES},
};

/// Room for a row. 16 KiB: rows of most tables, and it stays in the processor's nearest cache.
const SCRATCH_BYTES: usize = 16 * 1024;

/// Lengths below this take one byte.
const ONE_BYTE_LENGTH: usize = 0x80;

/// Bytes of the longest varint.
const VARINT_BYTES_MAX: usize = 10;

/// Where rows of usual size are written; kept, so that it is allocated once.
#[derive(Debug)]
pub struct RowScratch {
    bytes: Box<[u8]>,
}

impl Default for RowScratch {
    fn default() -> Self {
        Self {
            bytes: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        }
    }
}

impl RowChange<'_> {
    /// Writes the encoded `pgcapture.Change`; `None` when the row is too large for `scratch`.
    ///
    /// # Errors
    ///
    /// [`RowError`] when the row does not fit its relation, or a text is not UTF-8.
    #[inline]
    pub fn write_small<'s>(
        &self,
        scratch: &'s mut RowScratch,
    ) -> Result<Option<&'s [u8]>, RowError> {
        let mut out = Out {
            bytes: &mut scratch.bytes,
            at: 0,
        };
        let mut fits = out.put(self.relation.change_head(self.operation));
        if let Some(new) = self.new {
            self.check_count(new)?;
            for (column, value) in self.new_fields(new) {
                check_text(column, value)?;
                fits = fits.and_then(|()| out.put_field(CHANGE_NEW, column, value));
            }
        }
        if let Some(old) = self.old {
            self.check_count(old.tuple())?;
            for (column, value) in self.old_fields(old) {
                check_text(column, value)?;
                fits = fits.and_then(|()| out.put_field(CHANGE_OLD, column, value));
            }
        }
        let written = out.at;
        Ok(fits.and_then(|()| scratch.bytes.get(..written)))
    }
}

#[inline]
pub(super) fn check_text(column: &Column, value: ColumnValue<'_>) -> Result<(), RowError> {
    if let ColumnValue::Text(text) = value
        && std::str::from_utf8(text).is_err()
    {
        let column = column.name.clone();
        return Err(RowError::NotUtf8 { column });
    }
    Ok(())
}

/// What was written, and how far; `None` of a method means that there is no room.
struct Out<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Out<'_> {
    #[inline]
    fn put_field(&mut self, tag: u8, column: &Column, value: ColumnValue<'_>) -> Option<()> {
        let (kind, bytes) = match value {
            ColumnValue::Null | ColumnValue::Unchanged => return self.put_null(tag, column),
            ColumnValue::Text(bytes) => (FIELD_TEXT, bytes),
            ColumnValue::Binary(bytes) => (FIELD_BINARY, bytes),
        };
        let prefix = column.prefix.len();
        let inner = prefix + 2 + bytes.len();
        match &column.piece {
            Some(piece) if inner < ONE_BYTE_LENGTH => {
                let window = self.bytes.get_mut(self.at..)?;
                let window = window.first_chunk_mut::<PIECE_BYTES>()?;
                *window = *piece;
                let [first, second, rest @ ..] = window;
                (*first, *second) = (tag, inner as u8);
                let place = rest.get_mut(prefix..prefix + 2)?.first_chunk_mut()?;
                *place = [kind, bytes.len() as u8];
                self.at += prefix + 4;
                self.put_value(bytes)
            }
            _ => self.put_long(tag, column, kind, bytes),
        }
    }

    fn put_null(&mut self, tag: u8, column: &Column) -> Option<()> {
        self.put(&[tag])?;
        self.put_varint(column.prefix.len())?;
        self.put(&column.prefix)
    }

    fn put_long(&mut self, tag: u8, column: &Column, kind: u8, value: &[u8]) -> Option<()> {
        let inner = super::inner_length(column, ColumnValue::Binary(value));
        self.put(&[tag])?;
        self.put_varint(inner)?;
        self.put(&column.prefix)?;
        self.put(&[kind])?;
        self.put_varint(value.len())?;
        self.put(value)
    }

    /// Numbers, times and uuids are copied without a call.
    #[inline]
    fn put_value(&mut self, value: &[u8]) -> Option<()> {
        match value.len() {
            4 => self.put_fixed::<4>(value),
            8 => self.put_fixed::<8>(value),
            16 => self.put_fixed::<16>(value),
            _ => self.put(value),
        }
    }

    #[inline]
    fn put_fixed<const N: usize>(&mut self, value: &[u8]) -> Option<()> {
        let place = self.bytes.get_mut(self.at..)?.first_chunk_mut::<N>()?;
        *place = *value.first_chunk::<N>()?;
        self.at += N;
        Some(())
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at + bytes.len();
        self.bytes.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    #[inline]
    fn put_varint(&mut self, value: usize) -> Option<()> {
        let room = self.bytes.get_mut(self.at..)?;
        if let (Ok(short @ ..0x80), Some(place)) = (u8::try_from(value), room.first_mut()) {
            *place = short;
            self.at += 1;
            return Some(());
        }
        let (before, mut room) = (room.len(), room);
        if before < VARINT_BYTES_MAX {
            return None;
        }
        encode_varint(value as u64, &mut room);
        self.at += before - room.len();
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::{
        pgoutput::Message,
        relations::{Operation, Relation},
    };

    /// A relation with a column of each name, and an INSERT message of the values.
    fn row(names: &[&str], values: &[Option<&[u8]>]) -> (Relation, Vec<u8>) {
        let count = u16::try_from(names.len()).unwrap().to_be_bytes();
        let mut relation = [b"R\0\0\0\x01s\0t\0d", &count[..]].concat();
        for name in names {
            relation.extend([b"\0", name.as_bytes(), b"\0\0\0\0\x17\xff\xff\xff\xff"].concat());
        }
        let mut insert = [b"I\0\0\0\x01N", &count[..]].concat();
        for value in values {
            match value {
                None => insert.push(b'n'),
                Some(bytes) => {
                    insert.push(b'b');
                    insert.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
                    insert.extend(*bytes);
                }
            }
        }
        let Ok(Message::Relation(relation)) = Message::parse(&relation) else {
            panic!("{relation:?}");
        };
        (Relation::new(&relation), insert)
    }

    /// Encodes in both ways; returns the bytes of the small one, if it took the row.
    fn encode(relation: &Relation, insert: &[u8]) -> (Option<Vec<u8>>, Vec<u8>) {
        let Ok(Message::Insert(insert)) = Message::parse(insert) else {
            panic!("{insert:?}");
        };
        let row = RowChange {
            relation,
            operation: Operation::Insert,
            new: Some(insert.new),
            old: None,
        };
        let length = row.length().unwrap();
        let mut two_walks = BytesMut::new();
        row.write(length, &mut two_walks);
        let mut scratch = RowScratch::default();
        let small = row.write_small(&mut scratch).unwrap();
        let head = length.message() - length.change;
        (small.map(<[u8]>::to_vec), two_walks[head..].to_vec())
    }

    #[test]
    fn both_ways_write_the_same_at_every_length() {
        let name = "n".repeat(200);
        for name_bytes in (0..40).chain([118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 200]) {
            for value_bytes in (0..140).chain([300, 16_000]) {
                let value = vec![b'x'; value_bytes];
                let names = [&name[..name_bytes], "b", "c"];
                let (relation, insert) = row(&names, &[Some(&value), None, Some(&[1; 8])]);
                let (small, two_walks) = encode(&relation, &insert);
                assert_eq!(small, Some(two_walks), "{name_bytes}, {value_bytes}");
            }
        }
    }

    #[test]
    fn a_row_is_taken_as_long_as_it_fits() {
        let mut taken = 0;
        for missing in 0..100 {
            let value = vec![b'x'; SCRATCH_BYTES - missing];
            let (relation, insert) = row(&["a", "b"], &[Some(&value), Some(&[1; 4])]);
            let (small, two_walks) = encode(&relation, &insert);
            // A short field at the very end may be refused: a piece is written whole.
            assert!(small.is_none() || two_walks.len() <= SCRATCH_BYTES);
            assert!(small.is_some() || two_walks.len() + PIECE_BYTES > SCRATCH_BYTES);
            taken += usize::from(small.is_some_and(|small| small == two_walks));
        }
        assert!((1..100).contains(&taken), "{taken}");
    }
}

//! Untyped changes and rows: columns by name, decoded on demand.
//!
//! A row owns positions inside the received message and decodes a column when it is asked
//! for. A row that is kept keeps its message's buffer; `RawRow::to_owned_row` lets go of it.
//!
//! Invariant: every span lies inside the row's buffer, and spans of names and text are UTF-8.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use postgres_types::FromSql;

use crate::{
    columns::Columns,
    decode::{self, DecodeError},
    row::Row,
};

/// A part of the row's buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// How a value was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CellKind {
    #[default]
    Null,
    Binary,
    Text,
}

/// One column of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    pub(crate) name: Span,
    pub(crate) value: Span,
    pub(crate) oid: u32,
    pub(crate) kind: CellKind,
}

/// What happened to the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A new row.
    Insert,
    /// A changed row, or a row of a dump.
    Update,
    /// A removed row.
    Delete,
}

/// One value as it was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// PostgreSQL's binary form of a value of the type with this OID.
    Binary {
        /// The OID of the column's type.
        oid: u32,
        /// The value.
        bytes: &'a [u8],
    },
    /// PostgreSQL's text form of a value of the type with this OID, which has no binary form.
    Text {
        /// The OID of the column's type.
        oid: u32,
        /// The value.
        text: &'a str,
    },
}

impl fmt::Debug for Value<'_> {
    /// Shows the form and the length: values are private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Binary { oid, bytes } => write!(f, "Binary({} bytes of type {oid})", bytes.len()),
            Self::Text { oid, text } => write!(f, "Text({} bytes of type {oid})", text.len()),
        }
    }
}

/// The columns of one row image, by name.
#[derive(Clone)]
pub struct RawRow {
    buf: Bytes,
    schema: Span,
    table: Span,
    cells: Vec<Cell>,
}

impl RawRow {
    pub(crate) fn new(buf: Bytes, schema: Span, table: Span, cells: Vec<Cell>) -> Self {
        Self {
            buf,
            schema,
            table,
            cells,
        }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.buf
            .get(start..start + span.len as usize)
            .unwrap_or_default()
    }

    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.bytes(span)).unwrap_or_default()
    }

    /// The schema of the row's table.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.text(self.schema)
    }

    /// The name of the row's table, without its schema.
    #[must_use]
    pub fn table(&self) -> &str {
        self.text(self.table)
    }

    pub(crate) fn is_of(&self, schema: &str, table: &str) -> bool {
        self.bytes(self.table) == table.as_bytes() && self.bytes(self.schema) == schema.as_bytes()
    }

    /// Whether the image has no column at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// How many columns the image has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// The columns in the order of the table.
    pub fn columns(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.cells
            .iter()
            .map(|cell| (self.text(cell.name), self.value_of(cell)))
    }

    /// The value of a column; `None` when the image does not have it.
    #[must_use]
    pub fn value(&self, column: &str) -> Option<Value<'_>> {
        self.find(0, column).map(|(_, value)| value)
    }

    /// Finds a column, looking first at `hint`, and says where it was.
    pub(crate) fn find(&self, hint: usize, column: &str) -> Option<(usize, Value<'_>)> {
        let matches = |cell: &Cell| self.bytes(cell.name) == column.as_bytes();
        let at = match self.cells.get(hint) {
            Some(cell) if matches(cell) => hint,
            _ => self.cells.iter().position(matches)?,
        };
        self.cells.get(at).map(|cell| (at, self.value_of(cell)))
    }

    fn value_of(&self, cell: &Cell) -> Value<'_> {
        match cell.kind {
            CellKind::Null => Value::Null,
            CellKind::Binary => Value::Binary {
                oid: cell.oid,
                bytes: self.bytes(cell.value),
            },
            CellKind::Text => Value::Text {
                oid: cell.oid,
                text: self.text(cell.value),
            },
        }
    }

    /// Decodes a column; `Option<T>` for a column that may be NULL.
    ///
    /// # Errors
    /// The image does not have the column, it is NULL and `T` is no `Option`, or its type does
    /// not fit.
    pub fn get<T: for<'a> FromSql<'a>>(&self, column: &str) -> Result<T, DecodeError> {
        let value = self.value(column);
        let value = value.ok_or_else(|| DecodeError::missing(self, column))?;
        let decoded = match value {
            Value::Null => decode::null::<T>(),
            Value::Binary { .. } | Value::Text { .. } => decode::sql::<T>(value),
        };
        decoded.map_err(|error| DecodeError::new::<T>(self, column, value, error))
    }

    /// Decodes the image as `T`, for example a key or the old row under REPLICA IDENTITY FULL.
    ///
    /// NULLs are left out of old images: an `Option` that is missing is `None`.
    ///
    /// # Errors
    /// A column that `T` needs is missing or does not fit.
    pub fn decode<T: Row>(&self) -> Result<T, DecodeError> {
        T::decode(&mut Columns::old(self))
    }

    /// Copies the row into a buffer of its own, so that the received message can be freed.
    #[must_use]
    pub fn to_owned_row(&self) -> Self {
        Self {
            buf: Bytes::copy_from_slice(&self.buf),
            ..self.clone()
        }
    }

    /// This row with the columns that only `older` has added to it.
    pub(crate) fn filled_from(&self, older: &Self) -> Self {
        let missing: Vec<&Cell> = older
            .cells
            .iter()
            .filter(|cell| self.value(older.text(cell.name)).is_none())
            .collect();
        if missing.is_empty() {
            return self.clone();
        }
        let mut buf = BytesMut::from(&self.buf[..]);
        let mut cells = self.cells.clone();
        for cell in missing {
            let mut copy = |span: Span| {
                let start = buf.len() as u32;
                buf.put_slice(older.bytes(span));
                Span {
                    start,
                    len: span.len,
                }
            };
            cells.push(Cell {
                name: copy(cell.name),
                value: copy(cell.value),
                ..*cell
            });
        }
        Self {
            buf: buf.freeze(),
            schema: self.schema,
            table: self.table,
            cells,
        }
    }
}

impl fmt::Debug for RawRow {
    /// Shows the names of the columns, not their values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.columns()).finish()
    }
}

/// One change of one row, undecoded.
#[derive(Clone, Debug)]
pub struct RawChange {
    op: Operation,
    new: RawRow,
    old: RawRow,
}

impl RawChange {
    pub(crate) fn new(op: Operation, new: RawRow, old: RawRow) -> Self {
        Self { op, new, old }
    }

    /// What happened.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.op
    }

    /// The schema of the table.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.new.schema()
    }

    /// The name of the table, without its schema.
    #[must_use]
    pub fn table(&self) -> &str {
        self.new.table()
    }

    /// The row after the change, without unchanged TOAST columns; empty for a delete.
    #[must_use]
    pub fn new_row(&self) -> &RawRow {
        &self.new
    }

    /// The key, or the row under REPLICA IDENTITY FULL, before the change; without NULLs.
    #[must_use]
    pub fn old_row(&self) -> &RawRow {
        &self.old
    }

    /// The image that identifies the row: the new one, for a delete the old one.
    #[must_use]
    pub fn identity(&self) -> &RawRow {
        match self.op {
            Operation::Insert | Operation::Update => &self.new,
            Operation::Delete => &self.old,
        }
    }

    /// This change, its new row completed with what only an older change of the row had, and
    /// with the key from which the older one moved the row.
    pub(crate) fn merged_over(&self, older: &Self) -> Self {
        if self.op == Operation::Update && older.op != Operation::Delete {
            let new = self.new.filled_from(&older.new);
            let first = if older.old.is_empty() { self } else { older };
            return Self {
                op: self.op,
                new,
                old: first.old.clone(),
            };
        }
        self.clone()
    }

    pub(crate) fn into_rows(self) -> (Operation, RawRow, RawRow) {
        (self.op, self.new, self.old)
    }
}

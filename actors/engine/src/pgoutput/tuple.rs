//! The columns of one row, borrowed from the message. Checked once, then walked without errors.

use super::{ParseError, reader::Reader};

/// The columns of one row, in the order of the relation's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    column_count: u16,
    columns: &'a [u8],
}

/// The value of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnValue<'a> {
    /// SQL NULL; in a key tuple also every column outside the key.
    Null,
    /// A TOASTed value that the statement did not touch and the server did not send.
    Unchanged,
    /// The text form, in the client encoding.
    Text(&'a [u8]),
    /// The binary form.
    Binary(&'a [u8]),
}

/// What the server tells of the old row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Only the columns of the replica identity have values.
    Key(Tuple<'a>),
    /// The whole row: REPLICA IDENTITY FULL.
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// Returns the columns, whichever they are.
    #[must_use]
    pub const fn tuple(self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

impl<'a> Tuple<'a> {
    /// Returns the number of columns.
    #[must_use]
    pub const fn column_count(self) -> u16 {
        self.column_count
    }

    /// Walks the columns.
    #[must_use]
    #[inline]
    pub const fn columns(self) -> ColumnValues<'a> {
        ColumnValues { rest: self.columns }
    }
}

/// Iterator over the columns of a tuple.
#[derive(Clone, Debug)]
pub struct ColumnValues<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for ColumnValues<'a> {
    type Item = ColumnValue<'a>;

    #[inline]
    fn next(&mut self) -> Option<ColumnValue<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        let value = match kind {
            b'n' => ColumnValue::Null,
            b'u' => ColumnValue::Unchanged,
            b'b' | b't' => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
                let (value, rest) = rest.split_at_checked(length)?;
                self.rest = rest;
                return Some(if kind == b'b' {
                    ColumnValue::Binary(value)
                } else {
                    ColumnValue::Text(value)
                });
            }
            _ => return None,
        };
        self.rest = rest;
        Some(value)
    }
}

impl<'a> Reader<'a> {
    /// Takes the tag `N` and the tuple after it.
    #[inline]
    pub(super) fn new_tuple(&mut self) -> Result<Tuple<'a>, ParseError> {
        match self.u8("the tuple kind")? {
            b'N' => self.tuple(),
            other => Err(self.unexpected("the kind of a new tuple", other)),
        }
    }

    /// Takes the tag `K` or `O` and the tuple after it.
    pub(super) fn old_tuple(&mut self) -> Result<OldTuple<'a>, ParseError> {
        match self.u8("the tuple kind")? {
            b'K' => self.tuple().map(OldTuple::Key),
            b'O' => self.tuple().map(OldTuple::Full),
            other => Err(self.unexpected("the kind of an old tuple", other)),
        }
    }

    #[inline]
    fn tuple(&mut self) -> Result<Tuple<'a>, ParseError> {
        let column_count = self.u16("the number of columns")?;
        let start = self.rest();
        let mut walk = ColumnValues { rest: start };
        for _ in 0..column_count {
            if walk.next().is_none() {
                return Err(self.bad_column(walk.rest));
            }
        }
        let length = start.len() - walk.rest.len();
        let (columns, rest) = start
            .split_at_checked(length)
            .ok_or_else(|| self.cut_short("a tuple"))?;
        self.set_rest(rest);
        Ok(Tuple {
            column_count,
            columns,
        })
    }

    #[cold]
    fn bad_column(&self, rest: &[u8]) -> ParseError {
        match rest.first() {
            None | Some(b'b' | b't') => self.cut_short("a column"),
            Some(&other) => self.unexpected("the kind of a column", other),
        }
    }
}

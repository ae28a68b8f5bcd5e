//! What `#[derive(Row)]` reads a row through.
//!
//! Three shapes of a column (required, may be NULL, may be unchanged TOAST) times the ways to
//! decode it (`decode::sql`, `decode::json`, `decode::parse`). Looks for a column where the
//! last one was found first, so that structs in the order of their table cost no search.

use crate::{
    decode::{DecodeError, DecodeFn, ValueError},
    field::Field,
    raw::{RawRow, Value},
};

/// The columns of one row image, read one after the other.
#[derive(Debug)]
pub struct Columns<'a> {
    row: &'a RawRow,
    next: usize,
    old_image: bool,
}

impl<'a> Columns<'a> {
    pub(crate) fn new(row: &'a RawRow) -> Self {
        Self {
            row,
            next: 0,
            old_image: false,
        }
    }

    pub(crate) fn old(row: &'a RawRow) -> Self {
        Self {
            row,
            next: 0,
            old_image: true,
        }
    }

    /// The row that is read.
    #[must_use]
    pub fn row(&self) -> &'a RawRow {
        self.row
    }

    fn take(&mut self, column: &str) -> Option<Value<'a>> {
        let (at, value) = self.row.find(self.next, column)?;
        self.next = at + 1;
        Some(value)
    }

    fn run<T>(
        &self,
        column: &str,
        value: Value<'_>,
        decode: DecodeFn<T>,
    ) -> Result<T, DecodeError> {
        decode(value).map_err(|error| DecodeError::new::<T>(self.row, column, value, error))
    }

    /// Reads a column that is always there and never NULL.
    ///
    /// # Errors
    /// The column is missing, NULL, or of another type.
    pub fn required<T>(&mut self, column: &str, decode: DecodeFn<T>) -> Result<T, DecodeError> {
        match self.take(column) {
            None => Err(DecodeError::missing(self.row, column)),
            Some(Value::Null) => Err(DecodeError::new::<T>(
                self.row,
                column,
                Value::Null,
                ValueError::Null,
            )),
            Some(value) => self.run(column, value, decode),
        }
    }

    /// Reads a column that may be NULL. Missing is an error in a new image, where it means
    /// unchanged TOAST, and `None` in an old one, which leaves NULLs out.
    ///
    /// # Errors
    /// The column is missing in a new image or of another type.
    pub fn optional<T>(
        &mut self,
        column: &str,
        decode: DecodeFn<T>,
    ) -> Result<Option<T>, DecodeError> {
        match self.take(column) {
            None if self.old_image => Ok(None),
            None => Err(DecodeError::missing(self.row, column)),
            Some(Value::Null) => Ok(None),
            Some(value) => self.run(column, value, decode).map(Some),
        }
    }

    /// Reads a column that may be NULL or left out.
    ///
    /// # Errors
    /// The column is of another type.
    pub fn field<T>(&mut self, column: &str, decode: DecodeFn<T>) -> Result<Field<T>, DecodeError> {
        match self.take(column) {
            None => Ok(Field::Unchanged),
            Some(Value::Null) => Ok(Field::Null),
            Some(value) => self.run(column, value, decode).map(Field::Value),
        }
    }

    /// Reads a column; the default when it is missing or NULL.
    ///
    /// # Errors
    /// The column is of another type.
    pub fn or_default<T: Default>(
        &mut self,
        column: &str,
        decode: DecodeFn<T>,
    ) -> Result<T, DecodeError> {
        match self.take(column) {
            None | Some(Value::Null) => Ok(T::default()),
            Some(value) => self.run(column, value, decode),
        }
    }
}

//! A column that may be left out of a change.
//!
//! PostgreSQL does not send a large (TOASTed) value that an UPDATE did not touch. That is
//! neither a value nor NULL, so it is a state of its own.

/// A column's value, NULL, or "not sent because it did not change".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Field<T> {
    /// The value.
    Value(T),
    /// SQL NULL.
    Null,
    /// Not part of the change: the column keeps the value it had. In an old image it may also
    /// have been NULL or no part of the key.
    #[default]
    Unchanged,
}

impl<T> Field<T> {
    /// The value, unless NULL or unchanged.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Null | Self::Unchanged => None,
        }
    }

    /// The same field with its value borrowed.
    pub fn as_ref(&self) -> Field<&T> {
        match self {
            Self::Value(value) => Field::Value(value),
            Self::Null => Field::Null,
            Self::Unchanged => Field::Unchanged,
        }
    }

    /// Whether the column was not sent.
    pub fn is_unchanged(&self) -> bool {
        matches!(self, Self::Unchanged)
    }

    /// Writes the field over what a consumer keeps: nothing happens when it is unchanged.
    pub fn apply_to(self, kept: &mut Option<T>) {
        match self {
            Self::Value(value) => *kept = Some(value),
            Self::Null => *kept = None,
            Self::Unchanged => {}
        }
    }
}

impl<T: serde::Serialize> serde::Serialize for Field<T> {
    /// Serializes a value or null. Use `skip_serializing_if = "Field::is_unchanged"` to leave
    /// unchanged fields out.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Null | Self::Unchanged => serializer.serialize_none(),
        }
    }
}

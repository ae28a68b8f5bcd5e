//! A typed change.

use crate::{
    columns::Columns,
    decode::DecodeError,
    raw::{Operation, RawChange, RawRow},
    row::Row,
};

/// What happened to a row of `T`'s table.
#[derive(Clone, Debug)]
pub enum Change<T> {
    /// A new row.
    Insert(T),
    /// A changed row.
    Update {
        /// The row now.
        new: T,
        /// The key, or the row under REPLICA IDENTITY FULL, before; empty when the key did not
        /// change and there is no more. `old.decode::<T>()` under FULL.
        old: RawRow,
        /// Which columns may have changed.
        changed: Changed,
    },
    /// A removed row.
    Delete {
        /// Its key, or the whole row under REPLICA IDENTITY FULL.
        key: RawRow,
    },
    /// A row that existed when a dump read it: insert or overwrite. Whole, without unchanged
    /// columns. Every change that the reading saw was delivered before, every later one follows.
    Snapshot(T),
    /// All rows were removed; with `truncates`.
    Truncate,
}

impl<T: Row> Change<T> {
    pub(crate) fn decode(change: RawChange, is_dump: bool) -> Result<Self, DecodeError> {
        let (op, new, old) = change.into_rows();
        let row = |new: &RawRow| T::decode(&mut Columns::new(new));
        Ok(match op {
            Operation::Insert => Self::Insert(row(&new)?),
            // One with an old key stands for an update that moved it, too: debounced.
            Operation::Update if is_dump && old.is_empty() => Self::Snapshot(row(&new)?),
            Operation::Update => {
                let decoded = row(&new)?;
                Self::Update {
                    new: decoded,
                    changed: Changed::between(new, &old),
                    old,
                }
            }
            Operation::Delete => Self::Delete { key: old },
        })
    }
}

/// The columns that an update may have changed.
///
/// Without REPLICA IDENTITY FULL PostgreSQL does not say which columns changed; then every
/// column that was sent may have. Unchanged TOAST columns never count.
#[derive(Clone, Debug)]
pub struct Changed {
    new: RawRow,
    /// Per column of `new`: known to be as before. Empty when nothing is known.
    same: Vec<bool>,
}

impl Changed {
    fn between(new: RawRow, old: &RawRow) -> Self {
        let is_same = |(name, value)| old.value(name) == Some(value);
        let same = if old.is_empty() {
            Vec::new()
        } else {
            new.columns().map(is_same).collect()
        };
        Self { new, same }
    }

    /// Whether the column may have changed; `false` means that it surely did not.
    #[must_use]
    pub fn contains(&self, column: &str) -> bool {
        let found = self.new.find(0, column);
        found.is_some_and(|(at, _)| !self.same.get(at).copied().unwrap_or(false))
    }

    /// The columns that may have changed.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        let names = self.new.columns().map(|(name, _)| name);
        names
            .enumerate()
            .filter(|(at, _)| !self.same.get(*at).copied().unwrap_or(false))
            .map(|(_, name)| name)
    }
}

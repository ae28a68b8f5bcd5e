//! What a consumer received through all failures, and whether that is everything, once.
//!
//! Pure. A change that was delivered and not acknowledged when its node died comes again, with the
//! same position: that is a redelivery, and allowed. The same row under two positions would stand
//! twice in the log: that is a double, and never allowed.

use std::collections::HashMap;

use anyhow::{Context as _, bail};
use pgcapture_proto::pgcapture::{Change, field};

/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Holes that an error names.
const HOLES_SHOWN: usize = 5;

/// A row of the measured table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Its key.
    pub(super) id: i64,
    /// When it was written, microseconds since 1970.
    pub(super) written: i64,
}

impl Row {
    /// Reads a change of the measured table.
    pub(super) fn of(change: &Change) -> anyhow::Result<Self> {
        let number = |name: &str| {
            let field = change.new.iter().find(|field| field.name == name);
            let Some(field::Value::Binary(bytes)) = field.and_then(|field| field.value.as_ref())
            else {
                bail!("a row without {name}");
            };
            let bytes = bytes.as_ref().try_into();
            Ok(i64::from_be_bytes(bytes.context("eight bytes")?))
        };
        Ok(Self {
            id: number("id")?,
            written: number("changed_at")?.saturating_add(POSTGRES_EPOCH_MICROS),
        })
    }
}

/// Everything received.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    seen: HashMap<i64, (u64, u32)>,
    /// Changes that came more than once under their position.
    pub(super) redelivered: u64,
}

impl Ledger {
    /// Records a row at its position.
    ///
    /// # Errors
    ///
    /// When the row came under another position before.
    pub(super) fn record(&mut self, id: i64, position: (u64, u32)) -> anyhow::Result<()> {
        match self.seen.insert(id, position) {
            None => Ok(()),
            Some(before) if before == position => {
                self.redelivered += 1;
                Ok(())
            }
            Some(before) => {
                bail!("row {id} stands twice in the log: at {before:?} and at {position:?}")
            }
        }
    }

    /// How many rows were received.
    pub(super) fn count(&self) -> usize {
        self.seen.len()
    }

    /// Checks that every row of the table was received, and nothing else.
    pub(super) fn check(&self, table: &[i64]) -> anyhow::Result<()> {
        let is_missing = |id: &&i64| !self.seen.contains_key(id);
        let missing: Vec<&i64> = table.iter().filter(is_missing).collect();
        if let [_, ..] = missing.as_slice() {
            let shown: Vec<_> = missing.iter().take(HOLES_SHOWN).collect();
            bail!("{} rows never came, such as {shown:?}", missing.len());
        }
        if self.seen.len() > table.len() {
            let more = self.seen.len() - table.len();
            bail!("{more} rows came that the table does not have");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::pgcapture::Field;

    use super::*;

    #[test]
    fn a_redelivery_is_counted_and_a_double_refused() {
        let mut ledger = Ledger::default();
        ledger.record(1, (10, 1)).unwrap();
        ledger.record(1, (10, 1)).unwrap();
        assert_eq!((ledger.count(), ledger.redelivered), (1, 1));
        let error = ledger.record(1, (20, 1)).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }

    #[test]
    fn a_hole_and_a_ghost_are_found() {
        let mut ledger = Ledger::default();
        ledger.record(1, (10, 1)).unwrap();
        ledger.record(3, (30, 1)).unwrap();
        ledger.check(&[1, 3]).unwrap();
        let error = ledger.check(&[1, 2, 3]).unwrap_err();
        assert_eq!(error.to_string(), "1 rows never came, such as [2]");
        let error = ledger.check(&[1]).unwrap_err();
        assert!(error.to_string().contains("does not have"), "{error}");
    }

    #[test]
    fn a_row_tells_its_key_and_its_time() {
        let field = |name: &str, value: i64| Field {
            name: name.to_owned(),
            value: Some(field::Value::Binary(value.to_be_bytes().to_vec().into())),
            ..Field::default()
        };
        let mut change = Change {
            new: vec![field("id", 7), field("changed_at", 5)],
            ..Change::default()
        };
        let row = Row::of(&change).unwrap();
        assert_eq!((row.id, row.written), (7, POSTGRES_EPOCH_MICROS + 5));
        change.new.pop();
        assert!(Row::of(&change).is_err());
    }
}

//! The consumer's copy of the table, built from its stream alone, and what its stream must never do.
//!
//! The copy is what a simple consumer would keep: rows by key, each message written over what is
//! there, changes that come again applied again. It holds hashes ([`super::digest`]); keys are dense, so
//! that rows lie in pages of an array by key.
//!
//! # What is checked while it grows
//!
//! - *splice*: inside one session a row's version never goes back. Versions grow with every write, and
//!   a session delivers changes in order; so a row of a dump with a smaller version than what was
//!   delivered stands behind a newer change, and a change whose version is not greater than that of the
//!   row before it should have come before it. After a disconnect the gateway delivers again what was not
//!   acknowledged: the next session begins anew.
//! - *shape*: rows of a dump are UPDATEs without old image, whole, of the table that was asked for;
//!   columns, types and order are those of the table; values are binary.
//!
//! Whether a row is missing, wrong or too many shows the comparison with the table ([`Copy::compare`]).

use pgcapture_proto::pgcapture::{Change, Field, change::Operation, field::Value};

use super::{
    digest::Digest,
    table::{COLUMNS, Image, Row, SCHEMA, TABLE, WIDE, integer},
};
use crate::checkers::findings::Findings;

/// Rows of one page of the array.
const PAGE_ROWS: usize = 1 << 16;

/// Keys that a copy takes; beyond them something is wrong with the run.
const KEYS_MAX: usize = 1 << 30;

/// What is known of one key.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The newest version that was seen; when the row is gone, the smallest that it may come back with
    /// is greater. -1: nothing is known.
    version: i64,
    /// The session that saw it.
    session: u32,
    is_present: bool,
    narrow: Digest,
    wide: [Digest; WIDE],
}

impl Slot {
    const EMPTY: Self = Self {
        version: -1,
        session: 0,
        is_present: false,
        narrow: Digest::UNKNOWN,
        wide: [Digest::UNKNOWN; WIDE],
    };
}

/// The copy.
#[derive(Debug, Default)]
pub struct Copy {
    pages: Vec<Option<Box<[Slot]>>>,
    session: u32,
    /// Somebody else's dump: nothing of it may arrive, and nothing is kept.
    is_bystander: bool,
    /// Existing rows that were received.
    pub existing_rows: u64,
    /// Changes of the table that were received.
    pub changes: u64,
    /// What the stream did wrong.
    pub findings: Findings,
}

impl Copy {
    /// Makes the copy of a consumer that has asked for nothing.
    #[must_use]
    pub fn bystander() -> Self {
        Self {
            is_bystander: true,
            ..Self::default()
        }
    }

    /// A session begins: what was not acknowledged may come again.
    pub fn begin_session(&mut self) {
        self.session += 1;
    }

    /// Takes a message of the stream; `is_existing` says that its checkpoint has no LSN.
    pub fn take(&mut self, change: &Change, is_existing: bool) {
        let name = (change.schema.as_str(), change.table.as_str());
        if self.is_bystander {
            self.changes += u64::from(!is_existing);
            self.existing_rows += u64::from(is_existing);
            if is_existing {
                let name = format!("{}.{}", change.schema, change.table);
                self.findings.add("isolation/row_of_another_uri", || name);
            }
        } else if is_existing {
            self.existing_rows += 1;
            self.take_existing(change, name == (SCHEMA, TABLE));
        } else if name == (SCHEMA, TABLE) {
            self.changes += 1;
            self.take_change(change);
        }
    }

    fn take_existing(&mut self, change: &Change, is_ours: bool) {
        if !is_ours {
            let name = format!("{}.{}", change.schema, change.table);
            self.findings.add("isolation/row_not_asked_for", || name);
            return;
        }
        if change.op() != Operation::Update || !change.old.is_empty() {
            let what = format!("{:?} with {} old columns", change.op(), change.old.len());
            self.findings.add("shape/existing_row", || what);
        }
        let Some(row) = self.read(&change.new, true) else {
            return;
        };
        let Some(slot) = self.slot(row.id) else {
            return;
        };
        let before = *slot;
        let is_known = before.session == self.session;
        let slot = Slot {
            version: row.version,
            session: self.session,
            is_present: true,
            narrow: row.narrow,
            wide: row.wide,
        };
        self.put(row.id, slot);
        let comes_back = !before.is_present && row.version == before.version;
        if is_known && (row.version < before.version || comes_back) {
            let (id, version) = (row.id, row.version);
            self.findings.add("splice/row_behind_newer_change", || {
                format!("key {id}: version {version} of a dump after {before:?}")
            });
        }
    }

    fn take_change(&mut self, change: &Change) {
        let old_id = change
            .old
            .iter()
            .find(|field| field.name == "id")
            .and_then(read_integer);
        if change.op() == Operation::Delete {
            match old_id {
                Some(id) => self.remove(id, None),
                None => self.findings.add("shape/delete_without_key", String::new),
            }
            return;
        }
        let is_insert = change.op() == Operation::Insert;
        let Some(mut row) = self.read(&change.new, is_insert) else {
            return;
        };
        let moved_from = old_id.filter(|old| *old != row.id);
        self.check_order(&row);
        let Some(own) = self.slot(row.id).copied() else {
            return;
        };
        // A move onto a key that is there comes again: the values there are as new, or newer.
        let source = match moved_from {
            Some(old) if !own.is_present => self.slot(old).copied().unwrap_or(Slot::EMPTY),
            Some(_) | None => own,
        };
        if source.is_present && !is_insert {
            fill(&mut row.wide, &source.wide);
        }
        let slot = Slot {
            version: row.version,
            session: self.session,
            is_present: true,
            narrow: row.narrow,
            wide: row.wide,
        };
        self.put(row.id, slot);
        if let Some(old) = moved_from {
            self.remove(old, Some(row.version));
        }
    }

    fn check_order(&mut self, row: &Row) {
        let session = self.session;
        let Some(before) = self.slot(row.id).copied() else {
            return;
        };
        if before.session == session && row.version <= before.version {
            let (id, version) = (row.id, row.version);
            self.findings.add("splice/change_after_newer_row", || {
                format!("key {id}: version {version} changed after {before:?}")
            });
        }
    }

    /// A key is gone; `by` is the version of the write that moved the row away.
    fn remove(&mut self, id: i64, by: Option<i64>) {
        let session = self.session;
        let Some(slot) = self.slot(id) else { return };
        let known = (slot.session == session).then_some(slot.version);
        let version = by.or(known).unwrap_or(-1);
        *slot = Slot {
            version,
            session,
            ..Slot::EMPTY
        };
    }

    /// Reads an image; `is_whole` when nothing may be left out.
    fn read(&mut self, fields: &[Field], is_whole: bool) -> Option<Row> {
        let mut image = Image::default();
        let mut fields = fields.iter().peekable();
        for (index, column) in COLUMNS.iter().enumerate() {
            let Some(field) = fields.next_if(|field| field.name == column.name) else {
                if !column.is_wide || is_whole {
                    self.findings
                        .add("shape/column_missing", || column.name.to_owned());
                }
                if column.is_wide {
                    image.leave_out();
                }
                continue;
            };
            if field.oid != column.oid {
                let what = format!("{}: {}", column.name, field.oid);
                self.findings.add("shape/type", || what);
            }
            let value = match &field.value {
                None => None,
                Some(Value::Binary(bytes)) => Some(bytes.as_ref()),
                Some(Value::Text(text)) => {
                    self.findings
                        .add("shape/not_binary", || column.name.to_owned());
                    Some(text.as_bytes())
                }
            };
            image.add(index, value);
        }
        if let Some(field) = fields.next() {
            let name = field.name.clone();
            self.findings.add("shape/column_out_of_place", || name);
        }
        let row = image.finish();
        if row.is_none() {
            self.findings.add("shape/row_without_key", String::new);
        }
        row
    }

    fn slot(&mut self, id: i64) -> Option<&mut Slot> {
        let at = usize::try_from(id).ok().filter(|at| *at < KEYS_MAX);
        let Some(at) = at else {
            self.findings
                .add("copy/key_never_written", || format!("key {id}"));
            return None;
        };
        let (page, place) = (at / PAGE_ROWS, at % PAGE_ROWS);
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages.get_mut(page)?;
        let rows = page.get_or_insert_with(|| vec![Slot::EMPTY; PAGE_ROWS].into());
        rows.get_mut(place)
    }

    fn put(&mut self, id: i64, slot: Slot) {
        if let Some(place) = self.slot(id) {
            *place = slot;
        }
    }

    /// Compares a row of the table, and takes it out of the copy: what is left in the end is too much.
    pub fn compare(&mut self, row: &Row) {
        let id = row.id;
        let Some(slot) = self.slot(id) else { return };
        let own = std::mem::replace(slot, Slot::EMPTY);
        if !own.is_present {
            self.findings.add("copy/row_missing", || {
                format!("key {id}, version {}", row.version)
            });
        } else if own.version != row.version {
            let (version, theirs) = (own.version, row.version);
            self.findings.add("copy/row_outdated", || {
                format!("key {id}: version {version}, the table has {theirs}")
            });
        } else if own.wide.contains(&Digest::UNKNOWN) {
            self.findings.add("copy/row_incomplete", || {
                format!(
                    "key {id}, version {}: a wide column never came",
                    row.version
                )
            });
        } else if own.wide != row.wide || own.narrow != row.narrow {
            let what = if own.narrow == row.narrow {
                "wide"
            } else {
                "narrow"
            };
            self.findings.add("copy/row_different", || {
                format!("key {id}, version {}: {what} columns", row.version)
            });
        }
    }

    /// Says what the copy has beyond the rows that were compared.
    pub fn finish_comparison(&mut self) {
        for (page, rows) in (0_usize..).zip(&self.pages) {
            let rows = rows.iter().flat_map(|rows| rows.iter());
            for (place, slot) in (0_usize..).zip(rows) {
                if slot.is_present {
                    let (id, version) = (page * PAGE_ROWS + place, slot.version);
                    self.findings.add("copy/row_too_many", || {
                        format!("key {id}, version {version}")
                    });
                }
            }
        }
    }
}

/// Keeps what an update left out.
fn fill(wide: &mut [Digest; WIDE], from: &[Digest; WIDE]) {
    for (own, kept) in wide.iter_mut().zip(from) {
        if *own == Digest::UNKNOWN {
            *own = *kept;
        }
    }
}

fn read_integer(field: &Field) -> Option<i64> {
    match field.value.as_ref()? {
        Value::Binary(bytes) => integer(bytes),
        Value::Text(text) => text.parse().ok(),
    }
}

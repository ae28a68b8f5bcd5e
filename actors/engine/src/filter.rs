//! Decides which log entries a session gets.
//!
//! Looks at the first fields of an encoded `Change` only (operation, schema, table) and remembers
//! the verdict for each table, so that patterns run once a table and never once a row. Owns no
//! entry and never builds a protobuf value for a row.
//!
//! # Invariants
//!
//! - Changes of `pgcapture.sources`, our own bookkeeping, are never delivered.
//! - What is not delivered is the gateway's to acknowledge.

pub mod go_regex;

use std::collections::HashMap;

use pgcapture_proto::pgcapture::Truncate;
use prost::{Message as _, encoding::decode_varint};

use crate::{
    batch::{Entry, EntryKind, MalformedBatch},
    capture_options::CaptureOptions,
    checkpoint::Checkpoint,
};

/// Verdicts kept at once; beyond this the memory is cleared and learned again. A database with
/// more tables than this loses only the speed.
const REMEMBERED_TABLES_MAX: usize = 4_096;

/// Selects entries for one session.
#[derive(Debug)]
pub struct Filter {
    options: CaptureOptions,
    /// Verdict by the encoded schema and table fields.
    remembered: HashMap<Box<[u8]>, bool>,
    /// The fields of the last change and their verdict: rows of one table come in runs.
    last: (Vec<u8>, bool),
}

/// The first fields of an encoded `Change`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangePeek<'a> {
    /// Wire number of the operation.
    pub operation: u32,
    /// Schema of the table.
    pub schema: &'a [u8],
    /// Name of the table.
    pub table: &'a [u8],
    /// Both fields as they are encoded, tags included.
    encoded_name: &'a [u8],
}

impl Filter {
    /// Makes the filter of a session.
    #[must_use]
    pub fn new(options: CaptureOptions) -> Self {
        Self {
            options,
            remembered: HashMap::new(),
            last: (Vec::new(), false),
        }
    }

    /// Tells whether the session gets the entry.
    ///
    /// # Errors
    ///
    /// [`MalformedBatch`] when the entry is not what the log writes.
    #[inline]
    pub fn wants(&mut self, entry: &Entry<'_>) -> Result<bool, MalformedBatch> {
        match entry.kind {
            EntryKind::Change => {
                let peek = peek_change(entry.inner()?)?;
                Ok(self.wants_table(&peek) && self.options.operations.contains(peek.operation))
            }
            EntryKind::Begin | EntryKind::Commit => Ok(self.options.with_boundaries),
            EntryKind::Truncate if self.options.with_truncate => self.wants_truncate(entry),
            EntryKind::Logical => Ok(self.options.with_logical),
            EntryKind::Gap => Ok(self.options.with_gaps),
            EntryKind::Truncate | EntryKind::KeepAlive => Ok(false),
        }
    }

    /// Tells whether the session gets a row of a dump, an encoded `pgcapture.Message`. It is no
    /// operation on the table, so only the table is looked at.
    ///
    /// # Errors
    ///
    /// [`MalformedBatch`] when it is not what a dump writes.
    pub fn wants_row(&mut self, payload: &[u8]) -> Result<bool, MalformedBatch> {
        let entry = Entry {
            checkpoint: Checkpoint::default(),
            kind: EntryKind::Change,
            payload,
        };
        let tag = payload.first().copied();
        if tag.and_then(EntryKind::from_tag) != Some(EntryKind::Change) {
            return Err(MalformedBatch);
        }
        Ok(self.wants_table(&peek_change(entry.inner()?)?))
    }

    #[inline]
    fn wants_table(&mut self, peek: &ChangePeek<'_>) -> bool {
        if self.last.0 == peek.encoded_name {
            return self.last.1;
        }
        let verdict = if let Some(verdict) = self.remembered.get(peek.encoded_name) {
            *verdict
        } else {
            let verdict = self.decide(peek.schema, peek.table);
            if self.remembered.len() >= REMEMBERED_TABLES_MAX {
                self.remembered.clear();
            }
            self.remembered.insert(peek.encoded_name.into(), verdict);
            verdict
        };
        self.last.0.clear();
        self.last.0.extend_from_slice(peek.encoded_name);
        self.last.1 = verdict;
        verdict
    }

    /// A truncation is wanted when one of its tables is.
    fn wants_truncate(&self, entry: &Entry<'_>) -> Result<bool, MalformedBatch> {
        let truncate = Truncate::decode(entry.inner()?).map_err(|_| MalformedBatch)?;
        Ok(truncate
            .relations
            .iter()
            .any(|relation| self.decide(relation.schema.as_bytes(), relation.table.as_bytes())))
    }

    fn decide(&self, schema: &[u8], table: &[u8]) -> bool {
        if (schema, table) == (b"pgcapture", b"sources") {
            return false;
        }
        let schema = String::from_utf8_lossy(schema);
        let table = String::from_utf8_lossy(table);
        let options = &self.options;
        let is_in = |patterns: &[TablePattern]| {
            patterns
                .iter()
                .any(|pattern| pattern.matches(&schema, &table))
        };
        options
            .table_regex
            .as_ref()
            .is_none_or(|regex| regex.is_match(&table))
            && (options.tables.is_empty() || is_in(&options.tables))
            && !is_in(&options.exclude_tables)
    }
}

/// Reads operation, schema and table of an encoded `Change` without looking at its columns.
///
/// Relies on fields in the order of their numbers, as our encoder and prost write them.
///
/// # Errors
///
/// [`MalformedBatch`] when the bytes are no `Change`.
#[inline]
pub fn peek_change(change: &[u8]) -> Result<ChangePeek<'_>, MalformedBatch> {
    let mut rest = change;
    let operation = match rest.split_first() {
        Some((0x08, after)) => {
            rest = after;
            decode_varint(&mut rest).map_err(|_| MalformedBatch)?
        }
        _ => 0,
    };
    let named = rest;
    let schema = field(&mut rest, 0x12)?;
    let table = field(&mut rest, 0x1A)?;
    let encoded_name = named
        .get(..named.len() - rest.len())
        .ok_or(MalformedBatch)?;
    Ok(ChangePeek {
        operation: u32::try_from(operation).map_err(|_| MalformedBatch)?,
        schema,
        table,
        encoded_name,
    })
}

/// Reads the length-delimited field `tag` if it comes next; proto3 leaves empty ones out.
#[inline]
fn field<'a>(rest: &mut &'a [u8], tag: u8) -> Result<&'a [u8], MalformedBatch> {
    let Some((found, mut after)) = rest.split_first() else {
        return Ok(&[]);
    };
    if *found != tag {
        return Ok(&[]);
    }
    let length = decode_varint(&mut after).map_err(|_| MalformedBatch)?;
    let length = usize::try_from(length).map_err(|_| MalformedBatch)?;
    let (value, after) = after.split_at_checked(length).ok_or(MalformedBatch)?;
    *rest = after;
    Ok(value)
}

/// `schema.table`, where `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    schema: String,
    table: String,
}

/// The text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a table pattern; expected schema.table, where * stands for anything")]
pub struct ParsePatternError(pub String);

impl TablePattern {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// [`ParsePatternError`] when schema or table is missing.
    pub fn parse(text: &str) -> Result<Self, ParsePatternError> {
        match text.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => Ok(Self {
                schema: schema.to_owned(),
                table: table.to_owned(),
            }),
            _ => Err(ParsePatternError(text.to_owned())),
        }
    }

    /// Tells whether the pattern names this table.
    #[must_use]
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        glob(&self.schema, schema) && glob(&self.table, table)
    }
}

/// Matches `*` against any characters; linear in practice, never exponential: only the last star
/// is ever tried again.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(prefix) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let suffix = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, after)) = text.split_once(part) else {
            return false;
        };
        text = after;
    }
    text.ends_with(suffix)
}

#[cfg(test)]
mod tests;

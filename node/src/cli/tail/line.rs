//! One change as one line, as text by a template or as JSON.
//!
//! Remembers the columns of each table as they were last seen whole, so that a column that an
//! UPDATE left out is shown as `<unchanged-toast>` and not silently missing.

use std::collections::HashMap;

use pgcapture_engine::lsn::{Lsn, PgTime};
use pgcapture_proto::pgcapture::{CaptureMessage, Change, Field, change::Operation};
use serde_json::{Map, Value, json};

use super::{checkpoint_text, decode};

/// What stands for a column that PostgreSQL did not send because it did not change.
pub(super) const UNCHANGED: &str = "<unchanged-toast>";

/// Tables whose columns are remembered; beyond this the memory starts anew.
const TABLES_MAX: usize = 10_000;

/// Stands in a JSON row for an unchanged column until the row is text; no PostgreSQL text holds a
/// NUL, so no value can be taken for it.
const UNCHANGED_MARK: &str = "\u{0}unchanged";

/// A parsed `-f` template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Time,
    Operation,
    Table,
    Key,
    Row,
    Old,
    Lsn,
    Seq,
    Checkpoint,
}

impl Template {
    /// Time, operation, table, key and row.
    pub(super) fn standard() -> Self {
        let space = || Part::Literal(" ".to_owned());
        Self(vec![
            Part::Time,
            space(),
            Part::Operation,
            space(),
            Part::Table,
            space(),
            Part::Key,
            space(),
            Part::Row,
            Part::Literal("\n".to_owned()),
        ])
    }

    /// Parses `%x` and `\n`.
    pub(super) fn parse(format: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            let part = match character {
                '\\' => {
                    literal.push(match characters.next() {
                        Some('n') => '\n',
                        Some('t') => '\t',
                        Some('r') => '\r',
                        Some('0') => '\0',
                        Some(other) => other,
                        None => '\\',
                    });
                    continue;
                }
                '%' => match characters.next() {
                    Some('t') => Part::Time,
                    Some('o') => Part::Operation,
                    Some('T') => Part::Table,
                    Some('k') => Part::Key,
                    Some('j' | 'v') => Part::Row,
                    Some('O') => Part::Old,
                    Some('l') => Part::Lsn,
                    Some('s') => Part::Seq,
                    Some('c') => Part::Checkpoint,
                    Some('%') => {
                        literal.push('%');
                        continue;
                    }
                    other => {
                        let other = other.map(String::from).unwrap_or_default();
                        return Err(format!(
                            "\"%{other}\" means nothing in -f; use %t %o %T %k %j %O %l %s %c or %%"
                        ));
                    }
                },
                other => {
                    literal.push(other);
                    continue;
                }
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part);
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self(parts))
    }
}

/// Writes lines and remembers columns.
#[derive(Debug)]
pub(super) struct Lines {
    template: Option<Template>,
    columns: HashMap<(String, String), Vec<String>>,
    keys: HashMap<(String, String), Vec<String>>,
}

impl Lines {
    /// Without a template lines are JSON objects.
    pub(super) fn new(template: Option<Template>) -> Self {
        Self {
            template,
            columns: HashMap::new(),
            keys: HashMap::new(),
        }
    }

    /// Writes a message; tells whether it was something to show.
    pub(super) fn write(&mut self, out: &mut String, message: &CaptureMessage) -> bool {
        let Some(change) = &message.change else {
            return self.write_other(out, message);
        };
        self.remember(change);
        let row = self.row(change);
        let key = self.key(change);
        let template = self.template.clone();
        let Some(Template(parts)) = template else {
            let line = json!({
                "time": time_text(message.commit_time),
                "op": operation(change),
                "schema": change.schema,
                "table": change.table,
                "checkpoint": message.checkpoint.as_ref().map(checkpoint_text),
                "key": key,
                "new": unmarked(row),
                "old": object(&change.old),
            });
            out.push_str(&line.to_string());
            out.push('\n');
            return true;
        };
        let checkpoint = message.checkpoint.clone().unwrap_or_default();
        for part in &parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Time => out.push_str(&time_text(message.commit_time)),
                Part::Operation => out.push_str(operation(change)),
                Part::Table => out.push_str(&format!("{}.{}", change.schema, change.table)),
                Part::Key => out.push_str(&key_text(&key)),
                Part::Row => out.push_str(&row_text(&row)),
                Part::Old => out.push_str(&Value::Object(object(&change.old)).to_string()),
                Part::Lsn => out.push_str(&Lsn(checkpoint.lsn).to_string()),
                Part::Seq => out.push_str(&checkpoint.seq.to_string()),
                Part::Checkpoint => out.push_str(&checkpoint_text(&checkpoint)),
            }
        }
        true
    }

    /// Truncations and gaps have no row: they are shown in one form.
    fn write_other(&self, out: &mut String, message: &CaptureMessage) -> bool {
        let (op, detail) = if let Some(truncate) = &message.truncate {
            let relations = truncate.relations.iter();
            let names = relations.map(|r| format!("{}.{}", r.schema, r.table));
            ("TRUNCATE", names.collect::<Vec<_>>().join(","))
        } else if let Some(gap) = &message.gap {
            let to = if gap.to_lsn == 0 {
                "?".to_owned()
            } else {
                Lsn(gap.to_lsn).to_string()
            };
            let from = Lsn(gap.from_lsn);
            ("GAP", format!("{from}..{to} {} {}", gap.reason, gap.detail))
        } else {
            return false;
        };
        let time = time_text(message.commit_time);
        if self.template.is_some() {
            out.push_str(&format!("{time} {op} {detail}\n"));
        } else {
            let checkpoint = message.checkpoint.as_ref().map(checkpoint_text);
            let line = json!({"time": time, "op": op, "detail": detail, "checkpoint": checkpoint});
            out.push_str(&format!("{line}\n"));
        }
        true
    }

    fn remember(&mut self, change: &Change) {
        if self.columns.len() > TABLES_MAX {
            self.columns.clear();
            self.keys.clear();
        }
        let table = (change.schema.clone(), change.table.clone());
        let names = |fields: &[Field]| fields.iter().map(|field| field.name.clone()).collect();
        if change.op() == Operation::Delete {
            self.keys.insert(table, names(&change.old));
            return;
        }
        let known = self.columns.get(&table).map_or(0, Vec::len);
        if change.op() == Operation::Insert || change.new.len() > known {
            self.columns.insert(table, names(&change.new));
        }
    }

    /// The new row, in the order of its columns; unchanged columns hold the mark.
    fn row(&self, change: &Change) -> Map<String, Value> {
        let mut sent = object(&change.new);
        let table = (change.schema.clone(), change.table.clone());
        let columns = self.columns.get(&table);
        let Some(columns) = columns.filter(|_| change.op() == Operation::Update) else {
            return sent;
        };
        let mut row = Map::new();
        for name in columns {
            let value = sent.shift_remove(name);
            let mark = || Value::String(UNCHANGED_MARK.to_owned());
            row.insert(name.clone(), value.unwrap_or_else(mark));
        }
        row.extend(sent);
        row
    }

    /// The key columns: those that a DELETE has shown, else `id`, else the first column.
    fn key(&self, change: &Change) -> Map<String, Value> {
        if change.op() == Operation::Delete {
            return object(&change.old);
        }
        let table = (change.schema.clone(), change.table.clone());
        let is_key = |field: &&Field| match self.keys.get(&table) {
            Some(names) => names.contains(&field.name),
            None => field.name == "id",
        };
        let found = change.new.iter().filter(is_key);
        let key: Map<_, _> = found.map(pair).collect();
        if key.is_empty() {
            return change.new.first().map(pair).into_iter().collect();
        }
        key
    }
}

fn pair(field: &Field) -> (String, Value) {
    (field.name.clone(), decode::value(field))
}

fn object(fields: &[Field]) -> Map<String, Value> {
    fields.iter().map(pair).collect()
}

fn operation(change: &Change) -> &'static str {
    change.op().as_str_name()
}

fn key_text(key: &Map<String, Value>) -> String {
    let pairs = key.iter().map(|(name, value)| match value.as_str() {
        Some(text) => format!("{name}={text}"),
        None => format!("{name}={value}"),
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// JSON for people: the mark stands without quotes, so that it cannot be taken for a value.
fn row_text(row: &Map<String, Value>) -> String {
    let columns = row.iter().map(|(name, value)| {
        let name = Value::String(name.clone());
        if value == UNCHANGED_MARK {
            format!("{name}:{UNCHANGED}")
        } else {
            format!("{name}:{value}")
        }
    });
    format!("{{{}}}", columns.collect::<Vec<_>>().join(","))
}

/// JSON for programs: unchanged columns become an object that no value is.
fn unmarked(row: Map<String, Value>) -> Map<String, Value> {
    let swap = |(name, value): (String, Value)| {
        let value = if value == UNCHANGED_MARK {
            json!({"unchanged": true})
        } else {
            value
        };
        (name, value)
    };
    row.into_iter().map(swap).collect()
}

fn time_text(commit_time: u64) -> String {
    let micros = i64::try_from(commit_time).unwrap_or_default();
    let moment = jiff::Timestamp::from_microsecond(PgTime(micros).unix_micros());
    match moment {
        Ok(moment) if commit_time != 0 => format!("{moment:.3}"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests;

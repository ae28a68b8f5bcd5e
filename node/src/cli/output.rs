//! Output: the same values as table, JSON, YAML or shell variables.
//!
//! Data to stdout, talk to stderr. No colour unless stderr or stdout is a terminal and nobody
//! asked for none.

use std::io::{self, IsTerminal, Write as _};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use super::Global;

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    Table,
    /// The same with more columns.
    Wide,
    /// One JSON value: an array for lists, an object for one thing.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// YAML.
    Yaml,
    /// NAME=value lines for a shell.
    Env,
}

/// A column: its heading, and whether only `wide` shows it.
pub(super) type Column = (&'static str, bool);

/// Something that can be shown in every form.
pub(super) trait View: Serialize {
    /// Columns of the table.
    const COLUMNS: &'static [Column];
    /// Cells in the order of the columns.
    fn cells(&self) -> Vec<String>;
    /// A line under the table when something needs attention.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Prints a list.
pub(super) fn list<T: View>(global: &Global, items: &[T]) -> io::Result<()> {
    match global.output {
        Format::Table | Format::Wide => {
            data(&table(items, global.output == Format::Wide))?;
            if !global.quiet {
                let hints: Vec<_> = items.iter().filter_map(View::hint).collect();
                if !hints.is_empty() {
                    talk(&format!("{}\n", hints.join("\n")));
                }
            }
            Ok(())
        }
        Format::Json | Format::Ndjson | Format::Yaml | Format::Env => value(global, items),
    }
}

/// Prints one thing: as lines `NAME: value` in tables.
pub(super) fn one<T: View>(global: &Global, item: &T) -> io::Result<()> {
    match global.output {
        Format::Table | Format::Wide => {
            let cells = item.cells();
            let width = T::COLUMNS.iter().map(|(name, _)| name.len()).max();
            let width = width.unwrap_or_default() + 1;
            let mut out = String::new();
            for ((name, _), cell) in T::COLUMNS.iter().zip(&cells) {
                let label = format!("{}:", name.to_lowercase());
                line(&mut out, &format!("{label:width$} {cell}"));
            }
            data(&out)?;
            if let Some(hint) = item.hint().filter(|_| !global.quiet) {
                talk(&format!("{hint}\n"));
            }
            Ok(())
        }
        Format::Json | Format::Ndjson | Format::Yaml | Format::Env => value(global, item),
    }
}

/// Prints any value in a machine's form; tables fall back to JSON.
pub(super) fn value<T: Serialize + ?Sized>(global: &Global, value: &T) -> io::Result<()> {
    let json = serde_json::to_value(value).map_err(io::Error::other)?;
    let mut out = String::new();
    match global.output {
        Format::Table | Format::Wide | Format::Json => {
            out = serde_json::to_string_pretty(&json).map_err(io::Error::other)?;
            out.push('\n');
        }
        Format::Ndjson => match json {
            Value::Array(items) => items
                .iter()
                .for_each(|item| line(&mut out, &item.to_string())),
            one @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_)) => line(&mut out, &one.to_string()),
        },
        Format::Yaml => yaml(&mut out, &json, 0),
        Format::Env => env(&mut out, "PGCAPTURE", &json),
    }
    data(&out)
}

/// Returns lines of what is done, indented.
pub(super) fn bullets(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

/// Joins names for a cell; a dash when there are none.
pub(super) fn joined(names: &[String]) -> String {
    if names.is_empty() {
        "–".to_owned()
    } else {
        names.join(",")
    }
}

/// Writes to stdout.
pub(super) fn data(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes to stderr. A stderr that is gone cannot be told about, so its error ends here.
pub(super) fn talk(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Colours `text` for stderr when a person watches.
pub(super) fn style(global: &Global, sgr: &str, text: &str) -> String {
    let is_plain = global.no_color
        || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("CI").is_some()
        || !io::stderr().is_terminal();
    if is_plain {
        text.to_owned()
    } else {
        format!("\u{1b}[{sgr}m{text}\u{1b}[0m")
    }
}

fn table<T: View>(items: &[T], is_wide: bool) -> String {
    let shown: Vec<usize> = (0..T::COLUMNS.len())
        .filter(|at| {
            T::COLUMNS
                .get(*at)
                .is_some_and(|(_, wide)| is_wide || !wide)
        })
        .collect();
    let pick = |cells: &[String]| -> Vec<String> {
        let cells = shown.iter().map(|at| cells.get(*at).cloned());
        cells.map(Option::unwrap_or_default).collect()
    };
    let heads: Vec<String> = T::COLUMNS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    let mut rows = vec![pick(&heads)];
    rows.extend(items.iter().map(|item| pick(&item.cells())));
    let width_of = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..shown.len()).map(width_of).collect();
    let mut out = String::new();
    for row in &rows {
        let padded: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line(&mut out, padded.join("  ").trim_end());
    }
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn yaml(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let mut entry = |head: String, value: &Value| match value {
        Value::Object(map) if !map.is_empty() => {
            line(out, &head);
            yaml(out, value, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            line(out, &head);
            yaml(out, value, depth + 1);
        }
        // JSON's scalars and empty collections are YAML as they are.
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => line(out, &format!("{head} {value}")),
    };
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| entry(format!("{indent}{key}:"), value)),
        Value::Array(items) => items
            .iter()
            .for_each(|item| entry(format!("{indent}-"), item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            line(out, &format!("{indent}{value}"));
        }
    }
}

fn env(out: &mut String, name: &str, value: &Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                env(out, &format!("{name}_{}", key.to_ascii_uppercase()), value);
            }
        }
        Value::Array(items) => {
            for (at, value) in items.iter().enumerate() {
                env(out, &format!("{name}_{at}"), value);
            }
        }
        Value::String(text) => {
            line(out, &format!("{name}='{}'", text.replace('\'', "'\\''")));
        }
        Value::Null => line(out, &format!("{name}=")),
        Value::Bool(_) | Value::Number(_) => line(out, &format!("{name}={value}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Serialize)]
    struct Slot {
        slot: &'static str,
        lag: u64,
    }

    impl View for Slot {
        const COLUMNS: &'static [Column] = &[("SLOT", false), ("SECRETLY", true), ("LAG", false)];
        fn cells(&self) -> Vec<String> {
            vec![
                self.slot.to_owned(),
                "wide".to_owned(),
                self.lag.to_string(),
            ]
        }
    }

    const SLOTS: [Slot; 2] = [
        Slot { slot: "a", lag: 1 },
        Slot {
            slot: "longer",
            lag: 22,
        },
    ];

    #[test]
    fn columns_are_aligned_and_wide_shows_all() {
        assert_eq!(table(&SLOTS, false), "SLOT    LAG\na       1\nlonger  22\n");
        assert!(table(&SLOTS, true).starts_with("SLOT    SECRETLY  LAG\n"));
    }

    #[test]
    fn yaml_nests_and_quotes() {
        let value =
            json!([{"name": "a: b", "tables": ["x", "y"], "none": [], "lag": {"bytes": 1}}]);
        let mut out = String::new();
        yaml(&mut out, &value, 0);
        let wanted = "-\n  name: \"a: b\"\n  tables:\n    - \"x\"\n    - \"y\"\n  none: []\n  lag:\n    bytes: 1\n";
        assert_eq!(out, wanted);
    }

    #[test]
    fn env_is_safe_for_a_shell() {
        let mut out = String::new();
        env(
            &mut out,
            "PGCAPTURE",
            &json!({"url": "it's", "port": 7700, "none": null}),
        );
        assert_eq!(
            out,
            "PGCAPTURE_URL='it'\\''s'\nPGCAPTURE_PORT=7700\nPGCAPTURE_NONE=\n"
        );
    }
}

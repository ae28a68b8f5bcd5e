//! Settings as they were written, each with where it was written.
//!
//! Flattens TOML files, environment variables and flags into one map from dotted path to value; a
//! later layer wins. Knows nothing of which keys exist.

use std::{collections::BTreeMap, ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

use super::report::{Problem, SourceText};
use pgcapture_engine::codes;

/// Prefix of the environment variables that set a key: `PGCAPTURE__LIMITS__SESSIONS`.
const ENV_PREFIX: &str = "PGCAPTURE__";

/// All settings by path.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// Path such as `log.retention.time` to its value.
    pub(super) leaves: BTreeMap<String, Leaf>,
    /// The files, for messages.
    pub(super) files: Vec<SourceText>,
}

/// One value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leaf {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// A value before its kind is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Value>),
    /// A float or a date: no key takes one.
    Other(String),
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file, at these bytes.
    File {
        /// Index of the file.
        file: usize,
        /// Where the key stands.
        key: Range<usize>,
        /// Where the value stands.
        value: Range<usize>,
    },
    /// In an environment variable.
    Env(String),
    /// In a flag.
    Flag(String),
    /// Nowhere: the default.
    Default,
}

impl Document {
    /// Adds a file on top.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), Box<Problem>> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Box::new(Problem::new(
                &codes::config::UNREADABLE,
                format!("cannot read {}: {error}", path.display()),
            ))
        })?;
        self.add_text(path.display().to_string(), text)
    }

    /// Adds the text of a file on top.
    pub(super) fn add_text(&mut self, name: String, text: String) -> Result<(), Box<Problem>> {
        let file = self.files.len();
        self.files.push(SourceText {
            name,
            text: text.clone(),
        });
        let table = DeTable::parse(&text).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            let origin = Origin::File {
                file,
                key: at.clone(),
                value: at,
            };
            let problem = Problem::new(&codes::config::SYNTAX, "not valid TOML");
            Box::new(problem.label(error.message()).at(origin))
        })?;
        self.add_table(file, "", table.get_ref());
        Ok(())
    }

    fn add_table(&mut self, file: usize, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            if let DeValue::Table(inner) = value.get_ref() {
                self.add_table(file, &path, inner);
                continue;
            }
            let leaf = Leaf {
                value: Value::from(value.get_ref()),
                origin: Origin::File {
                    file,
                    key: key.span(),
                    value: value.span(),
                },
            };
            self.leaves.insert(path, leaf);
        }
    }

    /// Adds environment variables on top; those without our prefix are passed over.
    pub(super) fn add_env(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            let path = rest.replace("__", ".").to_ascii_lowercase();
            let leaf = Leaf {
                value: Value::Text(value),
                origin: Origin::Env(name),
            };
            self.leaves.insert(path, leaf);
        }
    }

    /// Adds flags on top: path and value.
    pub(super) fn add_flags(&mut self, flags: &[(String, String, String)]) {
        for (flag, path, value) in flags {
            let leaf = Leaf {
                value: Value::Text(value.clone()),
                origin: Origin::Flag(flag.clone()),
            };
            self.leaves.insert(path.clone(), leaf);
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

impl From<&DeValue<'_>> for Value {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.clone().into_owned()),
            DeValue::Boolean(flag) => Self::Bool(*flag),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Self::Other(number.as_str().to_owned()), Self::Integer),
            DeValue::Array(items) => {
                let items = items.iter();
                Self::List(items.map(|item| Self::from(item.get_ref())).collect())
            }
            DeValue::Float(number) => Self::Other(number.as_str().to_owned()),
            DeValue::Datetime(moment) => Self::Other(moment.to_string()),
            DeValue::Table(_) => Self::Other("a table".to_owned()),
        }
    }
}

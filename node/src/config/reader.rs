//! Takes typed values out of a document and remembers which keys were asked for.
//!
//! Whatever was written but never asked for is an unknown key: there is no second list of keys
//! that could disagree. Problems are collected, so that one run shows all of them.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use pgcapture_engine::{cluster::SecretRef, codes};

use super::{
    document::{Document, Leaf, Origin, Value},
    report::Problem,
};
use crate::units::{Size, Span};

/// Keys that look at least this much alike are suggested.
const SIMILARITY_MIN: f64 = 0.6;

/// Reads one document.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) document: Document,
    pub(super) problems: Vec<Problem>,
    asked: BTreeSet<String>,
}

/// A kind of value.
pub(super) trait FromValue: Sized {
    /// What to write, for messages.
    const EXPECTED: &'static str;
    /// Whether a bad value may be repeated in a message.
    const IS_PUBLIC: bool = true;
    /// Converts, or tells nothing: the message is made from the expectation.
    fn from_value(value: &Value) -> Option<Self>;
    /// What was meant by a value that cannot be converted, as a help for the writer.
    fn suggest(_: &Value) -> Option<String> {
        None
    }
}

impl Reader {
    pub(super) fn new(document: Document) -> Self {
        Self {
            document,
            problems: Vec::new(),
            asked: BTreeSet::new(),
        }
    }

    /// Returns the value at `path`, or the default.
    pub(super) fn get<T: FromValue>(&mut self, path: &str, default: T) -> T {
        self.find(path).unwrap_or(default)
    }

    /// Returns the value at `path`, if it is written and good.
    pub(super) fn find<T: FromValue>(&mut self, path: &str) -> Option<T> {
        self.asked.insert(path.to_owned());
        let Leaf { value, origin } = self.document.leaves.get(path)?;
        let converted = T::from_value(value);
        if converted.is_none() {
            let shown = if T::IS_PUBLIC {
                value.show()
            } else {
                "this".to_owned()
            };
            let problem = Problem::new(
                &codes::config::BAD_VALUE,
                format!("{path} cannot take this value"),
            )
            .label(format!("{shown} is not {}", T::EXPECTED))
            .at(origin.clone());
            self.problems.push(match T::suggest(value) {
                Some(help) => problem.help(help),
                None => problem,
            });
        }
        converted
    }

    /// Returns where `path` was written.
    pub(super) fn origin(&self, path: &str) -> Origin {
        let leaf = self.document.leaves.get(path);
        leaf.map_or(Origin::Default, |leaf| leaf.origin.clone())
    }

    /// Returns the names of the sections under `prefix`: `shop` for `source.shop.url`.
    pub(super) fn sections(&self, prefix: &str) -> Vec<String> {
        let under = |path: &String| {
            let rest = path.strip_prefix(prefix)?.strip_prefix('.')?;
            Some(rest.split_once('.')?.0.to_owned())
        };
        let names: BTreeSet<_> = self.document.leaves.keys().filter_map(under).collect();
        names.into_iter().collect()
    }

    /// Reports every key that nobody asked for.
    pub(super) fn report_unknown(&mut self) {
        for (path, leaf) in &self.document.leaves {
            if self.asked.contains(path) {
                continue;
            }
            let mut problem = Problem::new(
                &codes::config::UNKNOWN_KEY,
                format!("unknown key \"{path}\""),
            )
            .label("nobody reads this")
            .at_key(leaf.origin.clone());
            if let Some(near) = nearest(path, &self.asked) {
                problem = problem.help(format!("did you mean \"{near}\"?"));
            }
            self.problems.push(problem);
        }
    }

    /// Every key that was asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> &BTreeSet<String> {
        &self.asked
    }
}

/// Finds the key that `path` most likely meant: the same section first, then any.
fn nearest<'a>(path: &str, asked: &'a BTreeSet<String>) -> Option<&'a str> {
    let likeness = |known: &str| {
        let section = |path: &str| path.rsplit_once('.').map(|(head, _)| head.to_owned());
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let whole = strsim::normalized_damerau_levenshtein(path, known);
        if section(path) == section(known) {
            whole.max(strsim::jaro_winkler(&last(path), &last(known)))
        } else {
            whole
        }
    };
    let scored = asked.iter().map(|known| (likeness(known), known.as_str()));
    scored
        .filter(|(score, _)| *score >= SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

impl Value {
    fn show(&self) -> String {
        match self {
            Self::Text(text) => format!("\"{text}\""),
            Self::Integer(number) => number.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::List(_) => "a list".to_owned(),
            Self::Other(text) => text.clone(),
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Integer(_) | Self::Bool(_) | Self::List(_) | Self::Other(_) => None,
        }
    }
}

impl FromValue for String {
    const EXPECTED: &'static str = "a text in quotes";
    fn from_value(value: &Value) -> Option<Self> {
        value.text().map(str::to_owned)
    }
}

impl FromValue for PathBuf {
    const EXPECTED: &'static str = "a path in quotes";
    fn from_value(value: &Value) -> Option<Self> {
        let text = value.text().filter(|text| !text.is_empty())?;
        Some(text.strip_prefix("file:").unwrap_or(text).into())
    }
}

impl FromValue for SocketAddr {
    const EXPECTED: &'static str = "an address such as \"127.0.0.1:7700\"";
    fn from_value(value: &Value) -> Option<Self> {
        let text = value.text()?;
        let port = text.strip_prefix("localhost:");
        match port {
            Some(port) => Some(([127, 0, 0, 1], port.parse().ok()?).into()),
            None => text.parse().ok(),
        }
    }
}

impl FromValue for Size {
    const EXPECTED: &'static str = "a size such as \"64MiB\"";
    fn from_value(value: &Value) -> Option<Self> {
        value.text()?.parse().ok()
    }
}

impl FromValue for Span {
    const EXPECTED: &'static str = "a duration such as \"30s\"";
    fn from_value(value: &Value) -> Option<Self> {
        value.text()?.parse().ok()
    }
}

impl FromValue for u32 {
    const EXPECTED: &'static str = "a whole number from 0 to 4294967295";
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(number) => Self::try_from(*number).ok(),
            Value::Text(text) => text.replace('_', "").parse().ok(),
            Value::Bool(_) | Value::List(_) | Value::Other(_) => None,
        }
    }
}

impl FromValue for Vec<String> {
    const EXPECTED: &'static str = "a list of texts";
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::List(items) => items
                .iter()
                .map(|item| item.text().map(str::to_owned))
                .collect(),
            Value::Text(text) => Some(
                text.split(',')
                    .map(|part| part.trim().to_owned())
                    .filter(|part| !part.is_empty())
                    .collect(),
            ),
            Value::Integer(_) | Value::Bool(_) | Value::Other(_) => None,
        }
    }
}

impl FromValue for SecretRef {
    const EXPECTED: &'static str = "a reference: env:NAME or file:/path";
    const IS_PUBLIC: bool = false;
    fn from_value(value: &Value) -> Option<Self> {
        value.text()?.parse().ok()
    }
}

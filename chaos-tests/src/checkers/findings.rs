//! What the judges found: violations counted by kind, with a few examples of each.

use std::collections::BTreeMap;

use serde::Serialize;

/// Examples kept of each kind: enough to start looking, few enough for one line.
const EXAMPLES_MAX: usize = 3;

/// All violations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    kinds: BTreeMap<String, (u64, Vec<String>)>,
}

/// Violations of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Property and kind, such as `no_loss/lost`.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<String>,
}

impl Findings {
    /// Counts one violation; `example` is called for the first few of its kind only.
    pub fn add(&mut self, kind: &str, example: impl FnOnce() -> String) {
        let (count, examples) = self.kinds.entry(kind.to_owned()).or_default();
        *count += 1;
        if examples.len() < EXAMPLES_MAX {
            examples.push(example());
        }
    }

    /// Returns how many violations of one kind there are.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        self.kinds.get(kind).map_or(0, |(count, _)| *count)
    }

    /// Returns the kinds that were found.
    #[must_use]
    pub fn kinds(&self) -> Vec<&str> {
        self.kinds.keys().map(String::as_str).collect()
    }

    /// Returns whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Returns everything, sorted by kind.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        let to_violation = |(kind, (count, examples)): (&String, &(u64, Vec<String>))| Violation {
            kind: kind.clone(),
            count: *count,
            examples: examples.clone(),
        };
        self.kinds.iter().map(to_violation).collect()
    }
}

//! Every error code of the product, with what it means and what to do.
//!
//! `pgcapture explain CODE` prints from here; an error of any crate names its code from here. A
//! code is stable: it is never reused for another meaning. One file a family.

pub mod cluster;
pub mod config;
pub mod dump;
pub mod existing_rows;
pub mod gateway;
pub mod log;
pub mod node;
pub mod source;

/// What a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Stable name, such as `PGC-S04`.
    pub code: &'static str,
    /// One line: what happened.
    pub title: &'static str,
    /// Why it happens and what it means for the data.
    pub text: &'static str,
    /// The next step to take.
    pub next: &'static str,
}

/// Returns every explanation, family by family.
pub fn all() -> impl Iterator<Item = &'static Explanation> {
    [
        config::ALL,
        cluster::ALL,
        source::ALL,
        log::ALL,
        gateway::ALL,
        dump::ALL,
        existing_rows::ALL,
        node::ALL,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Finds a code, with or without the prefix `PGC-`, in any case.
#[must_use]
pub fn find(code: &str) -> Option<&'static Explanation> {
    let upper = code.trim().to_ascii_uppercase();
    let wanted = upper.strip_prefix("PGC-").unwrap_or(&upper);
    all().find(|explanation| explanation.code.strip_prefix("PGC-") == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = std::collections::BTreeSet::new();
        for explanation in all() {
            assert!(
                seen.insert(explanation.code),
                "{} stands twice",
                explanation.code
            );
            assert!(explanation.code.starts_with("PGC-"), "{}", explanation.code);
            assert!(
                !explanation.next.is_empty(),
                "{} says no next step",
                explanation.code
            );
        }
    }

    #[test]
    fn a_code_is_found_however_it_is_typed() {
        for explanation in all() {
            assert_eq!(find(&explanation.code.to_lowercase()), Some(explanation));
            assert_eq!(
                find(&explanation.code.replace("PGC-", "")),
                Some(explanation)
            );
        }
        assert_eq!(find("PGC-X99"), None);
    }
}

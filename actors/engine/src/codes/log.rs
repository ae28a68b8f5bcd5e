//! The change log: the codes `PGC-L…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[];

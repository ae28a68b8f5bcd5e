//! Configuration: the codes `PGC-C…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[];

//! Sources: PostgreSQL, slots, publications: the codes `PGC-S…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[];

//! Consumers and their sessions: the codes `PGC-G…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[];

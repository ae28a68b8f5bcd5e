//! The node and its command line: the codes `PGC-N…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[];

//! How many ranges a subscription may have.

/// Ranges of one subscription with a reader, at most. Each holds what was received and not looked at (4
/// MiB), a few batches of rows on their way (256 KiB each) and a snapshot on the replica: together they stay
/// below the 64 MiB that a dump may cost a node, whatever its consumer does.
pub const RANGES_OPEN_MAX: u32 = 8;

/// One is delivered while the next is opened, however few are wanted at once.
const RANGES_OPEN_MIN: u32 = 2;

/// All ranges, those included that wait for acknowledgements: a consumer that never answers is
/// not sent a whole table.
pub const RANGES_HELD_MAX: usize = 16;

/// Returns how many ranges may have a reader; `wanted` is what each dump with a range here wants at once.
///
/// More than are wanted only hold snapshots, memory, and the changes of the consumer.
#[must_use]
pub fn open_max(wanted: impl IntoIterator<Item = u32>) -> usize {
    let sum = wanted.into_iter().fold(0, u32::saturating_add);
    sum.clamp(RANGES_OPEN_MIN, RANGES_OPEN_MAX) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_open_as_the_dumps_want_together() {
        let cases: [(&[u32], usize); 6] = [
            (&[], 2),
            (&[1], 2),
            (&[4], 4),
            (&[2, 3], 5),
            (&[64], 8),
            (&[u32::MAX, 1], 8),
        ];
        for (wanted, most) in cases {
            assert_eq!(open_max(wanted.iter().copied()), most, "{wanted:?}");
        }
    }
}

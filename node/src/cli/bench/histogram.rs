//! Waits in buckets of one width, few enough to be seen at a glance.

use std::ops::Range;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Widths to choose from, in milliseconds: the first that needs no more than [`BUCKETS_MAX`].
const WIDTHS_MS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 15_000];
/// Buckets between the shortest and the longest wait; wider ones hide the shape.
const BUCKETS_MAX: u64 = 12;
/// The longest bar, in characters.
const BAR_MAX: u64 = 30;

/// How many waits fell between two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Bucket {
    /// Milliseconds, this included.
    pub(super) from_ms: u64,
    /// Milliseconds, this excluded.
    pub(super) below_ms: u64,
    /// Waits.
    pub(super) count: u64,
}

impl Bucket {
    /// Sorts recorded microseconds into buckets, those in between that stayed empty included.
    pub(super) fn of(waits: &Histogram<u64>) -> Vec<Self> {
        if waits.is_empty() {
            return Vec::new();
        }
        let (shortest, longest) = (waits.min() / 1_000, waits.max() / 1_000);
        let span = |width: u64| shortest / width..longest / width + 1;
        let fits = |width: &u64| {
            let Range { start, end } = span(*width);
            end - start <= BUCKETS_MAX
        };
        let [.., widest] = WIDTHS_MS;
        let width = WIDTHS_MS.into_iter().find(fits).unwrap_or(widest);
        let bucket = |place: u64| Self {
            from_ms: place * width,
            below_ms: (place + 1) * width,
            count: waits
                .iter_recorded()
                .filter(|step| step.value_iterated_to() / 1_000 / width == place)
                .map(|step| step.count_since_last_iteration())
                .sum(),
        };
        span(width).map(bucket).collect()
    }

    /// The bounds, for people.
    pub(super) fn bounds(&self) -> String {
        format!("  {}..{} ms", self.from_ms, self.below_ms)
    }

    /// A bar as long as the count is beside the highest one; no wait is too few to be seen.
    pub(super) fn bar(&self, highest: u64) -> String {
        let length = (self.count * BAR_MAX).div_ceil(highest.max(1));
        "#".repeat(usize::try_from(length).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(waits_ms: &[u64]) -> Vec<(u64, u64, u64)> {
        let mut waits = Histogram::<u64>::new_with_max(60_000_000, 3).unwrap();
        for wait in waits_ms {
            waits.record(wait * 1_000).unwrap();
        }
        let buckets = Bucket::of(&waits).into_iter();
        buckets
            .map(|bucket| (bucket.from_ms, bucket.below_ms, bucket.count))
            .collect()
    }

    #[test]
    fn every_wait_is_in_one_bucket_and_empty_ones_between_are_shown() {
        assert_eq!(of(&[]), []);
        assert_eq!(
            of(&[30, 31, 33]),
            [(30, 31, 1), (31, 32, 1), (32, 33, 0), (33, 34, 1)]
        );
        let wide = of(&[60, 70, 99, 300]);
        assert_eq!(wide.len(), 11);
        assert_eq!(wide.first(), Some(&(50, 75, 2)));
        assert_eq!(wide.last(), Some(&(300, 325, 1)));
        assert_eq!(wide.iter().map(|bucket| bucket.2).sum::<u64>(), 4);
    }

    #[test]
    fn one_wait_among_many_still_has_a_bar() {
        let bucket = |count| Bucket {
            from_ms: 0,
            below_ms: 1,
            count,
        };
        assert_eq!(bucket(1).bar(1_000), "#");
        assert_eq!(bucket(0).bar(1_000), "");
        assert_eq!(bucket(1_000).bar(1_000).len(), 30);
    }
}

//! A set of heap pages, kept as the fewest ranges: neighbours are merged.
//!
//! Holds which pages of a table are finished. It stays small because ranges are cut in order: what
//! is finished is one long range and a few behind it. Pages are never taken out again.

use serde::{Deserialize, Serialize};

use super::PageRange;

/// A set of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSet {
    /// In order; no two touch.
    ranges: Vec<PageRange>,
}

impl PageSet {
    /// Makes an empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Adds pages; returns whether any of them is new. A range with its ends swapped adds nothing.
    pub fn insert(&mut self, pages: PageRange) -> bool {
        if pages.first > pages.last || self.contains(pages) {
            return false;
        }
        // The first range that touches `pages` or lies behind it, and the first behind both.
        let from = self
            .ranges
            .partition_point(|known| known.last < pages.first.saturating_sub(1));
        let to = self
            .ranges
            .partition_point(|known| known.first <= pages.last.saturating_add(1));
        let touched = self.ranges.get(from..to).unwrap_or_default();
        let first = touched.first().map_or(pages.first, |known| known.first);
        let last = touched.last().map_or(pages.last, |known| known.last);
        let merged = PageRange {
            first: first.min(pages.first),
            last: last.max(pages.last),
        };
        self.ranges.splice(from..to, [merged]);
        true
    }

    /// Adds every page of another set.
    pub fn insert_all(&mut self, other: &Self) {
        for pages in &other.ranges {
            self.insert(*pages);
        }
    }

    /// Tells whether all of these pages are in the set.
    #[must_use]
    pub fn contains(&self, pages: PageRange) -> bool {
        self.at_or_after(pages.first)
            .is_some_and(|known| known.first <= pages.first && pages.last <= known.last)
    }

    /// Returns the first run of pages at or after `from` that are not in the set.
    #[must_use]
    pub fn first_gap(&self, from: u32) -> Option<PageRange> {
        let mut first = from;
        let behind = self.ranges.partition_point(|known| known.last < from);
        for known in self.ranges.get(behind..).unwrap_or_default() {
            if known.first > first {
                let last = known.first - 1;
                return Some(PageRange { first, last });
            }
            if known.last == PageRange::OPEN {
                return None;
            }
            first = known.last + 1;
        }
        let last = PageRange::OPEN;
        Some(PageRange { first, last })
    }

    /// Counts the pages below `end` that are in the set.
    #[must_use]
    pub fn count_below(&self, end: u32) -> u64 {
        let count = |known: &PageRange| {
            let past = u64::from(known.last).saturating_add(1).min(end.into());
            past.saturating_sub(known.first.into())
        };
        self.ranges.iter().map(count).sum()
    }

    /// Returns the merged ranges in order.
    #[must_use]
    pub fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    /// Tells whether there is no page in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn at_or_after(&self, page: u32) -> Option<&PageRange> {
        let index = self.ranges.partition_point(|known| known.last < page);
        self.ranges.get(index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pages(first: u32, last: u32) -> PageRange {
        PageRange { first, last }
    }

    fn set(ranges: &[(u32, u32)]) -> PageSet {
        let mut set = PageSet::new();
        for (first, last) in ranges {
            set.insert(pages(*first, *last));
        }
        set
    }

    #[test]
    fn neighbours_are_merged_whatever_their_order() {
        for (given, merged) in [
            (vec![(0, 9), (10, 19)], vec![(0, 19)]),
            (vec![(10, 19), (0, 9)], vec![(0, 19)]),
            (vec![(0, 0), (2, 2), (1, 1)], vec![(0, 2)]),
            (vec![(0, 9), (11, 19)], vec![(0, 9), (11, 19)]),
            (vec![(5, 6), (0, 100)], vec![(0, 100)]),
            (vec![(3, u32::MAX), (0, 2)], vec![(0, u32::MAX)]),
            (vec![(9, 3)], vec![]),
        ] {
            let merged: Vec<_> = merged.into_iter().map(|(a, b)| pages(a, b)).collect();
            assert_eq!(set(&given).ranges(), merged, "{given:?}");
        }
    }

    #[test]
    fn what_is_there_is_not_new() {
        let mut set = set(&[(0, 9)]);
        assert!(!set.insert(pages(2, 9)));
        assert!(set.insert(pages(9, 10)));
    }

    #[test]
    fn the_first_gap_ends_where_the_next_range_begins() {
        for (given, from, gap) in [
            (vec![], 0, Some((0, u32::MAX))),
            (vec![(0, 9)], 0, Some((10, u32::MAX))),
            (vec![(0, 9), (20, 29)], 0, Some((10, 19))),
            (vec![(0, 9), (20, 29)], 15, Some((15, 19))),
            (vec![(0, 9), (20, u32::MAX)], 20, None),
            (vec![(0, u32::MAX)], 0, None),
        ] {
            let wanted = gap.map(|(first, last)| pages(first, last));
            assert_eq!(set(&given).first_gap(from), wanted, "{given:?} from {from}");
        }
    }

    #[test]
    fn pages_are_counted_up_to_the_end() {
        assert_eq!(set(&[(0, 9), (20, u32::MAX)]).count_below(25), 15);
        assert_eq!(set(&[(0, 9)]).count_below(0), 0);
    }

    proptest! {
        #[test]
        fn it_is_a_set(ranges in proptest::collection::vec((0_u32..60, 0_u32..12), 0..30)) {
            let (mut model, mut set) = (BTreeSet::new(), PageSet::new());
            for (first, length) in ranges {
                let last = first + length;
                let is_new = (first..=last).any(|page| !model.contains(&page));
                model.extend(first..=last);
                prop_assert_eq!(set.insert(pages(first, last)), is_new);
                prop_assert_eq!(set.count_below(100), model.len() as u64);
                let gap = (0..).find(|page| !model.contains(page)).unwrap();
                prop_assert_eq!(set.first_gap(0).unwrap().first, gap);
                let touching = set.ranges().windows(2).any(|pair| pair[0].last + 1 >= pair[1].first);
                prop_assert!(!touching, "{:?}", set);
            }
        }
    }
}

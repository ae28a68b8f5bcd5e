//! Cuts the wanted pages of a table into ranges.
//!
//! A range aims at a size in bytes: first by what the catalog says of the table, then by what was
//! really delivered. A dump that is fast has larger ranges ([`stretch`]). The last range of a whole table has no end, so that rows which arrive behind it
//! are read; a table without pages is one such range. Ranges given by hand are handed out as they are.
//!
//! # Invariants
//!
//! - No page of a whole table is cut twice, and none is left out.
//! - Each range given by hand comes once, unless it is finished already.

use std::time::Duration;

use super::{PageRange, PageSet};
use crate::{
    cluster::{DumpOptions, DumpTable, WantedPages},
    splice::RANGES_OPEN_MAX,
};

/// What was delivered corrects the plan by at most this factor: a bloated or half empty beginning says
/// little about the rest.
const CORRECTION_MAX: u64 = 8;

/// Pages that must be finished before what they had says something.
const SEEN_PAGES_MIN: u64 = 16;

/// Pages that a table may grow by while it is dumped, however small it was: 8 MiB.
const GROWTH_PAGES_MIN: u32 = 1_024;

/// The last page that fits into a signed number, and of which the next does: readers elsewhere count
/// so. A table of 16 TiB.
const FOREIGN_PAGE_MAX: u32 = i32::MAX.cast_unsigned() - 1;

/// Bytes of a page whose table says nothing about itself.
const PAGE_BYTES: u64 = 8_192;

/// What a range shall take at most, from the ticket to its last acknowledgement: what is lost when it is
/// read again, and how long it holds back the changes of its consumer.
pub const RANGE_TIME: Duration = Duration::from_millis(500);

/// How many times the default size a range has at most: 256 MiB. What it costs to open one, some
/// milliseconds, is little then at any speed.
pub const STRETCH_MAX: u32 = 8;

/// Cuts one generation of one table.
#[derive(Debug, Default)]
pub struct Cutter {
    /// Pages of a whole table that were cut or are finished.
    taken: PageSet,
    /// Ranges given by hand that were looked at.
    looked_at: usize,
    /// Ranges given by hand that are not to be cut, each once.
    left_out: Vec<PageRange>,
}

impl Cutter {
    /// Makes a cutter that leaves finished pages out.
    #[must_use]
    pub fn new(table: &DumpTable) -> Self {
        Self {
            taken: table.done.clone(),
            looked_at: 0,
            left_out: Vec::new(),
        }
    }

    /// Leaves out a range that someone is reading already.
    pub fn leave_out(&mut self, table: &DumpTable, pages: PageRange) {
        match &table.wanted {
            WantedPages::Whole => drop(self.taken.insert(pages)),
            WantedPages::Ranges(_) => self.left_out.push(pages),
        }
    }

    /// Leaves out what was finished meanwhile, whoever had handed it out.
    pub fn leave_out_done(&mut self, table: &DumpTable) {
        if table.wanted == WantedPages::Whole {
            self.taken.insert_all(&table.done);
        }
    }

    /// Cuts the next range; `None` when nothing is left.
    pub fn next(&mut self, table: &DumpTable, range_bytes: u64) -> Option<PageRange> {
        match &table.wanted {
            WantedPages::Whole => self.next_of_whole(table, range_bytes),
            WantedPages::Ranges(ranges) => loop {
                let pages = *ranges.get(self.looked_at)?;
                self.looked_at += 1;
                let left_out = self.left_out.iter().position(|known| *known == pages);
                if let Some(index) = left_out {
                    self.left_out.swap_remove(index);
                } else if !table.done.contains(pages) {
                    return Some(pages);
                }
            },
        }
    }

    /// Tells whether something is left to cut.
    #[must_use]
    pub fn has_next(&self, table: &DumpTable) -> bool {
        match &table.wanted {
            WantedPages::Whole => self.taken.first_gap(0).is_some(),
            WantedPages::Ranges(ranges) => {
                let mut left_out = self.left_out.clone();
                let mut rest = ranges.get(self.looked_at..).unwrap_or_default().iter();
                rest.any(|pages| {
                    let known = left_out.iter().position(|known| known == pages);
                    known.map(|index| left_out.swap_remove(index)).is_none()
                        && !table.done.contains(*pages)
                })
            }
        }
    }

    fn next_of_whole(&mut self, table: &DumpTable, range_bytes: u64) -> Option<PageRange> {
        let gap = self.taken.first_gap(0)?;
        let count = page_count(table, range_bytes);
        let last = gap.first.saturating_add(count - 1);
        // A rest that is not worth a snapshot of its own goes along.
        let rest = u64::from(table.layout.pages_end).saturating_sub(u64::from(last) + 1);
        let is_last = rest <= u64::from(count / 4);
        let range = PageRange {
            first: gap.first,
            last: if is_last {
                gap.last
            } else {
                last.min(gap.last)
            },
        };
        self.taken.insert(range);
        Some(range)
    }
}

/// Returns the same pages with a last one that every reader can count to and scan.
///
/// A range without an end ends far enough behind the planned end of the table: at twice as many
/// pages, and `GROWTH_PAGES_MIN` more. What is written behind even that, since the plan, comes as
/// changes.
#[must_use]
pub fn with_end(table: &DumpTable, pages: PageRange) -> PageRange {
    if pages.last != PageRange::OPEN {
        return pages;
    }
    let pages_end = table.layout.pages_end;
    let last = pages_end.saturating_mul(2).saturating_add(GROWTH_PAGES_MIN);
    let last = last.min(FOREIGN_PAGE_MAX).max(pages.first);
    PageRange { last, ..pages }
}

/// Returns how large ranges are before they are stretched.
///
/// Rows of all that are open wait in buffers of a fixed size until it is their turn, and so do the changes
/// of their consumer. So the more are read at once the smaller they are, together two of the default size;
/// a size that somebody asked for is kept.
#[must_use]
pub fn base_bytes(options: &DumpOptions) -> u64 {
    if options.range_bytes != DumpOptions::DEFAULT_RANGE_BYTES {
        return options.range_bytes;
    }
    let parallel = u64::from(options.parallel.clamp(2, RANGES_OPEN_MAX));
    DumpOptions::DEFAULT_RANGE_BYTES * 2 / parallel
}

/// Returns how many times their size the next ranges have, after one that had `stretch` times its size
/// and took so long: longer ones while they are done in less than half of [`RANGE_TIME`], shorter ones
/// beyond it. Only of the default size: one that somebody asked for is kept, a rate or a pause wants
/// small steps, and more than two at once hide what it costs to open one.
#[must_use]
pub fn stretch(options: &DumpOptions, stretch: u32, took: Duration) -> u32 {
    let is_default = options.range_bytes == DumpOptions::DEFAULT_RANGE_BYTES;
    let wants_small = options.parallel > DumpOptions::DEFAULT_PARALLEL
        || options.rate_bytes_per_second.is_some()
        || !options.cool_down.is_zero();
    if !is_default || wants_small {
        1
    } else if took < RANGE_TIME / 2 {
        stretch.saturating_mul(2).min(STRETCH_MAX)
    } else if took > RANGE_TIME {
        (stretch / 2).max(1)
    } else {
        stretch
    }
}

/// Guesses the bytes of some pages of a table; of what lies behind its planned end, nothing.
#[must_use]
pub fn guess_bytes(table: &DumpTable, pages: PageRange) -> u64 {
    let end = u64::from(pages.last)
        .saturating_add(1)
        .min(u64::from(table.layout.pages_end));
    let count = end.saturating_sub(u64::from(pages.first));
    count.saturating_mul(bytes_per_page(table))
}

/// Guesses the bytes of the wanted pages that are not finished.
#[must_use]
pub fn guess_bytes_left(table: &DumpTable) -> u64 {
    let (done, total) = page_counts(table);
    total
        .saturating_sub(done)
        .saturating_mul(bytes_per_page(table))
}

/// Counts finished and wanted pages, up to the planned end of the table.
#[must_use]
pub fn page_counts(table: &DumpTable) -> (u64, u64) {
    let end = table.layout.pages_end;
    let total = match &table.wanted {
        WantedPages::Whole => u64::from(end),
        WantedPages::Ranges(ranges) => {
            let mut wanted = PageSet::new();
            for pages in ranges {
                wanted.insert(*pages);
            }
            wanted.count_below(end)
        }
    };
    (table.done.count_below(end), total)
}

/// Returns how many pages make a range of that size; at least one.
fn page_count(table: &DumpTable, range_bytes: u64) -> u32 {
    let count = range_bytes / bytes_per_page(table);
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

fn bytes_per_page(table: &DumpTable) -> u64 {
    let planned = match table.layout.pages_end {
        0 => PAGE_BYTES,
        pages => (table.layout.bytes / u64::from(pages)).max(1),
    };
    let seen_pages = table.done.count_below(table.layout.pages_end);
    if seen_pages < SEEN_PAGES_MIN {
        return planned;
    }
    let least = (planned / CORRECTION_MAX).max(1);
    let most = planned.saturating_mul(CORRECTION_MAX);
    (table.bytes / seen_pages).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::schedule::fixtures::table, *};

    const MIB: u64 = 1 << 20;

    fn cut_all(table: &DumpTable, range_bytes: u64) -> Vec<(u32, u32)> {
        let mut cutter = Cutter::new(table);
        let mut ranges = Vec::new();
        while cutter.has_next(table) {
            let range = cutter.next(table, range_bytes).unwrap();
            ranges.push((range.first, range.last));
        }
        assert_eq!(cutter.next(table, range_bytes), None);
        ranges
    }

    fn finish(table: &mut DumpTable, first: u32, last: u32, bytes: u64) {
        table.done.insert(PageRange { first, last });
        table.bytes += bytes;
    }

    #[test]
    fn ranges_have_the_wanted_size_and_the_last_has_no_end() {
        const END: u32 = u32::MAX;
        for (pages_end, ranges) in [
            (0, vec![(0, END)]),
            (1, vec![(0, END)]),
            (128, vec![(0, END)]),
            (160, vec![(0, END)]),
            (161, vec![(0, 127), (128, END)]),
            (288, vec![(0, 127), (128, END)]),
            (300, vec![(0, 127), (128, 255), (256, END)]),
            (400, vec![(0, 127), (128, 255), (256, END)]),
        ] {
            assert_eq!(cut_all(&table(pages_end), MIB), ranges, "{pages_end} pages");
        }
    }

    #[test]
    fn a_range_without_an_end_gets_one_behind_the_table() {
        const OPEN: u32 = PageRange::OPEN;
        for (pages_end, first, last, given) in [
            (0, 0, OPEN, 1_024),
            (100, 0, OPEN, 1_224),
            (100, 64, OPEN, 1_224),
            (100, 10, 19, 19),
            (100, 10, 5_000_000, 5_000_000),
            (100, 5_000, OPEN, 5_000),
            (3_000_000_000, 2_000_000_000, OPEN, 2_147_483_646),
            (u32::MAX, u32::MAX, OPEN, OPEN),
        ] {
            let pages = with_end(&table(pages_end), PageRange { first, last });
            assert_eq!(
                (pages.first, pages.last),
                (first, given),
                "{pages_end} pages"
            );
        }
    }

    #[test]
    fn fast_ranges_grow_and_slow_ones_shrink_within_limits() {
        let options = DumpOptions::default();
        let millis = Duration::from_millis;
        for (before, took, after) in [
            (1, 80, 2),
            (4, 249, 8),
            (8, 0, 8),
            (4, 250, 4),
            (4, 500, 4),
            (4, 501, 2),
            (1, 60_000, 1),
        ] {
            assert_eq!(
                stretch(&options, before, millis(took)),
                after,
                "{before} {took}"
            );
        }
        let asked = DumpOptions {
            range_bytes: DumpOptions::DEFAULT_RANGE_BYTES + 1,
            ..DumpOptions::default()
        };
        let limited = DumpOptions {
            rate_bytes_per_second: Some(1 << 30),
            ..DumpOptions::default()
        };
        let paused = DumpOptions {
            cool_down: millis(1),
            ..DumpOptions::default()
        };
        for options in [asked, limited, paused] {
            assert_eq!(stretch(&options, 4, millis(1)), 1);
        }
    }

    #[test]
    fn wide_rows_make_short_ranges_and_one_page_is_the_least() {
        let mut wide = table(10);
        wide.layout.bytes = 10 * MIB;
        assert_eq!(cut_all(&wide, MIB).len(), 10);
        wide.layout.bytes = 100_000 * MIB;
        assert_eq!(cut_all(&wide, MIB).len(), 10);
    }

    #[test]
    fn what_was_delivered_corrects_the_size_within_limits() {
        for (bytes_seen, next) in [
            (128 * 8_192, 128),
            (128 * 16_384, 64),
            (128 * 4_096, 256),
            (0, 1_024),
            (128 * MIB, 16),
        ] {
            let mut table = table(100_000);
            finish(&mut table, 0, 127, bytes_seen);
            let range = Cutter::new(&table).next(&table, MIB).unwrap();
            assert_eq!(range.last - range.first + 1, next, "{bytes_seen} bytes");
        }
    }

    #[test]
    fn finished_pages_are_left_out() {
        let mut table = table(1_000);
        finish(&mut table, 0, 99, 100 * 8_192);
        finish(&mut table, 150, 899, 750 * 8_192);
        assert_eq!(cut_all(&table, MIB), [(100, 149), (900, u32::MAX)]);
    }

    #[test]
    fn ranges_given_by_hand_come_exactly_as_given() {
        let mut table = table(1_000);
        let given =
            [(0, 9), (5, 14), (990, 2_000), (0, 9)].map(|(first, last)| PageRange { first, last });
        table.wanted = WantedPages::Ranges(given.to_vec());
        let cut = cut_all(&table, 1);
        assert_eq!(cut, given.map(|pages| (pages.first, pages.last)));
        finish(&mut table, 5, 14, 0);
        assert_eq!(cut_all(&table, 1), [(0, 9), (990, 2_000), (0, 9)]);
        finish(&mut table, 0, 4, 0);
        assert_eq!(cut_all(&table, 1), [(990, 2_000)]);
    }

    #[test]
    fn what_is_being_read_is_left_out() {
        let pages = |first, last| PageRange { first, last };
        let mut table = table(1_000);
        let mut cutter = Cutter::new(&table);
        cutter.leave_out(&table, pages(0, 127));
        assert_eq!(cutter.next(&table, MIB), Some(pages(128, 255)));

        table.wanted = WantedPages::Ranges(vec![pages(0, 9), pages(0, 9), pages(10, 19)]);
        let mut cutter = Cutter::new(&table);
        cutter.leave_out(&table, pages(0, 9));
        cutter.leave_out(&table, pages(10, 19));
        assert!(cutter.has_next(&table));
        assert_eq!(cutter.next(&table, MIB), Some(pages(0, 9)));
        assert!(!cutter.has_next(&table));
        assert_eq!(cutter.next(&table, MIB), None);
    }

    proptest! {
        #[test]
        fn every_page_is_cut_exactly_once(
            pages_end in 0_u32..3_000,
            done in proptest::collection::vec((0_u32..3_500, 0_u32..300), 0..8),
            range_bytes in 1_u64..4 * MIB,
        ) {
            let mut table = table(pages_end);
            for (first, length) in done {
                finish(&mut table, first, first + length, u64::from(length) * 5_000);
            }
            let mut cutter = Cutter::new(&table);
            let mut covered = table.done.clone();
            while let Some(range) = cutter.next(&table, range_bytes) {
                prop_assert!(range.first <= range.last);
                let before = covered.count_below(u32::MAX);
                covered.insert(range);
                let added = covered.count_below(u32::MAX) - before;
                let length = u64::from(range.last).min(u64::from(u32::MAX) - 1) + 1 - u64::from(range.first);
                prop_assert_eq!(added, length, "{:?} overlaps", range);
            }
            prop_assert!(covered.contains(PageRange::ALL));
        }
    }
}

//! Makes the tables of a dump from what was asked for and what a replica has.
//!
//! Names and patterns may meet at the same heap; it is dumped once. Whatever is wrong with one table
//! is wrong with the dump: nobody wants half of what they asked for without being told.

use std::collections::BTreeMap;

use pgcapture_engine::{
    cluster::{PlannedTable, WantedPages},
    codes,
    dump::{PageRange, TableName},
};

use super::{DumpError, FoundTable, RangeRemedy, ScheduledRange, TableRequest, TablesFound};

/// Plans tables by names and patterns, some with page ranges.
///
/// # Errors
///
/// [`DumpError`] about the first table that cannot be dumped so.
pub(super) fn tables(
    requests: &[TableRequest],
    found: TablesFound,
) -> Result<Vec<PlannedTable>, DumpError> {
    let tables = without_problems(found)?;
    let mut by_hand: BTreeMap<String, Vec<PageRange>> = BTreeMap::new();
    for request in requests.iter().filter(|request| !request.pages.is_empty()) {
        let known = by_hand.entry(request.pattern.clone()).or_default();
        known.extend_from_slice(&request.pages);
    }
    let planned = plan(tables, &mut by_hand, true)?;
    if let Some(name) = by_hand.into_keys().next() {
        return Err(not_one_heap(&name));
    }
    Ok(planned)
}

/// Plans tables by their page ranges alone, as existing schedulers give them: behind the end of a table
/// there are no rows, and that is no error.
///
/// # Errors
///
/// [`DumpError`] about the first table that cannot be dumped so.
pub(super) fn scheduled(
    ranges: &[ScheduledRange],
    found: TablesFound,
) -> Result<Vec<PlannedTable>, DumpError> {
    let tables = without_problems(found)?;
    let mut by_hand: BTreeMap<String, Vec<PageRange>> = BTreeMap::new();
    for range in ranges {
        let known = by_hand.entry(range.table.to_string()).or_default();
        known.push(range.pages);
    }
    let tables = tables
        .into_iter()
        .filter(|table| by_hand.contains_key(&table.heap.name.to_string()))
        .collect();
    let planned = plan(tables, &mut by_hand, false)?;
    if let Some(name) = by_hand.into_keys().next() {
        return Err(not_one_heap(&name));
    }
    Ok(planned)
}

/// Names each table of a schedule once, in the order they come.
pub(super) fn names(ranges: &[ScheduledRange]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    for range in ranges {
        if known.insert(&range.table) {
            names.push(range.table.to_string());
        }
    }
    names
}

fn without_problems(found: TablesFound) -> Result<Vec<FoundTable>, DumpError> {
    let count = found.problems.len();
    let mut problems = found.problems.into_iter();
    let Some(mut first) = problems.next() else {
        if found.tables.is_empty() {
            let what = "nothing that was asked for leads to a table".to_owned();
            return Err(refused(&codes::dump::BAD_REQUEST, what));
        }
        return Ok(found.tables);
    };
    if count > 1 {
        first.what = format!("{}; and {} more cannot be dumped", first.what, count - 1);
    }
    Err(first)
}

/// Takes the ranges of each table out of `by_hand`.
fn plan(
    tables: Vec<FoundTable>,
    by_hand: &mut BTreeMap<String, Vec<PageRange>>,
    ends_matter: bool,
) -> Result<Vec<PlannedTable>, DumpError> {
    let mut planned: BTreeMap<u32, usize> = BTreeMap::new();
    let mut plans = Vec::with_capacity(tables.len());
    for table in tables {
        let index = plans.len();
        if *planned.entry(table.heap.oid).or_insert(index) != index {
            continue;
        }
        let wanted = match by_hand.remove(&table.heap.name.to_string()) {
            Some(ranges) => {
                let end = ends_matter.then_some(table.layout.pages_end);
                check(&table.heap.name, &ranges, end)?;
                WantedPages::Ranges(ranges)
            }
            None => WantedPages::Whole,
        };
        plans.push(PlannedTable {
            heap: table.heap,
            wanted,
            layout: table.layout,
            needs_sweep: table.has_toast,
        });
    }
    Ok(plans)
}

fn check(table: &TableName, ranges: &[PageRange], end: Option<u32>) -> Result<(), DumpError> {
    for pages in ranges {
        if pages.first > pages.last {
            let what = format!(
                "pages {}-{} of {table} run backwards",
                pages.first, pages.last
            );
            return Err(refused(&codes::dump::PAGES_BACKWARDS, what));
        }
        // The first page of an empty table may be asked for: it is about to have one.
        if let Some(end) = end.filter(|end| pages.first >= (*end).max(1)) {
            let what = format!("pages {pages} of {table}: it has {end} pages, counted from 0");
            return Err(refused(&codes::dump::PAGES_BEYOND_END, what));
        }
    }
    Ok(())
}

fn not_one_heap(name: &str) -> DumpError {
    let what = format!(
        "page ranges need the name of one table with pages of its own, and \"{name}\" is none: give \
         schema.table, and the partitions of a partitioned table one by one"
    );
    refused(&codes::dump::BAD_REQUEST, what)
}

fn refused(explanation: &'static codes::Explanation, what: String) -> DumpError {
    DumpError {
        explanation,
        what,
        remedy: RangeRemedy::Fail,
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_engine::{cluster::TableLayout, codes::existing_rows, dump::Heap};

    use super::*;

    fn name(table: &str) -> TableName {
        TableName {
            schema: "public".to_owned(),
            table: table.to_owned(),
        }
    }

    fn found(tables: &[(&str, u32, u32)]) -> TablesFound {
        let table = |(table, oid, pages_end): &(&str, u32, u32)| FoundTable {
            heap: Heap {
                name: name(table),
                label: name(table),
                oid: *oid,
                filenode: *oid,
            },
            layout: TableLayout {
                pages_end: *pages_end,
                ..TableLayout::default()
            },
            has_toast: table.starts_with("wide"),
        };
        TablesFound {
            tables: tables.iter().map(table).collect(),
            problems: Vec::new(),
        }
    }

    fn request(pattern: &str, pages: &[(u32, u32)]) -> TableRequest {
        TableRequest {
            pattern: pattern.to_owned(),
            pages: ranges(pages),
        }
    }

    fn ranges(pages: &[(u32, u32)]) -> Vec<PageRange> {
        let range = |(first, last): &(u32, u32)| PageRange {
            first: *first,
            last: *last,
        };
        pages.iter().map(range).collect()
    }

    #[test]
    fn whole_tables_and_page_ranges_are_planned_as_asked() {
        let requests = [
            request("public.*", &[]),
            request("public.orders", &[(0, 4), (3, 500)]),
            request("public.orders", &[(9, 9)]),
        ];
        let tables_found = found(&[("orders", 1, 10), ("wide", 2, 5), ("orders", 1, 10)]);
        let planned = tables(&requests, tables_found).unwrap();
        assert_eq!(planned.len(), 2, "one heap, one table");
        let wanted = WantedPages::Ranges(ranges(&[(0, 4), (3, 500), (9, 9)]));
        assert_eq!(planned[0].wanted, wanted);
        assert!(!planned[0].needs_sweep);
        assert_eq!(planned[1].wanted, WantedPages::Whole);
        assert!(planned[1].needs_sweep, "its changes may leave values out");
    }

    #[test]
    fn wrong_page_ranges_are_refused_with_their_code() {
        for (pages_end, pages, code) in [
            (10, (9, 3), Some("PGC-E02")),
            (10, (10, 12), Some("PGC-E03")),
            (10, (9, 12), None),
            (0, (0, 0), None),
            (0, (1, 1), Some("PGC-E03")),
        ] {
            let requests = [request("public.orders", &[pages])];
            let planned = tables(&requests, found(&[("orders", 1, pages_end)]));
            let found_code = planned.err().map(|error| error.explanation.code);
            assert_eq!(found_code, code, "{pages:?} of {pages_end}");
        }
    }

    #[test]
    fn page_ranges_need_one_heap() {
        for pattern in ["public.*", "public.partitioned", "orders"] {
            let requests = [request(pattern, &[(0, 1)])];
            let error = tables(&requests, found(&[("orders", 1, 10)])).unwrap_err();
            assert_eq!(error.explanation.code, "PGC-E07");
            assert!(error.what.contains(pattern), "{}", error.what);
        }
    }

    #[test]
    fn what_the_replica_says_is_wrong_is_passed_on() {
        let problem = || DumpError {
            explanation: &existing_rows::NO_SELECT,
            what: "the role may not read table public.secret".to_owned(),
            remedy: RangeRemedy::Fail,
        };
        let with_problems = |problems| TablesFound {
            problems,
            ..found(&[("orders", 1, 10)])
        };
        let requests = [request("public.*", &[])];
        let error = tables(&requests, with_problems(vec![problem()])).unwrap_err();
        assert_eq!(error.explanation.code, "PGC-E28");
        let three = vec![problem(), problem(), problem()];
        let error = tables(&requests, with_problems(three)).unwrap_err();
        assert!(error.what.ends_with("and 2 more cannot be dumped"));
        let error = tables(&requests, found(&[])).unwrap_err();
        assert_eq!(error.explanation.code, "PGC-E07");
    }

    #[test]
    fn a_schedule_takes_ranges_beyond_the_end_and_names_each_table_once() {
        let range = |table: &str, first, last| ScheduledRange {
            table: name(table),
            pages: PageRange { first, last },
        };
        let schedule = [
            range("b", 0, 9),
            range("a", 0, 0),
            range("b", 10, 5_000),
            range("b", 6_000, 6_001),
        ];
        assert_eq!(names(&schedule), ["public.b", "public.a"]);
        let planned = scheduled(&schedule, found(&[("a", 1, 0), ("b", 2, 10)])).unwrap();
        let wanted = WantedPages::Ranges(ranges(&[(0, 9), (10, 5_000), (6_000, 6_001)]));
        assert_eq!(planned[1].wanted, wanted);

        let partitioned = scheduled(&schedule, found(&[("b", 2, 10), ("leaf", 3, 1)]));
        assert!(partitioned.unwrap_err().what.contains("public.a"));
        let backwards = scheduled(&[range("b", 5, 1)], found(&[("b", 2, 10)]));
        assert_eq!(backwards.unwrap_err().explanation.code, "PGC-E02");
    }
}

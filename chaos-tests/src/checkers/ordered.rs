//! P4, ordered: within a session (commit LSN, seq) strictly increases. A message that the consumer
//! itself sent back comes again out of order, and is left out here; `at_least_once` judges it.
//!
//! Also: a writer's transactions appear in the order in which the writer committed them.

use std::collections::{HashMap, HashSet};

use super::{
    evidence::{Evidence, ledger_key},
    findings::Findings,
};
use crate::history::event::{Event, Item, Reader};

/// Looks for steps back.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    let mut last = HashMap::new();
    let mut nacked = HashSet::new();
    for entry in &evidence.entries {
        if let Event::Nacked(place) = &entry.event {
            nacked.insert(place.checkpoint());
        }
        let Event::Delivered { place, item } = &entry.event else {
            continue;
        };
        let at = place.checkpoint();
        if nacked.contains(&at) || matches!(item, Item::Gap { .. }) {
            continue;
        }
        let before = last.insert((place.reader, place.session), at);
        if let Some(before) = before.filter(|before| *before >= at) {
            findings.add("ordered/step_back", || {
                format!("{before:?} before {place:?}")
            });
        }
    }
    writers_in_order(evidence, findings);
}

fn writers_in_order(evidence: &Evidence, findings: &mut Findings) {
    let mut last: HashMap<i64, i64> = HashMap::new();
    for (place, op, row) in evidence.changes(Reader::Log) {
        let Some(key) = ledger_key(op, row) else {
            continue;
        };
        let Some(transaction) = evidence.write(&key).map(|written| written.transaction) else {
            continue;
        };
        let before = last.insert(key.writer, transaction.tx);
        if before.is_some_and(|before| before > transaction.tx) {
            findings.add("ordered/writer_step_back", || {
                let (writer, tx) = (key.writer, transaction.tx);
                format!("writer {writer}: {before:?} before {tx} at {place:?}")
            });
        }
    }
}

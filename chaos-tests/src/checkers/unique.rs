//! P2, unique in the log: no position (commit LSN, seq) is in the log twice, and no write is there
//! under two positions.

use std::collections::HashSet;

use super::{
    evidence::{Evidence, WriteKey},
    findings::Findings,
};
use crate::history::event::{Item, Reader};

/// Looks for doubles.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    let mut seen = HashSet::new();
    for (place, item) in evidence.delivered(Reader::Log) {
        // A gap lies between positions and has none of its own.
        if !matches!(item, Item::Gap { .. }) && !seen.insert(place.checkpoint()) {
            findings.add("unique/position_twice", || format!("{place:?} {item:?}"));
        }
    }
    for transaction in &evidence.journal {
        for write in &transaction.kept {
            let key = WriteKey::of_write(transaction.writer, write);
            let mut places = evidence.sightings(&key).to_vec();
            places.sort_unstable();
            places.dedup();
            if places.len() > 1 {
                findings.add("unique/write_twice", || format!("{key:?} at {places:?}"));
            }
        }
    }
}

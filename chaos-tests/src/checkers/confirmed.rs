//! P6, never confirm what is not durable: no transaction before the slot's confirmed position is
//! missing from the durable log.
//!
//! A sample reads the slot first and the log's durable position second, so a position that moves in
//! between can only hide a violation, never make one up. An idle database lets the slot pass the last
//! transaction of the log (there is nothing in between), so positions are not compared with each
//! other but by the transactions that lie between them: PostgreSQL will not send again what committed
//! before the confirmed position.

use super::{evidence::Evidence, findings::Findings};
use crate::history::event::{Event, Item, Reader};

/// Compares each sample with the transactions of the log.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    let mut commits: Vec<u64> = evidence
        .delivered(Reader::Log)
        .filter(|(_, item)| matches!(item, Item::Commit { .. }))
        .map(|(place, _)| place.lsn)
        .collect();
    commits.sort_unstable();
    for entry in &evidence.entries {
        let Event::Sampled { confirmed, durable } = entry.event else {
            continue;
        };
        let confirmed_count = commits.partition_point(|lsn| *lsn < confirmed);
        let last_confirmed = confirmed_count
            .checked_sub(1)
            .and_then(|index| commits.get(index));
        if let Some(lsn) = last_confirmed.filter(|lsn| **lsn > durable) {
            findings.add("confirmed/ahead_of_durable", || {
                let at = entry.at_us;
                format!("at {at} us: slot {confirmed}, log {durable}, transaction {lsn} between")
            });
        }
    }
}

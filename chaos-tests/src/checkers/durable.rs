//! Durable before delivered: what a consumer was ever given is in the log afterwards, at the same
//! position and with the same content, whatever was killed in between.

use std::collections::HashMap;

use super::{evidence::Evidence, findings::Findings};
use crate::history::event::Reader;

/// Compares what the consumer got with the log.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    let in_log: HashMap<_, _> = evidence
        .changes(Reader::Log)
        .map(|(place, op, row)| (place.checkpoint(), (op, row)))
        .collect();
    for (place, op, row) in evidence.changes(Reader::Consumer) {
        match in_log.get(&place.checkpoint()) {
            None => findings.add("durable/delivered_but_not_in_log", || {
                format!("{op:?} {row:?} at {place:?}")
            }),
            Some(logged) if *logged != (op, row) => {
                findings.add("durable/delivered_something_else", || {
                    format!("{op:?} {row:?} at {place:?}, the log has {logged:?}")
                });
            }
            Some(_) => {}
        }
    }
}

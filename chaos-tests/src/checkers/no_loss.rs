//! P1, no silent loss: every write of a transaction that the source acknowledged is in the log, and
//! nothing that was rolled back is. A transaction with an unknown outcome is there as a whole or not
//! at all; once the source has been asked, it is no longer unknown.
//!
//! A declared gap is a violation too: no fault of these scenarios excuses one.

use super::{
    evidence::{Evidence, WriteKey, ledger_key},
    findings::Findings,
};
use crate::{
    history::event::{Item, Reader},
    workload::journal::{Outcome, Transaction},
};

/// Looks for writes that are missing, and for such that must not be there.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    for transaction in &evidence.journal {
        check_transaction(evidence, transaction, findings);
    }
    for (place, op, row) in evidence.changes(Reader::Log) {
        let Some(key) = ledger_key(op, row) else {
            continue;
        };
        match evidence.write(&key) {
            None => findings.add("no_loss/never_written", || format!("{key:?} at {place:?}")),
            Some(by) if by.is_kept && by.transaction.outcome != Outcome::RolledBack => {}
            Some(by) => findings.add("no_loss/rolled_back_row_present", || {
                format!("{key:?} of transaction {} at {place:?}", by.transaction.tx)
            }),
        }
    }
    for (place, item) in evidence.delivered(Reader::Log) {
        if matches!(item, Item::Gap { .. }) {
            findings.add("no_loss/gap_without_cause", || {
                format!("{item:?} at {place:?}")
            });
        }
    }
}

fn check_transaction(evidence: &Evidence, transaction: &Transaction, findings: &mut Findings) {
    let (writer, tx) = (transaction.writer, transaction.tx);
    let is_seen = |write| {
        let key = WriteKey::of_write(writer, write);
        !evidence.sightings(&key).is_empty()
    };
    let missing: Vec<_> = (transaction.kept.iter())
        .filter(|write| !is_seen(write))
        .collect();
    match transaction.outcome {
        Outcome::Committed => {
            for write in missing {
                findings.add("no_loss/lost", || {
                    format!("writer {writer} transaction {tx} {write:?}")
                });
            }
        }
        Outcome::Unknown => {
            if !missing.is_empty() && missing.len() < transaction.kept.len() {
                findings.add("no_loss/half_of_unknown", || {
                    let (missing, of) = (missing.len(), transaction.kept.len());
                    format!("writer {writer} transaction {tx}: {missing} of {of} missing")
                });
            }
        }
        Outcome::RolledBack => {}
    }
}

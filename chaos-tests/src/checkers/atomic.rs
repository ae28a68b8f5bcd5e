//! P5, atomic: the log is a sequence of whole transactions. Between Begin and Commit of one there is
//! nothing else, `seq` counts from 0 without a hole, and all rows that a writer wrote in one
//! transaction lie in one transaction of the log.

use std::collections::HashMap;

use super::{
    evidence::{Evidence, ledger_key},
    findings::Findings,
};
use crate::history::event::{Item, Place, Reader};

/// Looks for torn transactions.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    let mut open: Option<&Place> = None;
    for (place, item) in evidence.delivered(Reader::Log) {
        match item {
            Item::Begin => {
                if let Some(before) = open {
                    findings.add("atomic/no_commit", || format!("after {before:?}"));
                }
                if place.seq != 0 {
                    findings.add("atomic/begin_is_not_0", || format!("{place:?}"));
                }
                open = Some(place);
            }
            Item::Change { .. } | Item::Commit { .. } | Item::Other { .. } => {
                let follows = open.is_some_and(|before| {
                    before.lsn == place.lsn
                        && before.session == place.session
                        && before.seq.checked_add(1) == Some(place.seq)
                });
                if !follows {
                    findings.add("atomic/hole", || format!("{place:?} after {open:?}"));
                }
                open = (!matches!(item, Item::Commit { .. })).then_some(place);
            }
            Item::Gap { .. } => {}
        }
    }
    if let Some(last) = open {
        findings.add("atomic/no_commit", || format!("at the end, after {last:?}"));
    }
    one_transaction_each(evidence, findings);
}

fn one_transaction_each(evidence: &Evidence, findings: &mut Findings) {
    let mut home: HashMap<(i64, i64), u64> = HashMap::new();
    let mut guest: HashMap<u64, (i64, i64)> = HashMap::new();
    for (place, op, row) in evidence.changes(Reader::Log) {
        let Some((key, transaction)) =
            ledger_key(op, row).and_then(|key| Some((key, evidence.write(&key)?.transaction)))
        else {
            continue;
        };
        let whose = (key.writer, transaction.tx);
        if *home.entry(whose).or_insert(place.lsn) != place.lsn {
            findings.add("atomic/torn", || format!("{whose:?} also at {place:?}"));
        }
        let first = *guest.entry(place.lsn).or_insert(whose);
        if first != whose {
            findings.add("atomic/mixed", || {
                format!("{first:?} and {whose:?} at {place:?}")
            });
        }
        let row_is_of_another = row.tx.is_some_and(|tx| tx != transaction.tx);
        if row_is_of_another {
            findings.add("atomic/wrong_transaction", || {
                format!("{row:?} at {place:?}")
            });
        }
    }
}

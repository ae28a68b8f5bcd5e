//! Values: what a reader gets is what was written. The text of a ledger row is a function of writer
//! and key, so each delivered text can be judged. An insert carries it always; an update may leave it
//! out when it is stored out of line and unchanged.

use super::{
    evidence::{Evidence, ledger_key},
    findings::Findings,
};
use crate::{
    history::{
        event::Reader,
        row::{Operation, Row, Table, hash_text},
    },
    workload::plan::pad,
};

/// Looks for rows that carry something else than was written.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    for reader in [Reader::Log, Reader::Consumer] {
        for (place, op, row) in evidence.changes(reader) {
            if row.table == Table::Ledger && !is_as_written(op, row) {
                findings.add("values/garbled", || format!("{op:?} {row:?} at {place:?}"));
            }
        }
    }
    for (place, op, row) in evidence.changes(Reader::Log) {
        let Some(key) = ledger_key(op, row) else {
            continue;
        };
        let Some(written) = evidence.write(&key) else {
            continue;
        };
        if Some(written.write.id) != row.id {
            findings.add("values/wrong_key", || {
                format!("{op:?} {row:?} at {place:?}")
            });
        }
    }
}

fn is_as_written(op: Operation, row: &Row) -> bool {
    let (Some(writer), Some(id)) = (row.writer, row.id) else {
        return false;
    };
    let is_right = |hash| hash == hash_text(pad(writer, id).as_bytes());
    match op {
        Operation::Insert => row.pad.is_some_and(is_right),
        Operation::Update => row.pad.is_none_or(is_right),
        Operation::Delete => true,
    }
}

//! Bank: at every commit in the log, the balances of all accounts have the sum they began with. Money
//! moves in one transaction, so a lost, doubled or torn transfer shows at once.

use std::collections::HashMap;

use super::{evidence::Evidence, findings::Findings};
use crate::history::{
    event::{Item, Reader},
    row::{Operation, Table},
};

/// Replays the accounts and adds them up at each commit.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    let wanted = usize::try_from(evidence.header.accounts).unwrap_or(usize::MAX);
    if wanted == 0 {
        return;
    }
    let mut balances: HashMap<i64, i64> = HashMap::new();
    let mut sum: i64 = 0;
    let mut is_dirty = false;
    for (place, item) in evidence.delivered(Reader::Log) {
        match item {
            Item::Change { op, row } if row.table == Table::Accounts => {
                let (Some(id), Some(balance)) = (row.id, row.balance) else {
                    findings.add("bank/unreadable", || format!("{op:?} {row:?} at {place:?}"));
                    continue;
                };
                let before = balances.insert(id, balance);
                if before.is_some() != (*op == Operation::Update) {
                    findings.add("bank/unexpected", || format!("{op:?} {row:?} at {place:?}"));
                }
                sum += balance - before.unwrap_or(0);
                is_dirty = true;
            }
            Item::Commit { .. } => {
                let is_off = balances.len() == wanted && sum != evidence.header.total_balance;
                if is_off && is_dirty {
                    findings.add("bank/sum", || {
                        format!("{sum} after the commit at {place:?}")
                    });
                }
                is_dirty = false;
            }
            Item::Begin | Item::Change { .. } | Item::Gap { .. } | Item::Other { .. } => {}
        }
    }
    if balances.len() != wanted {
        findings.add("bank/accounts_missing", || {
            format!("{} of {wanted} accounts in the log", balances.len())
        });
    }
}

//! Soundness of the run itself: an experiment that put no load on the system, injected fewer faults
//! than asked, never compared slot and log, or could not read the log to its end, proves nothing and
//! is not a pass.
//!
//! Also carries on what the run itself saw go wrong while it ran (a reader that never caught up, a
//! node that did not come back or did not end cleanly).

use super::{evidence::Evidence, findings::Findings};
use crate::history::{
    event::{Event, FaultOutcome, Item, Reader},
    row::Table,
};

/// Looks for reasons not to believe a pass of a run with a log and a consumer.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    check_with(evidence, &[Reader::Log, Reader::Consumer], findings);
}

/// Looks for reasons not to believe a pass of a run with these readers.
pub fn check_with(evidence: &Evidence, readers: &[Reader], findings: &mut Findings) {
    let mut installed = 0_u32;
    let mut with_progress = 0_u32;
    let mut samples = 0_u32;
    for entry in &evidence.entries {
        if let Event::Trouble { property, what } = &entry.event {
            findings.add(property, || what.clone());
        } else if matches!(entry.event, Event::Sampled { .. }) {
            samples += 1;
        } else if let Event::Fault {
            outcome: FaultOutcome::Installed,
            made_progress,
            ..
        } = &entry.event
        {
            installed += 1;
            with_progress += u32::from(*made_progress);
        }
    }
    let wanted = evidence.header.faults_wanted;
    if installed < wanted {
        findings.add("sound/too_few_faults", || {
            format!("{installed} of {wanted}")
        });
    }
    if with_progress * 2 < installed {
        findings.add("sound/faults_without_load", || {
            format!("only {with_progress} of {installed} faults hit a capture that had moved on")
        });
    }
    if samples == 0 && wanted > 0 {
        findings.add("sound/no_samples", || {
            "slot and log were never compared".to_owned()
        });
    }
    check_load(evidence, findings);
    check_marker(evidence, readers, findings);
}

fn check_load(evidence: &Evidence, findings: &mut Findings) {
    let (header, load) = (&evidence.header, &evidence.load);
    let pairs = [
        ("rows", load.rows, header.rows_per_second_min),
        (
            "transactions",
            load.transactions,
            header.transactions_per_second_min,
        ),
    ];
    for (what, done, per_second_min) in pairs {
        let wanted = u64::from(per_second_min) * load.busy_ms / 1000;
        if per_second_min > 0 && (done < wanted || load.busy_ms == 0) {
            findings.add("sound/too_little_load", || {
                format!("{done} {what} in {} ms, at least {wanted}", load.busy_ms)
            });
        }
    }
}

fn check_marker(evidence: &Evidence, readers: &[Reader], findings: &mut Findings) {
    let marker = Some(evidence.header.last_marker);
    for reader in readers.iter().copied() {
        let has_marker = evidence.delivered(reader).any(|(_, item)| {
            matches!(item, Item::Change { row, .. } if row.table == Table::Marker && row.id == marker)
        });
        if !has_marker {
            findings.add("sound/not_read_to_the_end", || {
                format!("{reader:?} did not get the last marker")
            });
        }
    }
}

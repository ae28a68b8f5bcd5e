//! The verdict of the scenario: the stream against what the writers committed, in one line of JSON.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::fault::{Kind, OWNER};
use crate::{
    checkers::{
        atomic, bank, confirmed,
        evidence::{Evidence, WriteKey},
        findings::{Findings, Violation},
        no_loss, ordered, sound, unique, values,
    },
    history::event::{Entry, Event, Reader},
    report,
    workload::journal::{Outcome, Transaction},
};

/// The one line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// `pass`, `fail` or `error`.
    pub verdict: &'static str,
    /// Always `cluster`.
    pub scenario: &'static str,
    /// Seed of all random choices.
    pub seed: u64,
    /// Seconds that writers wrote.
    pub seconds: u64,
    /// SIGKILLs, each before a start or while one was under way.
    pub kills: u64,
    /// SIGTERMs with a start.
    pub restarts: u64,
    /// SIGSTOPs with a SIGCONT.
    pub freezes: u64,
    /// Faults that struck the node which then read the source.
    pub owner_struck: u64,
    /// Transactions that the source committed.
    pub transactions: u64,
    /// Rows of the ledger that it committed.
    pub committed: u64,
    /// Those of them that the stream brought.
    pub delivered: u64,
    /// Those of them that it did not bring.
    pub lost: u64,
    /// Positions or writes that it brought twice.
    pub doubled: u64,
    /// Steps back in the order of positions.
    pub out_of_order: u64,
    /// Times that the stream was opened.
    pub sessions: u64,
    /// The longest time without a message while writers wrote, in milliseconds.
    pub longest_pause_ms: u64,
    /// Times that the slot was compared with what the consumer had.
    pub samples: u64,
    /// Everything that broke a promise.
    pub violations: Vec<Violation>,
    /// What went wrong in the harness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Verdict {
    /// Judges what a run recorded.
    #[must_use]
    pub fn of(entries: Vec<Entry>, journal: Vec<Transaction>) -> Self {
        let evidence = Evidence::new(entries, journal);
        let findings = judge(&evidence);
        let mut verdict = Self {
            verdict: if findings.is_empty() { "pass" } else { "fail" },
            seconds: evidence.load.busy_ms / 1000,
            lost: findings.count("no_loss/lost"),
            doubled: report::doubles(&findings),
            out_of_order: findings.count("ordered/step_back")
                + findings.count("ordered/writer_step_back"),
            longest_pause_ms: longest_pause_us(&evidence.entries) / 1000,
            violations: findings.violations(),
            ..Self::empty(evidence.header.seed)
        };
        verdict.count_writes(&evidence);
        verdict.count_events(&evidence);
        verdict
    }

    /// Reports that the harness failed.
    #[must_use]
    pub fn error(seed: u64, error: &anyhow::Error) -> Self {
        Self {
            error: Some(format!("{error:#}")),
            ..Self::empty(seed)
        }
    }

    /// Returns the process's exit code: 0 pass, 1 fail, 2 neither.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        report::exit_code(self.verdict)
    }

    /// Returns the line, without an end of line.
    ///
    /// # Errors
    ///
    /// Never for a verdict of ours; serialising has an error type all the same.
    pub fn to_line(&self) -> Result<String> {
        serde_json::to_string(self).context("write the verdict")
    }

    fn empty(seed: u64) -> Self {
        Self {
            verdict: "error",
            scenario: "cluster",
            seed,
            ..Self::default()
        }
    }

    fn count_writes(&mut self, evidence: &Evidence) {
        let committed = evidence.journal.iter();
        let committed = committed.filter(|it| it.outcome == Outcome::Committed);
        for transaction in committed {
            self.transactions += 1;
            self.committed += transaction.kept.len() as u64;
            for write in &transaction.kept {
                let key = WriteKey::of_write(transaction.writer, write);
                self.delivered += u64::from(!evidence.sightings(&key).is_empty());
            }
        }
    }

    fn count_events(&mut self, evidence: &Evidence) {
        for entry in &evidence.entries {
            if let Event::Fault { name, .. } = &entry.event {
                self.owner_struck += u64::from(name.ends_with(OWNER));
                let kind = name.split(' ').next().unwrap_or_default();
                if kind == Kind::Restart.name() {
                    self.restarts += 1;
                } else if kind == Kind::Freeze.name() {
                    self.freezes += 1;
                } else {
                    self.kills += 1;
                }
            } else if matches!(entry.event, Event::Sampled { .. }) {
                self.samples += 1;
            } else if matches!(entry.event, Event::Opened { .. }) {
                self.sessions += 1;
            }
        }
    }
}

/// Judges the stream by every property. It stands in the history in the place of the log.
fn judge(evidence: &Evidence) -> Findings {
    let mut findings = Findings::default();
    sound::check_with(evidence, &[Reader::Log], &mut findings);
    check_strikes(evidence, &mut findings);
    check_unbroken(evidence, &mut findings);
    for check in [
        no_loss::check,
        unique::check,
        ordered::check,
        atomic::check,
        values::check,
        bank::check,
        confirmed::check,
    ] {
        check(evidence, &mut findings);
    }
    findings
}

/// Faults that mostly strike followers prove nothing of a failover.
fn check_strikes(evidence: &Evidence, findings: &mut Findings) {
    let names = evidence.entries.iter().filter_map(|entry| {
        let Event::Fault { name, .. } = &entry.event else {
            return None;
        };
        Some(name)
    });
    let (all, of_owner) = names.fold((0, 0), |(all, of_owner), name| {
        (all + 1, of_owner + u32::from(name.ends_with(OWNER)))
    });
    if of_owner * 2 < all {
        findings.add("sound/followers_struck", || {
            format!("{of_owner} of {all} faults struck the node that read the source")
        });
    }
}

/// The consumer never leaves, and its node is never struck: nothing may end its stream.
fn check_unbroken(evidence: &Evidence, findings: &mut Findings) {
    for entry in &evidence.entries {
        if let Event::Ended { session, cause, .. } = &entry.event {
            findings.add("stream/ended", || format!("session {session}: {cause}"));
        }
    }
}

/// Returns the longest time between two messages from the first one until the writers ended.
fn longest_pause_us(entries: &[Entry]) -> u64 {
    let mut last = None;
    let mut longest = 0;
    for entry in entries {
        let is_end = matches!(entry.event, Event::Load(_));
        if is_end || matches!(entry.event, Event::Delivered { .. }) {
            let before = last.replace(entry.at_us).unwrap_or(entry.at_us);
            longest = longest.max(entry.at_us - before);
        }
        if is_end {
            break;
        }
    }
    longest
}
